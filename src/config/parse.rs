//! From what was written to a [`Config`] that cannot be wrong. Every check on a value lives here, each with what would
//! be right in its message; checks that need two keys name both.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use ::url::Host;
use bytesize::ByteSize;
use tracing_subscriber::filter::Targets;

use super::error::{ConfigError, nearest};
use super::load::Layers;
use super::origin::Origin;
use super::raw::{Count, Raw, RawBroker, RawCors, RawLimits, Size, Span};
use super::rule::is_token;
use super::url::{self, BrokerKind, Whose};
use super::{Admin, Broker, BrokerTls, Config, Cors, Limits, Log, LogFormat, Replay, Rule, Secret, Streams};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
pub(super) const GIB: u64 = 1024 * MIB;

/// No bound of ours is sensible beyond it, and timers overflow far beyond it.
pub(super) const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// Counts above it are slips of the finger, and more than some tables can be made for.
const MOST: u64 = 1_000_000_000;

/// The longest `broker.settle`: whoever subscribes waits for it, and for no more than eight seconds in all.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);

/// Checks everything and reports everything; the result is of use only if nothing was reported. Keys in `failed` were
/// reported and taken out before, so that their absence is no finding of its own.
pub(super) fn config(
    raw: Raw,
    layers: &Layers,
    failed: &BTreeSet<String>,
    errors: &mut Vec<ConfigError>,
) -> Config {
    let d = Config::default();
    let mut check = Check { layers, failed, errors };
    let listen = check.address("listen", raw.listen, d.listen);
    let listen_admin = check.address("admin.listen", raw.admin.listen, d.admin.listen);
    let admin = Admin {
        listen: listen_admin,
        hosts: raw.admin.hosts.map_or(d.admin.hosts, |list| check.hosts("admin.hosts", list.0)),
        console: raw.admin.console.map_or(listen_admin.ip().is_loopback(), |switch| switch.0),
    };
    let clash = |a: SocketAddr, b: SocketAddr| {
        let anywhere = a.ip().is_unspecified() || b.ip().is_unspecified();
        a.port() != 0 && a.port() == b.port() && (anywhere || a.ip() == b.ip())
    };
    if clash(listen, admin.listen) {
        check.refuse(
            "admin.listen",
            format!("{} clashes with listen = {listen}; give it a port of its own", admin.listen),
        );
    }
    let hosts = raw.hosts.map_or(d.hosts, |list| check.hosts("hosts", list.0));
    let drain = check.duration("drain", raw.drain, d.drain, Duration::ZERO, LONGEST);
    let (broker, kind) = check.broker(raw.broker);
    let second = Duration::from_secs(1);
    let streams = Streams {
        heartbeat: check.duration(
            "streams.heartbeat",
            raw.streams.heartbeat,
            d.streams.heartbeat,
            second,
            LONGEST,
        ),
        // Under half a second browsers come back in a hot loop; over an hour nobody waits.
        retry: check.duration(
            "streams.retry",
            raw.streams.retry,
            d.streams.retry,
            Duration::from_millis(500),
            Duration::from_secs(3600),
        ),
        write_timeout: check.duration(
            "streams.write_timeout",
            raw.streams.write_timeout,
            d.streams.write_timeout,
            second,
            LONGEST,
        ),
        max_age: raw
            .streams
            .max_age
            .map(|age| check.duration("streams.max_age", Some(age), second, second, LONGEST)),
    };
    let limits = check.limits(raw.limits, d.limits);
    let proxies = check.proxies(raw.proxies);
    let auth = check.auth(raw.auth);
    let cors = check.cors(raw.cors);
    let tls = check.tls(raw.tls);
    let log = Log {
        level: raw.log.level.map_or(d.log.level, |level| check.level(level)),
        format: check.word(
            "log.format",
            raw.log.format,
            d.log.format,
            &[("text", LogFormat::Text), ("json", LogFormat::Json)],
        ),
    };
    let traces = check.traces(raw.traces);
    let topics = match raw.topics {
        Some(rules) => {
            let rules = rules.into_iter().enumerate();
            rules.filter_map(|(index, rule)| check.rule(index, rule, kind, &broker, &limits, &auth)).collect()
        }
        // With nothing to leak from and nobody to leak to, a newcomer's first try should just work.
        None if kind == Some(BrokerKind::Memory) && listen.ip().is_loopback() => {
            vec![Rule { replay: Replay::for_messages_of(limits.message), ..Rule::everything() }]
        }
        None => vec![],
    };
    Config {
        listen,
        hosts,
        drain,
        admin,
        broker,
        topics,
        streams,
        limits,
        proxies,
        auth,
        cors,
        tls,
        log,
        traces,
        unset: d.unset,
        origins: d.origins,
    }
}

