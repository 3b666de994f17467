//! Forward auth: before a stream opens or a message is published, the gateway asks your application's backend whether
//! the caller is allowed.
//!
//! 2xx allows, 401 and 403 refuse. Everything else is no answer: the caller is not admitted and reconnects later. An
//! answer is cached for a short time, for exactly the same question only. Equal questions at the same time are sent
//! once. `question.rs` builds the request, `answer.rs` interprets the response.

mod answer;
mod question;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use hyper::{StatusCode, Uri};
use lru::LruCache;
use parking_lot::Mutex;
use ring::hmac;
use ring::rand::SystemRandom;
use tokio::time::{Instant, timeout};

use self::answer::Decision;
use self::question::Question;
use super::{AccessRequest, AuthError, Caller, Grammar, SettingError};
use crate::config;
use crate::metrics::throttle::Throttle;
use crate::metrics::{ForwardOutcome, Metrics};
use crate::net::client::{AskError, Client};
use crate::net::reason::Peer;
use crate::net::turns::Permits;

/// The largest body of an answer, in bytes.
const MAX_BODY: usize = 16 * 1024;

/// How many answers are cached. Answers of the largest size take 64 MiB together, of the usual size 2 MiB. The unwrap
/// is evaluated at compile time.
const MAX_ANSWERS: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// How many questions may wait for each one that is in progress. Client addresses take turns. Clients in the queue are
/// refused within the timeout; a longer queue would only delay the refusal.
const QUEUE: usize = 16;

/// The backend gave no usable answer. It has been counted and logged already.
#[derive(Debug, Clone, Copy)]
struct NoAnswer;

type Asking = Shared<BoxFuture<'static, Result<Decision, NoAnswer>>>;

