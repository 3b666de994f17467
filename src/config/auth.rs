//! `[auth]`: what it holds, and its checks. Files that it names are read when the gateway is built.

use std::path::PathBuf;
use std::time::Duration;

use jsonwebtoken::{Algorithm, AlgorithmFamily};

use super::forward::Forward;
use super::parse::Check;
use super::raw::{List, RawAuth, RawJwt, Span};
use super::rule::{is_pointer, is_token};
use super::{Secret, url};

/// Bytes of a shared secret: as many as HS256's hash has (RFC 7518, section 3.2). With fewer, whoever has one token can
/// try secrets until one makes its signature, without asking anyone.
const SECRET_BYTES: usize = 32;

/// More than clocks differ, and short beside the life of a token.
const MOST_LEEWAY: Duration = Duration::from_secs(300);

/// How often keys are fetched anew. Longer than a day, and a key that was withdrawn would still let callers in.
const JWKS_REFRESH: Duration = Duration::from_secs(300);
const SHORTEST_REFRESH: Duration = Duration::from_secs(10);
const LONGEST_REFRESH: Duration = Duration::from_secs(24 * 3600);

/// `[auth]`: how callers show who they are.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Auth {
    /// `[auth.jwt]`, if it is there.
    pub jwt: Option<Jwt>,
    /// `[auth.token]`.
    pub token: TokenPlaces,
    /// `[auth.forward]`, if it is there.
    pub forward: Option<Forward>,
}

/// `[auth.jwt]`: JSON Web Tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Jwt {
    /// `secret`, `public_key` or `jwks_url`.
    pub keys: JwtKeys,
    /// `algorithm`. `None`: the usual one of each key.
    pub algorithm: Option<Algorithm>,
    /// `audience`: of which `aud` must name one. Empty: no token may name any.
    pub audience: Vec<String>,
    /// `issuer`: of which `iss` must name one. Empty: any.
    pub issuer: Vec<String>,
    /// `leeway`: how far clocks may differ, in whole seconds.
    pub leeway: Duration,
    /// `claim`: where grants are, as a JSON pointer.
    pub claim: String,
    /// `mercure`: whether Mercure's claims grant too.
    pub mercure: bool,
    /// `centrifugo`: whether Centrifugo's do.
    pub centrifugo: bool,
}

/// What tokens are checked with.
#[derive(Debug, Clone, PartialEq)]
pub enum JwtKeys {
    /// `auth.jwt.secret`: shared with who signs.
    Secret(Secret),
    /// `auth.jwt.public_key`: path of a PEM file.
    PublicKey(PathBuf),
    /// Where a set of keys is served.
    Jwks {
        /// `auth.jwt.jwks_url`. Secret because a query may hold a key.
        url: Secret,
        /// `auth.jwt.jwks_refresh`: how often it is fetched anew.
        refresh: Duration,
    },
}

/// `[auth.token]`: where tokens are looked for, beside `Authorization: Bearer`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenPlaces {
    /// `auth.token.cookie`: the name of a cookie.
    pub cookie: String,
    /// `auth.token.query`: whether in the query parameter `access_token`.
    pub query: bool,
}

impl Default for TokenPlaces {
    fn default() -> Self {
        TokenPlaces { cookie: "topicgate".into(), query: false }
    }
}

impl Auth {
    /// Whether anyone can show who they are.
    pub fn is_configured(&self) -> bool {
        self.jwt.is_some() || self.forward.is_some()
    }
}

