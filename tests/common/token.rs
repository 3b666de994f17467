//! Tokens that are made here and signed with `ring`, including tokens that no library would make.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::{hmac, signature};
use serde_json::{Value, json};

/// The secret that the gateways of the tests share with their signers.
pub const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// `[auth.jwt]` with that secret.
pub const JWT: &str = "[auth.jwt]\nsecret = \"0123456789abcdef0123456789abcdef\"\n";

/// The path of a file in tests/keys.
pub fn key(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/keys").join(name)
}

/// Seconds since 1970, so far from now.
pub fn seconds(from_now: f64) -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64() + from_now
}

/// These claims, with an `exp` in an hour unless they have one.
pub fn hour(mut claims: Value) -> Value {
    claims.as_object_mut().unwrap().entry("exp").or_insert(json!(seconds(3600.0)));
    claims
}

/// Signed with [`SECRET`] and HS256, for an hour unless the claims say otherwise.
pub fn token(claims: Value) -> String {
    signed("HS256", hour(claims))
}

/// Signed with the key of tests/keys that fits, or with [`SECRET`].
pub fn signed(algorithm: &str, claims: Value) -> String {
    let name = match algorithm {
        "ES256" => "p256.pem",
        "ES384" => "p384.pem",
        "EdDSA" => "ed25519.pem",
        _ => "rsa.pem",
    };
    with_header(json!({"alg": algorithm, "typ": "JWT"}), &claims, |message| sign(algorithm, name, message))
}

/// With any header and any signature.
pub fn with_header(header: Value, claims: &Value, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
    let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
    let message = format!("{}.{}", encode(&header), encode(claims));
    let signature = URL_SAFE_NO_PAD.encode(sign(message.as_bytes()));
    format!("{message}.{signature}")
}

/// The signature of a message, with a private key of tests/keys where the algorithm needs one.
pub fn sign(algorithm: &str, name: &str, message: &[u8]) -> Vec<u8> {
    let random = SystemRandom::new();
    let secret =
        |algorithm| hmac::sign(&hmac::Key::new(algorithm, SECRET.as_bytes()), message).as_ref().to_vec();
    let rsa = |encoding: &'static dyn signature::RsaEncoding| {
        let pair = signature::RsaKeyPair::from_pkcs8(&der(name)).unwrap();
        let mut bytes = vec![0; pair.public().modulus_len()];
        pair.sign(encoding, &random, message, &mut bytes).unwrap();
        bytes
    };
    let ecdsa = |algorithm| {
        let pair = signature::EcdsaKeyPair::from_pkcs8(algorithm, &der(name), &random).unwrap();
        pair.sign(&random, message).unwrap().as_ref().to_vec()
    };
    match algorithm {
        "HS256" => secret(hmac::HMAC_SHA256),
        "HS384" => secret(hmac::HMAC_SHA384),
        "HS512" => secret(hmac::HMAC_SHA512),
        "RS256" => rsa(&signature::RSA_PKCS1_SHA256),
        "RS384" => rsa(&signature::RSA_PKCS1_SHA384),
        "RS512" => rsa(&signature::RSA_PKCS1_SHA512),
        "PS256" => rsa(&signature::RSA_PSS_SHA256),
        "PS384" => rsa(&signature::RSA_PSS_SHA384),
        "PS512" => rsa(&signature::RSA_PSS_SHA512),
        "ES256" => ecdsa(&signature::ECDSA_P256_SHA256_FIXED_SIGNING),
        "ES384" => ecdsa(&signature::ECDSA_P384_SHA384_FIXED_SIGNING),
        "EdDSA" => {
            let pair = signature::Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der(name)).unwrap();
            pair.sign(message).as_ref().to_vec()
        }
        _ => panic!("{algorithm}"),
    }
}

/// The content of a PEM file of tests/keys.
pub fn der(name: &str) -> Vec<u8> {
    let pem = std::fs::read_to_string(key(name)).unwrap();
    let lines: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    STANDARD.decode(lines).unwrap()
}
