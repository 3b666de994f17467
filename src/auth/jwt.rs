//! JSON Web Tokens (RFC 7519): whether one holds, and what it says of its bearer.
//!
//! What a token says of itself (`alg`, `kid`, `jku`, `jwk`, `x5u`) chooses neither a URL nor key material nor an
//! algorithm: `alg` must be that of the key, `kid` picks among keys that are known already, the rest is not looked at.

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

/// What is wrong with a token. The text is for the one who sent it, and repeats nothing of the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BadToken {
    /// Not a JWT, or one that this gateway does not understand all of.
    #[error("the token is not a JWT that can be read here")]
    Malformed,
    /// Signed in another way than its key is for, or not at all.
    #[error("the token is not signed with the algorithm that is asked for here")]
    Algorithm,
    /// Its `kid` names no key that is known.
    #[error("the token is signed with a key that is not known here")]
    UnknownKey,
    /// The signature does not hold.
    #[error("the signature of the token does not hold")]
    Signature,
    /// `exp` is over.
    #[error("the token has expired")]
    Expired,
    /// `nbf` is to come.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// `aud` names somebody else.
    #[error("the token is for another audience")]
    Audience,
    /// `iss` names somebody else.
    #[error("the token is from another issuer")]
    Issuer,
    /// A claim is missing, or is not of its type.
    #[error("the token lacks a claim that is needed here, or has it in another form: {0}")]
    Claim(&'static str),
}

/// Reads tokens.
#[derive(Debug)]
pub(super) struct Jwt {
    keys: Keys,
    /// All but the algorithm, which is the key's.
    validation: Validation,
    claims: Claims,
}

impl Jwt {
    /// Reads the file that the setting names, if it names one, or begins to fetch the keys; those that were fetched
    /// `before` from the same place are taken over.
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
        // Without an audience of ours, a token that names one is meant for somebody else (RFC 7519, section 4.1.3).
        if !settings.audience.is_empty() {
            validation.set_audience(&settings.audience);
        }
        if !settings.issuer.is_empty() {
            validation.set_issuer(&settings.issuer);
        }
        Ok(Jwt { keys, validation, claims })
    }

    /// Whom the token speaks of.
    ///
    /// # Errors
    /// [`AuthError::BadToken`], or what the keys could not be had for.
    pub(super) async fn read(&self, token: &[u8]) -> Result<Caller, AuthError> {
        let header = jsonwebtoken::decode_header(token).map_err(|error| why(error.kind()))?;
        // Extensions that must be understood (RFC 7515, section 4.1.11), and none is here.
        if header.crit.is_some() {
            return Err(BadToken::Malformed.into());
        }
        let keys = self.keys.find(header.kid.as_deref()).await?;
        // A token that names no key is for the one that it can be for, if there is only one.
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
                // The other keys have their say.
                Err(BadToken::Signature) => problem = BadToken::Signature,
                // The library looks for an audience only where it is a text or a list of them.
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
        // The claim was found to be a number and not negative. One beyond all time is as good as none.
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

    /// Whether a token that `other` took says the same here. The leeway is no part of that: a stream ends when it was told.
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
