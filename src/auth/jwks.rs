//! The keys of tokens where an identity provider publishes them: a JWKS (RFC 7517) at a URL of the configuration.
//!
//! One task fetches them: at the start, then every `jwks_refresh`, and sooner where a token names a key that is not held,
//! but never twice within [`PAUSE`], whatever tokens come. A token of an unknown key waits for that: it is refused once
//! a set that was fetched after it came does not have its key. While the endpoint is down, what was fetched before stays
//! in use. No token chooses where keys come from.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ACCEPT, HeaderValue};
use hyper::{Request, StatusCode, Uri};
use jsonwebtoken::Algorithm;
use jsonwebtoken::jwk::Jwk;
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::AuthError;
use super::key::Key;
use crate::config::Secret;
use crate::metrics::Metrics;
use crate::net::client::Client;
use crate::net::reason::Peer;

/// The least time between two fetches.
const PAUSE: Duration = Duration::from_secs(5);

/// How long one fetch may take.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a token waits for keys: for a fetch that may not begin yet, and for that fetch, and a little more.
const PATIENCE: Duration = Duration::from_secs(11);

/// Bytes of a set. A key of RSA with its certificates has about 5 KiB.
const MAX_BODY: usize = 256 * 1024;

/// Keys of a set. Without a `kid`, a token is tried with each of its algorithm.
const MAX_KEYS: usize = 64;

/// Members that only a private or a secret key has. Who publishes them has lost the key.
const SECRET_MEMBERS: [&str; 3] = ["d", "p", "k"];

/// Keys as they are published, and kept.
#[derive(Debug, Clone)]
pub(super) struct Jwks {
    url: Secret,
    refresh: Duration,
    algorithm: Option<Algorithm>,
    held: watch::Receiver<FetchedKeys>,
    wanted: Arc<Notify>,
}

/// What is known after a fetch.
#[derive(Debug, Clone, Default)]
struct FetchedKeys {
    /// `None` until a fetch has succeeded.
    keys: Option<Arc<[Key]>>,
    /// Fetches begun and ended. They differ while one is under way.
    begun: u64,
    ended: u64,
    /// Whether the last one failed.
    failed: bool,
}

impl FetchedKeys {
    fn names(&self, kid: &str) -> bool {
        self.keys.iter().flat_map(|keys| keys.iter()).any(|key| key.kid() == Some(kid))
    }
}

impl Jwks {
    /// Begins to fetch, in a task that ends with the value. An endpoint that is down is no error. `algorithm` is what
    /// the configuration pins.
    ///
    /// # Errors
    /// The URL is none (which a configuration refuses before), or the system lacks TLS.
    pub(super) fn start(
        url: &Secret,
        refresh: Duration,
        algorithm: Option<Algorithm>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, String> {
        let uri = url.0.parse().map_err(|_| "is not a URL that can be asked")?;
        let client = Client::new(Peer::Keys)?;
        let (held, receiver) = watch::channel(FetchedKeys::default());
        let wanted = Arc::new(Notify::new());
        let fetcher = Fetcher { uri, refresh, algorithm, client, metrics, held, wanted: wanted.clone() };
        tokio::spawn(fetcher.run());
        Ok(Jwks { url: url.clone(), refresh, algorithm, held: receiver, wanted })
    }

    /// Whether they are fetched in this manner.
    pub(super) fn is_of(&self, url: &Secret, refresh: Duration, algorithm: Option<Algorithm>) -> bool {
        (&self.url, self.refresh, self.algorithm) == (url, refresh, algorithm)
    }

    /// Whether tokens are checked with the keys of the same set.
    pub(super) fn have_the_source_of(&self, other: &Jwks) -> bool {
        (&self.url, self.algorithm) == (&other.url, other.algorithm)
    }

    /// Has them fetched as soon as that may be.
    pub(super) fn fetch_anew(&self) {
        self.wanted.notify_one();
    }

    /// The keys among which the one called `kid` is, if it is published at all.
    ///
    /// # Errors
    /// [`AuthError::Unavailable`] if no keys are held, or if whether there is such a key cannot be asked now.
    pub(super) async fn find(&self, kid: Option<&str>) -> Result<Arc<[Key]>, AuthError> {
        let mut held = self.held.clone();
        let now = held.borrow_and_update().clone();
        let known = |held: &FetchedKeys| kid.is_none_or(|kid| held.names(kid));
        match now.keys {
            Some(keys) if known(&now) => return Ok(keys),
            // It is asked as often as it may be. Nobody is kept waiting for that.
            _ if now.failed => return Err(AuthError::Unavailable),
            // The first fetch is under way.
            None => {}
            Some(_) => self.wanted.notify_one(),
        }
        // One that was under way before the token came does not prove that its key is not published.
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

/// The task.
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
            // While it is down, it is asked as often as it may be: when it is back, tokens of new keys wait for it.
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

    /// Says so where something has changed, not at every fetch.
    fn keep(&self, fetched: Result<Set, String>) {
        self.metrics.jwks.fetched(fetched.is_ok());
        let failed_before = self.held.borrow().failed;
        match fetched {
            Ok(Set { keys, skipped }) => {
                let count = keys.len();
                let before = self.held.borrow().keys.as_ref().map(|keys| keys.len());
                if failed_before || before != Some(count) {
                    tracing::info!(keys = count, skipped = skipped.len(), "auth.jwt.jwks_url: keys fetched");
                    for why in &skipped {
                        tracing::warn!(why, "auth.jwt.jwks_url: a key is left out");
                    }
                }
                self.metrics.jwks.held.set(count as i64);
                self.metrics.jwks.skipped.set(skipped.len() as i64);
                self.held.send_modify(|held| {
                    held.keys = Some(keys);
                    held.failed = false;
                    held.ended = held.begun;
                });
            }
            Err(why) => {
                if !failed_before {
                    tracing::warn!(
                        why,
                        "auth.jwt.jwks_url: keys cannot be fetched; tokens of those that are not held have to wait"
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

/// A set that was published.
#[derive(Debug)]
struct Set {
    keys: Arc<[Key]>,
    /// Why others cannot be used.
    skipped: Vec<String>,
}

impl Set {
    /// Keys that cannot be used do not stand in the way of the others: providers publish those for encryption beside.
    fn read(body: &[u8], algorithm: Option<Algorithm>) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Published {
            keys: Vec<Map<String, Value>>,
        }
        let Published { keys } =
            serde_json::from_slice(body).map_err(|error| format!("it is no JWKS: {error}"))?;
        if keys.len() > MAX_KEYS {
            return Err(format!("it has {} keys and at most {MAX_KEYS} are taken", keys.len()));
        }
        let (mut usable, mut skipped) = (vec![], vec![]);
        for (index, jwk) in keys.into_iter().enumerate() {
            match read(jwk, algorithm) {
                Ok(key) => usable.push(key),
                Err(why) => skipped.push(format!("#{} {why}", index + 1)),
            }
        }
        Ok(Set { keys: usable.into(), skipped })
    }
}

fn read(jwk: Map<String, Value>, algorithm: Option<Algorithm>) -> Result<Key, String> {
    if SECRET_MEMBERS.iter().any(|member| jwk.contains_key(*member)) {
        return Err("is private or secret, and published; whoever reads it can sign".into());
    }
    let jwk: Jwk =
        serde_json::from_value(Value::Object(jwk)).map_err(|error| format!("cannot be read: {error}"))?;
    Key::from_jwk(&jwk, algorithm)
}
