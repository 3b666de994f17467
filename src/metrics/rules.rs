//! Metrics of each rule of the configuration, labelled with its `match` as written. There are none per topic, because the
//! number of topics has no bound. A rule that a reload removed is shown until the last log that counts for it is dropped.

use std::sync::Arc;

use super::shown_rules::{RuleMetrics, Shown};
use super::table::Metrics;

impl Metrics {
    /// The metrics of the rule with this `match`.
    pub fn rule(&self, pattern: &str) -> Arc<RuleMetrics> {
        let mut shown = self.rules.0.lock();
        if let Some(rule) = shown.get(pattern) {
            return rule.metrics.clone();
        }
        let label = [("rule", pattern.to_owned())];
        let metrics = Arc::new(RuleMetrics {
            messages: self.rule_messages.get_or_create_owned(&label),
            events: self.rule_events.get_or_create_owned(&label),
            gaps: self.rule_gaps.get_or_create_owned(&label),
            readers: self.rule_readers.get_or_create_owned(&label),
        });
        shown.insert(pattern.to_owned(), Shown { metrics: metrics.clone(), is_current: false });
        metrics
    }

    /// Shows the rules of the configuration, those that are new at zero.
    pub fn set_rules(&self, patterns: &[String]) {
        self.rules.0.lock().values_mut().for_each(|rule| rule.is_current = false);
        for pattern in patterns {
            drop(self.rule(pattern));
            if let Some(rule) = self.rules.0.lock().get_mut(pattern) {
                rule.is_current = true;
            }
        }
    }

    /// Removes the rules that the configuration no longer has and for which no log counts. To be called now and then.
    pub fn sweep_rules(&self) {
        self.rules.0.lock().retain(|pattern, rule| {
            // Logs get their counters from here, so none can be added while this is locked.
            let stays = rule.is_current || Arc::strong_count(&rule.metrics) > 1;
            if !stays {
                let label = [("rule", pattern.clone())];
                self.rule_messages.remove(&label);
                self.rule_events.remove(&label);
                self.rule_gaps.remove(&label);
                self.rule_readers.remove(&label);
            }
            stays
        });
    }
}
