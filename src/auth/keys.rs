//! The keys that check tokens: the configured key, or a key set that is fetched from a URL.

use super::jwks::Jwks;
use super::key::Key;
use super::{AuthError, SettingError};
use crate::config;
use crate::metrics::Metrics;
use jsonwebtoken::Algorithm;
use std::sync::Arc;

/// The source of the keys.
#[derive(Debug)]
pub(crate) enum Keys {
    /// The key that the configuration names.
    Static(Arc<[Arc<Key>]>),
    /// A key set that is published at a URL.
    Published(Jwks),
}

impl Keys {
    /// Reads the key from its setting or its file, or begins to fetch the key set. If `before` fetched the same set
    /// with the same settings, its keys are taken over, and fetched again.
    ///
    /// # Errors
    /// [`SettingError`].
    pub(crate) fn new(
        settings: &config::Jwt,
        metrics: &Arc<Metrics>,
        before: Option<&Keys>,
    ) -> Result<Self, SettingError> {
        let key = match &settings.keys {
            config::JwtKeys::Secret(secret) => {
                Key::from_secret(&secret.0, settings.algorithm.unwrap_or(Algorithm::HS256))
                    .map_err(|problem| SettingError(format!("auth.jwt.secret {problem}")))
            }
            config::JwtKeys::PublicKey(path) => std::fs::read_to_string(path)
                .map_err(|error| format!("cannot be read: {error}"))
                .and_then(|pem| Key::from_pem(&pem, settings.algorithm))
                .map_err(|problem| {
                    SettingError(format!("auth.jwt.public_key: {} {problem}", path.display()))
                }),
            config::JwtKeys::Jwks { url, refresh } => {
                if let Some(Keys::Published(keys)) = before
                    && keys.is_of(url, *refresh, settings.algorithm)
                {
                    keys.fetch_anew();
                    return Ok(Keys::Published(keys.clone()));
                }
                return Jwks::start(url, *refresh, settings.algorithm, metrics.clone())
                    .map(Keys::Published)
                    .map_err(|problem| SettingError(format!("auth.jwt.jwks_url {problem}")));
            }
        };
        Ok(Keys::Static([Arc::new(key?)].into()))
    }

    /// Whether both are the same key, or come from the same URL.
    pub(crate) fn are(&self, other: &Keys) -> bool {
        match (self, other) {
            (Keys::Static(keys), Keys::Static(others)) => {
                keys.len() == others.len() && keys.iter().zip(&**others).all(|(key, other)| key.is(other))
            }
            (Keys::Published(keys), Keys::Published(others)) => keys.have_the_source_of(others),
            _ => false,
        }
    }

    /// Whether `key` is one of them.
    pub(crate) fn have(&self, key: &Key) -> bool {
        match self {
            Keys::Static(keys) => keys.iter().any(|one| one.is(key)),
            Keys::Published(keys) => keys.have(key),
        }
    }

    /// How many times a key was withdrawn.
    pub(crate) fn withdrawals(&self) -> u64 {
        match self {
            Keys::Static(_) => 0,
            Keys::Published(keys) => keys.withdrawals(),
        }
    }

    /// The keys among which a token with this `kid` finds its key.
    ///
    /// # Errors
    /// [`AuthError::Unavailable`] if they cannot be fetched now.
    pub(crate) async fn find(&self, kid: Option<&str>) -> Result<Arc<[Arc<Key>]>, AuthError> {
        match self {
            Keys::Static(keys) => Ok(keys.clone()),
            Keys::Published(keys) => keys.find(kid).await,
        }
    }
}
