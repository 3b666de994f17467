//! Token keys from the URL of an identity provider: a JWKS (RFC 7517).
//!
//! One task fetches them: at the start, every `jwks_refresh`, and sooner if a token names an unknown key, but never
//! twice within [`PAUSE`], whatever tokens arrive. A token with an unknown key waits for the fetch: it is refused once
//! a set that was fetched after its arrival does not have its key. While the endpoint is down, the known keys stay in
//! use. A token never chooses where keys come from.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ACCEPT, HeaderValue};
use hyper::{Request, StatusCode, Uri};
use jsonwebtoken::Algorithm;
use jsonwebtoken::jwk::Jwk;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::AuthError;
use super::key::Key;
use crate::config::Secret;
use crate::metrics::{FetchResult, Metrics};
use crate::net::client::Client;
use crate::net::reason::Peer;

/// The least time between two fetches.
const PAUSE: Duration = Duration::from_secs(5);

/// How long one fetch may take.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a token waits for keys: for the pause before a fetch, the fetch itself, and a margin.
const PATIENCE: Duration = Duration::from_secs(11);

/// The largest key set, in bytes. An RSA key with its certificates has about 5 KiB.
const MAX_BODY: usize = 256 * 1024;

/// The most keys of a set. A token without a `kid` is checked with each key of its algorithm.
const MAX_KEYS: usize = 64;

/// Members that only private or secret keys have. A provider that publishes them has leaked the key.
const SECRET_MEMBERS: [&str; 3] = ["d", "p", "k"];

/// A published key set that a task keeps current.
#[derive(Debug, Clone)]
pub(super) struct Jwks {
    url: Secret,
    refresh: Duration,
    algorithm: Option<Algorithm>,
    held: watch::Receiver<FetchedKeys>,
    wanted: Arc<Notify>,
}

/// The state after the last fetch.
#[derive(Debug, Clone, Default)]
struct FetchedKeys {
    /// `None` until a fetch has succeeded.
    keys: Option<Arc<[Arc<Key>]>>,
    /// The number of fetches that have begun and ended. They differ while one is in progress.
    begun: u64,
    ended: u64,
    /// Whether the last one failed.
    failed: bool,
    /// How many of them left out a key that the set had before.
    withdrawals: u64,
}

impl FetchedKeys {
    fn names(&self, kid: &str) -> bool {
        self.keys.iter().flat_map(|keys| keys.iter()).any(|key| key.kid() == Some(kid))
    }

    fn have(&self, key: &Key) -> bool {
        self.keys.iter().flat_map(|keys| keys.iter()).any(|one| one.is(key))
    }
}

impl Jwks {
    /// Starts the task that fetches the keys; it ends when this value is dropped. An endpoint that is down is not an
    /// error here. `algorithm` is the one that the configuration pins.
    ///
    /// # Errors
    /// The URL cannot be parsed (the configuration has already refused that), or the system has no TLS.
    pub(super) fn start(
        url: &Secret,
        refresh: Duration,
        algorithm: Option<Algorithm>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, String> {
        let uri = url.0.parse().map_err(|_| "is not a usable URL")?;
        let client = Client::new(Peer::Keys)?;
        let (held, receiver) = watch::channel(FetchedKeys::default());
        let wanted = Arc::new(Notify::new());
        let fetcher = Fetcher { uri, refresh, algorithm, client, metrics, held, wanted: wanted.clone() };
        tokio::spawn(fetcher.run());
        Ok(Jwks { url: url.clone(), refresh, algorithm, held: receiver, wanted })
    }

    /// Whether the keys are fetched with these settings.
    pub(super) fn is_of(&self, url: &Secret, refresh: Duration, algorithm: Option<Algorithm>) -> bool {
        (&self.url, self.refresh, self.algorithm) == (url, refresh, algorithm)
    }

    /// Whether both use the same key set in the same way.
    pub(super) fn have_the_source_of(&self, other: &Jwks) -> bool {
        (&self.url, self.algorithm) == (&other.url, other.algorithm)
    }

    /// Asks for a fetch as soon as the pause allows.
    pub(super) fn fetch_anew(&self) {
        self.wanted.notify_one();
    }

    /// Whether the set has this key.
    pub(super) fn have(&self, key: &Key) -> bool {
        self.held.borrow().have(key)
    }

    /// How many times a key was withdrawn from the set.
    pub(super) fn withdrawals(&self) -> u64 {
        self.held.borrow().withdrawals
    }

    /// The current keys, which contain the key `kid` if it is published at all.
    ///
    /// # Errors
    /// [`AuthError::Unavailable`] if no keys have been fetched yet, or if the endpoint cannot be asked about `kid` now.
    pub(super) async fn find(&self, kid: Option<&str>) -> Result<Arc<[Arc<Key>]>, AuthError> {
        let mut held = self.held.clone();
        let now = held.borrow_and_update().clone();
        let known = |held: &FetchedKeys| kid.is_none_or(|kid| held.names(kid));
        match now.keys {
            Some(keys) if known(&now) => return Ok(keys),
            // The task already retries as often as it may. The token does not wait for that.
            _ if now.failed => return Err(AuthError::Unavailable),
            // The first fetch is in progress.
            None => {}
            Some(_) => self.wanted.notify_one(),
        }
        // A fetch that began before the token arrived does not prove that its key is not published.
        let proof = if now.keys.is_some() { now.begun + 1 } else { 1 };
        let settled = held.wait_for(|held| (held.keys.is_some() && known(held)) || held.ended >= proof);
        let settled = timeout(PATIENCE, settled).await;
        let Ok(Ok(settled)) = settled else { return Err(AuthError::Unavailable) };
        match &settled.keys {
            Some(keys) if known(&settled) || !settled.failed => Ok(keys.clone()),
            _ => Err(AuthError::Unavailable),
        }
    }
}

/// The task that fetches the keys.
struct Fetcher {
    uri: Uri,
    refresh: Duration,
    algorithm: Option<Algorithm>,
    client: Client,
    metrics: Arc<Metrics>,
    held: watch::Sender<FetchedKeys>,
    wanted: Arc<Notify>,
}

impl Fetcher {
    async fn run(self) {
        loop {
            let begin = Instant::now();
            self.held.send_modify(|held| held.begun += 1);
            tokio::select! {
                () = self.held.closed() => return,
                fetched = self.fetch() => self.keep(fetched),
            }
            // While the endpoint is down, it is asked as often as the pause allows, because tokens with new keys wait
            // for it.
            let refresh = if self.held.borrow().failed { PAUSE } else { self.refresh };
            let sooner = async {
                self.wanted.notified().await;
                sleep_until(begin + PAUSE).await;
            };
            tokio::select! {
                () = self.held.closed() => return,
                () = sleep_until(begin + refresh) => {}
                () = sooner => {}
            }
        }
    }

