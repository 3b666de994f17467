//! Configuration: the settings and their defaults.
//!
//! Once a [`Config`] exists, nothing in it can be wrong. These files create one; each knows only those before it:
//!
//! - `keys.rs` is the table of keys: path, kind, bounds, default, purpose. All files below use it. `key.rs` is the type of
//!   its lines, and `value.rs` reads one value by it.
//! - `layers.rs` merges the sources and records the origins. `tree.rs` reads them by the table of keys, and `input.rs` has
//!   the result: values by key, and errors.
//! - Each table of the configuration has a file with its type and the checks that need more than one value: `admin.rs`,
//!   `broker.rs`, `streams.rs`, `limits.rs`, `proxies.rs`, `auth.rs` (with `jwt.rs` and `forward.rs`), `cors.rs`, `tls.rs`,
//!   `log.rs`, `traces.rs`, `rule.rs` (with `access.rs`, `source.rs` and `replay.rs`). `parse.rs` combines them.
//! - `advice.rs` warns of settings that are valid but unwise, `explain.rs` explains a configuration in words, `settings.rs`
//!   lists every value with its origin, `schema.rs` describes the file to editors, and `restart.rs` keeps the values that
//!   cannot change in a running process.
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
    /// `listen`: the address for browsers.
    #[doc(hidden)]
    pub listen: SocketAddr,
    /// `hosts`: names that a request's `Host` may have, without port, in lower case. Empty: any name, but only loopback
    /// names if `listen` is loopback.
    #[doc(hidden)]
    pub hosts: Vec<String>,
    /// `base_path`: the path below which browsers reach the gateway, without a slash at its end. Empty: none.
    #[doc(hidden)]
    pub base_path: String,
    /// Whether the demo is on: without rules, everyone may use the embedded broker on a loopback address, or if `demo`
    /// is set.
    #[doc(hidden)]
    pub is_demo: bool,
    /// Whether the page shows the first look, five live uses: for the demo without a file and without `[broker]` and
    /// `[auth]`.
    #[doc(hidden)]
    pub has_first_look: bool,
    /// `drain`: the time in which open streams are closed in batches after SIGTERM.
    #[doc(hidden)]
    pub drain: Duration,
    /// `[admin]`.
    #[doc(hidden)]
    pub admin: Admin,
    /// `[broker]`.
    #[doc(hidden)]
    pub broker: Broker,
    /// `[[topics]]`: the rules; the first match wins.
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
    /// Environment variables that are empty, and so count as not set.
    #[doc(hidden)]
    pub unset: Vec<String>,
    /// Addresses in the file that a later source overrides, each as a sentence.
    #[doc(hidden)]
    pub overridden: Vec<String>,
    /// The same settings with their origins, for people.
    #[doc(hidden)]
    pub origins: Origins,
}

#[cfg(test)]
mod tests;