impl Check<'_> {
    pub(super) fn auth(&mut self, raw: RawAuth) -> Auth {
        let d = TokenPlaces::default();
        let cookie = raw.token.cookie.unwrap_or(d.cookie);
        if !is_token(&cookie) {
            self.refuse(
                "auth.token.cookie",
                format!("{cookie:?} is not the name of a cookie; write one as in topicgate"),
            );
        }
        let query = raw.token.query.map_or(d.query, |switch| switch.0);
        let token = TokenPlaces { cookie, query };
        Auth { jwt: self.jwt(raw.jwt), token, forward: self.forward(raw.forward) }
    }

    fn jwt(&mut self, raw: RawJwt) -> Option<Jwt> {
        let named = [
            ("auth.jwt.secret", raw.secret.is_some()),
            ("auth.jwt.public_key", raw.public_key.is_some()),
            ("auth.jwt.jwks_url", raw.jwks_url.is_some()),
        ];
        let set: Vec<&str> = named.iter().filter_map(|(key, set)| set.then_some(*key)).collect();
        if set.len() > 1 {
            self.refuse("auth.jwt", format!("has several keys: {}; keep one", set.join(", ")));
        }
        if raw.jwks_refresh.is_some() && raw.jwks_url.is_none() {
            self.refuse(
                "auth.jwt.jwks_refresh",
                "has no effect without auth.jwt.jwks_url; set it, or remove this",
            );
        }
        let keys = match (raw.secret, raw.public_key, raw.jwks_url) {
            (Some(secret), ..) => {
                self.secret(&secret);
                JwtKeys::Secret(Secret(secret))
            }
            (None, Some(path), _) => JwtKeys::PublicKey(path),
            (None, None, Some(url)) => self.jwks(url, raw.jwks_refresh),
            (None, None, None) => {
                let reported = named.iter().any(|(key, _)| self.failed.contains(*key));
                let other = raw.algorithm.is_some()
                    || raw.audience.is_some()
                    || raw.issuer.is_some()
                    || raw.leeway.is_some()
                    || raw.claim.is_some()
                    || raw.mercure.is_some()
                    || raw.centrifugo.is_some();
                if other && !reported {
                    self.refuse(
                        "auth.jwt",
                        "has no key to check tokens with; set secret, public_key or jwks_url",
                    );
                }
                return None;
            }
        };
        let algorithm = self.algorithm(raw.algorithm, &keys);
        let leeway = self.duration(
            "auth.jwt.leeway",
            raw.leeway,
            Duration::from_secs(30),
            Duration::ZERO,
            MOST_LEEWAY,
        );
        if leeway.subsec_nanos() != 0 {
            self.refuse("auth.jwt.leeway", "is not a whole number of seconds; write one as in \"30s\"");
        }
        let claim = raw.claim.unwrap_or_else(|| "topicgate".into());
        let claim = pointer(&claim).unwrap_or_else(|| {
            self.refuse(
                "auth.jwt.claim",
                format!("{claim:?} names no claim; write a name, or a JSON pointer as in /realm/topicgate"),
            );
            claim
        });
        Some(Jwt {
            keys,
            algorithm,
            audience: self.names("auth.jwt.audience", raw.audience),
            issuer: self.names("auth.jwt.issuer", raw.issuer),
            leeway,
            claim,
            mercure: raw.mercure.is_some_and(|switch| switch.0),
            centrifugo: raw.centrifugo.is_some_and(|switch| switch.0),
        })
    }

    /// Names of which a token must have one. A list that came out empty would ask for none of them.
    fn names(&mut self, path: &str, given: Option<List>) -> Vec<String> {
        let Some(List(names)) = given else { return vec![] };
        if names.is_empty() || names.iter().any(String::is_empty) {
            self.refuse(path, "is empty, or has an empty name; write each name, or remove the key");
        }
        names
    }

    fn secret(&mut self, secret: &str) {
        if secret.contains("-----BEGIN ") {
            let problem =
                "is a key in PEM, and what is public is no secret; write its path in auth.jwt.public_key";
            self.refuse("auth.jwt.secret", problem);
        } else if secret.len() < SECRET_BYTES {
            self.refuse(
                "auth.jwt.secret",
                format!(
                    "is {} bytes long and can be guessed from any token; write at least {SECRET_BYTES}, \
                     as openssl rand -hex {SECRET_BYTES} makes them",
                    secret.len()
                ),
            );
        }
    }

    fn jwks(&mut self, text: String, refresh: Option<Span>) -> JwtKeys {
        if let Err(problem) = url::http(&text) {
            self.refuse("auth.jwt.jwks_url", problem);
        } else if url::is_plain_and_far(&text) {
            // Whoever can change the answer on its way can sign tokens for everyone.
            let problem =
                "is http:// to another machine, and keys must not be changed on their way; write https://";
            self.refuse("auth.jwt.jwks_url", problem);
        }
        let refresh =
            self.duration("auth.jwt.jwks_refresh", refresh, JWKS_REFRESH, SHORTEST_REFRESH, LONGEST_REFRESH);
        JwtKeys::Jwks { url: Secret(text), refresh }
    }

    /// A secret has its algorithm here; those of public keys depend on keys that are not read yet.
    fn algorithm(&mut self, given: Option<String>, keys: &JwtKeys) -> Option<Algorithm> {
        use Algorithm::{ES256, ES384, EdDSA, HS256, HS384, HS512, PS256, PS384, PS512, RS256, RS384, RS512};
        const ALL: [(&str, Option<Algorithm>); 12] = [
            ("HS256", Some(HS256)),
            ("HS384", Some(HS384)),
            ("HS512", Some(HS512)),
            ("RS256", Some(RS256)),
            ("RS384", Some(RS384)),
            ("RS512", Some(RS512)),
            ("PS256", Some(PS256)),
            ("PS384", Some(PS384)),
            ("PS512", Some(PS512)),
            ("ES256", Some(ES256)),
            ("ES384", Some(ES384)),
            ("EdDSA", Some(EdDSA)),
        ];
        let shared = matches!(keys, JwtKeys::Secret(_));
        if given.is_none() {
            return shared.then_some(HS256);
        }
        let algorithm = self.word("auth.jwt.algorithm", given, None, &ALL)?;
        if shared != (algorithm.family() == AlgorithmFamily::Hmac) {
            let problem = if shared {
                "is for public keys, and auth.jwt.secret is a secret; write HS256, HS384 or HS512"
            } else {
                "is for a shared secret, and this key is public; write RS256, PS256, ES256 or EdDSA, or none"
            };
            self.refuse("auth.jwt.algorithm", format!("{algorithm:?} {problem}"));
        }
        Some(algorithm)
    }
}

/// The JSON pointer to a claim. Its name may hold anything: some identity providers allow only URLs.
fn pointer(claim: &str) -> Option<String> {
    match claim {
        "" => None,
        pointer if pointer.starts_with('/') => is_pointer(pointer).then(|| pointer.to_owned()),
        name => Some(format!("/{}", name.replace('~', "~0").replace('/', "~1"))),
    }
}
