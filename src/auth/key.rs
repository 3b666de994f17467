//! A key that checks tokens. Each key has one algorithm, which the configuration or the key itself fixes; a token
//! cannot choose it.

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind};

/// The smallest RSA modulus that is accepted, in bytes: 2048 bits, as `ring` requires.
const RSA_BYTES: usize = 256;

/// The lengths in bytes of a P-256 point, a P-384 point and an Ed25519 key.
const P256_BYTES: usize = 65;
const P384_BYTES: usize = 97;
const ED25519_BYTES: usize = 32;

/// A key and its algorithm.
#[derive(Debug, Clone)]
pub struct Key {
    kid: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

impl Key {
    /// A secret that is shared with the issuer: its bytes are the key.
    ///
    /// # Errors
    /// The algorithm requires a public key.
    pub fn from_secret(secret: &str, algorithm: Algorithm) -> Result<Self, String> {
        Key::new(None, algorithm, DecodingKey::from_secret(secret.as_bytes()))
    }

    /// A public key in PEM. Without an `algorithm`, it has the usual one of its type: RS256, ES256, ES384 or EdDSA.
    ///
    /// # Errors
    /// What is wrong with it, to be written after the name of its file.
    pub fn from_pem(pem: &str, algorithm: Option<Algorithm>) -> Result<Self, String> {
        if pem.contains("PRIVATE KEY-----") {
            return Err("is a private key; name the public key instead \
                        (openssl pkey -pubout)"
                .into());
        }
        if pem.contains("-----BEGIN CERTIFICATE") {
            return Err("is a certificate; extract its public key (openssl x509 -pubkey -noout)".into());
        }
        if pem.matches("-----BEGIN ").count() > 1 {
            return Err("has several keys; keep one, or serve them as a key set (auth.jwt.jwks_url)".into());
        }
        let bytes = pem.as_bytes();
        let key = DecodingKey::from_rsa_pem(bytes)
            .or_else(|_| DecodingKey::from_ec_pem(bytes))
            .or_else(|_| DecodingKey::from_ed_pem(bytes))
            .map_err(
                |_| "is not an RSA, P-256, P-384 or Ed25519 public key in PEM (-----BEGIN PUBLIC KEY-----)",
            )?;
        let usual = match key.family() {
            AlgorithmFamily::Ec if length(&key) == P384_BYTES => Algorithm::ES384,
            AlgorithmFamily::Ec => Algorithm::ES256,
            AlgorithmFamily::Ed => Algorithm::EdDSA,
            AlgorithmFamily::Rsa | AlgorithmFamily::Hmac => Algorithm::RS256,
        };
        Key::new(None, algorithm.unwrap_or(usual), key)
    }

    /// A public key of a key set. `algorithm` is the one that the configuration pins; a key for another algorithm is
    /// rejected. Without it, the key's own `alg` counts, otherwise the usual one of its type.
    ///
    /// # Errors
    /// Why the key cannot be used.
    pub fn from_jwk(jwk: &Jwk, algorithm: Option<Algorithm>) -> Result<Self, String> {
        let common = &jwk.common;
        if common.public_key_use.as_ref().is_some_and(|usage| *usage != PublicKeyUse::Signature)
            || common.key_operations.as_ref().is_some_and(|all| !all.contains(&KeyOperations::Verify))
        {
            return Err("is not for signatures".into());
        }
        let usual = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => Algorithm::RS256,
            AlgorithmParameters::EllipticCurve(point) if point.curve == EllipticCurve::P256 => {
                Algorithm::ES256
            }
            AlgorithmParameters::EllipticCurve(point) if point.curve == EllipticCurve::P384 => {
                Algorithm::ES384
            }
            AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => {
                Algorithm::EdDSA
            }
            // A secret that is published at a URL is not secret.
            _ => return Err("is not an RSA, P-256, P-384 or Ed25519 public key".into()),
        };
        let own = match common.key_algorithm {
            Some(own) => Some(Algorithm::try_from(own).map_err(|_| "is for an unknown algorithm")?),
            None => None,
        };
        if let (Some(own), Some(pinned)) = (own, algorithm)
            && own != pinned
        {
            return Err(format!("is for {own:?}, but auth.jwt.algorithm is {pinned:?}"));
        }
        let key = DecodingKey::from_jwk(jwk).map_err(|error| format!("cannot be read: {error}"))?;
        Key::new(common.key_id.clone(), algorithm.or(own).unwrap_or(usual), key)
    }

    /// Checks that the key fits its algorithm. Otherwise it would refuse every token without saying why.
    fn new(kid: Option<String>, algorithm: Algorithm, key: DecodingKey) -> Result<Self, String> {
        let fits = match algorithm {
            Algorithm::ES256 => length(&key) == P256_BYTES,
            Algorithm::ES384 => length(&key) == P384_BYTES,
            Algorithm::EdDSA => length(&key) == ED25519_BYTES,
            _ => true,
        };
        if key.family() != algorithm.family() || !fits {
            return Err(format!("is not a key for {algorithm:?}; check auth.jwt.algorithm"));
        }
        if key.family() == AlgorithmFamily::Rsa && length(&key) < RSA_BYTES {
            return Err("is an RSA key of less than 2048 bits".into());
        }
        Ok(Key { kid, algorithm, key })
    }

