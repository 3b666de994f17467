//! Metrics of each rule of the configuration, under its `match` as it is written. Never of a topic: their number has no
//! bound.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

use super::table::Metrics;

/// The metrics of one rule. Cheap to clone.
#[derive(Debug, Clone, Default)]
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

impl Metrics {
    /// The metrics of the rule with this `match`.
    pub fn rule(&self, pattern: &str) -> RuleMetrics {
        let label = [("rule", pattern.to_owned())];
        RuleMetrics {
            messages: self.rule_messages.get_or_create_owned(&label),
            events: self.rule_events.get_or_create_owned(&label),
            gaps: self.rule_gaps.get_or_create_owned(&label),
            readers: self.rule_readers.get_or_create_owned(&label),
        }
    }
}
