//! Configuration: what may be set, and its defaults.
//!
//! Once a [`Config`] exists, nothing in it can be wrong. This is how one comes about, each file knowing only those before it:
//!
//! - `keys.rs` is the table of keys: path, kind, bounds, default, meaning. All below derive from it. `key.rs` is a line of it,
//!   `value.rs` reads one value by it.
//! - `layers.rs` lays the sources over each other and remembers origins. `tree.rs` reads them by the table of keys, and
//!   `input.rs` has the outcome: values by key, and what is wrong.
//! - Each table of the file has its own: `admin.rs`, `broker.rs`, `streams.rs`, `limits.rs`, `proxies.rs`, `auth.rs` (with `jwt.rs`
//!   and `forward.rs`), `cors.rs`, `tls.rs`, `log.rs`, `traces.rs`, `rule.rs` (with `access.rs`, `source.rs` and `replay.rs`): the type,
//!   and the checks that need more than one value. `parse.rs` puts them together.
//! - `advice.rs` says what is allowed but unwise, `explain.rs` says in words what would happen, `settings.rs` lists every value
//!   with its origin, `schema.rs` describes the file to editors, `restart.rs` keeps what cannot change while it runs.
//!
//! Nothing here opens a file that a setting names, or a socket.

mod access;
mod admin;
mod advice;
mod auth;
mod broker;
mod cors;
mod error;
mod explain;
mod forward;
mod input;
mod jwt;
mod key;
mod keys;
mod layers;
mod limits;
mod log;
mod names;
mod origin;
mod parse;
mod proxies;
mod replay;
mod restart;
mod rule;
mod schema;
mod secret;
mod settings;
mod source;
mod streams;
mod tls;
mod traces;
mod tree;
mod url;
mod value;

use std::net::SocketAddr;
use std::time::Duration;

pub use self::access::Access;
pub use self::admin::Admin;
pub use self::auth::{Auth, TokenPlaces};
pub use self::broker::{Broker, BrokerTls, JetStreamApi};
pub use self::cors::Cors;
pub use self::error::{ConfigError, ConfigErrors};
pub use self::forward::Forward;
pub use self::jwt::{Jwt, JwtKeys};
pub use self::layers::{CLIENT_TOKEN, Sources};
pub use self::limits::Limits;
pub use self::log::{Log, LogFormat};
pub use self::origin::Origin;
pub use self::proxies::{AddressSource, Proxies};
pub use self::replay::Replay;
pub use self::restart::NeedsRestart;
pub use self::rule::Rule;
pub(crate) use self::schema::schema;
pub use self::secret::Secret;
pub use self::settings::{Origins, Setting};
pub use self::streams::Streams;
pub use self::tls::Tls;
pub use self::traces::Traces;
pub use self::url::{BrokerKind, is_loopback, masked};

/// The configuration of a gateway. It is checked when it is loaded, so nothing in it can be wrong.
///
/// `config/topicgate.toml` in the source explains every key.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `listen`: where browsers connect.
    #[doc(hidden)]
    pub listen: SocketAddr,
    /// `hosts`: names that a request's `Host` may carry, without port, in lower case. Empty: any, but only loopback
    /// names while `listen` is loopback.
    #[doc(hidden)]
    pub hosts: Vec<String>,
    /// `base_path`: the path below which browsers reach the gateway, without a slash at its end. Empty: none.
    #[doc(hidden)]
    pub base_path: String,
    /// Whether nobody wrote a rule, and everyone may use the embedded broker all the same: on a loopback address, or by `demo`.
    #[doc(hidden)]
    pub is_demo: bool,
    /// Whether it is the demo, and there is no file and nothing of `[broker]` or `[auth]` either: the page shows five uses live.
    #[doc(hidden)]
    pub has_first_look: bool,
    /// `drain`: how long open streams are given to be closed in batches after SIGTERM.
    #[doc(hidden)]
    pub drain: Duration,
    /// `[admin]`.
    #[doc(hidden)]
    pub admin: Admin,
    /// `[broker]`.
    #[doc(hidden)]
    pub broker: Broker,
    /// `[[topics]]`: what is exposed, first match wins.
    #[doc(hidden)]
    pub topics: Vec<Rule>,
    /// `[streams]`.
    #[doc(hidden)]
    pub streams: Streams,
    /// `[limits]`.
    #[doc(hidden)]
    pub limits: Limits,
    /// `[proxies]`.
    #[doc(hidden)]
    pub proxies: Proxies,
    /// `[auth]`.
    #[doc(hidden)]
    pub auth: Auth,
    /// `[cors]`.
    #[doc(hidden)]
    pub cors: Cors,
    /// `[tls]`. `None`: plain HTTP.
    #[doc(hidden)]
    pub tls: Option<Tls>,
    /// `[log]`.
    #[doc(hidden)]
    pub log: Log,
    /// `[traces]`. `None`: nothing is traced.
    #[doc(hidden)]
    pub traces: Option<Traces>,
    /// Environment variables that are there and empty, and so count as not set.
    #[doc(hidden)]
    pub unset: Vec<String>,
    /// Addresses of the file that a later source overrides, each in a sentence.
    #[doc(hidden)]
    pub overridden: Vec<String>,
    /// All of it once more, with where each value came from, for people.
    #[doc(hidden)]
    pub origins: Origins,
}

#[cfg(test)]
mod tests;
