//! Configuration: what may be set, and its defaults.
//!
//! This file is the shape that the rest of the program reads: once a [`Config`] exists, nothing in it can be wrong.
//! How one comes about is beside it: `load.rs` lays the sources over each other and remembers origins, `tree.rs` finds
//! values in them, `raw.rs` is the shape of what people write, `parse.rs`, `rule.rs`, `source.rs`, `auth.rs`, `forward.rs`, `origin.rs`, `proxies.rs`,
//! `tls.rs` and `traces.rs` check it, `advice.rs` says what is allowed but unwise, `explain.rs` says in words what would
//! happen, `settings.rs` lists every value with its origin, `restart.rs` says what cannot change while it runs. Nothing here
//! opens a file that a setting names, or a socket.

use crate::protocol::source::{Field, Source};
mod advice;
mod auth;
mod error;
mod explain;
mod forward;
mod load;
mod origin;
mod parse;
mod proxies;
mod raw;
mod restart;
mod rule;
mod settings;
mod source;
mod tls;
mod traces;
mod tree;
mod url;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Serialize, Serializer};

pub use self::auth::{Auth, Jwt, JwtKeys, TokenPlaces};
pub use self::error::{ConfigError, ConfigErrors};
pub use self::forward::Forward;
pub use self::load::{CLIENT_TOKEN, Sources};
pub use self::origin::Origin;
pub use self::proxies::{AddressSource, Proxies};
pub use self::restart::NeedsRestart;
pub use self::settings::{Origins, Setting, Settings};
pub use self::tls::Tls;
pub use self::traces::Traces;
pub use self::url::{BrokerKind, is_loopback, masked};
use crate::protocol::topic::Filter;

/// Everything that can be configured, ready to use.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `listen`: where browsers connect.
    pub listen: SocketAddr,
    /// `hosts`: names that a request's `Host` may carry, without port, in lower case. Empty: any, but only loopback
    /// names while `listen` is loopback.
    pub hosts: Vec<String>,
    /// `drain`: how long open streams are given to be closed in batches after SIGTERM.
    pub drain: Duration,
    /// `[admin]`.
    pub admin: Admin,
    /// `[broker]`.
    pub broker: Broker,
    /// `[[topics]]`: what is exposed, first match wins.
    pub topics: Vec<Rule>,
    /// `[streams]`.
    pub streams: Streams,
    /// `[limits]`.
    pub limits: Limits,
    /// `[proxies]`.
    pub proxies: Proxies,
    /// `[auth]`.
    pub auth: Auth,
    /// `[cors]`.
    pub cors: Cors,
    /// `[tls]`. `None`: plain HTTP.
    pub tls: Option<Tls>,
    /// `[log]`.
    pub log: Log,
    /// `[traces]`. `None`: nothing is traced.
    pub traces: Option<Traces>,
    /// Environment variables that are there and empty, and so count as not set.
    pub unset: Vec<String>,
    /// All of it once more, with where each value came from, for people.
    pub origins: Origins,
}

/// `[admin]`: the listener for probes, metrics and the console, never public.
#[derive(Debug, Clone, PartialEq)]
pub struct Admin {
    /// `admin.listen`.
    pub listen: SocketAddr,
    /// `admin.hosts`: names that a request's `Host` may carry there, beside addresses, names of this machine and names without
    /// a dot.
    pub hosts: Vec<String>,
    /// `admin.console`: whether people may look in there. Not set: where `listen` is a loopback address.
    pub console: bool,
}

/// `[broker]`: where messages come from, and who we are there.
#[derive(Debug, Clone, PartialEq)]
pub struct Broker {
    /// `broker.url`: `memory:`, or one or more (comma-separated) of `nats://` `tls://`, or one `redis://` `rediss://`; with
    /// `broker.sentinel`, one or more, which are the sentinels'; with `broker.cluster`, one or more nodes.
    pub url: Secret,
    /// `broker.user`.
    pub user: Option<String>,
    /// `broker.password`.
    pub password: Option<Secret>,
    /// `broker.token` (NATS).
    pub token: Option<Secret>,
    /// `broker.nkey`: an NKey seed (NATS).
    pub nkey: Option<Secret>,
    /// `broker.credentials`: path of a `.creds` file (NATS).
    pub credentials: Option<PathBuf>,
    /// `broker.separator`: what separates segments of a channel (Redis); NATS has `.`.
    pub separator: char,
    /// `broker.sentinel`: the name of the master that the sentinels of `url` watch (Redis).
    pub sentinel: Option<String>,
    /// `broker.cluster`: whether `url` names nodes of a Redis Cluster.
    pub cluster: bool,
    /// `broker.settle`: how long a subscription takes to reach every server of a cluster (NATS).
    pub settle: Duration,
    /// `[broker.tls]`.
    pub tls: BrokerTls,
}

