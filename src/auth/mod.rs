//! Authentication and authorization. [`Auth::identify`] turns a request's credentials into a [`Caller`];
//! [`access::decide`] applies the rules of the configuration to it. Nothing here knows logs, streams or sockets;
//! `http::access` writes refusals.

pub mod access;
mod claims;
mod crypto;
mod forward;
mod jwks;
pub mod jwt;
pub mod key;
mod keys;
mod token;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use axum::http::{HeaderMap, HeaderValue, StatusCode};
use thiserror::Error;

use self::claims::Claims;
pub use self::claims::Grammar;
use self::forward::Forward;
use self::jwt::{BadToken, Jwt, Verified};
use self::key::Key;
use crate::config::{self, Config};
use crate::metrics::Metrics;
use crate::protocol::topic::Filter;

/// An identified caller: by a token, or by an answer of the backend.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller {
    /// The token's `sub`, or the subject that the backend named.
    pub subject: Option<Arc<str>>,
    /// Filters that the caller may read. Each stands for itself: two do not add up to a wider one.
    pub subscribe: Vec<Filter>,
    /// Filters that the caller may publish to.
    pub publish: Vec<Filter>,
    /// When the permission for the requested action expires. The caller's streams end then.
    pub expires: Option<SystemTime>,
    /// The source of this identity.
    pub voucher: Option<IdentitySource>,
}

/// The source of an identity: the keys of tokens, or the backend. Each has a number, which changes when a reload
/// replaces the keys or the backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdentitySource {
    /// A token that was signed with one of the keys, and why its stream may outlast it, if it may.
    Keys(u32, Option<Extension>),
    /// An answer of the backend.
    Backend(u32),
}

/// What allows a stream to outlast its token. Unlike a token, which ends within minutes, it can be withdrawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extension {
    /// The number of the settings of `auth.jwt.until`.
    settings: u32,
    /// The key that signed the token.
    key: Arc<Key>,
}

impl Caller {
    /// Whether the permission has expired.
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

    /// The part of the caller that matters to a stream over `filters`: a token may have hundreds of grants.
    pub fn as_reader_of(&self, filters: &[Filter]) -> Self {
        let granted = filters.iter().filter(|filter| self.is_granted(Action::Subscribe, filter));
        Caller {
            subject: self.subject.clone(),
            subscribe: granted.cloned().collect(),
            publish: vec![],
            expires: self.expires,
            voucher: self.voucher.clone(),
        }
    }
}

/// The action of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Read topics.
    Subscribe,
    /// Publish to a topic.
    Publish,
}

impl Action {
    /// The name of the action in grants and for the backend of forward auth.
    pub fn as_str(self) -> &'static str {
        match self {
            Action::Subscribe => "subscribe",
            Action::Publish => "publish",
        }
    }
}

/// The parts of a request that matter to access control.
#[derive(Debug, Clone, Copy)]
pub struct AccessRequest<'a> {
    /// The requested action.
    pub action: Action,
    /// The topics and patterns that need permission.
    pub filters: &'a [Filter],
    /// The request's header fields.
    pub headers: &'a HeaderMap,
    /// The raw query of its URL.
    pub query: Option<&'a str>,
    /// The client's address.
    pub client: IpAddr,
}

/// Why a caller cannot be identified or is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AuthError {
    /// Several tokens that differ.
    #[error("the request carries several tokens that differ; send one")]
    TwoTokens,
    /// A token that is not valid.
    #[error(transparent)]
    BadToken(#[from] BadToken),
    /// The backend or the URL of the keys cannot be reached now.
    #[error("authorization is temporarily unavailable")]
    Unavailable,
    /// The backend refused.
    #[error("the backend of auth.forward does not allow this")]
    Refused {
        /// 401 or 403.
        status: StatusCode,
        /// The `WWW-Authenticate` of its answer.
        challenge: Option<HeaderValue>,
    },
    /// The backend's grants do not cover this topic or pattern.
    #[error("the backend does not grant {1}")]
    NotGranted(Action, Filter),
    /// The topics do not fit into one question to the backend.
    #[error(
        "too many topics: the backend is asked about all topics of a stream at once; request a pattern, or use \
         several streams"
    )]
    TooManyTopics,
}

/// A setting of `[auth]` that cannot work, with its key.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct SettingError(String);

/// Identifies callers.
#[derive(Debug)]
pub struct Auth {
    settings: config::Auth,
    grammar: Grammar,
    jwt: Option<Jwt>,
    forward: Option<Arc<Forward>>,
    /// The current numbers of both identity sources, and of the settings by which streams outlast their tokens.
    keys: u32,
    backend: u32,
    extensions: u32,
}

