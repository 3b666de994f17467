//! Says in plain words what a configuration would do. Secrets are named, never shown.

use std::fmt::Write as _;
use std::time::Duration;

use bytesize::ByteSize;
use humantime::format_duration;

use super::{Access, BrokerKind, Config, Cors, Forward, Jwt, JwtKeys, LogFormat, Rule, TokenPlaces, masked};
use crate::protocol::source::{Field, Source};

impl Config {
    /// A page of text for people: listeners, broker, rules, limits, and what is unwise.
    pub fn explain(&self) -> String {
        let mut page = String::new();
        // Writing to a String does not fail, so the results are not looked at.
        let mut line = |text: String| {
            let _ = writeln!(page, "{text}");
        };
        let tls = self.tls.as_ref().map_or("in the clear".into(), |tls| {
            format!("over TLS, with the certificate in {}", tls.cert.display())
        });
        line(format!("Browsers connect to {}, {tls}; {}.", self.listen, self.hosts_in_words()));
        let console =
            if self.admin.console { ", and the console, which shows topics and messages" } else { "" };
        line(format!("Probes and metrics are on {}{console}.", self.admin.listen));
        line(format!("Messages come from {}.", self.broker_in_words()));
        line(String::new());
        line("Topics (the first rule that matches decides; everything else is answered 404):".into());
        for (index, rule) in self.topics.iter().enumerate() {
            line(format!("  {}. {}", index + 1, rule.in_words(self.broker.kind())));
        }
        if self.topics.is_empty() {
            line("  none".into());
        }
        if let Some(jwt) = &self.auth.jwt {
            line(String::new());
            line(jwt.in_words(&self.auth.token));
        }
        if let Some(forward) = &self.auth.forward {
            line(String::new());
            line(forward.in_words(self.auth.jwt.is_some()));
        }
        line(String::new());
        self.bounds_in_words().into_iter().for_each(&mut line);
        line(self.proxies.in_words());
        self.cors.in_words().into_iter().for_each(&mut line);
        let format = match self.log.format {
            LogFormat::Text => "text",
            LogFormat::Json => "JSON",
        };
        line(format!("Logs go to standard error as {format}, level {}.", self.log.level));
        if let Some(traces) = &self.traces {
            line(format!(
                "Traces go to {}: of {} of every 100 requests. A request that a trusted proxy passes on with a trace of its own is \
                 sampled as that trace is.",
                masked(&traces.endpoint.0),
                traces.sample * 100.0
            ));
        }
        line(format!("On SIGTERM, open streams are closed over {}.", format_duration(self.drain)));
        let warnings = self.warnings();
        if !warnings.is_empty() {
            line(String::new());
        }
        for warning in warnings {
            line(format!("warning: {warning}"));
        }
        page
    }

    /// How streams behave, what is bounded for everyone, and what for each client.
    fn bounds_in_words(&self) -> [String; 3] {
        let (s, l) = (&self.streams, &self.limits);
        let streams = format!(
            "A silent stream gets a comment every {}. A reader that takes nothing for {} is closed. Readers come back \
             after about {}.{}",
            format_duration(s.heartbeat),
            format_duration(s.write_timeout),
            format_duration(s.retry),
            s.max_age.map_or(String::new(), |age| format!(" A stream lasts about {}.", format_duration(age)))
        );
        let everyone = format!(
            "At most {} streams, {} connections and {} topics at once; {} topics a stream, {} bytes a topic, {} a \
             message, {} of messages held in all; a request head of {} within {}.",
            l.streams,
            l.connections,
            l.topics,
            l.topics_per_stream,
            l.topic_length,
            ByteSize(l.message),
            ByteSize(l.buffer),
            ByteSize(l.head),
            format_duration(l.head_timeout)
        );
        let client = format!(
            "At most {} streams and {} topics an address and {} streams a token's subject; an address opens {} streams and \
             is read {} of what it missed a second, and five seconds' worth at once.",
            l.streams_per_address,
            l.topics_per_address,
            l.streams_per_subject,
            l.opens_per_second,
            ByteSize(l.resume_bytes)
        );
        [streams, everyone, client]
    }

    fn hosts_in_words(&self) -> String {
        match (self.hosts.as_slice(), self.listen.ip().is_loopback()) {
            ([], true) => "requests must name a loopback host, such as localhost".into(),
            ([], false) => "requests may name any host".into(),
            (hosts, _) => format!("requests must name one of these hosts: {}", hosts.join(", ")),
        }
    }

    fn broker_in_words(&self) -> String {
        let broker = &self.broker;
        let sign_in = if broker.token.is_some() {
            ", signed in with a token".into()
        } else if broker.nkey.is_some() {
            ", signed in with an NKey".into()
        } else if let Some(path) = &broker.credentials {
            format!(", signed in with the credentials in {}", path.display())
        } else if let Some(user) = &broker.user {
            format!(", signed in as {user}")
        } else if broker.password.is_some() {
            ", signed in with a password".into()
        } else {
            String::new()
        };
        match broker.kind() {
            BrokerKind::Memory => "the embedded broker (memory:): what is published here is read here".into(),
            BrokerKind::Nats => format!("NATS at {}{sign_in}", broker.masked_url()),
            BrokerKind::Redis => {
                let way = match &broker.sentinel {
                    Some(name) => format!("Redis at the master {name}, asked of "),
                    None if broker.cluster => "the Redis Cluster that has nodes at ".into(),
                    None => "Redis at ".into(),
                };
                format!(
                    "{way}{}{sign_in}; channels separate their segments with {:?}",
                    broker.masked_url(),
                    broker.separator
                )
            }
        }
    }
}

