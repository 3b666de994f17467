//! `[auth.jwt]`: how tokens are checked. Files that it names are read when the gateway is built.

use std::path::PathBuf;
use std::time::Duration;

use jsonwebtoken::{Algorithm, AlgorithmFamily};

use super::input::Input;
use super::names::is_pointer;
use super::secret::Secret;
use super::url;
use super::value::Given;

const SECRET: &str = "auth.jwt.secret";
const PUBLIC_KEY: &str = "auth.jwt.public_key";
const JWKS_URL: &str = "auth.jwt.jwks_url";
const JWKS_REFRESH: &str = "auth.jwt.jwks_refresh";
const ALGORITHM: &str = "auth.jwt.algorithm";
const LEEWAY: &str = "auth.jwt.leeway";
const CLAIM: &str = "auth.jwt.claim";
const UNTIL: &str = "auth.jwt.until";

/// The least bytes of a shared secret: as many as HS256's hash has (RFC 7518, section 3.2). With fewer, an attacker who
/// has one token can guess the secret offline.
const SECRET_BYTES: usize = 32;

/// `[auth.jwt]`: JSON Web Tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Jwt {
    /// The key: `secret`, `public_key` or `jwks_url`.
    pub keys: JwtKeys,
    /// `algorithm`. `None`: the usual one of each key.
    pub algorithm: Option<Algorithm>,
    /// `audience`: `aud` must name one of these. Empty: a token must not name any.
    pub audience: Vec<String>,
    /// `issuer`: `iss` must be one of these. Empty: any.
    pub issuer: Vec<String>,
    /// `leeway`: how far clocks may differ, in whole seconds.
    pub leeway: Duration,
    /// `claim`: the claim with the grants, as a JSON pointer.
    pub claim: String,
    /// `until`: the claim that says until when a stream may last, as a JSON pointer.
    pub until: String,
    /// `until_limit`: how long a stream may last by that claim.
    pub until_limit: Duration,
    /// `mercure`: whether Mercure's claims are read too.
    pub mercure: bool,
    /// `centrifugo`: whether Centrifugo's claims are read too.
    pub centrifugo: bool,
}

/// The source of the key that checks tokens.
#[derive(Debug, Clone, PartialEq)]
pub enum JwtKeys {
    /// `auth.jwt.secret`: shared with the issuer of the tokens.
    Secret(Secret),
    /// `auth.jwt.public_key`: path of a PEM file.
    PublicKey(PathBuf),
    /// The URL of a key set.
    Jwks {
        /// `auth.jwt.jwks_url`. Secret because a query may hold a key.
        url: Secret,
        /// `auth.jwt.jwks_refresh`: how often it is fetched again.
        refresh: Duration,
    },
}

impl Jwt {
    /// `None` if there is no key to check tokens with.
    pub(super) fn read(input: &mut Input<'_>) -> Option<Self> {
        let keys = keys(input)?;
        let algorithm = algorithm(input, &keys);
        let leeway: Duration = input.get(LEEWAY);
        if leeway.subsec_nanos() != 0 {
            input.refuse(LEEWAY, "is not a whole number of seconds; write one as in \"30s\"");
        }
        let claim = claim(input);
        let until = until(input, &claim);
        Some(Jwt {
            keys,
            algorithm,
            audience: accepted(input, "auth.jwt.audience"),
            issuer: accepted(input, "auth.jwt.issuer"),
            leeway,
            claim,
            until,
            until_limit: input.get("auth.jwt.until_limit"),
            mercure: input.get("auth.jwt.mercure"),
            centrifugo: input.get("auth.jwt.centrifugo"),
        })
    }
}

fn keys(input: &mut Input<'_>) -> Option<JwtKeys> {
    if !input.has_table("auth.jwt") {
        return None;
    }
    let named = [SECRET, PUBLIC_KEY, JWKS_URL];
    let set: Vec<&str> = named.into_iter().filter(|key| input.is_set(key)).collect();
    if set.len() > 1 {
        input.refuse("auth.jwt", format!("has several keys: {}; keep one", set.join(", ")));
    }
    if input.is_set(JWKS_REFRESH) && !input.is_set(JWKS_URL) {
        input.refuse(JWKS_REFRESH, "has no effect without auth.jwt.jwks_url; set it, or remove this");
    }
    let keys = if let Some(secret) = input.get_if_any(SECRET) {
        check_secret(input, &secret);
        JwtKeys::Secret(secret)
    } else if let Some(path) = input.get_if_any(PUBLIC_KEY) {
        JwtKeys::PublicKey(path)
    } else if let Some(url) = input.get_if_any(JWKS_URL) {
        check_url(input, &url);
        JwtKeys::Jwks { url, refresh: input.get(JWKS_REFRESH) }
    } else {
        let is_only_refresh = !input.has_table_beside("auth.jwt", JWKS_REFRESH);
        if !is_only_refresh && !named.iter().any(|key| input.has_failed(key)) {
            let problem = "has no key to check tokens with; set secret, public_key or jwks_url";
            input.refuse("auth.jwt", problem);
        }
        return None;
    };
    Some(keys)
}

