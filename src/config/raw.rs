//! The shape of what people write: every key optional, nothing checked but its type. Turning it into a [`super::Config`]
//! that cannot be wrong is the work of `parse.rs`.
//!
//! Text is accepted wherever a number, a switch or a list is, because that is all that an environment variable can
//! hold; a list is then separated by commas.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use figment::error::Kind;
use figment::value::{Dict, Value};
use serde::de::{Deserialize, Deserializer, Error as _};

macro_rules! table {
    ($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Default, serde::Deserialize)]
        #[serde(deny_unknown_fields, default, expecting = "a table of keys")]
        pub(super) struct $name { $($(#[$field_meta])* pub(super) $field: $type,)* }
    };
}

table!(Raw {
    listen: Option<String>,
    hosts: Option<List>,
    drain: Option<Span>,
    admin: RawAdmin,
    broker: RawBroker,
    topics: Option<Vec<RawRule>>,
    streams: RawStreams,
    limits: RawLimits,
    proxies: RawProxies,
    auth: RawAuth,
    cors: RawCors,
    tls: RawTls,
    log: RawLog,
    traces: RawTraces,
});

table!(RawAdmin { listen: Option<String>, hosts: Option<List>, console: Option<Switch>, });

table!(RawBroker {
    url: Option<String>,
    user: Option<String>,
    password: Option<String>,
    token: Option<String>,
    nkey: Option<String>,
    credentials: Option<PathBuf>,
    separator: Option<String>,
    sentinel: Option<String>,
    cluster: Option<Switch>,
    settle: Option<Span>,
    tls: RawBrokerTls,
});

table!(RawBrokerTls {
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
});

table!(RawRule {
    #[serde(rename = "match")]
    filter: Option<String>,
    source: Option<String>,
    stream: Option<String>,
    bucket: Option<String>,
    payload: RawPayload,
    read: Option<String>,
    publish: Option<String>,
    id: Option<RawField>,
    #[serde(rename = "type")]
    kind: Option<RawField>,
    replay: RawReplay,
});

table!(RawField {
    header: Option<String>,
    pointer: Option<String>,
});

table!(RawPayload { field: Option<String> });

table!(RawReplay {
    messages: Option<Count>,
    bytes: Option<Size>,
    age: Option<Span>,
    linger: Option<Span>,
    warm: Option<Switch>,
});

table!(RawStreams {
    heartbeat: Option<Span>,
    retry: Option<Span>,
    write_timeout: Option<Span>,
    max_age: Option<Span>,
});

table!(RawLimits {
    streams: Option<Count>,
    streams_per_address: Option<Count>,
    streams_per_subject: Option<Count>,
    opens_per_second: Option<Count>,
    new_topics_per_second: Option<Count>,
    publishes_per_second: Option<Count>,
    resume_bytes: Option<Size>,
    connections: Option<Count>,
    topics: Option<Count>,
    topics_per_address: Option<Count>,
    topics_per_stream: Option<Count>,
    topic_length: Option<Count>,
    message: Option<Size>,
    bodies: Option<Size>,
    buffer: Option<Size>,
    head: Option<Size>,
    head_timeout: Option<Span>,
});

table!(RawProxies {
    trusted: Option<List>,
    address: Option<String>,
});

table!(RawAuth { jwt: RawJwt, token: RawToken, forward: RawForward });

table!(RawJwt {
    secret: Option<String>,
    public_key: Option<PathBuf>,
    jwks_url: Option<String>,
    jwks_refresh: Option<Span>,
    algorithm: Option<String>,
    audience: Option<List>,
    issuer: Option<List>,
    leeway: Option<Span>,
    claim: Option<String>,
    mercure: Option<Switch>,
    centrifugo: Option<Switch>,
});

table!(RawToken {
    cookie: Option<String>,
    query: Option<Switch>,
});

table!(RawForward {
    url: Option<String>,
    timeout: Option<Span>,
    cache: Option<Span>,
    concurrency: Option<Count>,
});

table!(RawCors {
    origins: Option<List>,
    headers: Option<List>,
    credentials: Option<Switch>,
});

table!(RawTls {
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
});

table!(RawLog {
    level: Option<String>,
    format: Option<String>,
});

table!(RawTraces {
    endpoint: Option<String>,
    sample: Option<Share>,
});

/// A whole number.
#[derive(Debug)]
pub(super) struct Count(pub(super) u64);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value: Value = Deserialize::deserialize(deserializer)?;
        let number = match &value {
            Value::Num(_, number) => number.to_i128().or_else(|| number.to_u128()?.try_into().ok()),
            Value::String(_, text) => text.trim().parse().ok(),
            _ => None,
        };
        number.and_then(|number| u64::try_from(number).ok()).map(Count).ok_or_else(|| {
            D::Error::custom(format!("is {}; write a whole number, such as 1000", sort(&value)))
        })
    }
}

