//! Every setting as it holds, with its origin: what `topicgate config` prints, as TOML that could be a configuration file.
//! Secrets are masked, so it is one only where there are none.

use std::fmt;
use std::sync::Arc;

use humantime::format_duration;
use serde::Serialize;
use toml::Value;

use super::error::ConfigErrors;
use super::load::Layers;
use super::{Access, AddressSource, BrokerKind, Config, Jwt, JwtKeys, LogFormat, Rule, Sources, masked};
use crate::protocol::source::{Field, Source};

/// The settings that a [`Config`] was read from. Two that say the same are one configuration, wherever they say it: so any
/// two of these are equal.
#[derive(Debug, Clone, Default)]
pub struct Origins(pub Arc<Settings>);

impl PartialEq for Origins {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// One setting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Setting {
    /// Dotted; a rule has its number, from 0, as a segment: `topics.0.match`.
    pub key: String,
    /// As TOML has it. `None`: not set, and there is no default.
    pub value: Option<String>,
    /// A file, an environment variable, a flag, or `default`.
    pub origin: String,
}

/// All of them, in the order of config/topicgate.toml; shown as TOML with the origins as comments.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Settings(pub Vec<Setting>);

impl Settings {
    /// Of the configuration that these sources make.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load(sources: &Sources) -> Result<Self, ConfigErrors> {
        let (config, layers) = Config::load_layers(sources)?;
        Ok(Settings::of(&config, &layers))
    }

    pub(super) fn of(config: &Config, layers: &Layers) -> Self {
        let mut list = List { layers, settings: vec![] };
        list.config(config);
        Settings(list.settings)
    }
}

struct List<'a> {
    layers: &'a Layers,
    settings: Vec<Setting>,
}

