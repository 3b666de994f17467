//! What cannot change while the process runs: sockets that are bound, the connection to the broker, and what was sized at
//! the start.

use thiserror::Error;

use super::Config;
use super::admin::Admin;
use super::error::spell;
use super::keys::KEYS;
use super::settings::{Origins, Setting, Settings, table_of};
use super::url::BrokerKind;
use super::value::Given;

/// A change on which the meaning of the rules depends, so that the rest cannot be taken without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{key} has changed so that the rules mean something else; that needs a restart")]
pub struct NeedsRestart {
    key: &'static str,
}

impl Config {
    /// Keeps of `running` what cannot change, and returns the keys that were to.
    ///
    /// # Errors
    /// [`NeedsRestart`]: rules that were written for one broker are none for another, and rules that nobody wrote are
    /// for the embedded broker on loopback alone.
    pub(crate) fn keep_until_restart(&mut self, running: &Config) -> Result<Vec<String>, NeedsRestart> {
        let kind = running.broker.kind();
        if self.broker.kind() != kind {
            return Err(NeedsRestart { key: "broker.url" });
        }
        let loopback = |config: &Config| config.listen.ip().is_loopback();
        if kind == BrokerKind::Memory && loopback(self) != loopback(running) {
            return Err(NeedsRestart { key: "listen" });
        }
        let mut kept = self.origins.changes(&running.origins);
        self.listen = running.listen;
        let hosts = std::mem::take(&mut self.admin.hosts);
        self.admin = Admin { hosts, ..running.admin.clone() };
        self.broker.clone_from(&running.broker);
        self.limits.connections = running.limits.connections;
        self.traces.clone_from(&running.traces);
        self.log.format = running.log.format;
        for (index, rule) in self.topics.iter_mut().enumerate() {
            // Its topics are followed already, under numbers that are those of the source.
            let before = running.topics.iter().find(|before| before.filter == rule.filter);
            if let Some(before) = before.filter(|before| before.source != rule.source) {
                rule.source.clone_from(&before.source);
                kept.push(format!("topics.{index}.source"));
            }
        }
        // Other files are taken; that there are some at all is the listener's business.
        if self.tls.is_some() != running.tls.is_some() {
            self.tls.clone_from(&running.tls);
            kept.push("tls".to_owned());
        }
        self.origins = self.origins.with(&kept, &running.origins);
        Ok(kept.iter().map(|key| spell(key)).collect())
    }
}

impl Origins {
    /// The keys that need a restart and have another value than in `running`. Those of rules are not among them, because rules
    /// have no names; of a table that is there in one of the two alone, the table is.
    fn changes(&self, running: &Origins) -> Vec<String> {
        let keys = KEYS.iter().filter(|key| key.needs_restart && !key.path.starts_with("topics."));
        let changed = keys.map(|key| key.path).filter(|key| self.given(key) != running.given(key));
        let is_one =
            |table: &str| [self, running].iter().any(|all| all.0.0.iter().any(|one| one.key == table));
        let mut changed: Vec<String> = changed
            .map(|key| if is_one(table_of(key)) { table_of(key).to_owned() } else { key.to_owned() })
            .collect();
        changed.dedup();
        changed
    }

    fn given(&self, key: &str) -> Option<&Given> {
        self.0.0.iter().find(|setting| setting.key == key)?.given.as_ref()
    }

    /// With what holds of `keys` until a restart in the place of what was read.
    fn with(&self, keys: &[String], running: &Origins) -> Self {
        let is_kept = |setting: &&Setting| {
            let within = |key: &String| setting.key.strip_prefix(key.as_str());
            keys.iter().filter_map(within).any(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let read = self.0.0.iter().filter(|setting| !is_kept(setting)).cloned();
        let kept = running.0.0.iter().filter(is_kept).cloned();
        let kept = kept.map(|setting| Setting { origin: setting.origin + ", until a restart", ..setting });
        Origins(Settings(read.chain(kept).collect()).into())
    }
}
