//! JSON Web Tokens (RFC 7519): the keys they are checked with, and what one that holds says of its bearer.
//!
//! The algorithm belongs to the key. What a token says of itself (`alg`, `kid`, `jku`, `jwk`, `x5u`) chooses neither a
//! URL nor key material nor an algorithm: `alg` must be that of the key, `kid` picks among keys that are known already,
//! the rest is not looked at.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{self, AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind, Validation};
use serde_json::Value;
use thiserror::Error;

use super::claims::Claims;
use super::{AuthError, Caller, SettingError, crypto};
use crate::config;

/// Bytes of the smallest RSA modulus that is taken, 2048 bits.
const RSA_BYTES: usize = 256;

/// One key that tokens are checked with, and the one algorithm that it is for.
#[derive(Debug, Clone)]
pub struct Key {
    kid: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

impl Key {
    /// The shared secret of an HMAC, its bytes as they are.
    pub fn from_secret(secret: &str, algorithm: Algorithm) -> Result<Self, String> {
        Key::new(None, algorithm, DecodingKey::from_secret(secret.as_bytes()))
    }

    /// A public key, PEM. Without an `algorithm`, the usual one of its kind: RS256, ES256, ES384 or EdDSA.
    ///
    /// # Errors
    /// What is wrong with it, to follow the name of the file.
    pub fn from_pem(pem: &str, algorithm: Option<Algorithm>) -> Result<Self, String> {
        if pem.contains("PRIVATE KEY-----") {
            return Err(
                "is a private key; the gateway needs the public one alone (openssl pkey -pubout)".into()
            );
        }
        if pem.contains("BEGIN CERTIFICATE") {
            return Err("is a certificate; write the public key in it (openssl x509 -pubkey -noout)".into());
        }
        if pem.matches("-----BEGIN ").count() > 1 {
            return Err("holds several keys; leave one, or serve them as a JWKS (auth.jwt.jwks_url)".into());
        }
        let bytes = pem.as_bytes();
        let key = DecodingKey::from_rsa_pem(bytes)
            .or_else(|_| DecodingKey::from_ec_pem(bytes))
            .or_else(|_| DecodingKey::from_ed_pem(bytes))
            .map_err(|_| "is no public key of RSA, P-256, P-384 or Ed25519 in PEM (BEGIN PUBLIC KEY)")?;
        let usual = match (key.family(), key.try_get_as_bytes().map_or(0, <[u8]>::len)) {
            (AlgorithmFamily::Ec, P384_BYTES) => Algorithm::ES384,
            (AlgorithmFamily::Ec, _) => Algorithm::ES256,
            (AlgorithmFamily::Ed, _) => Algorithm::EdDSA,
            _ => Algorithm::RS256,
        };
        Key::new(None, algorithm.unwrap_or(usual), key)
    }

    /// A public key out of a JWKS. `algorithm` is the one that the configuration pins: a key that names another, or
    /// cannot be used with it, is not taken. Without it the key's own `alg` counts, else the usual one of its kind.
    ///
    /// # Errors
    /// Why it is not one to check tokens with.
    pub fn from_jwk(jwk: &Jwk, algorithm: Option<Algorithm>) -> Result<Self, String> {
        let common = &jwk.common;
        if common.public_key_use.as_ref().is_some_and(|usage| *usage != PublicKeyUse::Signature)
            || common.key_operations.as_ref().is_some_and(|all| !all.contains(&KeyOperations::Verify))
        {
            return Err("is not for signatures".into());
        }
        let usual = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => Algorithm::RS256,
            AlgorithmParameters::EllipticCurve(jwk::EllipticCurveKeyParameters { curve, .. }) => {
                match curve {
                    EllipticCurve::P256 => Algorithm::ES256,
                    EllipticCurve::P384 => Algorithm::ES384,
                    _ => return Err("is of a curve that is not P-256 or P-384".into()),
                }
            }
            AlgorithmParameters::OctetKeyPair(parameters) if parameters.curve == EllipticCurve::Ed25519 => {
                Algorithm::EdDSA
            }
            // A secret that a URL shows is none.
            _ => return Err("is no public key of RSA, P-256, P-384 or Ed25519".into()),
        };
        let own = match common.key_algorithm {
            Some(own) => Some(Algorithm::try_from(own).map_err(|_| format!("has alg {own}"))?),
            None => None,
        };
        if let (Some(own), Some(pinned)) = (own, algorithm)
            && own != pinned
        {
            return Err(format!("is for {own:?} and auth.jwt.algorithm is {pinned:?}"));
        }
        let key = DecodingKey::from_jwk(jwk).map_err(|error| error.to_string())?;
        Key::new(common.key_id.clone(), algorithm.or(own).unwrap_or(usual), key)
    }

