//! What cannot change while the process runs: sockets that are bound, the connection to the broker, and what was sized at
//! the start.

use thiserror::Error;

use super::error::spell;
use super::{Admin, Broker, BrokerKind, Config, Origins, Setting, Settings};

/// A change on which the meaning of the rules depends, so that the rest cannot be taken without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{key} has changed so that the rules mean something else; that needs a restart")]
pub struct NeedsRestart {
    key: &'static str,
}

/// Puts the running value in the place of the new one. Holds the keys, dotted, of which that made a difference.
struct Keep(Vec<String>);

impl Keep {
    fn keep<T: PartialEq + Clone>(&mut self, key: &str, new: &mut T, running: &T) {
        if new != running {
            new.clone_from(running);
            self.0.push(key.to_owned());
        }
    }
}

impl Config {
    /// Keeps of `running` what cannot change, and returns the keys that were to.
    ///
    /// # Errors
    /// [`NeedsRestart`]: rules that were written for one broker are none for another, and rules that nobody wrote are
    /// for the embedded broker on loopback alone.
    pub fn keep_until_restart(&mut self, running: &Config) -> Result<Vec<String>, NeedsRestart> {
        let kind = running.broker.kind();
        if self.broker.kind() != kind {
            return Err(NeedsRestart { key: "broker.url" });
        }
        let loopback = |config: &Config| config.listen.ip().is_loopback();
        if kind == BrokerKind::Memory && loopback(self) != loopback(running) {
            return Err(NeedsRestart { key: "listen" });
        }
        let mut kept = Keep(vec![]);
        kept.keep("listen", &mut self.listen, &running.listen);
        // Taken apart, so that a key that is added is not forgotten here.
        let Admin { listen, hosts: _, console } = &mut self.admin;
        kept.keep("admin.listen", listen, &running.admin.listen);
        kept.keep("admin.console", console, &running.admin.console);
        let old = &running.broker;
        let Broker {
            url,
            sentinel,
            cluster,
            user,
            password,
            token,
            nkey,
            credentials,
            separator,
            settle,
            tls,
        } = &mut self.broker;
        kept.keep("broker.url", url, &old.url);
        kept.keep("broker.sentinel", sentinel, &old.sentinel);
        kept.keep("broker.cluster", cluster, &old.cluster);
        kept.keep("broker.user", user, &old.user);
        kept.keep("broker.password", password, &old.password);
        kept.keep("broker.token", token, &old.token);
        kept.keep("broker.nkey", nkey, &old.nkey);
        kept.keep("broker.credentials", credentials, &old.credentials);
        kept.keep("broker.separator", separator, &old.separator);
        kept.keep("broker.settle", settle, &old.settle);
        kept.keep("broker.tls", tls, &old.tls);
        kept.keep("limits.connections", &mut self.limits.connections, &running.limits.connections);
        kept.keep("traces", &mut self.traces, &running.traces);
        kept.keep("log.format", &mut self.log.format, &running.log.format);
        for (index, rule) in self.topics.iter_mut().enumerate() {
            // Its topics are followed already, under numbers that are those of the source.
            if let Some(before) = running.topics.iter().find(|before| before.filter == rule.filter) {
                let key = format!("topics.{index}.source");
                kept.keep(&key, &mut rule.source, &before.source);
            }
        }
        // Other files are taken; that there are some at all is the listener's business.
        if self.tls.is_some() != running.tls.is_some() {
            kept.keep("tls", &mut self.tls, &running.tls);
        }
        self.origins = self.origins.with(&kept.0, &running.origins);
        Ok(kept.0.iter().map(|key| spell(key)).collect())
    }
}

impl Origins {
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
