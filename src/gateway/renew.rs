//! Puts another configuration in force while the gateway runs: for requests and new streams at once, and for the streams
//! that are open as far as they may still read. What cannot change is not looked at here.

use std::sync::atomic::Ordering;

use super::{Gateway, log_settings};
use crate::auth::Auth;
use crate::config::{Config, Limits};
use crate::current::Current;

impl Gateway {
    /// Puts another configuration in force, as far as it does not concern listeners and the broker. Ends the streams that
    /// it does not let read on, and returns how many those are. To be called by one at a time.
    pub fn renew(&self, config: Config, auth: Auth) -> usize {
        let current = Current::new(config, auth, self.registry.clone(), self.metrics.clone());
        // From here on nobody is let in by what was in force before: who is on the way in looks once more at the end.
        *self.current.write() = current.clone();
        self.put_limits(&current.config.limits);
        let topics = &current.config.topics;
        let settings: Vec<_> = topics.iter().map(|rule| (&rule.filter, log_settings(rule))).collect();
        self.registry.set_rules(|filter| {
            let rule = settings.iter().find(|(pattern, _)| pattern.covers(filter));
            rule.map(|(_, settings)| settings.clone())
        });
        self.keep_warm(topics);
        let mut revoked = 0;
        for log in self.registry.logs() {
            let filter = log.filter();
            if current.still_lets_read(filter, None) {
                continue;
            }
            for signal in log.readers() {
                if !current.still_lets_read(filter, signal.caller()) && signal.revoke() {
                    revoked += 1;
                }
            }
        }
        revoked
    }

    pub(super) fn put_limits(&self, limits: &Limits) {
        let size = |bytes| usize::try_from(bytes).unwrap_or(usize::MAX);
        self.table.set_limit(limits.streams);
        self.clients.set_limits(limits);
        self.registry.set_bounds(limits.topics, size(limits.buffer));
        self.max_message.store(size(limits.message), Ordering::Relaxed);
        for (name, value) in [
            ("streams", limits.streams as u64),
            ("streams_per_address", limits.streams_per_address as u64),
            ("streams_per_subject", limits.streams_per_subject as u64),
            ("opens_per_second", limits.opens_per_second as u64),
            ("resume_bytes", limits.resume_bytes),
            ("connections", limits.connections as u64),
            ("topics", limits.topics as u64),
            ("topics_per_address", limits.topics_per_address as u64),
            ("buffer", limits.buffer),
        ] {
            self.metrics.limit(name, value);
        }
    }
}