    /// Stores the result. Logs only changes, not every fetch.
    fn keep(&self, fetched: Result<Set, String>) {
        let result = if fetched.is_ok() { FetchResult::Fetched } else { FetchResult::Failed };
        self.metrics.jwks_fetches.inc(result);
        let failed_before = self.held.borrow().failed;
        match fetched {
            Ok(Set { keys, skipped }) => {
                let count = keys.len();
                let before = self.held.borrow().keys.as_ref().map(|keys| keys.len());
                if failed_before || before != Some(count) {
                    tracing::info!(
                        keys = count,
                        skipped = skipped.len(),
                        "auth.jwt.jwks_url: fetched the keys"
                    );
                    for why in &skipped {
                        tracing::warn!(why, "auth.jwt.jwks_url: a key cannot be used");
                    }
                }
                self.metrics.jwks_keys.set(count as i64);
                self.metrics.jwks_skipped_keys.set(skipped.len() as i64);
                self.held.send_modify(|held| {
                    let before = held.keys.replace(keys);
                    let is_withdrawn = before.iter().flat_map(|keys| keys.iter()).any(|key| !held.have(key));
                    held.withdrawals += u64::from(is_withdrawn);
                    held.failed = false;
                    held.ended = held.begun;
                });
            }
            Err(why) => {
                if !failed_before {
                    tracing::warn!(
                        why,
                        "auth.jwt.jwks_url: cannot fetch the keys; known keys stay in use, tokens with other keys are \
                        refused for now"
                    );
                }
                self.held.send_modify(|held| {
                    held.failed = true;
                    held.ended = held.begun;
                });
            }
        }
    }

    async fn fetch(&self) -> Result<Set, String> {
        let mut request = Request::new(Full::<Bytes>::default());
        *request.uri_mut() = self.uri.clone();
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static("application/json"));
        let answer =
            self.client.ask(request, FETCH_TIMEOUT, MAX_BODY).await.map_err(|error| error.to_string())?;
        let (head, body) = answer.into_parts();
        if head.status != StatusCode::OK {
            return Err(format!("it answered {}", head.status.as_u16()));
        }
        Set::read(&body.map_err(|error| error.to_string())?, self.algorithm)
    }
}

/// A key set as it was fetched.
#[derive(Debug)]
struct Set {
    keys: Arc<[Arc<Key>]>,
    /// Why the other keys cannot be used.
    skipped: Vec<String>,
}

impl Set {
    /// Parses a set. Keys that cannot be used do not affect the others: providers also publish keys for encryption.
    fn read(body: &[u8], algorithm: Option<Algorithm>) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Published {
            keys: Vec<Value>,
        }
        let Published { keys } =
            serde_json::from_slice(body).map_err(|error| format!("it is not a JWKS: {error}"))?;
        if keys.len() > MAX_KEYS {
            return Err(format!("it has {} keys, but at most {MAX_KEYS} are allowed", keys.len()));
        }
        let (mut usable, mut skipped) = (vec![], vec![]);
        for (index, jwk) in keys.into_iter().enumerate() {
            match read(jwk, algorithm) {
                Ok(key) => usable.push(Arc::new(key)),
                Err(why) => skipped.push(format!("#{} {why}", index + 1)),
            }
        }
        Ok(Set { keys: usable.into(), skipped })
    }
}

fn read(jwk: Value, algorithm: Option<Algorithm>) -> Result<Key, String> {
    let Value::Object(jwk) = jwk else { return Err("is not a JSON object".into()) };
    if SECRET_MEMBERS.iter().any(|member| jwk.contains_key(*member)) {
        return Err("is a private or secret key that is published; anyone who reads it can sign".into());
    }
    let jwk: Jwk =
        serde_json::from_value(Value::Object(jwk)).map_err(|error| format!("cannot be read: {error}"))?;
    Key::from_jwk(&jwk, algorithm)
}
