//! JSON Web Tokens (RFC 7519): checks whether a token is valid, and reads its caller from the claims.
//!
//! The header of a token (`alg`, `kid`, `jku`, `jwk`, `x5u`) chooses no URL, no key material and no algorithm: `alg`
//! must be the algorithm of the key, `kid` selects among the known keys, and the rest is ignored.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jsonwebtoken::Validation;
use jsonwebtoken::errors::ErrorKind;
use serde_json::Value;
use thiserror::Error;

use super::claims::Claims;
use super::key::Key;
use super::keys::Keys;
use super::{AuthError, Caller, SettingError, crypto};
use crate::config;
use crate::metrics::Metrics;

/// Why a token is not valid. The text is for the client and repeats nothing of the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BadToken {
    /// Not a JWT, or one with extensions that this gateway does not support.
    #[error("the token is not a JWT that this gateway can read")]
    Malformed,
    /// Not signed, or not with the algorithm of its key.
    #[error("the token is not signed with the algorithm that this gateway requires")]
    Algorithm,
    /// Its `kid` names an unknown key.
    #[error("the token is signed with a key that this gateway does not know")]
    UnknownKey,
    /// The signature is wrong.
    #[error("the signature of the token is not valid")]
    Signature,
    /// `exp` is in the past.
    #[error("the token has expired")]
    Expired,
    /// `nbf` is in the future.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// `aud` names another party.
    #[error("the token is for another audience")]
    Audience,
    /// `iss` names another party.
    #[error("the token is from another issuer")]
    Issuer,
    /// A claim is missing, or is not of its type.
    #[error("a claim that this gateway requires is missing from the token or has a wrong type: {0}")]
    Claim(&'static str),
}

/// Checks tokens by the settings of `[auth.jwt]`.
#[derive(Debug)]
pub(super) struct Jwt {
    keys: Keys,
    /// The checks of the claims. The algorithm is the key's.
    validation: Validation,
    claims: Claims,
}

impl Jwt {
    /// Reads the key from its setting or its file, or begins to fetch the keys. Keys that `before` has fetched from the
    /// same URL are taken over.
    pub(super) fn new(
        settings: &config::Jwt,
        claims: Claims,
        metrics: &Arc<Metrics>,
        before: Option<&Jwt>,
    ) -> Result<Self, SettingError> {
        crypto::install();
        let keys = Keys::new(settings, metrics, before.map(|before| &before.keys))?;
        let leeway = settings.leeway.as_secs();
        let mut validation = Validation { leeway, validate_nbf: true, ..Validation::default() };
        for (name, expected) in [("aud", &settings.audience), ("iss", &settings.issuer)] {
            if !expected.is_empty() {
                validation.required_spec_claims.insert(name.to_owned());
            }
        }
        // If no audience is configured, a token that names one is meant for another party (RFC 7519, section 4.1.3).
        if !settings.audience.is_empty() {
            validation.set_audience(&settings.audience);
        }
        if !settings.issuer.is_empty() {
            validation.set_issuer(&settings.issuer);
        }
        Ok(Jwt { keys, validation, claims })
    }

    /// Checks a token, and returns its caller.
    ///
    /// # Errors
    /// [`AuthError::BadToken`], or [`AuthError::Unavailable`] if its key cannot be fetched now.
    pub(super) async fn read(&self, token: &[u8]) -> Result<Caller, AuthError> {
        let header = jsonwebtoken::decode_header(token).map_err(|error| why(error.kind()))?;
        // Extensions that must be understood (RFC 7515, section 4.1.11); this gateway supports none.
        if header.crit.is_some() {
            return Err(BadToken::Malformed.into());
        }
        let keys = self.keys.find(header.kid.as_deref()).await?;
        // A token that names no key is checked only if a single key has its algorithm.
        let of_its_kind = keys.iter().filter(|key| key.algorithm() == header.alg).count();
        if header.kid.is_none() && of_its_kind > 1 {
            return Err(BadToken::UnknownKey.into());
        }
        let mut problem = BadToken::UnknownKey;
        for key in keys.iter().filter(|key| key.may_have(header.kid.as_deref())) {
            if key.algorithm() != header.alg {
                problem = BadToken::Algorithm;
                continue;
            }
            match self.check(token, key) {
                // Another key of that name may match.
                Err(BadToken::Signature) => problem = BadToken::Signature,
                // The library checks `aud` only if it is a string or a list of strings.
                Ok(claims) if self.validation.aud.is_none() && !claims["aud"].is_null() => {
                    return Err(BadToken::Audience.into());
                }
                outcome => return Ok(self.caller(&outcome?)),
            }
        }
        Err(problem.into())
    }

    fn check(&self, token: &[u8], key: &Key) -> Result<Value, BadToken> {
        let validation = Validation { algorithms: vec![key.algorithm()], ..self.validation.clone() };
        let decoded = jsonwebtoken::decode::<Value>(token, key.decoding(), &validation);
        decoded.map(|token| token.claims).map_err(|error| why(error.kind()))
    }

    fn caller(&self, claims: &Value) -> Caller {
        let leeway = Duration::from_secs(self.validation.leeway);
        // The claim has been checked: it is a number and not negative. A time out of range counts as no end.
        let expires = claims["exp"].as_f64().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let (subscribe, publish) = self.claims.grants(claims);
        Caller {
            subject: claims["sub"].as_str().map(Into::into),
            subscribe,
            publish,
            expires: expires.and_then(|time| SystemTime::UNIX_EPOCH.checked_add(time.checked_add(leeway)?)),
            voucher: None,
        }
    }

    /// Whether a token that `other` accepted means the same here. The leeway does not matter: a stream ends at the time
    /// that was set when it opened.
    pub(super) fn reads_as(&self, other: &Jwt) -> bool {
        self.keys.are(&other.keys)
            && self.claims == other.claims
            && self.validation.aud == other.validation.aud
            && self.validation.iss == other.validation.iss
    }
}

fn why(error: &ErrorKind) -> BadToken {
    match error {
        ErrorKind::InvalidSignature => BadToken::Signature,
        ErrorKind::InvalidAlgorithm | ErrorKind::UnsupportedAlgorithm => BadToken::Algorithm,
        ErrorKind::ExpiredSignature => BadToken::Expired,
        ErrorKind::ImmatureSignature => BadToken::NotYetValid,
        ErrorKind::InvalidAudience => BadToken::Audience,
        ErrorKind::InvalidIssuer => BadToken::Issuer,
        ErrorKind::MissingRequiredClaim(claim) | ErrorKind::InvalidClaimFormat(claim) => {
            BadToken::Claim(match claim.as_str() {
                "exp" => "exp",
                "nbf" => "nbf",
                "aud" => "aud",
                _ => "iss",
            })
        }
        _ => BadToken::Malformed,
    }
}