/// `[broker.tls]`: beside the system's roots.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BrokerTls {
    /// `broker.tls.ca`: path of a PEM file with the authorities to trust.
    pub ca: Option<PathBuf>,
    /// `broker.tls.cert`: path of our certificate, PEM.
    pub cert: Option<PathBuf>,
    /// `broker.tls.key`: path of its key, PEM.
    pub key: Option<PathBuf>,
}

/// A value that no output shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"***\"")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("***")
    }
}

/// `[[topics]]`: one rule.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// `match`: the topics that this rule decides, with `*` where it binds a segment.
    pub filter: Filter,
    /// The segment of `match`, counted from 0, that must be the caller's subject: where it says `{sub}`.
    pub subject: Option<usize>,
    /// `source`.
    pub source: Source,
    /// `read`: who may subscribe.
    pub read: Access,
    /// `publish`: who may publish.
    pub publish: Access,
    /// `id`: where a publisher's own message id is found.
    pub id: Field,
    /// `type`: where the event type is found.
    pub kind: Field,
    /// `replay`.
    pub replay: Replay,
}

/// Who may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Anyone who reaches the listener.
    Anyone,
    /// Whoever shows who they are.
    Token,
    /// Whoever was granted it.
    Granted,
    /// Nobody.
    Nobody,
}

/// `replay`: how much of each topic is held for those who reconnect. Whichever bound is met first counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replay {
    /// Messages.
    pub messages: usize,
    /// Bytes, as held in memory.
    pub bytes: u64,
    /// Age.
    pub age: Duration,
    /// How long a topic is held, and stays subscribed, after its last reader left.
    pub linger: Duration,
    /// Subscribe to `match` from the start, without waiting for a reader.
    pub warm: bool,
}

/// `[streams]`: the behaviour of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Streams {
    /// Silence after which a comment is sent.
    pub heartbeat: Duration,
    /// Middle of the reconnection delay that clients are told; each stream is told 50 % to 150 % of it.
    pub retry: Duration,
    /// How long a reader may take nothing before its stream is closed.
    pub write_timeout: Duration,
    /// Age at which a stream is asked to reconnect, 90 % to 110 % of it. `None`: never.
    pub max_age: Option<Duration>,
}

/// `[limits]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Open streams.
    pub streams: usize,
    /// Open streams of one client address; of IPv6, of one /64.
    pub streams_per_address: usize,
    /// Open streams of one token subject.
    pub streams_per_subject: usize,
    /// Streams that one address may open in a second, on average.
    pub opens_per_second: usize,
    /// Topics and patterns that nobody read before, and that one address may ask for in a second, on average.
    pub new_topics_per_second: usize,
    /// Messages that one address may publish in a second, on average.
    pub publishes_per_second: usize,
    /// Bytes that one address is sent in a second of what it missed, on average.
    pub resume_bytes: u64,
    /// Open connections, streams among them.
    pub connections: usize,
    /// Topics and patterns held at once.
    pub topics: usize,
    /// Topics and patterns on all streams of one address.
    pub topics_per_address: usize,
    /// Topics and patterns on one stream.
    pub topics_per_stream: usize,
    /// Bytes of a topic.
    pub topic_length: usize,
    /// Bytes of a payload, published or received.
    pub message: u64,
    /// Bytes of all requests to publish that are under way, with their bodies as far as they have arrived.
    pub bodies: u64,
    /// Bytes of all replay buffers together.
    pub buffer: u64,
    /// Bytes of a request head.
    pub head: u64,
    /// Time in which a request head, or a published body, must have arrived.
    pub head_timeout: Duration,
}