impl Cors {
    fn in_words(&self) -> Vec<String> {
        let origins: Vec<String> = self.origins.iter().map(ToString::to_string).collect();
        let mut lines = vec![match (origins.is_empty(), self.credentials) {
            (true, _) => "Pages of other origins may not use it.".into(),
            (false, false) => {
                format!("Pages of these origins may use it, without cookies: {}.", origins.join(", "))
            }
            (false, true) => {
                format!("Pages of these origins may use it, with cookies: {}.", origins.join(", "))
            }
        }];
        if !self.headers.is_empty() {
            lines.push(format!("They may also send these request headers: {}.", self.headers.join(", ")));
        }
        lines
    }
}

impl Jwt {
    fn in_words(&self, places: &TokenPlaces) -> String {
        let keys = match &self.keys {
            JwtKeys::Secret(_) => "the secret of auth.jwt.secret".to_owned(),
            JwtKeys::PublicKey(path) => format!("the public key in {}", path.display()),
            JwtKeys::Jwks { url, refresh } => {
                format!("the keys at {} (fetched every {})", masked(&url.0), format_duration(*refresh))
            }
        };
        let algorithm = match self.algorithm {
            Some(algorithm) => format!("{algorithm:?}"),
            None => "the algorithm of the key".to_owned(),
        };
        let one_of = |claim: &str, names: &[String], otherwise: &str| match names {
            [] => otherwise.to_owned(),
            names => format!("{claim} {}", names.join(" or ")),
        };
        let mut shapes = vec![format!("at {}", self.claim)];
        shapes.extend(self.mercure.then(|| "in Mercure's claim".to_owned()));
        shapes.extend(self.centrifugo.then(|| "in Centrifugo's channels".to_owned()));
        format!(
            "A token is a JWT that {} holds for ({algorithm}), with an expiry, {} and {}; clocks may differ by {}. Grants are \
             {}. It comes in Authorization: Bearer, in the cookie {}{}.",
            keys,
            one_of("the audience", &self.audience, "no audience"),
            one_of("the issuer", &self.issuer, "any issuer"),
            format_duration(self.leeway),
            shapes.join(", "),
            places.cookie,
            if places.query { ", or in the query parameter access_token" } else { "" }
        )
    }
}

impl Forward {
    fn in_words(&self, tokens: bool) -> String {
        format!(
            "{} is asked about at {}, which is given {} to answer, {} questions at once. {}",
            if tokens { "Whoever sends no token" } else { "Whoever has to be known" },
            masked(&self.url.0),
            format_duration(self.timeout),
            self.concurrency,
            match self.cache {
                Duration::ZERO => "No answer is kept.".to_owned(),
                cache => format!("An answer is kept for {}.", format_duration(cache)),
            }
        )
    }
}

impl Source {
    fn in_words(&self) -> String {
        match self {
            Source::Pubsub => String::new(),
            Source::Sharded => " (shard channels of the cluster)".into(),
            Source::JetStream { stream: Some(stream) } => format!(" (the JetStream stream {stream})"),
            Source::JetStream { stream: None } => " (the JetStream stream that has these subjects)".into(),
            Source::Kv { bucket, .. } => {
                format!(" (the bucket {bucket}: first the values, then their changes)")
            }
            Source::RedisStream { payload: Some(field) } => {
                format!(" (Redis Streams, of which {field} is the payload)")
            }
            Source::RedisStream { payload: None } => " (Redis Streams, all fields as JSON)".into(),
        }
    }
}

impl Rule {
    fn in_words(&self, broker: BrokerKind) -> String {
        let who = |access| match access {
            Access::Anyone => "anyone",
            Access::Nobody => "nobody",
            Access::Token if self.subject.is_some() => "the subject itself",
            Access::Token => "whoever has a valid token",
            Access::Granted if self.subject.is_some() => "the subject itself, where granted,",
            Access::Granted => "whoever it is granted to",
        };
        let r = &self.replay;
        let linger = match r.linger {
            Duration::ZERO => "let go at once when the last reader leaves".into(),
            linger => format!("let go {} after the last reader left", format_duration(linger)),
        };
        format!(
            "{}{}: {} may read, {} may publish. Each topic holds up to {} messages, {} and {} for those who come back; \
             it is {linger}{}. {}.",
            self.pattern(),
            self.source.in_words(),
            who(self.read),
            who(self.publish),
            r.messages,
            ByteSize(r.bytes),
            format_duration(r.age),
            if r.warm { ", and subscribed from the start" } else { "" },
            self.ids_and_types_in_words(broker)
        )
    }

    fn ids_and_types_in_words(&self, broker: BrokerKind) -> String {
        let place = |field: &Field| match field {
            Field::Pointer(pointer) => Some(format!("the JSON field {pointer}")),
            Field::Header(name) if matches!(self.source, Source::RedisStream { .. }) => {
                Some(format!("the field {name}"))
            }
            Field::Nowhere => None,
            Field::Header(_) if broker == BrokerKind::Redis => None,
            Field::Header(name) => Some(format!("the header {name}")),
        };
        let ids = match place(&self.id) {
            _ if self.source.is_stored() => "Event ids are those of the broker".to_owned(),
            Some(place) => format!("Ids are in {place}"),
            None => "Redis messages have no headers, so they carry no ids".to_owned(),
        };
        match place(&self.kind) {
            Some(place) => format!("{ids}, types in {place}"),
            None => format!("{ids}, and no types"),
        }
    }
}
