//! Explains in plain words what a configuration does. Secrets are mentioned and never shown.

use std::fmt::Write as _;
use std::time::Duration;

use bytesize::ByteSize;
use humantime::format_duration;

use super::keys;
use super::settings::table_of;
use super::{
    Access, BrokerKind, Config, Cors, Forward, JetStreamApi, Jwt, JwtKeys, LogFormat, Rule, Setting,
    TokenPlaces, masked,
};
use crate::protocol::source::{Field, Source};

impl Config {
    /// A page of text for people: listeners, broker, rules, limits, and warnings.
    pub fn explain(&self) -> String {
        let mut page = String::new();
        // Writing to a String cannot fail, so the results are ignored.
        let mut line = |text: String| {
            let _ = writeln!(page, "{text}");
        };
        let tls = self.tls.as_ref().map_or("without TLS".into(), |tls| {
            format!("over TLS, with the certificate in {}", tls.cert.display())
        });
        line(format!("Browsers connect to {}, {tls}; {}.", self.listen, self.hosts_in_words()));
        let console =
            if self.admin.console { ", and the console, which shows topics and messages" } else { "" };
        line(format!("Probes and metrics are on {}{console}.", self.admin.listen));
        line(format!("Messages come from {}.", self.broker_in_words()));
        line(String::new());
        if self.is_demo {
            line(
                "This is the demo: there is no rule, so everyone may use every topic of the embedded broker."
                    .into(),
            );
        }
        line("Topics (the first rule that matches decides; every other topic is answered with 404):".into());
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
        for table in ["streams", "limits"] {
            line(format!("[{table}]"));
            self.keys_in_words(table).into_iter().for_each(&mut line);
        }
        line(String::new());
        line(self.proxies.in_words());
        self.cors.in_words().into_iter().for_each(&mut line);
        let format = match self.log.format {
            LogFormat::Text => "text",
            LogFormat::Json => "JSON",
        };
        line(format!("Logs go to standard error as {format}, level {}.", self.log.level));
        if let Some(traces) = &self.traces {
            line(format!(
                "Traces go to {}, for {} % of the requests. A trusted proxy decides for the requests that it sends with a trace.",
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

    /// The keys of a table, each with its value and its purpose.
    fn keys_in_words(&self, table: &str) -> Vec<String> {
        let settings = self.origins.0.0.iter().filter(|setting| table_of(&setting.key) == table);
        let line = |setting: &Setting| {
            let key = keys::at(&setting.key)?;
            let name = setting.key.strip_prefix(table)?.strip_prefix('.')?;
            let value = setting.value.as_deref().unwrap_or("not set");
            Some(format!("  {:<32} {}", format!("{name} = {value}"), key.about))
        };
        settings.filter_map(line).collect()
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
            BrokerKind::Memory => "the embedded broker (memory:), which has only the messages that are published through this gateway".into(),
            BrokerKind::Nats => {
                let api = match &broker.jetstream {
                    JetStreamApi::Own => String::new(),
                    JetStreamApi::Domain(domain) => format!("; streams and buckets from the JetStream domain {domain}"),
                    JetStreamApi::Prefix(prefix) => {
                        format!("; streams and buckets from the JetStream whose API is {prefix}")
                    }
                };
                format!("NATS at {}{sign_in}{api}", broker.masked_url())
            }
            BrokerKind::Redis => {
                let way = match &broker.sentinel {
                    Some(name) => format!("the Redis master {name}, which these sentinels name: "),
                    None if broker.cluster => "the Redis Cluster with nodes at ".into(),
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
            (true, _) => "Pages of other origins are refused.".into(),
            (false, false) => {
                format!("Pages of these origins are admitted, without cookies: {}.", origins.join(", "))
            }
            (false, true) => {
                format!("Pages of these origins are admitted, with cookies: {}.", origins.join(", "))
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
            "Tokens are JWTs, verified with {} ({algorithm}). A token must have an expiry, {} and {}; clocks may differ by \
             {}. Grants are {}. Requests carry the token in Authorization: Bearer, in the cookie {}{}. A stream may last \
             until {} says, {}.",
            keys,
            one_of("the audience", &self.audience, "no audience"),
            one_of("the issuer", &self.issuer, "any issuer"),
            format_duration(self.leeway),
            shapes.join(", "),
            places.cookie,
            if places.query { ", or in the query parameter access_token" } else { "" },
            self.until,
            match self.until_limit {
                Duration::ZERO => "but no longer than its token".to_owned(),
                limit => format!("for at most {}", format_duration(limit)),
            }
        )
    }
}

impl Forward {
    fn in_words(&self, tokens: bool) -> String {
        format!(
            "The backend at {} is asked about {}, with at most {} questions at once. It has {} to answer. {}",
            masked(&self.url.0),
            if tokens { "callers without a token" } else { "callers that need permission" },
            self.concurrency,
            format_duration(self.timeout),
            match self.cache {
                Duration::ZERO => "No answer is reused.".to_owned(),
                cache => format!("An answer is reused for {}.", format_duration(cache)),
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
                format!(" (Redis Streams, with the payload in the field {field})")
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
            Access::Token => "callers with a valid token",
            Access::Granted if self.subject.is_some() => "the subject itself, where granted,",
            Access::Granted => "callers granted the topic",
        };
        let r = &self.replay;
        let linger = match r.linger {
            _ if r.warm || self.source.is_shared() => "subscribed from the start".into(),
            Duration::ZERO => "unsubscribed as soon as its last reader leaves".into(),
            linger => format!("unsubscribed {} after its last reader left", format_duration(linger)),
        };
        format!(
            "{}{}: {} may read, {} may publish. Each topic holds up to {} messages, {} and {} for replay; it is \
             {linger}. {}.",
            self.pattern(),
            self.source.in_words(),
            who(self.read),
            who(self.publish),
            r.messages,
            ByteSize(r.bytes),
            format_duration(r.age),
            self.fields_in_words(broker)
        )
    }

    fn fields_in_words(&self, broker: BrokerKind) -> String {
        let place = |field: &Field| match field {
            Field::Pointer(pointer) if pointer.is_empty() => Some("the whole JSON value".to_owned()),
            Field::Pointer(pointer) => Some(format!("the JSON field {pointer}")),
            Field::Header(name) if matches!(self.source, Source::RedisStream { .. }) => {
                Some(format!("the field {name}"))
            }
            Field::Nowhere => None,
            Field::Header(_) if broker == BrokerKind::Redis => None,
            Field::Header(name) => Some(format!("the header {name}")),
        };
        let ids = match place(&self.id) {
            _ if self.source.is_stored() => "Event ids come from the broker".to_owned(),
            Some(place) => format!("Ids are in {place}"),
            None => "Redis messages have no headers, so they carry no ids".to_owned(),
        };
        let envelope = match self.data.as_deref() {
            None => String::new(),
            Some("") => ". The payload is the JSON value of the whole message".to_owned(),
            Some(pointer) => format!(". The payload is in the JSON field {pointer}"),
        };
        let end = match &self.end {
            Field::Pointer(pointer) if pointer.is_empty() => {
                ". A message ends its topic by its whole JSON value".to_owned()
            }
            Field::Pointer(pointer) => format!(". The JSON field {pointer} ends a topic"),
            Field::Header(_) | Field::Nowhere => String::new(),
        };
        match place(&self.kind) {
            Some(place) => format!("{ids}, types in {place}{envelope}{end}"),
            None => format!("{ids}, and no types{envelope}{end}"),
        }
    }
}