    /// Whether a token with this `kid` may be signed with this key. A key or a token without an id matches any.
    pub(super) fn may_have(&self, kid: Option<&str>) -> bool {
        kid.zip(self.kid.as_deref()).is_none_or(|(theirs, ours)| theirs == ours)
    }

    /// The `kid` under which it is published.
    pub(super) fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    pub(super) fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    pub(super) fn decoding(&self) -> &DecodingKey {
        &self.key
    }

    /// Whether it is the same key, for the same algorithm.
    pub(crate) fn is(&self, other: &Key) -> bool {
        use DecodingKeyKind::{RsaModulusExponent, SecretOrDer};
        let same = match (self.key.kind(), other.key.kind()) {
            (SecretOrDer(one), SecretOrDer(two)) => one == two,
            (RsaModulusExponent { n, e }, RsaModulusExponent { n: n2, e: e2 }) => (n, e) == (n2, e2),
            _ => false,
        };
        same && self.algorithm == other.algorithm
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.kid == other.kid && self.is(other)
    }
}

impl Eq for Key {}

/// The length of the key in bytes. For an RSA key, the length of its modulus, or of the DER around it, which is a few
/// bytes longer.
fn length(key: &DecodingKey) -> usize {
    match key.kind() {
        DecodingKeyKind::SecretOrDer(bytes) => bytes.len(),
        DecodingKeyKind::RsaModulusExponent { n, .. } => n.iter().skip_while(|byte| **byte == 0).count(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_key_of_a_set_is_accepted_for_one_algorithm_or_rejected() {
        use Algorithm::{ES256, ES384, EdDSA, HS256, PS256, RS256};
        // Only their lengths are checked.
        let (bytes, short) = (|count: usize| "A".repeat(count.div_ceil(3) * 4 - 1), "A".repeat(170));
        let point =
            |curve, count| json!({"kty": "EC", "crv": curve, "x": "A".repeat(count), "y": "A".repeat(count)});
        let rsa = json!({"kty": "RSA", "n": "_".repeat(342 - 1) + "w", "e": "AQAB"});
        let weak = json!({"kty": "RSA", "n": short, "e": "AQAB"});
        let (p256, p384) = (point("P-256", 43), point("P-384", 64));
        let ed = json!({"kty": "OKP", "crv": "Ed25519", "x": bytes(32)});
        let with = |key: &Value, name: &str, value: Value| {
            let mut key = key.clone();
            key[name] = value;
            key
        };
        for (jwk, pinned, taken) in [
            (rsa.clone(), None, Some(RS256)),
            (rsa.clone(), Some(PS256), Some(PS256)),
            (rsa.clone(), Some(ES256), None),
            (rsa.clone(), Some(HS256), None),
            (with(&rsa, "alg", json!("PS256")), None, Some(PS256)),
            (with(&rsa, "alg", json!("PS256")), Some(PS256), Some(PS256)),
            (with(&rsa, "alg", json!("PS256")), Some(RS256), None),
            (with(&rsa, "alg", json!("HS256")), None, None),
            (with(&rsa, "alg", json!("RSA-OAEP")), None, None),
            (with(&rsa, "alg", json!("none")), None, None),
            (with(&rsa, "use", json!("sig")), None, Some(RS256)),
            (with(&rsa, "use", json!("enc")), None, None),
            (with(&rsa, "key_ops", json!(["verify"])), None, Some(RS256)),
            (with(&rsa, "key_ops", json!(["encrypt"])), None, None),
            (weak, None, None),
            (p256.clone(), None, Some(ES256)),
            (p384.clone(), None, Some(ES384)),
            (p384, Some(ES256), None),
            (with(&p256, "x", json!("A".repeat(42))), None, None),
            (point("P-521", 88), None, None),
            (ed.clone(), None, Some(EdDSA)),
            (with(&ed, "x", json!("AAAA")), None, None),
            (json!({"kty": "oct", "k": bytes(32)}), None, None),
            (json!({"kty": "oct", "k": bytes(32), "alg": "HS256"}), Some(HS256), None),
            (json!({"kty": "new"}), None, None),
        ] {
            let key = Key::from_jwk(&serde_json::from_value(jwk.clone()).unwrap(), pinned);
            assert_eq!(key.ok().map(|key| key.algorithm), taken, "{jwk} for {pinned:?}");
        }
    }

    #[test]
    fn a_key_id_selects_a_key_and_a_missing_id_excludes_none() {
        let key = |kid: Option<&str>| Key {
            kid: kid.map(str::to_owned),
            ..Key::from_secret("0123456789abcdef0123456789abcdef", Algorithm::HS256).unwrap()
        };
        for (ours, theirs, may) in [
            (Some("a"), Some("a"), true),
            (Some("a"), Some("b"), false),
            (Some("a"), None, true),
            (None, Some("b"), true),
        ] {
            assert_eq!(key(ours).may_have(theirs), may, "{ours:?} {theirs:?}");
        }
    }
}