impl Auth {
    /// Reads `[auth]` and the files it names, and begins to fetch keys if they are at a URL.
    ///
    /// # Errors
    /// [`SettingError`].
    pub fn new(config: &Config, metrics: &Arc<Metrics>) -> Result<Self, SettingError> {
        Self::build(config, metrics, None)
    }

    /// As [`Auth::new`], but takes over what has not changed: keys that were fetched, which are fetched again, and
    /// cached answers.
    ///
    /// # Errors
    /// [`SettingError`].
    pub fn renewed(&self, config: &Config, metrics: &Arc<Metrics>) -> Result<Self, SettingError> {
        Self::build(config, metrics, Some(self))
    }

    fn build(config: &Config, metrics: &Arc<Metrics>, before: Option<&Auth>) -> Result<Self, SettingError> {
        let grammar = Grammar { separator: config.broker.alias(), limit: config.limits.topic_length };
        let settings = config.auth.clone();
        let jwt_before = before.and_then(|before| before.jwt.as_ref());
        let new_jwt = |jwt| Jwt::new(jwt, Claims::new(jwt, grammar), metrics, jwt_before);
        let jwt = settings.jwt.as_ref().map(new_jwt).transpose()?;
        let as_before =
            before.filter(|before| before.settings.forward == settings.forward && before.grammar == grammar);
        let forward = match (as_before, &settings.forward) {
            (Some(before), _) => before.forward.clone(),
            (None, Some(forward)) => Some(Forward::new(forward, grammar, metrics.clone())?),
            (None, None) => None,
        };
        let same_keys = match (jwt_before, &jwt) {
            (Some(before), Some(now)) => now.reads_as(before),
            (None, None) => true,
            _ => false,
        };
        let extends_as_before = match (jwt_before, &jwt) {
            (Some(before), Some(now)) => now.extends_as(before),
            _ => true,
        };
        let url = |settings: &config::Auth| settings.forward.as_ref().map(|forward| forward.url.clone());
        let same_backend = before.is_none_or(|before| url(&before.settings) == url(&settings));
        let (keys, backend, extensions) =
            before.map_or((0, 0, 0), |before| (before.keys, before.backend, before.extensions));
        Ok(Auth {
            settings,
            grammar,
            jwt,
            forward,
            keys: keys.wrapping_add(u32::from(!same_keys)),
            backend: backend.wrapping_add(u32::from(!same_backend)),
            extensions: extensions.wrapping_add(u32::from(!extends_as_before)),
        })
    }

    /// Whether the source that identified `caller` is still in force, without asking it again.
    pub fn stands_by(&self, caller: &Caller) -> bool {
        caller.voucher.as_ref().is_some_and(|voucher| match voucher {
            IdentitySource::Keys(number, extension) => {
                let extended = |it: &Extension| it.settings == self.extensions && self.has_key(&it.key);
                self.jwt.is_some() && *number == self.keys && extension.as_ref().is_none_or(extended)
            }
            IdentitySource::Backend(number) => self.forward.is_some() && *number == self.backend,
        })
    }

    /// Whether the stream of `caller` may outlast its token, but no longer does: its key was withdrawn from the key set.
    pub fn has_withdrawn(&self, caller: &Caller) -> bool {
        matches!(&caller.voucher, Some(IdentitySource::Keys(number, Some(extension)))
            if *number == self.keys && !self.has_key(&extension.key))
    }

    /// How many times a key was withdrawn from the key set. [`Auth::has_withdrawn`] changes only with it.
    pub fn withdrawals(&self) -> u64 {
        self.jwt.as_ref().map_or(0, Jwt::withdrawals)
    }

    fn has_key(&self, key: &Key) -> bool {
        self.jwt.as_ref().is_some_and(|jwt| jwt.has(key))
    }

    /// Identifies the caller of a request. `None` if the request has no credentials that count here, and there is no
    /// backend. To be called only if a rule needs it: an expired cookie must not prevent a client from reading a public
    /// topic.
    ///
    /// # Errors
    /// [`AuthError`].
    pub async fn identify(&self, request: &AccessRequest<'_>) -> Result<Option<Caller>, AuthError> {
        // A token is judged alone; the backend is not request about it.
        if let Some(jwt) = &self.jwt
            && let Some(token) = token::find(&self.settings.token, request.headers, request.query)?
        {
            let Verified { caller, extended_by } = jwt.read(&token, request.action).await?;
            let extension = extended_by.map(|key| Extension { settings: self.extensions, key });
            return Ok(Some(Caller { voucher: Some(IdentitySource::Keys(self.keys, extension)), ..caller }));
        }
        let Some(forward) = &self.forward else { return Ok(None) };
        let caller = forward.ask(request).await?;
        Ok(Some(Caller { voucher: Some(IdentitySource::Backend(self.backend)), ..caller }))
    }
}
