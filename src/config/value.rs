//! One value: parses it into its type and checks its bounds, or says what is wrong and what would be right; and writes it
//! back as TOML.
//!
//! Text is accepted in place of a number, a boolean or a list, because an environment variable can only be text; a list is
//! then separated by commas.

use std::net::SocketAddr;
use std::time::Duration;

use bytesize::ByteSize;
use figment::value::{Num, Value};
use humantime::format_duration;

use super::error::instead;
use super::key::{KIB, Key, Kind};
use super::secret::Secret;
use super::url::masked;

/// The value of a key: as written, or its default.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Given {
    Text(String),
    Secret(Secret),
    /// Secret because it may have a password or a query.
    Url(Secret),
    Address(SocketAddr),
    List(Vec<String>),
    Flag(bool),
    Share(f64),
    Count(usize),
    Size(u64),
    Duration(Duration),
    /// The keys of a table, and their texts.
    Named(Vec<(&'static str, String)>),
}

impl Key {
    /// Parses the value of this key. The error completes a sentence that begins with the key.
    pub(super) fn read(&self, value: &Value) -> Result<Given, String> {
        let wrong = |right: &str| format!("is {}; write {right}", shown(value));
        match self.kind {
            Kind::Text => self.text(value).map(Given::Text),
            Kind::Path => value.as_str().map(|path| Given::Text(path.into())).ok_or_else(|| {
                // The value is not repeated, as for text.
                format!("is {}; write a path", sort(value))
            }),
            Kind::Secret => self.text(value).map(|text| Given::Secret(Secret(text))),
            Kind::Url => self.text(value).map(|text| Given::Url(Secret(text))),
            Kind::Address => address(&self.text(value)?).map(Given::Address),
            Kind::Choice(words) => one_of(self.text(value)?, words).map(Given::Text),
            Kind::List => {
                list(value).map(Given::List).ok_or_else(|| wrong("a list of texts, such as [\"a\", \"b\"]"))
            }
            Kind::Flag => flag(value).map(Given::Flag).ok_or_else(|| wrong("true or false")),
            Kind::Share => {
                share(value).ok_or_else(|| wrong("a number from 0 to 1, such as 0.1")).map(Given::Share)
            }
            Kind::Count { min, max } => {
                let count = whole(value).ok_or_else(|| wrong("a whole number, such as 1000"))?;
                let count = within(count, (min, max), |count| count.to_string())?;
                Ok(Given::Count(usize::try_from(count).unwrap_or(usize::MAX)))
            }
            Kind::Size { min, max } => {
                let size = size(value).ok_or_else(|| wrong("a size such as \"256KiB\" or \"1MiB\""))?;
                within(size, (min, max), bytes).map(Given::Size)
            }
            Kind::Duration { min, max } => {
                let right = "a number and a unit in quotes, such as \"15s\" or \"5m\"";
                let duration = value.as_str().and_then(|text| humantime::parse_duration(text).ok());
                let duration = duration.ok_or_else(|| wrong(right))?;
                let show = |duration| format_duration(duration).to_string();
                within(duration, (min, max), show).map(Given::Duration)
            }
            Kind::Named(_) => Err(format!("is {}; write a table of keys", sort(value))),
        }
    }

    /// The default, if it depends on no other setting.
    pub(super) fn default_value(&self) -> Option<Given> {
        match self.default? {
            // Parsed as text, it would be a list of one empty name.
            "" => Some(Given::List(vec![])),
            text => self.read(&Value::from(text)).ok(),
        }
    }

    /// The value is not repeated in the error: `broker.url = ["nats://user:password@host"]` would show a password.
    fn text(&self, value: &Value) -> Result<String, String> {
        value.as_str().map(str::to_owned).ok_or_else(|| {
            let form = if self.kind == Kind::Address { self.address_form(value) } else { String::new() };
            format!("is {}; write a string{form}", sort(value))
        })
    }

    /// Many people write only the port.
    fn address_form(&self, value: &Value) -> String {
        let port = match value {
            Value::Num(_, number) => integer(*number).and_then(|port| u16::try_from(port).ok()),
            _ => None,
        };
        let usual =
            || self.default.and_then(|default| default.rsplit_once(':')).map(|(_, port)| port.to_owned());
        let port = port.map(|port| port.to_string()).or_else(usual).unwrap_or_default();
        format!(" of an address and a port, as in {} = \"127.0.0.1:{port}\"", self.path)
    }
}

impl Given {
    /// The value as TOML, without secrets.
    pub(super) fn to_toml(&self) -> toml::Value {
        match self {
            Given::Text(text) => text.as_str().into(),
            Given::Secret(secret) => secret.to_string().into(),
            Given::Url(url) => masked(&url.0).into(),
            Given::Address(address) => address.to_string().into(),
            Given::List(texts) => texts.clone().into(),
            Given::Flag(flag) => (*flag).into(),
            Given::Share(share) => (*share).into(),
            // Far below the limit of TOML: the largest allowed count is a thousand million.
            Given::Count(count) => i64::try_from(*count).unwrap_or(i64::MAX).into(),
            Given::Size(size) => exactly(*size).into(),
            Given::Duration(duration) => format_duration(*duration).to_string().into(),
            Given::Named(fields) => {
                let fields = fields.iter().map(|(key, text)| ((*key).to_owned(), text.as_str().into()));
                toml::Value::Table(fields.collect())
            }
        }
    }
}

/// The kind of a value, without the value.
pub(super) fn sort(value: &Value) -> &'static str {
    match value {
        Value::Bool(..) => "true or false",
        Value::Num(..) => "a number",
        Value::Char(..) | Value::String(..) => "text",
        Value::Array(..) => "a list",
        Value::Dict(..) => "a table",
        Value::Empty(..) => "something else",
    }
}

