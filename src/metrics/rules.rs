//! What is counted for each rule of the configuration, under its `match` as it is written: never for a topic, of which
//! there is no end.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

type Label = [(&'static str, String); 1];

/// Of one rule. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct RuleMetrics {
    /// Messages from the broker.
    pub messages: Counter,
    /// Messages and gaps handed to readers.
    pub events: Counter,
    /// Gaps, by topic where the broker lost, by reader where the reader did.
    pub gaps: Counter,
    /// Streams that read topics of it, once for each topic or pattern.
    pub readers: Gauge,
}

/// Of all rules.
#[derive(Debug, Clone)]
pub struct RulesMetrics {
    messages: Family<Label, Counter>,
    events: Family<Label, Counter>,
    gaps: Family<Label, Counter>,
    readers: Family<Label, Gauge>,
}

impl RulesMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = RulesMetrics {
            messages: Family::default(),
            events: Family::default(),
            gaps: Family::default(),
            readers: Family::default(),
        };
        registry.register("rule_messages", "Messages from the broker, by rule", metrics.messages.clone());
        registry.register(
            "rule_events",
            "Messages and gaps handed to readers, by rule",
            metrics.events.clone(),
        );
        registry.register(
            "rule_gaps",
            "Gaps, by rule: by topic where the broker lost, by reader where the reader did",
            metrics.gaps.clone(),
        );
        registry.register(
            "rule_readers",
            "Streams by rule, once for each topic or pattern of it",
            metrics.readers.clone(),
        );
        metrics
    }

    /// Those of the rule with this `match`.
    pub fn rule(&self, pattern: &str) -> RuleMetrics {
        let label = [("rule", pattern.to_owned())];
        RuleMetrics {
            messages: self.messages.get_or_create(&label).clone(),
            events: self.events.get_or_create(&label).clone(),
            gaps: self.gaps.get_or_create(&label).clone(),
            readers: self.readers.get_or_create(&label).clone(),
        }
    }
}
