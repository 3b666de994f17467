//! Applies a new configuration while the gateway runs: to requests and new streams at once, and to the open streams by
//! ending those that are no longer allowed. `config::restart` finds the settings that need a restart; they are not
//! checked here.

use std::sync::atomic::Ordering;

use super::runtime::Runtime;
use super::{Gateway, log_settings};
use crate::auth::Auth;
use crate::config::{Config, Rule};
use crate::metrics::Limit;
use crate::protocol::topic::Filter;
use crate::reader::Principal;
use crate::reader::handle::ReaderHandle;

impl Gateway {
    /// Applies a new configuration, except for listeners and the broker. Ends the streams that it no longer allows, and
    /// returns their number. Must not be called concurrently.
    pub fn renew(&self, config: Config, auth: Auth) -> usize {
        let before = self.current();
        let current = before.renewed(config, auth);
        if !is_same_source(&before.config.topics, &current.config.topics) {
            self.registry.sources_changed();
        }
        self.hand_topics_over(&current.config.topics);
        // From here on, no stream is admitted by the old configuration: a stream that is being opened is checked again
        // at the end.
        *self.current.write() = current.clone();
        self.put_limits(&current.config);
        let topics = &current.config.topics;
        let settings: Vec<_> = topics.iter().map(|rule| log_settings(rule, &self.metrics)).collect();
        self.keep_warm(topics);
        self.registry.set_rules(|filter| current.rule_index(filter).map(|index| settings[index].clone()));
        let mut revoked = 0;
        for log in self.registry.logs_read() {
            let filter = log.filter();
            if current.still_lets_read(filter, &Principal::Anyone) {
                continue;
            }
            for handle in log.readers() {
                if !current.still_lets_read(filter, &handle.reader.principal) && handle.revoke() {
                    revoked += 1;
                }
            }
        }
        revoked
    }

    /// Ends the streams that outlast their tokens, if the key set no longer has the keys of these tokens.
    pub(super) fn revoke_withdrawn(&self) {
        let current = self.current();
        let withdrawals = current.auth.withdrawals();
        if self.withdrawals.swap(withdrawals, Ordering::Relaxed) == withdrawals {
            return;
        }
        let is_withdrawn = |handle: &ReaderHandle| match &handle.reader.principal {
            Principal::Caller(caller) => current.auth.has_withdrawn(caller),
            Principal::Anyone | Principal::Operator => false,
        };
        let revoked = self.table.find(is_withdrawn).iter().filter(|handle| handle.revoke()).count();
        if revoked > 0 {
            tracing::info!(revoked, "auth.jwt.jwks_url: a key was withdrawn; its streams have ended");
        }
    }

    /// Applies the current rules to the logs of these filters, which the old configuration may have created.
    pub(crate) fn renew_logs(&self, current: &Runtime, filters: &[Filter]) {
        for filter in filters {
            if let Some(index) = current.rule_index(filter) {
                let (bounds, fields) = log_settings(&current.config.topics[index], &self.metrics);
                self.registry.set_rule(filter, &bounds, fields);
            }
        }
    }

    /// Applies the limits to all parts, and registers the metrics of the rules.
    pub(crate) fn put_limits(&self, config: &Config) {
        let limits = &config.limits;
        let size = |bytes| usize::try_from(bytes).unwrap_or(usize::MAX);
        self.table.set_limit(limits.streams);
        self.clients.set_limits(limits);
        self.connections.set_limit(limits.connections_per_address);
        self.registry.set_bounds(limits.topics, size(limits.buffer));
        self.max_message.store(size(limits.message), Ordering::Relaxed);
        self.metrics.set_bounds(limits);
        self.metrics.set_bound(Limit::Addresses, self.clients.max_addresses() as u64);
        // Counters of a rule exist from the start, at zero.
        let patterns: Vec<String> = config.topics.iter().map(|rule| rule.pattern()).collect();
        self.metrics.set_rules(&patterns);
    }
}

/// Whether every topic surely has the source that it had: the rules are the same, or all of them have one source.
fn is_same_source(before: &[Rule], after: &[Rule]) -> bool {
    let sources = |rules: &[Rule]| -> Vec<_> {
        rules.iter().map(|rule| (rule.filter.clone(), rule.source.clone())).collect()
    };
    let (before, after) = (sources(before), sources(after));
    let all = || before.iter().chain(&after);
    before == after || all().all(|(_, source)| all().next().is_some_and(|(_, first)| first == source))
}
