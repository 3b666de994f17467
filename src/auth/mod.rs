//! Who asks, and what they may. A request's credentials become a [`Caller`] ([`Auth::identify`]); the rules of the
//! configuration say what a caller may do ([`access::decide`]). Nothing here knows logs, streams or sockets, nor how a
//! refusal is written.

pub mod access;
mod claims;
mod crypto;
mod forward;
mod jwks;
pub mod jwt;
pub mod key;
mod token;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use axum::http::{HeaderMap, HeaderValue, StatusCode};
use thiserror::Error;

use self::claims::Claims;
pub use self::claims::Grammar;
use self::forward::Forward;
use self::jwt::{BadToken, Jwt};
use crate::config::{self, Config};
use crate::metrics::Metrics;
use crate::topic::Filter;

/// One who has shown who they are: by a token, or by what the backend answered for them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller {
    /// The token's `sub`, or the one that the backend named.
    pub subject: Option<Arc<str>>,
    /// What they were granted to read. Each pattern stands for itself: two do not add up to a wider one.
    pub subscribe: Vec<Filter>,
    /// What they were granted to publish to.
    pub publish: Vec<Filter>,
    /// When what they may ends. Their streams end with it.
    pub expires: Option<SystemTime>,
}

impl Caller {
    /// Whether what they may has ended.
    pub fn is_expired(&self) -> bool {
        self.expires.is_some_and(|expires| expires <= SystemTime::now())
    }

    /// Whether one grant covers all of `filter`: two are not added up.
    pub fn is_granted(&self, action: Action, filter: &Filter) -> bool {
        let grants = match action {
            Action::Subscribe => &self.subscribe,
            Action::Publish => &self.publish,
        };
        grants.iter().any(|grant| grant.covers(filter))
    }
}

/// What is to be done with topics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Read them.
    Subscribe,
    /// Publish to one.
    Publish,
}

impl Action {
    /// As grants and the backend of forward auth name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Action::Subscribe => "subscribe",
            Action::Publish => "publish",
        }
    }
}

/// A request, as far as it tells who asks, and for what.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// What for.
    pub action: Action,
    /// Which topics and patterns: those for which it has to be known.
    pub filters: &'a [Filter],
    /// The request's header fields.
    pub headers: &'a HeaderMap,
    /// The query of its URL, as it came.
    pub query: Option<&'a str>,
    /// Where it comes from.
    pub client: IpAddr,
}

/// Why it cannot be said who asks.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AuthError {
    /// Several tokens that differ.
    #[error("the request carries several tokens that differ; send one")]
    TwoTokens,
    /// A token that does not hold.
    #[error(transparent)]
    BadToken(#[from] BadToken),
    /// The backend, or the place of the keys, cannot be asked now.
    #[error("who may do this cannot be asked now")]
    Unavailable,
    /// The backend says no.
    #[error("the backend that knows who may does not allow this")]
    Refused {
        /// 401 or 403.
        status: StatusCode,
        /// The `WWW-Authenticate` that it gave.
        challenge: Option<HeaderValue>,
    },
    /// What the backend grants does not take this in.
    #[error("the backend does not grant {1}")]
    NotGranted(Action, Filter),
    /// The topics do not fit into one question to the backend.
    #[error(
        "the backend is asked about all topics of a stream at once, and these are too many; ask for a pattern, or use \
         several streams"
    )]
    TooManyTopics,
}

/// A setting of `[auth]` cannot work. Told with its key.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct SettingError(String);

/// Tells who asks.
#[derive(Debug)]
pub struct Auth {
    places: config::TokenPlaces,
    jwt: Option<Jwt>,
    forward: Option<Arc<Forward>>,
}

impl Auth {
    /// Reads `[auth]` and the files it names, and begins to fetch keys where they are at a URL.
    ///
    /// # Errors
    /// [`SettingError`].
    pub fn new(config: &Config, metrics: &Arc<Metrics>) -> Result<Self, SettingError> {
        let grammar = Grammar { separator: config.broker.alias(), limit: config.limits.topic_length };
        let settings = &config.auth;
        let jwt =
            settings.jwt.as_ref().map(|jwt| Jwt::new(jwt, Claims::new(jwt, grammar), metrics)).transpose()?;
        let forward =
            settings.forward.as_ref().map(|forward| Forward::new(forward, grammar, metrics.clone()));
        Ok(Auth { places: settings.token.clone(), jwt, forward: forward.transpose()? })
    }

    /// Who asks. `None` if the request carries no credentials that are understood here, and there is no backend to ask. To
    /// be called only where a rule asks for some: a cookie that has expired must not stand in the way of a public topic.
    ///
    /// # Errors
    /// [`AuthError`].
    pub async fn identify(&self, asked: &Asked<'_>) -> Result<Option<Caller>, AuthError> {
        // A token speaks for itself, whatever the backend would say.
        if let Some(jwt) = &self.jwt
            && let Some(token) = token::find(&self.places, asked.headers, asked.query)?
        {
            let caller = jwt.read(&token).await?;
            // To the moment, where the library counts in whole seconds: the streams end by the same clock.
            if caller.is_expired() {
                return Err(BadToken::Expired.into());
            }
            return Ok(Some(caller));
        }
        match &self.forward {
            Some(forward) => forward.ask(asked).await.map(Some),
            None => Ok(None),
        }
    }
}
