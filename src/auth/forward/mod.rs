//! Forward auth: a backend that knows its users is asked who may, before a stream opens or a message is published.
//!
//! 2xx allows, 401 and 403 refuse, and everything else is no answer: the reader is told to come back, and is never let
//! in. An answer is kept for a short time, for the very same question only; a question that is being asked already is
//! waited for, not asked again. What is sent stands in `question.rs`, what an answer means in `answer.rs`.

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
use crate::metrics::{Metrics, Outcome};
use crate::net::client::{AskError, Client};
use crate::net::reason::Peer;
use crate::net::turns::Permits;

/// Bytes of an answer's body.
const MAX_BODY: usize = 16 * 1024;

/// Answers that are kept. At the largest they hold 64 MiB together, at the usual size 2.
/// (Unwrapped when this is compiled.)
const MAX_ANSWERS: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// Questions that may wait for their turn, for each that is being asked. Addresses take turns. Those in the queue are told in time that they
/// have to come back; a longer one would only be told later.
const QUEUE: usize = 16;

/// Nothing that could be taken for an answer. Counted and logged where it happened.
#[derive(Debug, Clone, Copy)]
struct NoAnswer;

type Asking = Shared<BoxFuture<'static, Result<Decision, NoAnswer>>>;

/// What is known of a question.
#[derive(Debug)]
enum Known {
    /// It is being asked, for as long as someone waits for it.
    Asking(WeakShared<BoxFuture<'static, Result<Decision, NoAnswer>>>),
    /// The answer, good until then.
    Answered(Decision, Instant),
}

/// See the module.
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
    /// Of the lines that say that there was no answer.
    failures: Throttle,
}

impl Forward {
    /// Asks nobody yet. `grammar` is how the backend writes patterns.
    ///
    /// # Errors
    /// The URL is none (which a configuration refuses before), or the system lacks random bytes or TLS.
    pub(super) fn new(
        config: &config::Forward,
        grammar: Grammar,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, SettingError> {
        let wrong = |problem: &str| SettingError(format!("auth.forward.url: {problem}"));
        let uri = config.url.0.parse().map_err(|_| wrong("it is not a URL that can be asked"))?;
        let secret = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .map_err(|_| wrong("the system has no random bytes to give"))?;
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

    /// Who asks, and what the backend lets them do, which takes in all of what they ask for. Takes at most twice
    /// `timeout`: once until it is our turn, once for the answer.
    ///
    /// # Errors
    /// Whatever the backend said that does not allow it, or that it said nothing.
    pub(super) async fn ask(self: &Arc<Self>, asked: &AccessRequest<'_>) -> Result<Caller, AuthError> {
        let question = Question::new(asked).ok_or(AuthError::TooManyTopics)?;
        let verdict = if self.keep.is_zero() {
            self.settle(question).await
        } else {
            match self.look_up(question) {
                Ok(verdict) => Ok(verdict),
                Err(asking) => asking.await,
            }
        };
        match verdict {
            Ok(Decision::Allowed(caller)) => takes_in(caller, asked),
            Ok(Decision::Refused { status, challenge }) => Err(AuthError::Refused { status, challenge }),
            Err(NoAnswer) => Err(AuthError::Unavailable),
        }
    }

    /// The answer, if it is known; else the question that is being asked, by us if by nobody else.
    fn look_up(self: &Arc<Self>, question: Question) -> Result<Decision, Asking> {
        let digest = question.digest(&self.secret);
        let mut known = self.known.lock();
        match known.get(&digest) {
            Some(Known::Answered(verdict, until)) if Instant::now() < *until && !verdict.has_expired() => {
                self.metrics.forward.cached.inc();
                return Ok(verdict.clone());
            }
            Some(Known::Asking(asking)) => {
                if let Some(asking) = asking.upgrade() {
                    self.metrics.forward.cached.inc();
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

    /// Asks, and sees to it that everyone hears of it when there is no answer: the counters, and now and then the log.
    async fn settle(&self, question: Question) -> Result<Decision, NoAnswer> {
        let verdict = self.put(question).await;
        self.metrics.forward.asked(match &verdict {
            Ok(Decision::Allowed(_)) => Outcome::Allowed,
            Ok(Decision::Refused { .. }) => Outcome::Refused,
            Err((outcome, _)) => *outcome,
        });
        verdict.map_err(|(_, why)| {
            if self.failures.allows() {
                tracing::warn!(
                    why,
                    "the backend of auth.forward gave no answer; who asked is told to come back"
                );
            }
            NoAnswer
        })
    }

    /// Waits for its turn, asks, and reads the answer.
    async fn put(&self, question: Question) -> Result<Decision, (Outcome, String)> {
        let busy = || (Outcome::Busy, "too many questions at once (auth.forward.concurrency)".to_owned());
        let turn = timeout(self.timeout, self.turns.acquire(question.client)).await;
        let _turn = turn.ok().flatten().ok_or_else(busy)?;
        let _asking = self.metrics.forward.asking();
        let answer = self.client.ask(question.request(&self.uri), self.timeout, MAX_BODY).await;
        let answer = answer.map_err(|error| match error {
            AskError::Late(_) => (Outcome::Late, error.to_string()),
            _ => (Outcome::Failed, error.to_string()),
        })?;
        Decision::read(answer, &question, self.grammar).map_err(|why| (Outcome::Failed, why))
    }
}

/// The caller, if what they may is not over and takes in all that is asked for. A backend that names other topics than it
/// was asked about has not allowed these, whether or not the rule would have been content with less.
fn takes_in(caller: Caller, asked: &AccessRequest<'_>) -> Result<Caller, AuthError> {
    if caller.is_expired() {
        // As little as a token that has expired.
        return Err(AuthError::Refused { status: StatusCode::UNAUTHORIZED, challenge: None });
    }
    match asked.filters.iter().find(|filter| !caller.is_granted(asked.action, filter)) {
        Some(missing) => Err(AuthError::NotGranted(asked.action, missing.clone())),
        None => Ok(caller),
    }
}