/// `[cors]`: pages of other origins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cors {
    /// Whose pages may read and publish.
    pub origins: Vec<Origin>,
    /// Request headers that they may send beside those of topicgate, in lower case.
    pub headers: Vec<String>,
    /// Whether they may send cookies.
    pub credentials: bool,
}

/// `[log]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// A level, or a filter such as `info,topicgate=debug`.
    pub level: String,
    /// Lines for people or for machines.
    pub format: LogFormat,
}

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One line of text an event.
    Text,
    /// One JSON object an event.
    Json,
}

/// What holds where nothing is set. `config/topicgate.toml` says the same with explanations; a test compares them.
impl Default for Config {
    fn default() -> Self {
        Config {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            hosts: vec![],
            drain: Duration::from_secs(10),
            admin: Admin {
                listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9090)),
                hosts: vec![],
                console: true,
            },
            broker: Broker {
                url: Secret("memory:".into()),
                user: None,
                password: None,
                token: None,
                nkey: None,
                credentials: None,
                separator: ':',
                sentinel: None,
                cluster: false,
                settle: Duration::from_millis(250),
                tls: BrokerTls::default(),
            },
            topics: vec![Rule::everything()],
            streams: Streams {
                heartbeat: Duration::from_secs(15),
                retry: Duration::from_secs(3),
                write_timeout: Duration::from_secs(30),
                max_age: None,
            },
            limits: Limits {
                streams: 10_000,
                streams_per_address: 1_000,
                streams_per_subject: 100,
                opens_per_second: 100,
                new_topics_per_second: 1_000,
                publishes_per_second: 5_000,
                resume_bytes: 8 * 1024 * 1024,
                connections: 12_000,
                topics: 100_000,
                topics_per_address: 10_000,
                topics_per_stream: 100,
                topic_length: 200,
                message: 256 * 1024,
                bodies: 64 * 1024 * 1024,
                buffer: 256 * 1024 * 1024,
                head: 16 * 1024,
                head_timeout: Duration::from_secs(10),
            },
            proxies: Proxies::default(),
            auth: Auth::default(),
            cors: Cors::default(),
            tls: None,
            log: Log { level: "info".into(), format: LogFormat::Text },
            traces: None,
            unset: vec![],
            origins: Origins::default(),
        }
    }
}

impl Default for Replay {
    fn default() -> Self {
        Replay {
            messages: 1000,
            bytes: 1024 * 1024,
            age: Duration::from_secs(5 * 60),
            linger: Duration::from_secs(60),
            warm: false,
        }
    }
}

impl Replay {
    /// The default where messages of `largest` bytes are allowed: one of them must fit.
    fn for_messages_of(largest: u64) -> Self {
        let default = Replay::default();
        Replay { bytes: default.bytes.max(largest), ..default }
    }
}

impl Rule {
    /// The rule that is implied for the embedded broker on loopback: everything, for everyone.
    fn everything() -> Self {
        Rule {
            filter: Filter::everything(),
            subject: None,
            source: Source::Pubsub,
            read: Access::Anyone,
            publish: Access::Anyone,
            id: Field::Header("Nats-Msg-Id".into()),
            kind: Field::Header("Event-Type".into()),
            replay: Replay::default(),
        }
    }
}

impl Broker {
    /// Which broker `url` means.
    pub fn kind(&self) -> BrokerKind {
        // A configuration whose URL has no known scheme is refused while it is read. Whatever is none all the same must not
        // become the embedded broker, which takes messages that nobody gets: NATS refuses it with its reason.
        BrokerKind::of(&self.url.0).unwrap_or(BrokerKind::Nats)
    }

    /// What people may write instead of `/` between the segments of a topic: the separator that the broker itself has.
    pub fn alias(&self) -> Option<char> {
        match self.kind() {
            BrokerKind::Memory => None,
            BrokerKind::Nats => Some('.'),
            BrokerKind::Redis => Some(self.separator),
        }
    }

    /// Whether messages have header fields.
    pub fn has_headers(&self) -> bool {
        self.kind() != BrokerKind::Redis
    }

    /// `url` as it may be shown: `nats://***@host:4222`.
    pub fn masked_url(&self) -> String {
        masked(&self.url.0)
    }
}

#[cfg(test)]
mod tests;
