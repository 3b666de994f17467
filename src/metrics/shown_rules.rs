//! The rules that are shown in the metrics, and the counters of each.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

/// The metrics of one rule.
#[derive(Debug, Default)]
pub struct RuleMetrics {
    /// Messages from the broker.
    pub messages: Counter,
    /// Messages and gaps handed to readers.
    pub events: Counter,
    /// Gaps: one per topic if the broker lost messages, otherwise one per reader.
    pub gaps: Counter,
    /// Streams, counted once per topic or pattern of the rule that they read.
    pub readers: Gauge,
}

/// The rules that are shown, by their `match`.
#[derive(Debug, Default)]
pub(super) struct ShownRules(pub(super) Mutex<HashMap<String, Shown>>);

#[derive(Debug)]
pub(super) struct Shown {
    pub(super) metrics: Arc<RuleMetrics>,
    /// The configuration has the rule.
    pub(super) is_current: bool,
}