impl List<'_> {
    fn add(&mut self, table: &str, key: &str, value: impl Into<Value>) {
        self.add_if_set(table, key, Some(value));
    }

    fn add_if_set(&mut self, table: &str, key: &str, value: Option<impl Into<Value>>) {
        let key = if table.is_empty() { key.to_owned() } else { format!("{table}.{key}") };
        let origin = self.layers.origin_of_set(&key).unwrap_or_else(|| "default".into());
        self.settings.push(Setting { key, value: value.map(|value| value.into().to_string()), origin });
    }

    fn config(&mut self, c: &Config) {
        self.add("", "listen", c.listen.to_string());
        self.add("", "hosts", c.hosts.clone());
        self.add("", "drain", format_duration(c.drain).to_string());
        if c.topics.is_empty() {
            self.add("", "topics", Vec::<Value>::new());
        }
        if c.tls.is_none() {
            self.add_if_set("", "tls", None::<&str>);
        }
        if c.traces.is_none() {
            self.add_if_set("", "traces", None::<&str>);
        }
        self.add("admin", "listen", c.admin.listen.to_string());
        self.add("admin", "hosts", c.admin.hosts.clone());
        self.add("admin", "console", c.admin.console);
        self.broker(c);
        let s = &c.streams;
        self.add("streams", "heartbeat", format_duration(s.heartbeat).to_string());
        self.add("streams", "retry", format_duration(s.retry).to_string());
        self.add("streams", "write_timeout", format_duration(s.write_timeout).to_string());
        self.add_if_set("streams", "max_age", s.max_age.map(|age| format_duration(age).to_string()));
        self.limits(c);
        let networks: Vec<String> = c.proxies.trusted.iter().map(ToString::to_string).collect();
        self.add("proxies", "trusted", networks);
        self.add(
            "proxies",
            "address",
            match c.proxies.address {
                AddressSource::XForwardedFor => "x-forwarded-for",
                AddressSource::Forwarded => "forwarded",
                AddressSource::ProxyProtocol => "proxy-protocol",
            },
        );
        self.auth(c);
        let origins: Vec<String> = c.cors.origins.iter().map(ToString::to_string).collect();
        self.add("cors", "origins", origins);
        self.add("cors", "headers", c.cors.headers.clone());
        self.add("cors", "credentials", c.cors.credentials);
        if let Some(tls) = &c.tls {
            self.add("tls", "cert", tls.cert.display().to_string());
            self.add("tls", "key", tls.key.display().to_string());
        }
        if let Some(traces) = &c.traces {
            self.add("traces", "endpoint", masked(&traces.endpoint.0));
            self.add("traces", "sample", traces.sample);
        }
        self.add("log", "level", c.log.level.as_str());
        self.add(
            "log",
            "format",
            match c.log.format {
                LogFormat::Text => "text",
                LogFormat::Json => "json",
            },
        );
        for (index, rule) in c.topics.iter().enumerate() {
            self.rule(&format!("topics.{index}"), rule);
        }
    }

    fn broker(&mut self, c: &Config) {
        let b = &c.broker;
        self.add("broker", "url", b.masked_url());
        let is_redis = b.kind() == BrokerKind::Redis;
        self.add_if_set("broker", "sentinel", b.sentinel.as_deref());
        self.add_if_set("broker", "cluster", is_redis.then_some(b.cluster));
        self.add_if_set("broker", "user", b.user.as_deref());
        let secrets = [("password", &b.password), ("token", &b.token), ("nkey", &b.nkey)];
        for (key, secret) in secrets {
            self.add_if_set("broker", key, secret.as_ref().map(ToString::to_string));
        }
        self.add_if_set(
            "broker",
            "credentials",
            b.credentials.as_ref().map(|path| path.display().to_string()),
        );
        let separator = is_redis.then(|| b.separator.to_string());
        self.add_if_set("broker", "separator", separator);
        let settle = (b.kind() == BrokerKind::Nats).then(|| format_duration(b.settle).to_string());
        self.add_if_set("broker", "settle", settle);
        for (key, path) in [("ca", &b.tls.ca), ("cert", &b.tls.cert), ("key", &b.tls.key)] {
            self.add_if_set("broker.tls", key, path.as_ref().map(|path| path.display().to_string()));
        }
    }

    fn limits(&mut self, c: &Config) {
        let l = &c.limits;
        for (key, count) in [
            ("streams", l.streams),
            ("streams_per_address", l.streams_per_address),
            ("streams_per_subject", l.streams_per_subject),
            ("opens_per_second", l.opens_per_second),
            ("new_topics_per_second", l.new_topics_per_second),
            ("publishes_per_second", l.publishes_per_second),
            ("connections", l.connections),
            ("topics", l.topics),
            ("topics_per_address", l.topics_per_address),
            ("topics_per_stream", l.topics_per_stream),
            ("topic_length", l.topic_length),
        ] {
            self.add("limits", key, number(count));
        }
        let sizes = [
            ("resume_bytes", l.resume_bytes),
            ("message", l.message),
            ("bodies", l.bodies),
            ("buffer", l.buffer),
            ("head", l.head),
        ];
        for (key, size) in sizes {
            self.add("limits", key, exactly(size));
        }
        self.add("limits", "head_timeout", format_duration(l.head_timeout).to_string());
    }

    fn auth(&mut self, c: &Config) {
        let auth = &c.auth;
        if auth.jwt.is_none() {
            self.add_if_set("auth", "jwt", None::<&str>);
        }
        if auth.forward.is_none() {
            self.add_if_set("auth", "forward", None::<&str>);
        }
        self.add("auth.token", "cookie", auth.token.cookie.as_str());
        self.add("auth.token", "query", auth.token.query);
        if let Some(jwt) = &auth.jwt {
            self.jwt(jwt);
        }
        if let Some(forward) = &auth.forward {
            self.add("auth.forward", "url", masked(&forward.url.0));
            self.add("auth.forward", "timeout", format_duration(forward.timeout).to_string());
            self.add("auth.forward", "cache", format_duration(forward.cache).to_string());
            self.add("auth.forward", "concurrency", number(forward.concurrency));
        }
    }

    fn jwt(&mut self, jwt: &Jwt) {
        const TABLE: &str = "auth.jwt";
        let (mut secret, mut path, mut set) = (None, None, None);
        match &jwt.keys {
            JwtKeys::Secret(hidden) => secret = Some(hidden.to_string()),
            JwtKeys::PublicKey(file) => path = Some(file.display().to_string()),
            JwtKeys::Jwks { url, refresh } => {
                set = Some((masked(&url.0), format_duration(*refresh).to_string()))
            }
        }
        let (url, refresh) = set.unzip();
        self.add_if_set(TABLE, "secret", secret);
        self.add_if_set(TABLE, "public_key", path);
        self.add_if_set(TABLE, "jwks_url", url);
        self.add_if_set(TABLE, "jwks_refresh", refresh);
        self.add_if_set(TABLE, "algorithm", jwt.algorithm.map(|algorithm| format!("{algorithm:?}")));
        for (key, names) in [("audience", &jwt.audience), ("issuer", &jwt.issuer)] {
            self.add_if_set(TABLE, key, (!names.is_empty()).then(|| names.clone()));
        }
        self.add(TABLE, "leeway", format_duration(jwt.leeway).to_string());
        self.add(TABLE, "claim", jwt.claim.as_str());
        self.add(TABLE, "mercure", jwt.mercure);
        self.add(TABLE, "centrifugo", jwt.centrifugo);
    }

    fn rule(&mut self, table: &str, rule: &Rule) {
        let access = |access| match access {
            Access::Anyone => "anyone",
            Access::Token => "token",
            Access::Granted => "granted",
            Access::Nobody => "nobody",
        };
        let field = |field: &Field| match field {
            Field::Header(name) => Some(inline("header", name)),
            Field::Pointer(pointer) => Some(inline("pointer", pointer)),
            Field::Nowhere => None,
        };
        self.add(table, "match", rule.pattern());
        let (mut stream, mut bucket, mut payload) = (None, None, None);
        self.add(
            table,
            "source",
            match &rule.source {
                Source::Pubsub => "pubsub",
                Source::Sharded => "sharded-pubsub",
                Source::JetStream { stream: name } => {
                    stream = name.as_deref();
                    "jetstream"
                }
                Source::Kv { bucket: name, .. } => {
                    bucket = Some(name.as_str());
                    "kv"
                }
                Source::RedisStream { payload: name } => {
                    payload = name.as_deref();
                    "redis-stream"
                }
            },
        );
        self.add_if_set(table, "stream", stream);
        self.add_if_set(table, "bucket", bucket);
        self.add_if_set(table, "payload", payload.map(|name| inline("field", name)));
        self.add(table, "read", access(rule.read));
        self.add(table, "publish", access(rule.publish));
        self.add_if_set(table, "id", field(&rule.id));
        self.add_if_set(table, "type", field(&rule.kind));
        let (table, replay) = (format!("{table}.replay"), &rule.replay);
        self.add(&table, "messages", number(replay.messages));
        self.add(&table, "bytes", exactly(replay.bytes));
        self.add(&table, "age", format_duration(replay.age).to_string());
        self.add(&table, "linger", format_duration(replay.linger).to_string());
        self.add(&table, "warm", replay.warm);
    }
}

