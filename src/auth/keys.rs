//! The keys that tokens are checked with: one of the configuration, or a set that is fetched.

use super::jwks::Jwks;
use super::key::Key;
use super::{AuthError, SettingError};
use crate::config;
use crate::metrics::Metrics;
use jsonwebtoken::Algorithm;
use std::sync::Arc;

/// The keys that a token may be signed with.
#[derive(Debug)]
pub(crate) enum Keys {
    /// Those that the configuration names.
    Static(Arc<[Key]>),
    /// Those that are published at a URL.
    Published(Jwks),
}

impl Keys {
    /// Reads the file that the setting names, if it names one, or begins to fetch what is published. What was fetched
    /// `before` in the same manner is taken over, and asked for anew.
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
        Ok(Keys::Static([key?].into()))
    }

    /// Whether they are the same, or come from the same place.
    pub(crate) fn are(&self, other: &Keys) -> bool {
        match (self, other) {
            (Keys::Static(keys), Keys::Static(others)) => {
                keys.len() == others.len() && keys.iter().zip(&**others).all(|(key, other)| key.is(other))
            }
            (Keys::Published(keys), Keys::Published(others)) => keys.have_the_source_of(others),
            _ => false,
        }
    }

    /// Those that may hold for a token which says `kid`.
    ///
    /// # Errors
    /// [`AuthError::Unavailable`] if they cannot be had now.
    pub(crate) async fn find(&self, kid: Option<&str>) -> Result<Arc<[Key]>, AuthError> {
        match self {
            Keys::Static(keys) => Ok(keys.clone()),
            Keys::Published(keys) => keys.find(kid).await,
        }
    }
}