    fn new(kid: Option<String>, algorithm: Algorithm, key: DecodingKey) -> Result<Self, String> {
        let fits = algorithm.family() == key.family();
        let bytes = key.try_get_as_bytes().unwrap_or_default();
        let strong = match (algorithm, key.kind()) {
            (Algorithm::ES256, _) => bytes.len() == P256_BYTES,
            (Algorithm::ES384, _) => bytes.len() == P384_BYTES,
            (Algorithm::EdDSA, _) => bytes.len() == 32,
            (_, DecodingKeyKind::RsaModulusExponent { n, .. }) => {
                n.iter().skip_while(|byte| **byte == 0).count() >= RSA_BYTES
            }
            // The DER of a key is its modulus and a few bytes.
            (_, DecodingKeyKind::SecretOrDer(der)) => {
                fits && (algorithm.family() != AlgorithmFamily::Rsa || der.len() > RSA_BYTES)
            }
        };
        match (fits, strong) {
            (false, _) => Err(format!("is no key for {algorithm:?}; see auth.jwt.algorithm")),
            (true, false) if algorithm.family() == AlgorithmFamily::Rsa => {
                Err("is an RSA key of less than 2048 bits".into())
            }
            (true, false) => Err(format!("is no key for {algorithm:?}; see auth.jwt.algorithm")),
            (true, true) => Ok(Key { kid, algorithm, key }),
        }
    }
}

/// Bytes of a point, uncompressed.
const P256_BYTES: usize = 65;
const P384_BYTES: usize = 97;

/// The keys that a token may be signed with.
#[derive(Debug)]
pub enum Keys {
    /// One that the configuration names.
    Static(Arc<[Key]>),
}

impl Keys {
    /// Those that may hold for a token which says `kid`. A key without an id may hold for any.
    async fn find(&self, _kid: Option<&str>) -> Result<Arc<[Key]>, AuthError> {
        match self {
            Keys::Static(keys) => Ok(keys.clone()),
        }
    }
}

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
    /// Reads the file that the setting names, if it names one.
    pub(super) fn new(settings: &config::Jwt, claims: Claims) -> Result<Self, SettingError> {
        crypto::install();
        let wrong = |key: &str, problem: String| SettingError(format!("{key} {problem}"));
        let keys = match &settings.keys {
            config::JwtKeys::Secret(secret) => {
                let algorithm = settings.algorithm.unwrap_or(Algorithm::HS256);
                let key = Key::from_secret(&secret.0, algorithm);
                Keys::Static([key.map_err(|problem| wrong("auth.jwt.secret", problem))?].into())
            }
            config::JwtKeys::PublicKey(path) => {
                let name = format!("auth.jwt.public_key: {}", path.display());
                let pem = std::fs::read_to_string(path)
                    .map_err(|error| wrong(&name, format!("cannot be read: {error}")))?;
                let key = Key::from_pem(&pem, settings.algorithm);
                Keys::Static([key.map_err(|problem| wrong(&name, problem))?].into())
            }
            config::JwtKeys::JwksUrl(_) => {
                return Err(wrong("auth.jwt.jwks_url", "is not in this version".into()));
            }
        };
        let mut validation = Validation::default();
        validation.leeway = settings.leeway.as_secs();
        validation.validate_nbf = true;
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
        let mut problem = BadToken::UnknownKey;
        for key in &*keys {
            if let (Some(wanted), Some(kid)) = (&header.kid, &key.kid)
                && wanted != kid
            {
                continue;
            }
            if key.algorithm != header.alg {
                problem = BadToken::Algorithm;
                continue;
            }
            match self.check(token, key) {
                // The other keys have their say.
                Err(BadToken::Signature) => problem = BadToken::Signature,
                outcome => return Ok(self.caller(&outcome?)),
            }
        }
        Err(problem.into())
    }

    fn check(&self, token: &[u8], key: &Key) -> Result<Value, BadToken> {
        let validation = Validation { algorithms: vec![key.algorithm], ..self.validation.clone() };
        let decoded = jsonwebtoken::decode::<Value>(token, &key.key, &validation);
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
        }
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
