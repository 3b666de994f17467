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
use self::jwt::{BadToken, Jwt};
use crate::config::{self, Config};
use crate::metrics::Metrics;
use crate::protocol::topic::Filter;

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
    /// Who says so.
    pub voucher: Option<IdentitySource>,
}

/// Who says who a caller is: the keys of tokens, or the backend, each numbered anew when its configuration comes to mean
/// another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdentitySource {
    /// A token that one of the keys was for.
    Keys(u32),
    /// An answer of the backend.
    Backend(u32),
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

    /// As much of the caller as their stream over `filters` is judged by: a token may have hundreds of grants.
    pub fn as_reader_of(&self, filters: &[Filter]) -> Self {
        let granted = filters.iter().filter(|filter| self.is_granted(Action::Subscribe, filter));
        Caller {
            subject: self.subject.clone(),
            subscribe: granted.cloned().collect(),
            publish: vec![],
            expires: self.expires,
            voucher: self.voucher,
        }
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
pub struct AccessRequest<'a> {
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
    settings: config::Auth,
    grammar: Grammar,
    jwt: Option<Jwt>,
    forward: Option<Arc<Forward>>,
    /// The numbers of both as vouchers.
    keys: u32,
    backend: u32,
}

impl Auth {
    /// Reads `[auth]` and the files it names, and begins to fetch keys where they are at a URL.
    ///
    /// # Errors
    /// [`SettingError`].
    pub fn new(config: &Config, metrics: &Arc<Metrics>) -> Result<Self, SettingError> {
        Self::build(config, metrics, None)
    }

    /// As [`Auth::new`], with what is as it was taken over: keys that were fetched, which are asked for anew, and answers
    /// that are kept.
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
        let url = |settings: &config::Auth| settings.forward.as_ref().map(|forward| forward.url.clone());
        let same_backend = before.is_none_or(|before| url(&before.settings) == url(&settings));
        let (keys, backend) = before.map_or((0, 0), |before| (before.keys, before.backend));
        Ok(Auth {
            settings,
            grammar,
            jwt,
            forward,
            keys: keys.wrapping_add(u32::from(!same_keys)),
            backend: backend.wrapping_add(u32::from(!same_backend)),
        })
    }

    /// Whether it would still be said of `caller` what was said, as far as that can be known without asking: by the keys,
    /// or by the backend, that said it.
    pub fn stands_by(&self, caller: &Caller) -> bool {
        caller.voucher.is_some_and(|voucher| match voucher {
            IdentitySource::Keys(number) => self.jwt.is_some() && number == self.keys,
            IdentitySource::Backend(number) => self.forward.is_some() && number == self.backend,
        })
    }

    /// Who asks. `None` if the request carries no credentials that are understood here, and there is no backend to ask. To
    /// be called only where a rule asks for some: a cookie that has expired must not stand in the way of a public topic.
    ///
    /// # Errors
    /// [`AuthError`].
    pub async fn identify(&self, asked: &AccessRequest<'_>) -> Result<Option<Caller>, AuthError> {
        // A token speaks for itself, whatever the backend would say.
        if let Some(jwt) = &self.jwt
            && let Some(token) = token::find(&self.settings.token, asked.headers, asked.query)?
        {
            let caller = jwt.read(&token).await?;
            // To the moment, where the library counts in whole seconds: the streams end by the same clock.
            if caller.is_expired() {
                return Err(BadToken::Expired.into());
            }
            return Ok(Some(Caller { voucher: Some(IdentitySource::Keys(self.keys)), ..caller }));
        }
        let Some(forward) = &self.forward else { return Ok(None) };
        let caller = forward.ask(asked).await?;
        Ok(Some(Caller { voucher: Some(IdentitySource::Backend(self.backend)), ..caller }))
    }
}
