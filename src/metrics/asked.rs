//! What is counted of requests to others: to the backend of forward auth, to whoever publishes the keys of tokens, to the
//! collector of traces.

use std::time::Instant;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::Label;

/// The upper ends of the histogram's buckets, in seconds: from a backend next door to one that is about to be given up.
const SECONDS: [f64; 8] = [0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

/// How a question to the backend ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// 2xx.
    Allowed,
    /// 401 or 403.
    Refused,
    /// Something else, or nothing at all: another status, a body that is not understood, no connection.
    Failed,
    /// Nothing in time.
    Late,
    /// It was not asked, because too many questions were.
    Busy,
}

impl Outcome {
    const ALL: [Outcome; 5] =
        [Outcome::Allowed, Outcome::Refused, Outcome::Failed, Outcome::Late, Outcome::Busy];

    fn label(self) -> Label {
        let outcome = match self {
            Outcome::Allowed => "allowed",
            Outcome::Refused => "refused",
            Outcome::Failed => "failed",
            Outcome::Late => "late",
            Outcome::Busy => "busy",
        };
        [("outcome", outcome)]
    }
}

/// Of forward auth.
#[derive(Debug)]
pub struct ForwardMetrics {
    questions: Family<Label, Counter>,
    /// Requests that were answered by what is kept, or by a question that was being asked already.
    pub cached: Counter,
    asking: Gauge,
    seconds: Histogram,
}

impl ForwardMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = ForwardMetrics {
            questions: Family::default(),
            cached: Counter::default(),
            asking: Gauge::default(),
            seconds: Histogram::new(SECONDS),
        };
        for outcome in Outcome::ALL {
            drop(metrics.questions.get_or_create(&outcome.label()));
        }
        registry.register(
            "forward_questions",
            "Questions to the backend of forward auth, by outcome",
            metrics.questions.clone(),
        );
        registry.register(
            "forward_cached",
            "Requests that needed no question of their own to the backend",
            metrics.cached.clone(),
        );
        registry.register(
            "forward_asking",
            "Questions that the backend is being asked",
            metrics.asking.clone(),
        );
        registry.register("forward_seconds", "How long the backend took", metrics.seconds.clone());
        metrics
    }

    /// A question ended.
    pub fn asked(&self, outcome: Outcome) {
        self.questions.get_or_create(&outcome.label()).inc();
    }

    /// A question is sent. Its end is that of the value, however it comes about.
    pub fn asking(&self) -> impl Drop + use<> {
        self.asking.inc();
        Asking { asking: self.asking.clone(), seconds: self.seconds.clone(), begin: Instant::now() }
    }
}

struct Asking {
    asking: Gauge,
    seconds: Histogram,
    begin: Instant,
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.asking.dec();
        self.seconds.observe(self.begin.elapsed().as_secs_f64());
    }
}

/// Of the keys of tokens, where they are published at a URL.
#[derive(Debug)]
pub struct KeyMetrics {
    fetches: Family<Label, Counter>,
    /// Keys in use.
    pub held: Gauge,
    /// Keys of the last set that cannot be used here.
    pub skipped: Gauge,
}

impl KeyMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics =
            KeyMetrics { fetches: Family::default(), held: Gauge::default(), skipped: Gauge::default() };
        for fetched in [true, false] {
            drop(metrics.fetches.get_or_create(&fetch(fetched)));
        }
        registry.register(
            "jwks_fetches",
            "Fetches of the keys of tokens, by outcome",
            metrics.fetches.clone(),
        );
        registry.register("jwks_keys", "Keys in use", metrics.held.clone());
        registry.register("jwks_skipped_keys", "Keys that cannot be used here", metrics.skipped.clone());
        metrics
    }

    /// Keys were fetched, or could not be.
    pub fn fetched(&self, succeeded: bool) {
        self.fetches.get_or_create(&fetch(succeeded)).inc();
    }
}

fn fetch(succeeded: bool) -> Label {
    [("outcome", if succeeded { "fetched" } else { "failed" })]
}

/// Of spans, where traces are collected.
#[derive(Debug, Clone)]
pub struct SpanMetrics {
    /// The collector has them.
    pub exported: Counter,
    /// It did not take them.
    pub failed: Counter,
    /// There was no room for them to wait.
    pub dropped: Counter,
}

impl SpanMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let spans = Family::<Label, Counter>::default();
        let result = |result| spans.get_or_create(&[("result", result)]).clone();
        let metrics = SpanMetrics {
            exported: result("exported"),
            failed: result("failed"),
            dropped: result("dropped"),
        };
        registry.register("spans", "Spans of traces, by what became of them", spans);
        metrics
    }
}