/// The state of a question in the cache.
#[derive(Debug)]
enum Known {
    /// The question is in progress, for as long as a request waits for it.
    Asking(WeakShared<BoxFuture<'static, Result<Decision, NoAnswer>>>),
    /// The answer, valid until that time.
    Answered(Decision, Instant),
}

/// The client of one backend, with its cache and its queue.
#[derive(Debug)]
pub(super) struct Forward {
    uri: Uri,
    timeout: Duration,
    keep: Duration,
    grammar: Grammar,
    client: Client,
    turns: Permits,
    known: Mutex<LruCache<[u8; 32], Known>>,
    secret: hmac::Key,
    metrics: Arc<Metrics>,
    /// Limits the log lines about missing answers.
    failures: Throttle,
}

impl Forward {
    /// Creates the client without connecting. `grammar` is how the backend writes patterns.
    ///
    /// # Errors
    /// The URL cannot be parsed (the configuration has already refused that), or the system has no random bytes or no
    /// TLS.
    pub(super) fn new(
        config: &config::Forward,
        grammar: Grammar,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, SettingError> {
        let wrong = |problem: &str| SettingError(format!("auth.forward.url: {problem}"));
        let uri = config.url.0.parse().map_err(|_| wrong("it is not a usable URL"))?;
        let secret = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .map_err(|_| wrong("the system cannot provide random bytes"))?;
        let client = Client::new(Peer::Backend).map_err(|problem| wrong(&problem))?;
        Ok(Arc::new(Forward {
            uri,
            timeout: config.timeout,
            keep: config.cache,
            grammar,
            client,
            turns: Permits::new(config.concurrency, config.concurrency.saturating_mul(QUEUE)),
            known: Mutex::new(LruCache::new(MAX_ANSWERS)),
            secret,
            metrics,
            failures: Throttle::default(),
        }))
    }

    /// Asks the backend. Returns the caller with permissions that cover the whole request. It takes at most twice
    /// `timeout`: once in the queue, once for the answer.
    ///
    /// # Errors
    /// The backend refused, did not grant everything, or gave no answer.
    pub(super) async fn ask(self: &Arc<Self>, request: &AccessRequest<'_>) -> Result<Caller, AuthError> {
        let question = Question::new(request).ok_or(AuthError::TooManyTopics)?;
        let verdict = if self.keep.is_zero() {
            self.settle(question).await
        } else {
            match self.look_up(question) {
                Ok(verdict) => Ok(verdict),
                Err(asking) => asking.await,
            }
        };
        match verdict {
            Ok(Decision::Allowed(caller)) => takes_in(caller, request),
            Ok(Decision::Refused { status, challenge }) => Err(AuthError::Refused { status, challenge }),
            Err(NoAnswer) => Err(AuthError::Unavailable),
        }
    }

    /// The cached answer; otherwise the question in progress, which is started if it is not.
    fn look_up(self: &Arc<Self>, question: Question) -> Result<Decision, Asking> {
        let digest = question.digest(&self.secret);
        let mut known = self.known.lock();
        match known.get(&digest) {
            Some(Known::Answered(verdict, until)) if Instant::now() < *until && !verdict.has_expired() => {
                self.metrics.forward_cached.inc();
                return Ok(verdict.clone());
            }
            Some(Known::Asking(asking)) => {
                if let Some(asking) = asking.upgrade() {
                    self.metrics.forward_cached.inc();
                    return Err(asking);
                }
            }
            _ => {}
        }
        let asking = self.clone().settle_and_keep(question, digest).boxed().shared();
        if let Some(weak) = asking.downgrade() {
            known.put(digest, Known::Asking(weak));
        }
        Err(asking)
    }

    async fn settle_and_keep(
        self: Arc<Self>,
        question: Question,
        digest: [u8; 32],
    ) -> Result<Decision, NoAnswer> {
        let verdict = self.settle(question).await;
        let mut known = self.known.lock();
        match &verdict {
            Ok(verdict) => {
                known.put(digest, Known::Answered(verdict.clone(), Instant::now() + self.keep));
            }
            Err(NoAnswer) => {
                known.pop(&digest);
            }
        }
        verdict
    }

    /// Asks the backend, counts the outcome, and logs missing answers (throttled).
    async fn settle(&self, question: Question) -> Result<Decision, NoAnswer> {
        let verdict = self.put(question).await;
        self.metrics.forward_questions.inc(match &verdict {
            Ok(Decision::Allowed(_)) => ForwardOutcome::Allowed,
            Ok(Decision::Refused { .. }) => ForwardOutcome::Refused,
            Err((outcome, _)) => *outcome,
        });
        verdict.map_err(|(_, why)| {
            if self.failures.allows() {
                tracing::warn!(
                    why,
                    "the backend of auth.forward gave no answer; clients are refused for now"
                );
            }
            NoAnswer
        })
    }

    /// Waits in the queue, sends the question, and interprets the answer.
    async fn put(&self, question: Question) -> Result<Decision, (ForwardOutcome, String)> {
        let busy =
            || (ForwardOutcome::Busy, "too many questions at once (auth.forward.concurrency)".to_owned());
        let turn = timeout(self.timeout, self.turns.acquire(question.client)).await;
        let _turn = turn.ok().flatten().ok_or_else(busy)?;
        let _asking = self.metrics.asking_backend();
        let answer = self.client.ask(question.request(&self.uri), self.timeout, MAX_BODY).await;
        let answer = answer.map_err(|error| match error {
            AskError::Late(_) => (ForwardOutcome::Late, error.to_string()),
            _ => (ForwardOutcome::Failed, error.to_string()),
        })?;
        Decision::read(answer, &question, self.grammar).map_err(|why| (ForwardOutcome::Failed, why))
    }
}

/// Returns the caller if its permission has not expired and covers the whole request. A backend that names other topics
/// has not allowed the requested ones, even if the rule requires less.
fn takes_in(caller: Caller, request: &AccessRequest<'_>) -> Result<Caller, AuthError> {
    if caller.is_expired() {
        // The same refusal as for an expired token.
        return Err(AuthError::Refused { status: StatusCode::UNAUTHORIZED, challenge: None });
    }
    match request.filters.iter().find(|filter| !caller.is_granted(request.action, filter)) {
        Some(missing) => Err(AuthError::NotGranted(request.action, missing.clone())),
        None => Ok(caller),
    }
}