/// A table of one key.
fn inline(key: &str, value: &str) -> toml::Table {
    toml::Table::from_iter([(key.to_owned(), Value::from(value))])
}

/// In the largest unit in which it is a whole number: what is shown elsewhere is rounded.
fn exactly(bytes: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let unit = units.into_iter().find(|(power, _)| bytes > 0 && bytes.is_multiple_of(1 << power));
    unit.map_or_else(|| format!("{bytes}B"), |(power, unit)| format!("{}{unit}", bytes >> power))
}

/// Counts are far below what TOML can hold: the largest that is taken is a thousand million.
fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = "";
        for Setting { key, value, origin } in &self.0 {
            let (table, key) = key.rsplit_once('.').unwrap_or(("", key));
            if table != last {
                match table.strip_prefix("topics.").map(|rest| rest.split_once('.')) {
                    None => writeln!(f, "\n[{table}]")?,
                    Some(None) => writeln!(f, "\n[[topics]]")?,
                    Some(Some((_, inner))) => writeln!(f, "[topics.{inner}]")?,
                }
                last = table;
            }
            match value {
                // The name of a file may hold anything, a line end too.
                Some(value) => writeln!(f, "{:<44} # {}", format!("{key} = {value}"), origin.escape_debug())?,
                None => writeln!(f, "# {key} is not set")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::raw;

    fn settings(file: &str) -> Settings {
        let file = Some(("topicgate.toml".into(), file.into()));
        Settings::load(&Sources { file, ..Sources::default() }).unwrap()
    }

    #[test]
    fn every_key_is_listed() {
        let file = "auth = { jwt = { jwks_url = \"https://h\" }, forward = { url = \"https://h\" } }\n\
                    tls = { cert = \"c\", key = \"k\" }\ntraces = { endpoint = \"http://h\" }\ntopics = [{ match = \"a\" }]";
        let listed: BTreeSet<String> =
            settings(file).0.into_iter().map(|setting| setting.key.replace("topics.0", "topics")).collect();
        let keys = raw::keys();
        let is_leaf = |key: &&String| !keys.iter().any(|other| other.starts_with(&format!("{key}.")));
        // These are written as one value, of several forms.
        let written = |key: &String| {
            let form = [".header", ".pointer"].into_iter().find_map(|form| key.strip_suffix(form));
            form.unwrap_or(key).replace(".payload.field", ".payload")
        };
        assert_eq!(listed, keys.iter().filter(is_leaf).map(written).collect());
    }

    #[test]
    fn what_is_printed_is_the_same_configuration() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/config/valid");
        let mut compared = 0;
        for file in std::fs::read_dir(folder).unwrap() {
            let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
            let printed = settings(&text).to_string();
            if !printed.contains("***") {
                assert_eq!(Config::from_toml(&printed), Config::from_toml(&text), "{printed}");
                compared += 1;
            }
        }
        assert!(compared >= 5, "{compared}");
    }
}
