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
use super::{Action, AuthError, Caller, SettingError, crypto};
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
    /// A number is too large to be read, such as 1e400.
    #[error("the token has a number that is out of range")]
    OutOfRange,
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
    /// The JSON pointer of the claim that says until when a stream may last.
    until: String,
    /// For how long a stream may last by that claim.
    until_limit: Duration,
}

/// A token that is valid.
pub(super) struct Verified {
    pub(super) caller: Caller,
    /// The key that signed it, if a stream may outlast it.
    pub(super) extended_by: Option<Arc<Key>>,
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
        let (until, until_limit) = (settings.until.clone(), settings.until_limit);
        Ok(Jwt { keys, validation, claims, until, until_limit })
    }

    /// Checks a token, and returns its caller. The permission of the caller ends when that for `action` does.
    ///
    /// # Errors
    /// [`AuthError::BadToken`], or [`AuthError::Unavailable`] if its key cannot be fetched now.
    pub(super) async fn read(&self, token: &[u8], action: Action) -> Result<Verified, AuthError> {
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
                outcome => return Ok(self.verified(&outcome?, action, key)?),
            }
        }
        Err(problem.into())
    }

    fn check(&self, token: &[u8], key: &Key) -> Result<Value, BadToken> {
        let validation = Validation { algorithms: vec![key.algorithm()], ..self.validation.clone() };
        let decoded = jsonwebtoken::decode::<Value>(token, key.decoding(), &validation);
        decoded.map(|token| token.claims).map_err(|error| why(error.kind()))
    }

    fn verified(&self, claims: &Value, action: Action, key: &Arc<Key>) -> Result<Verified, BadToken> {
        // The claim has been checked: it is a number and not negative.
        let expires = claims["exp"].as_f64().and_then(|seconds| self.end(seconds));
        let until = self.until(claims)?;
        let ends = match until.filter(|_| action == Action::Subscribe) {
            Some(until) => self.stream_end(expires, until),
            None => expires,
        };
        // Exact to the moment, where the library counts in whole seconds: the streams end by the same clock.
        let now = SystemTime::now();
        if [expires, ends].into_iter().flatten().any(|end| end <= now) {
            return Err(BadToken::Expired);
        }
        let outlasts = expires.zip(ends).is_some_and(|(expires, ends)| ends > expires);
        let (subscribe, publish) = self.claims.grants(claims);
        let subject = claims["sub"].as_str().map(Into::into);
        let caller = Caller { subject, subscribe, publish, expires: ends, voucher: None };
        Ok(Verified { caller, extended_by: outlasts.then(|| key.clone()) })
    }

    /// The claim that says until when a stream may last, in seconds, if the token has it. Anything else than a time is
    /// refused, because its signer meant something that would not happen.
    fn until(&self, claims: &Value) -> Result<Option<f64>, BadToken> {
        match claims.pointer(&self.until) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                let seconds = value.as_f64().filter(|seconds| *seconds >= 0.0);
                seconds.map(Some).ok_or(BadToken::Claim("until"))
            }
        }
    }

    /// When a stream ends whose token says `until`. The limit shortens `until`, and never what `exp` alone allows.
    fn stream_end(&self, expires: Option<SystemTime>, until: f64) -> Option<SystemTime> {
        let limit = SystemTime::now().checked_add(self.until_limit);
        let latest = expires.and_then(|expires| Some(expires.max(limit?)));
        [self.end(until), latest].into_iter().flatten().min()
    }

    /// The moment at which a claim ends a permission; `None` if it is out of range, which counts as no end.
    fn end(&self, seconds: f64) -> Option<SystemTime> {
        let leeway = Duration::from_secs(self.validation.leeway);
        let time = Duration::try_from_secs_f64(seconds).ok()?;
        SystemTime::UNIX_EPOCH.checked_add(time.checked_add(leeway)?)
    }

    /// Whether a token that `other` accepted means the same here. The leeway does not matter: a stream ends at the time
    /// that was set when it opened.
    pub(super) fn reads_as(&self, other: &Jwt) -> bool {
        self.keys.are(&other.keys)
            && self.claims == other.claims
            && self.validation.aud == other.validation.aud
            && self.validation.iss == other.validation.iss
    }

    /// Whether a stream that outlasts its token by the settings of `other` may do so by these too.
    pub(super) fn extends_as(&self, other: &Jwt) -> bool {
        self.until == other.until && self.until_limit >= other.until_limit
    }

    /// Whether a key is in use.
    pub(super) fn has(&self, key: &Key) -> bool {
        self.keys.have(key)
    }

    /// How many times a key was withdrawn from the key set.
    pub(super) fn withdrawals(&self) -> u64 {
        self.keys.withdrawals()
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
        // The library that parses JSON has no kind for this, only the text.
        ErrorKind::Json(error) if error.to_string().starts_with("number out of range") => {
            BadToken::OutOfRange
        }
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