/// The error for a value that cannot be used. Only for keys without secrets, because it repeats the text.
fn shown(value: &Value) -> String {
    match value {
        Value::String(_, text) => format!("{text:?}"),
        Value::Bool(_, switch) => switch.to_string(),
        Value::Num(_, number) => match (number.to_i128(), number.to_f64()) {
            (Some(whole), _) => whole.to_string(),
            (None, Some(real)) => real.to_string(),
            (None, None) => "a number".to_owned(),
        },
        Value::Array(..) => "a list that holds something else".to_owned(),
        _ => sort(value).to_owned(),
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!(
            "{text:?} is not an address and a port; write both as numbers, as in 127.0.0.1:8080 or [::]:8080"
        )
    })
}

fn one_of(text: String, words: &[&str]) -> Result<String, String> {
    if words.contains(&text.as_str()) {
        return Ok(text);
    }
    Err(format!("{text:?} is not known;{}", instead(&text, words)))
}

fn list(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(_, text) => Some(text.split(',').map(|item| item.trim().to_owned()).collect()),
        Value::Array(_, items) => items.iter().map(|item| item.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}

fn flag(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(_, flag) => Some(*flag),
        Value::String(_, text) => text.parse().ok(),
        _ => None,
    }
}

fn share(value: &Value) -> Option<f64> {
    match value {
        Value::Num(_, number) => number.to_f64().or_else(|| number.to_i128().map(|whole| whole as f64)),
        Value::String(_, text) => text.parse().ok(),
        _ => None,
    }
}

fn whole(value: &Value) -> Option<u64> {
    match value {
        Value::Num(_, number) => integer(*number).and_then(|number| u64::try_from(number).ok()),
        Value::String(_, text) => text.parse::<i128>().ok().and_then(|number| u64::try_from(number).ok()),
        _ => None,
    }
}

fn size(value: &Value) -> Option<u64> {
    match value {
        Value::Num(_, number) => number.to_i128().and_then(|number| u64::try_from(number).ok()),
        Value::String(_, text) => text.parse::<ByteSize>().ok().map(|size| size.as_u64()),
        _ => None,
    }
}

fn integer(number: Num) -> Option<i128> {
    number.to_i128().or_else(|| number.to_u128()?.try_into().ok())
}

fn within<T: PartialOrd>(value: T, (min, max): (T, T), show: impl Fn(T) -> String) -> Result<T, String> {
    if value < min {
        Err(format!("{} is too little; write at least {}", show(value), show(min)))
    } else if value > max {
        Err(format!("{} is too much; write at most {}", show(value), show(max)))
    } else {
        Ok(value)
    }
}

/// A number of bytes, for people.
pub(super) fn bytes(value: u64) -> String {
    // With rounding, "8191 B is too little; at least 8 KiB" would read as a contradiction.
    if value.is_multiple_of(KIB) { ByteSize(value).to_string() } else { format!("{value} bytes") }
}

/// The size in the largest unit in which it is a whole number; other outputs are rounded.
fn exactly(bytes: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let unit = units.into_iter().find(|(power, _)| bytes > 0 && bytes.is_multiple_of(1 << power));
    unit.map_or_else(|| format!("{bytes}B"), |(power, unit)| format!("{}{unit}", bytes >> power))
}
