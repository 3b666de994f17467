//! Keys that sign tokens, as an identity provider has them: with a name, and published as a JWK.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::rsa::PublicKeyComponents;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair,
    RsaKeyPair,
};
use serde_json::{Value, json};

use super::token;

enum Pair {
    Ed25519(Ed25519KeyPair),
    Ecdsa(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

/// A key pair, the name it is published under, and the algorithm that its tokens say.
pub struct Signer {
    pub kid: &'static str,
    algorithm: &'static str,
    pair: Pair,
    random: SystemRandom,
}

impl Signer {
    /// A new pair for `EdDSA`, `ES256` or `ES384`; the one of tests/keys for an algorithm of RSA.
    pub fn new(kid: &'static str, algorithm: &'static str) -> Self {
        let random = SystemRandom::new();
        let ecdsa = |kind| {
            let pkcs8 = EcdsaKeyPair::generate_pkcs8(kind, &random).unwrap();
            Pair::Ecdsa(EcdsaKeyPair::from_pkcs8(kind, pkcs8.as_ref(), &random).unwrap())
        };
        let pair = match algorithm {
            "EdDSA" => {
                let pkcs8 = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
                Pair::Ed25519(Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap())
            }
            "ES256" => ecdsa(&ECDSA_P256_SHA256_FIXED_SIGNING),
            "ES384" => ecdsa(&ECDSA_P384_SHA384_FIXED_SIGNING),
            // ring makes no keys of RSA.
            _ => Pair::Rsa(RsaKeyPair::from_pkcs8(&token::der("rsa.pem")).unwrap()),
        };
        Signer { kid, algorithm, pair, random }
    }

    /// The public key as it is published, without `alg`.
    pub fn jwk(&self) -> Value {
        let mut jwk = match &self.pair {
            Pair::Ed25519(pair) => {
                json!({"kty": "OKP", "crv": "Ed25519", "x": encode(pair.public_key())})
            }
            Pair::Ecdsa(pair) => {
                let (x, y) = pair.public_key().as_ref()[1..].split_at(pair.public_key().as_ref().len() / 2);
                let curve = if x.len() == 32 { "P-256" } else { "P-384" };
                json!({"kty": "EC", "crv": curve, "x": encode(x), "y": encode(y)})
            }
            Pair::Rsa(pair) => {
                let public = PublicKeyComponents::<Vec<u8>>::from(pair.public());
                json!({"kty": "RSA", "n": encode(public.n), "e": encode(public.e)})
            }
        };
        jwk["kid"] = self.kid.into();
        jwk["use"] = "sig".into();
        jwk
    }

    /// A token with these claims and the id of its key.
    pub fn token(&self, claims: &Value) -> String {
        self.token_with(&json!({"alg": self.algorithm, "kid": self.kid}), claims)
    }

    /// A token with this header, whatever it says, signed with this key.
    pub fn token_with(&self, header: &Value, claims: &Value) -> String {
        token::with_header(header.clone(), claims, |message| match &self.pair {
            Pair::Ed25519(pair) => pair.sign(message).as_ref().to_vec(),
            Pair::Ecdsa(pair) => pair.sign(&self.random, message).unwrap().as_ref().to_vec(),
            Pair::Rsa(_) => token::sign(header["alg"].as_str().unwrap(), "rsa.pem", message),
        })
    }
}

fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}
