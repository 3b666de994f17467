//! Reload: a configuration that was read anew takes the place of the one that runs, or nothing changes and the log says
//! why.
//!
//! Everything that can fail is done first. What cannot change while the process runs keeps its value, and is named.

use std::sync::Arc;

use parking_lot::Mutex;
use thiserror::Error;

use super::logging;
use crate::auth;
use crate::config::{Config, ConfigErrors, NeedsRestart};
use crate::gateway::Gateway;
use crate::net::tls::{Tls, TlsError};

/// Why a configuration was not taken.
#[derive(Debug, Error)]
enum ReloadError {
    /// It is not one that a gateway could start with.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// It would mean something else than what it says.
    #[error(transparent)]
    Restart(#[from] NeedsRestart),
    /// A file that `[auth]` names cannot be used.
    #[error(transparent)]
    Auth(#[from] auth::SettingError),
    /// The certificate or its key cannot.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// See the module.
#[derive(Debug)]
pub struct Reloader {
    gateway: Arc<Gateway>,
    tls: Option<Arc<Tls>>,
    /// One at a time: each is held against what the one before it has put in force.
    turn: Mutex<()>,
}

impl Reloader {
    /// Of a gateway, and of the certificate that it shows.
    pub(crate) fn new(gateway: Arc<Gateway>, tls: Option<Arc<Tls>>) -> Self {
        Reloader { gateway, tls, turn: Mutex::default() }
    }

    /// Puts in force what was read, certificates and keys included, which are read here. Says in the log what became of
    /// it, and returns whether it is in force. To be called within the runtime; it reads files and looks at every stream.
    pub fn reload(&self, read: Result<Config, ConfigErrors>) -> bool {
        let _turn = self.turn.lock();
        let outcome = read.map_err(ReloadError::from).and_then(|config| self.put_in_force(config));
        let metrics = self.gateway.metrics();
        let Err(error) = outcome else {
            metrics.config_reloaded("done");
            return true;
        };
        // One line for each, as `topicgate check` has them.
        for error in error.to_string().lines() {
            tracing::error!(error, "the configuration cannot be used; nothing has changed");
        }
        metrics.config_reloaded("refused");
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
        tracing::info!(revoked, "the configuration was read anew and is in force");
        if !kept.is_empty() {
            let keys = kept.join(", ");
            tracing::warn!(keys, "these have changed and need a restart; until then their old values hold");
        }
        Ok(())
    }
}