fn check_secret(input: &mut Input<'_>, Secret(secret): &Secret) {
    if secret.contains("-----BEGIN ") {
        let problem =
            "is a key in PEM, and a public key is not a secret; write its path in auth.jwt.public_key";
        input.refuse(SECRET, problem);
    } else if secret.len() < SECRET_BYTES {
        let problem = format!(
            "is {} bytes long and can be guessed from any token; write at least {SECRET_BYTES}, \
             as openssl rand -hex {SECRET_BYTES} makes them",
            secret.len()
        );
        input.refuse(SECRET, problem);
    }
}

fn check_url(input: &mut Input<'_>, Secret(text): &Secret) {
    if let Err(problem) = url::http(text) {
        input.refuse(JWKS_URL, problem);
    } else if url::is_plain_and_far(text) {
        // Anyone who can change the answer on its way could sign tokens for everyone.
        let problem =
            "is http:// to another machine, and keys must not be changed on their way; write https://";
        input.refuse(JWKS_URL, problem);
    }
}

/// A secret has its algorithm here; the algorithm of a public key depends on the key, which is not read yet.
fn algorithm(input: &mut Input<'_>, keys: &JwtKeys) -> Option<Algorithm> {
    let shared = matches!(keys, JwtKeys::Secret(_));
    let Some(word) = input.get_if_any::<String>(ALGORITHM) else {
        input.set_in_force(ALGORITHM, shared.then(|| Given::Text("HS256".into())));
        return shared.then_some(Algorithm::HS256);
    };
    // The table of keys has refused unknown algorithms.
    let algorithm: Algorithm = word.parse().ok()?;
    if shared != (algorithm.family() == AlgorithmFamily::Hmac) {
        let problem = if shared {
            "is for public keys, and auth.jwt.secret is a secret; write HS256, HS384 or HS512"
        } else {
            "is for a shared secret, and this key is public; write RS256, PS256, ES256 or EdDSA, or none"
        };
        input.refuse(ALGORITHM, format!("{word} {problem}"));
    }
    Some(algorithm)
}

/// Names of which a token must have one. An empty list is refused, because it would require none.
fn accepted(input: &mut Input<'_>, path: &str) -> Vec<String> {
    let Some(names) = input.get_if_any::<Vec<String>>(path) else { return vec![] };
    if names.is_empty() || names.iter().any(String::is_empty) {
        input.refuse(path, "is empty, or has an empty name; write each name, or remove the key");
    }
    names
}

fn claim(input: &mut Input<'_>) -> String {
    let written = input.get(CLAIM);
    pointer_at(input, CLAIM, written)
}

/// Next to the grants, unless another place is configured.
fn until(input: &mut Input<'_>, claim: &str) -> String {
    if let Some(written) = input.get_if_any(UNTIL) {
        return pointer_at(input, UNTIL, written);
    }
    let beside = format!("{claim}/until");
    input.set_in_force(UNTIL, Some(Given::Text(beside.clone())));
    beside
}

/// The claim that the key at `path` names, as a JSON pointer.
fn pointer_at(input: &mut Input<'_>, path: &str, written: String) -> String {
    let Some(claim) = pointer(&written) else {
        let problem =
            format!("{written:?} names no claim; write a name, or a JSON pointer as in /realm/topicgate");
        input.refuse(path, problem);
        return written;
    };
    input.set_in_force(path, Some(Given::Text(claim.clone())));
    claim
}

/// The JSON pointer to a claim. The name may have any characters: some identity providers allow only URLs.
fn pointer(claim: &str) -> Option<String> {
    match claim {
        "" => None,
        pointer if pointer.starts_with('/') => is_pointer(pointer).then(|| pointer.to_owned()),
        name => Some(format!("/{}", name.replace('~', "~0").replace('/', "~1"))),
    }
}
