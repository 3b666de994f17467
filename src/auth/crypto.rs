//! Cryptography for tokens: `jsonwebtoken` parses them and `ring` checks their signatures, so that the process has a
//! single cryptographic library, the one that TLS uses too. Nothing here signs.

use jsonwebtoken::crypto::{CryptoProvider, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{ErrorKind, Result};
use jsonwebtoken::signature::{Error, Verifier};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind};
use ring::{hmac, signature};

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: |_, _| Err(ErrorKind::UnsupportedAlgorithm.into()),
    verifier_factory: verifier,
    // Needed only for key thumbprints and for creating JWKs, which topicgate does not do.
    key_utils: KeyUtils::new_unimplemented(),
};

/// Makes `jsonwebtoken` use this provider. It is global to the process; a second gateway in the same process finds this
/// provider installed.
pub(super) fn install() {
    let _ = PROVIDER.install_default();
}

fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>> {
    // If a public key were used as a secret, anyone could sign with it.
    if key.family() != algorithm.family() {
        return Err(ErrorKind::InvalidAlgorithm.into());
    }
    Ok(Box::new(RingVerifier { algorithm: *algorithm, key: key.clone() }))
}

struct RingVerifier {
    algorithm: Algorithm,
    key: DecodingKey,
}

impl RingVerifier {
    fn hmac(&self, algorithm: hmac::Algorithm, message: &[u8], signature: &[u8]) -> Result<bool> {
        let key = hmac::Key::new(algorithm, self.key.try_get_as_bytes()?);
        Ok(hmac::verify(&key, message, signature).is_ok())
    }

    fn public(
        &self,
        algorithm: &'static dyn signature::VerificationAlgorithm,
        message: &[u8],
        signature: &[u8],
    ) -> Result<bool> {
        let key = signature::UnparsedPublicKey::new(algorithm, self.key.try_get_as_bytes()?);
        Ok(key.verify(message, signature).is_ok())
    }

    fn rsa(
        &self,
        parameters: &'static signature::RsaParameters,
        message: &[u8],
        signature: &[u8],
    ) -> Result<bool> {
        match self.key.kind() {
            DecodingKeyKind::SecretOrDer(_) => self.public(parameters, message, signature),
            DecodingKeyKind::RsaModulusExponent { n, e } => {
                let key = signature::RsaPublicKeyComponents { n, e };
                Ok(key.verify(parameters, message, signature).is_ok())
            }
        }
    }

    fn verifies(&self, message: &[u8], bytes: &[u8]) -> Result<bool> {
        use signature as s;
        match self.algorithm {
            Algorithm::HS256 => self.hmac(hmac::HMAC_SHA256, message, bytes),
            Algorithm::HS384 => self.hmac(hmac::HMAC_SHA384, message, bytes),
            Algorithm::HS512 => self.hmac(hmac::HMAC_SHA512, message, bytes),
            Algorithm::RS256 => self.rsa(&s::RSA_PKCS1_2048_8192_SHA256, message, bytes),
            Algorithm::RS384 => self.rsa(&s::RSA_PKCS1_2048_8192_SHA384, message, bytes),
            Algorithm::RS512 => self.rsa(&s::RSA_PKCS1_2048_8192_SHA512, message, bytes),
            Algorithm::PS256 => self.rsa(&s::RSA_PSS_2048_8192_SHA256, message, bytes),
            Algorithm::PS384 => self.rsa(&s::RSA_PSS_2048_8192_SHA384, message, bytes),
            Algorithm::PS512 => self.rsa(&s::RSA_PSS_2048_8192_SHA512, message, bytes),
            Algorithm::ES256 => self.public(&s::ECDSA_P256_SHA256_FIXED, message, bytes),
            Algorithm::ES384 => self.public(&s::ECDSA_P384_SHA384_FIXED, message, bytes),
            Algorithm::EdDSA => self.public(&s::ED25519, message, bytes),
            _ => Err(ErrorKind::UnsupportedAlgorithm.into()),
        }
    }
}

impl Verifier<Vec<u8>> for RingVerifier {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> std::result::Result<(), Error> {
        match self.verifies(message, signature) {
            Ok(true) => Ok(()),
            _ => Err(Error::new()),
        }
    }
}

impl JwtVerifier for RingVerifier {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}
