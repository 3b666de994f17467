//! Signs tokens with `ring` for `topicgate token mint`. The gateway itself only checks them (`auth/crypto.rs`).

use jsonwebtoken::Algorithm;
use ring::error::{KeyRejected, Unspecified};
use ring::hmac;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair,
    RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384, RSA_PSS_SHA512,
    RsaEncoding, RsaKeyPair,
};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;

/// A signing key and its algorithm.
pub(crate) struct Signer {
    algorithm: Algorithm,
    key: Key,
}

enum Key {
    Secret(hmac::Key),
    Rsa(Box<RsaKeyPair>, &'static dyn RsaEncoding),
    Ecdsa(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

impl Signer {
    /// A signer with a secret that it shares with the gateway.
    ///
    /// # Errors
    /// The algorithm requires a public key.
    pub(crate) fn from_secret(secret: &str, algorithm: Algorithm) -> Result<Self, String> {
        let hash = match algorithm {
            Algorithm::HS256 => hmac::HMAC_SHA256,
            Algorithm::HS384 => hmac::HMAC_SHA384,
            Algorithm::HS512 => hmac::HMAC_SHA512,
            other => return Err(format!("{other:?} is for public keys")),
        };
        Ok(Signer { algorithm, key: Key::Secret(hmac::Key::new(hash, secret.as_bytes())) })
    }

    /// A signer with a private key in PEM. Without an `algorithm`, it uses the usual one of the key's type, as the
    /// gateway does.
    ///
    /// # Errors
    /// What is wrong with the key, to be written after the name of its file.
    pub(crate) fn from_pem(pem: &[u8], algorithm: Option<Algorithm>) -> Result<Self, String> {
        const FORM: &str =
            "is not an RSA, P-256, P-384 or Ed25519 private key in PKCS #8 (openssl pkcs8 -topk8 -nocrypt)";
        let der = PrivateKeyDer::from_pem_slice(pem).map_err(|_| FORM)?;
        let random = SystemRandom::new();
        let ecdsa = |kind| EcdsaKeyPair::from_pkcs8(kind, der.secret_der(), &random).map(Key::Ecdsa);
        let tried: [(&[Algorithm], Result<Key, KeyRejected>); 4] = [
            (&[Algorithm::ES256], ecdsa(&ECDSA_P256_SHA256_FIXED_SIGNING)),
            (&[Algorithm::ES384], ecdsa(&ECDSA_P384_SHA384_FIXED_SIGNING)),
            (
                &[Algorithm::EdDSA],
                // openssl writes this key without its public half.
                Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_der()).map(Key::Ed25519),
            ),
            (
                &RSA,
                match &der {
                    PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der()),
                    der => RsaKeyPair::from_pkcs8(der.secret_der()),
                }
                .map(|pair| Key::Rsa(Box::new(pair), &RSA_PKCS1_SHA256)),
            ),
        ];
        let found = tried.into_iter().find_map(|(algorithms, key)| Some((algorithms, key.ok()?)));
        let (algorithms, mut key) = found.ok_or(FORM)?;
        let algorithm = algorithm.unwrap_or(algorithms[0]); // none of the lists is empty
        if !algorithms.contains(&algorithm) {
            return Err(format!("is for {:?}, but auth.jwt.algorithm is {algorithm:?}", algorithms[0]));
        }
        if let Key::Rsa(_, encoding) = &mut key {
            *encoding = rsa_encoding(algorithm);
        }
        Ok(Signer { algorithm, key })
    }

    /// The algorithm, for the token's header.
    pub(crate) fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The signature of these bytes.
    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Unspecified> {
        let random = SystemRandom::new();
        Ok(match &self.key {
            Key::Secret(key) => hmac::sign(key, message).as_ref().to_vec(),
            Key::Rsa(pair, encoding) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(*encoding, &random, message, &mut signature)?;
                signature
            }
            Key::Ecdsa(pair) => pair.sign(&random, message)?.as_ref().to_vec(),
            Key::Ed25519(pair) => pair.sign(message).as_ref().to_vec(),
        })
    }
}

const RSA: [Algorithm; 6] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];

fn rsa_encoding(algorithm: Algorithm) -> &'static dyn RsaEncoding {
    match algorithm {
        Algorithm::RS384 => &RSA_PKCS1_SHA384,
        Algorithm::RS512 => &RSA_PKCS1_SHA512,
        Algorithm::PS256 => &RSA_PSS_SHA256,
        Algorithm::PS384 => &RSA_PSS_SHA384,
        Algorithm::PS512 => &RSA_PSS_SHA512,
        _ => &RSA_PKCS1_SHA256,
    }
}