/// A part of something, in parts of one.
#[derive(Debug)]
pub(super) struct Share(pub(super) f64);

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value: Value = Deserialize::deserialize(deserializer)?;
        let share = match &value {
            Value::Num(_, number) => number.to_f64().or_else(|| number.to_i128().map(|whole| whole as f64)),
            Value::String(_, text) => text.trim().parse().ok(),
            _ => None,
        };
        share.map(Share).ok_or_else(|| {
            D::Error::custom(format!("is {}; write a number from 0 to 1, such as 0.1", sort(&value)))
        })
    }
}

/// A number of bytes.
#[derive(Debug)]
pub(super) struct Size(pub(super) u64);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value: Value = Deserialize::deserialize(deserializer)?;
        let size = match &value {
            Value::Num(_, number) => number.to_i128().and_then(|number| u64::try_from(number).ok()),
            Value::String(_, text) => text.parse::<ByteSize>().ok().map(|size| size.as_u64()),
            _ => None,
        };
        size.map(Size).ok_or_else(|| {
            D::Error::custom(format!("is {}; write a size such as \"256KiB\" or \"1MiB\"", sort(&value)))
        })
    }
}

/// A duration.
#[derive(Debug)]
pub(super) struct Span(pub(super) Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value: Value = Deserialize::deserialize(deserializer)?;
        let span = value.as_str().and_then(|text| humantime::parse_duration(text).ok());
        span.map(Span).ok_or_else(|| {
            let wrong = sort(&value);
            D::Error::custom(format!(
                "is {wrong}; write a number and a unit in quotes, such as \"15s\" or \"5m\""
            ))
        })
    }
}

/// Yes or no.
#[derive(Debug)]
pub(super) struct Switch(pub(super) bool);

impl<'de> Deserialize<'de> for Switch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value: Value = Deserialize::deserialize(deserializer)?;
        let switch = match &value {
            Value::Bool(_, switch) => Some(*switch),
            Value::String(_, text) => text.trim().parse().ok(),
            _ => None,
        };
        switch
            .map(Switch)
            .ok_or_else(|| D::Error::custom(format!("is {}; write true or false", sort(&value))))
    }
}

/// A list of texts.
#[derive(Debug)]
pub(super) struct List(pub(super) Vec<String>);

impl<'de> Deserialize<'de> for List {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value: Value = Deserialize::deserialize(deserializer)?;
        let list = match &value {
            Value::String(_, text) => Some(text.split(',').map(|item| item.trim().to_owned()).collect()),
            Value::Array(_, items) => items.iter().map(|item| item.as_str().map(str::to_owned)).collect(),
            _ => None,
        };
        list.map(List).ok_or_else(|| {
            D::Error::custom(format!("is {}; write a list of texts, such as [\"a\", \"b\"]", sort(&value)))
        })
    }
}

/// What was written where something else is needed. Only for keys that hold no secret: it repeats text.
fn sort(value: &Value) -> String {
    match value {
        Value::String(_, text) => format!("{text:?}"),
        Value::Char(_, c) => format!("{c:?}"),
        Value::Bool(_, switch) => switch.to_string(),
        Value::Num(_, number) => match (number.to_i128(), number.to_f64()) {
            (Some(whole), _) => whole.to_string(),
            (None, Some(real)) => real.to_string(),
            (None, None) => "a number".to_owned(),
        },
        Value::Empty(..) => "nothing".to_owned(),
        Value::Dict(..) => "a table".to_owned(),
        Value::Array(..) => "a list that holds something else".to_owned(),
    }
}

/// Every key and table that may be set, dotted; those of a rule as `topics.match`.
///
/// Asked of the tables above, by writing a key into each that none has, so that this list cannot fall behind them.
pub(super) fn keys() -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    collect(&mut vec![], &mut keys);
    keys
}

fn collect(path: &mut Vec<&'static str>, keys: &mut BTreeSet<String>) {
    let mut probe = Value::from(Dict::from([(String::new(), Value::from(0))]));
    for key in path.iter().rev() {
        if *key == "topics" {
            probe = Value::from(vec![probe]);
        }
        probe = Value::from(Dict::from([((*key).to_owned(), probe)]));
    }
    // A key that is not a table answers with another error and ends the descent.
    let Err(Kind::UnknownField(_, fields)) = Raw::deserialize(&probe).map_err(|error| error.kind) else {
        return;
    };
    for field in fields {
        path.push(field);
        keys.insert(path.join("."));
        collect(path, keys);
        path.pop();
    }
}
