//! Reload: replaces the running configuration by the one that was read again, or changes nothing and logs why.
//!
//! Everything that can fail is done first. Settings that need a restart keep their values, and the log names them.

use std::sync::Arc;

use parking_lot::Mutex;
use thiserror::Error;

use super::logging;
use crate::auth;
use crate::config::{Config, ConfigErrors, NeedsRestart};
use crate::gateway::Gateway;
use crate::metrics::ReloadResult;
use crate::net::tls::{Tls, TlsError};

/// Why a configuration was not applied.
#[derive(Debug, Error)]
enum ReloadError {
    /// A gateway could not start with it.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// The rest would have another meaning until a restart.
    #[error(transparent)]
    Restart(#[from] NeedsRestart),
    /// A file that `[auth]` names cannot be used.
    #[error(transparent)]
    Auth(#[from] auth::SettingError),
    /// The certificate or its key cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Replaces the configuration of a running [`Server`](crate::Server). Settings that cannot change while it runs keep their
/// values, and the log names them.
///
/// # Examples
/// ```
/// use topicgate::{Config, Server};
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let listeners = "listen = '127.0.0.1:0'\nadmin.listen = '127.0.0.1:0'\n";
/// let server = Server::build(Config::from_toml(listeners)?).await?;
/// let reloader = server.reloader();
///
/// let changed = format!("{listeners}streams.heartbeat = '20s'");
/// assert!(reloader.reload(Config::from_toml(&changed)));
/// assert!(!reloader.reload(Config::from_toml("limits.streams = 'many'")), "the old configuration stays in force");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Reloader {
    gateway: Arc<Gateway>,
    tls: Option<Arc<Tls>>,
    /// One reload at a time: each is compared with the configuration that the previous one applied.
    turn: Mutex<()>,
}

impl Reloader {
    /// For a gateway and its certificate.
    pub(crate) fn new(gateway: Arc<Gateway>, tls: Option<Arc<Tls>>) -> Self {
        Reloader { gateway, tls, turn: Mutex::default() }
    }

    /// Puts a configuration in force, with the certificates and keys that it names, which are read here. Logs the result and
    /// returns whether it is in force; if not, nothing has changed. Call it within the runtime, where it may block: it reads
    /// files and checks every open stream against the new rules.
    pub fn reload(&self, read: Result<Config, ConfigErrors>) -> bool {
        let _turn = self.turn.lock();
        let outcome = read.map_err(ReloadError::from).and_then(|config| self.put_in_force(config));
        let metrics = self.gateway.metrics();
        let Err(error) = outcome else {
            metrics.config_reloads.inc(ReloadResult::Done);
            return true;
        };
        // One line for each error, as in `topicgate check`.
        for error in error.to_string().lines() {
            tracing::error!(error, "the configuration cannot be used; nothing has changed");
        }
        metrics.config_reloads.inc(ReloadResult::Refused);
        false
    }

    fn put_in_force(&self, mut config: Config) -> Result<(), ReloadError> {
        let running = self.gateway.current();
        let kept = config.keep_until_restart(&running.config)?;
        let auth = running.auth.renewed(&config, self.gateway.metrics())?;
        let certificate = match (&self.tls, &config.tls) {
            (Some(tls), Some(files)) => Some((tls, tls.read(files.clone())?)),
            _ => None,
        };
        if let Some((tls, renewed)) = certificate {
            tls.renew(renewed);
        }
        logging::set_level(&config.log);
        let known = running.config.warnings();
        for warning in config.warnings().iter().filter(|warning| !known.contains(warning)) {
            tracing::warn!("{warning}");
        }
        let revoked = self.gateway.renew(config, auth);
        tracing::info!(revoked, "the configuration was reloaded and is in force");
        if !kept.is_empty() {
            let keys = kept.join(", ");
            tracing::warn!(
                keys,
                "these settings have changed but need a restart; until then their old values apply"
            );
        }
        Ok(())
    }
}
