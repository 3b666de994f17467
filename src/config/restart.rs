//! Settings that cannot change while the process runs: bound sockets, the connection to the broker, and tables whose size
//! is fixed at the start.

use thiserror::Error;

use super::Config;
use super::admin::Admin;
use super::error::spell;
use super::keys::KEYS;
use super::settings::{Origins, Setting, Settings, table_of};
use super::url::BrokerKind;
use super::value::Given;

/// A changed setting on which the meaning of the rules depends, so the other changes cannot be applied without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{key} has changed, which changes the meaning of the rules and needs a restart")]
pub struct NeedsRestart {
    key: &'static str,
}

impl Config {
    /// Keeps the values of `running` that cannot change, and returns their keys.
    ///
    /// # Errors
    /// [`NeedsRestart`]: rules that were written for one broker have no meaning for another, and the demo's rule is only for
    /// the embedded broker on loopback.
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
            // Its topics are already followed, with the numbers of their source.
            let before = running.topics.iter().find(|before| before.filter == rule.filter);
            if let Some(before) = before.filter(|before| before.source != rule.source) {
                rule.source.clone_from(&before.source);
                kept.push(format!("topics.{index}.source"));
            }
        }
        // Other files can be used; but whether the listener uses TLS cannot change.
        if self.tls.is_some() != running.tls.is_some() {
            self.tls.clone_from(&running.tls);
            kept.push("tls".to_owned());
        }
        self.origins = self.origins.with(&kept, &running.origins);
        Ok(kept.iter().map(|key| spell(key)).collect())
    }
}

impl Origins {
    /// The keys that need a restart and differ from `running`. Keys of rules are left out, because rules have no names.
    /// If only one of the two configurations has a table, the table is named instead of its keys.
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

    /// The settings, with the running values of `keys` instead of the values that were read.
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