pub(super) struct Check<'a> {
    layers: &'a Layers,
    pub(super) failed: &'a BTreeSet<String>,
    errors: &'a mut Vec<ConfigError>,
}

impl Check<'_> {
    pub(super) fn refuse(&mut self, path: &str, problem: impl Into<String>) {
        if !self.failed.contains(path) {
            self.errors.push(ConfigError::at(path, self.layers.origin(path), problem));
        }
    }

    fn address(&mut self, path: &str, given: Option<String>, default: SocketAddr) -> SocketAddr {
        let Some(text) = given else { return default };
        text.parse().unwrap_or_else(|_| {
            self.refuse(
                path,
                format!(
                    "{text:?} is not an address and a port; write both as numbers, \
                     as in 127.0.0.1:8080 or [::]:8080"
                ),
            );
            default
        })
    }

    pub(super) fn bounded<T: PartialOrd + Copy>(
        &mut self,
        path: &str,
        value: T,
        (min, max): (T, T),
        show: impl Fn(T) -> String,
    ) -> T {
        if value < min {
            self.refuse(path, format!("{} is too little; write at least {}", show(value), show(min)));
        } else if value > max {
            self.refuse(path, format!("{} is too much; write at most {}", show(value), show(max)));
        }
        value
    }

    pub(super) fn duration(
        &mut self,
        path: &str,
        given: Option<Span>,
        default: Duration,
        min: Duration,
        max: Duration,
    ) -> Duration {
        let value = given.map_or(default, |span| span.0);
        self.bounded(path, value, (min, max), |value| humantime::format_duration(value).to_string())
    }

    pub(super) fn count(&mut self, path: &str, given: Option<Count>, default: usize) -> usize {
        let Some(Count(value)) = given else { return default };
        let value = self.bounded(path, value, (1, MOST), |value| value.to_string());
        usize::try_from(value).unwrap_or(default)
    }

    pub(super) fn size(&mut self, path: &str, given: Option<Size>, default: u64, bounds: (u64, u64)) -> u64 {
        self.bounded(path, given.map_or(default, |size| size.0), bounds, bytes)
    }

    pub(super) fn word<T: Copy>(
        &mut self,
        path: &str,
        given: Option<String>,
        default: T,
        words: &[(&str, T)],
    ) -> T {
        let Some(text) = given else { return default };
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return *value;
        }
        let all = words.iter().map(|(word, _)| *word);
        let near =
            nearest(&text, all.clone()).map(|near| format!(" did you mean {near}?")).unwrap_or_default();
        self.refuse(
            path,
            format!("{text:?} is not known;{near} write one of {}", all.collect::<Vec<_>>().join(", ")),
        );
        default
    }

    fn hosts(&mut self, key: &str, names: Vec<String>) -> Vec<String> {
        let mut hosts = vec![];
        for name in names {
            // `Host::parse` takes a port for a part of the name and says little; this says more.
            match Host::parse(&name) {
                Ok(host) if !name.is_empty() => hosts.push(host.to_string()),
                _ => self.refuse(
                    key,
                    format!(
                        "{name:?} is not a host name; write it without scheme, port and path: app.example.com"
                    ),
                ),
            }
        }
        hosts
    }

    /// The second value is `None` if the URL does not tell: then nothing can be said of what fits it.
    fn broker(&mut self, raw: RawBroker) -> (Broker, Option<BrokerKind>) {
        let default = Config::default().broker;
        let url = raw.url.unwrap_or(default.url.0);
        let is_cluster = raw.cluster.as_ref().is_some_and(|switch| switch.0);
        let whose = match (&raw.sentinel, is_cluster) {
            (Some(_), _) => Whose::Sentinels,
            (None, true) => Whose::Nodes,
            (None, false) => Whose::Server,
        };
        let kind = match url::check(&url, whose) {
            Ok(kind) if !self.failed.contains("broker.url") => Some(kind),
            Ok(_) => None,
            Err(problem) => {
                self.refuse("broker.url", problem);
                None
            }
        };
        if let Some(kind) = kind {
            use BrokerKind::{Nats, Redis};
            let tls = &raw.tls;
            for (path, given, fits) in [
                ("broker.user", raw.user.is_some(), &[Nats, Redis][..]),
                ("broker.password", raw.password.is_some(), &[Nats, Redis]),
                ("broker.token", raw.token.is_some(), &[Nats]),
                ("broker.nkey", raw.nkey.is_some(), &[Nats]),
                ("broker.credentials", raw.credentials.is_some(), &[Nats]),
                ("broker.separator", raw.separator.is_some(), &[Redis]),
                ("broker.sentinel", raw.sentinel.is_some(), &[Redis]),
                ("broker.cluster", is_cluster, &[Redis]),
                ("broker.settle", raw.settle.is_some(), &[Nats]),
                ("broker.tls", tls.ca.is_some() || tls.cert.is_some() || tls.key.is_some(), &[Nats, Redis]),
            ] {
                if given && !fits.contains(&kind) {
                    let fits = fits.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(" and ");
                    self.refuse(
                        path,
                        format!("is a setting of {fits}, and broker.url means {}; remove it", kind.name()),
                    );
                }
            }
            if url.starts_with("redis://") && (tls.ca.is_some() || tls.cert.is_some() || tls.key.is_some()) {
                self.refuse("broker.tls", "has no effect on redis://; write rediss:// in broker.url");
            }
        }
        let ways: Vec<&str> = [
            // That of sentinels is another one than that of the servers they name.
            ("a user in broker.url", url::has_user_info(&url) && raw.sentinel.is_none()),
            ("broker.user and broker.password", raw.user.is_some() || raw.password.is_some()),
            ("broker.token", raw.token.is_some()),
            ("broker.nkey", raw.nkey.is_some()),
            ("broker.credentials", raw.credentials.is_some()),
        ]
        .into_iter()
        .filter_map(|(way, given)| given.then_some(way))
        .collect();
        if ways.len() > 1 {
            self.refuse("broker", format!("has several ways to sign in: {}; keep one", ways.join(", ")));
        }
        match (&raw.user, &raw.password) {
            (Some(_), None) if !self.failed.contains("broker.password") => {
                self.refuse("broker.user", "has no broker.password beside it; set both");
            }
            // Redis has a default user; NATS has none.
            (None, Some(_)) if kind == Some(BrokerKind::Nats) && !self.failed.contains("broker.user") => {
                self.refuse("broker.password", "has no broker.user beside it; set both");
            }
            _ => {}
        }
        if raw.nkey.as_ref().is_some_and(|seed| !seed.starts_with("SU") || seed.len() != 58) {
            self.refuse("broker.nkey", "is not the seed of a user; write 58 characters that begin with SU");
        }
        match (&raw.tls.cert, &raw.tls.key) {
            (Some(_), None) => self.refuse("broker.tls.cert", "has no broker.tls.key beside it; set both"),
            (None, Some(_)) => self.refuse("broker.tls.key", "has no broker.tls.cert beside it; set both"),
            _ => {}
        }
        if raw.sentinel.as_deref() == Some("") {
            self.refuse(
                "broker.sentinel",
                "is empty; name the master that the sentinels watch, as in mymaster",
            );
        }
        if is_cluster && raw.sentinel.is_some() {
            self.refuse(
                "broker.cluster",
                "does not go with broker.sentinel: a cluster watches over its nodes itself; keep the one that you have",
            );
        }
        let separator = raw.separator.map_or(default.separator, |text| {
            let mut chars = text.chars();
            let one = chars.next().filter(|c| chars.next().is_none() && c.is_ascii_punctuation());
            one.filter(|c| !"*>?[]\\%".contains(*c)).unwrap_or_else(|| {
                self.refuse(
                    "broker.separator",
                    format!(
                        "{text:?} cannot separate; write one character such as : . / - \
                         (no letter, digit or wildcard)"
                    ),
                );
                default.separator
            })
        });
        let broker = Broker {
            url: Secret(url),
            user: raw.user,
            password: raw.password.map(Secret),
            token: raw.token.map(Secret),
            nkey: raw.nkey.map(Secret),
            credentials: raw.credentials,
            separator,
            sentinel: raw.sentinel,
            cluster: is_cluster,
            settle: self.duration("broker.settle", raw.settle, default.settle, Duration::ZERO, SETTLE_LIMIT),
            tls: BrokerTls { ca: raw.tls.ca, cert: raw.tls.cert, key: raw.tls.key },
        };
        (broker, kind)
    }

    fn limits(&mut self, raw: RawLimits, d: Limits) -> Limits {
        let second = Duration::from_secs(1);
        let limits = Limits {
            streams: self.count("limits.streams", raw.streams, d.streams),
            streams_per_address: self.count(
                "limits.streams_per_address",
                raw.streams_per_address,
                d.streams_per_address,
            ),
            streams_per_subject: self.count(
                "limits.streams_per_subject",
                raw.streams_per_subject,
                d.streams_per_subject,
            ),
            opens_per_second: self.count("limits.opens_per_second", raw.opens_per_second, d.opens_per_second),
            new_topics_per_second: self.count(
                "limits.new_topics_per_second",
                raw.new_topics_per_second,
                d.new_topics_per_second,
            ),
            publishes_per_second: self.count(
                "limits.publishes_per_second",
                raw.publishes_per_second,
                d.publishes_per_second,
            ),
            // With less, one large message would take minutes.
            resume_bytes: self.size(
                "limits.resume_bytes",
                raw.resume_bytes,
                d.resume_bytes,
                (64 * KIB, 1024 * GIB),
            ),
            connections: self.count("limits.connections", raw.connections, d.connections),
            topics: self.count("limits.topics", raw.topics, d.topics),
            topics_per_address: self.count(
                "limits.topics_per_address",
                raw.topics_per_address,
                d.topics_per_address,
            ),
            topics_per_stream: self.count(
                "limits.topics_per_stream",
                raw.topics_per_stream,
                d.topics_per_stream,
            ),
            topic_length: self.count("limits.topic_length", raw.topic_length, d.topic_length),
            message: self.size("limits.message", raw.message, d.message, (1, 64 * MIB)),
            bodies: self.size("limits.bodies", raw.bodies, d.bodies, (64 * KIB, 1024 * GIB)),
            buffer: self.size("limits.buffer", raw.buffer, d.buffer, (1, 1024 * GIB)),
            // hyper panics on a head buffer under 8 KiB.
            head: self.size("limits.head", raw.head, d.head, (8 * KIB, MIB)),
            head_timeout: self.duration(
                "limits.head_timeout",
                raw.head_timeout,
                d.head_timeout,
                second,
                LONGEST,
            ),
        };
        if limits.buffer < limits.message && !self.failed.contains("limits.message") {
            self.refuse(
                "limits.buffer",
                format!(
                    "{} does not hold one message of limits.message = {}; write at least that",
                    bytes(limits.buffer),
                    bytes(limits.message)
                ),
            );
        }
        let [of_address, of_stream] = ["limits.topics_per_address", "limits.topics_per_stream"];
        if limits.topics_per_address < limits.topics_per_stream && !self.failed.contains(of_stream) {
            self.refuse(
                of_address,
                format!(
                    "{} is less than {of_stream} = {}, so that one stream could be too many for ever; raise the one or \
                     lower the other",
                    limits.topics_per_address, limits.topics_per_stream
                ),
            );
        }
        limits
    }

    fn cors(&mut self, raw: RawCors) -> Cors {
        let listed = raw.origins.map_or(vec![], |list| list.0);
        let credentials = raw.credentials.is_some_and(|switch| switch.0);
        let mut origins = vec![];
        for text in &listed {
            match Origin::parse(text) {
                Ok(origin) => origins.push(origin),
                Err(problem) => self.refuse("cors.origins", format!("{text:?} {problem}")),
            }
        }
        if origins.contains(&Origin::Any) {
            if listed.len() > 1 {
                self.refuse("cors.origins", "\"*\" stands for every origin; name either it or the others");
            }
            if credentials {
                self.refuse(
                    "cors.credentials",
                    "true does not go with origins = [\"*\"], which browsers refuse; name the origins",
                );
            }
        }
        let headers = raw.headers.map_or(vec![], |list| list.0);
        for name in headers.iter().filter(|name| name.as_str() == "*" || !is_token(name)) {
            let problem =
                format!("{name:?} is not the name of a request header; write each one, as in baggage");
            self.refuse("cors.headers", problem);
        }
        let headers = headers.into_iter().map(|name| name.to_ascii_lowercase()).collect();
        Cors { origins, headers, credentials }
    }

    /// `EnvFilter` and `Targets` take a misspelt level for the name of a crate, and then log all of that crate or
    /// nothing; so levels are checked by name here.
    fn level(&mut self, level: String) -> String {
        const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
        for directive in level.split(',') {
            let word = directive.rsplit_once('=').map_or(directive, |(_, word)| word).trim().to_lowercase();
            if !LEVELS.contains(&word.as_str()) {
                let near = nearest(&word, LEVELS.into_iter());
                let near = near.map(|near| format!(" did you mean {near}?")).unwrap_or_default();
                self.refuse(
                    "log.level",
                    format!("{word:?} is not a level;{near} write one of {}", LEVELS.join(", ")),
                );
                return level;
            }
        }
        if level.parse::<Targets>().is_err() {
            self.refuse("log.level", format!("{level:?} is no filter; write info, or info,topicgate=debug"));
        }
        level
    }
}

pub(super) fn bytes(value: u64) -> String {
    // Rounding would make "8191 B is too little; at least 8 KiB" read as a contradiction.
    if value.is_multiple_of(KIB) { ByteSize(value).to_string() } else { format!("{value} bytes") }
}
