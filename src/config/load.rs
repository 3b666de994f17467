//! Gathers what was set where, lays it in layers and remembers the origin of every value: built-in defaults, a file,
//! the environment, flags; later wins.
//!
//! Nothing here knows what a value means; that is `parse.rs`. The environment is an argument, so that tests need not
//! change that of the process.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;

use figment::error::{Actual, Kind};
use figment::providers::{Format, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};
use serde::Deserialize;

use super::error::{ConfigError, ConfigErrors, nearest, spell};
use super::raw::{self, Raw};
use super::tree::{empty_texts, lists_for_tables, remove, texts};
use super::{Config, Origins, Settings, parse};

/// The file that is read from the working directory if no other is named.
const FILE: &str = "topicgate.toml";

const PREFIX: &str = "TOPICGATE_";

/// The environment variable that has the token of `sub`, `pub` and `doctor`. No setting: whoever keeps it in a shell can
/// still run the other commands there.
pub const CLIENT_TOKEN: &str = "TOPICGATE_TOKEN";

/// The key without which the embedded broker runs, and its environment variable.
const BROKER: (&str, &str) = ("broker.url", "TOPICGATE_BROKER__URL");

/// Around these, white space is no slip that can be mended: nobody sees it, and it may belong there.
const SECRETS: [&str; 4] = ["broker.password", "broker.token", "broker.nkey", "auth.jwt.secret"];

/// What was set, and where, before anything of it is understood.
#[derive(Clone, Default)]
pub struct Sources {
    /// The name of the configuration file, and its text.
    pub file: Option<(String, String)>,
    /// Environment variables. Those without the prefix `TOPICGATE_` are ignored.
    pub environment: Vec<(String, String)>,
    /// Flags: the key that each sets, its name as typed, and its value.
    pub flags: Vec<(&'static str, &'static str, String)>,
}

impl Sources {
    /// Reads the file and the environment of this process. A `file` that is named must exist; else `topicgate.toml` in
    /// the working directory is read if there is one.
    ///
    /// # Errors
    /// The file cannot be read, or a variable is not UTF-8.
    pub fn gather(
        file: Option<&Path>,
        flags: Vec<(&'static str, &'static str, String)>,
    ) -> Result<Self, ConfigErrors> {
        let path = file.unwrap_or(Path::new(FILE));
        let name = path.display().to_string();
        let mut errors = vec![];
        let file = match std::fs::read_to_string(path) {
            Ok(text) => Some((name, text)),
            // A link that leads nowhere is a file that somebody meant to be there.
            Err(error) if error.kind() == ErrorKind::NotFound && file.is_none() && !path.is_symlink() => None,
            Err(error) => {
                let problem = format!("cannot be read: {error}; name a file that can be, with --config");
                errors.push(ConfigError::at("", name, problem));
                None
            }
        };
        let mut environment = vec![];
        for (name, value) in std::env::vars_os() {
            let Ok(name) = name.into_string() else { continue };
            if !name.starts_with(PREFIX) {
                continue;
            }
            match value.into_string() {
                Ok(value) => environment.push((name, value)),
                Err(_) => {
                    let origin = format!("environment variable {name}");
                    errors.push(ConfigError::at("", origin, "is not UTF-8; write it in UTF-8"));
                }
            }
        }
        if errors.is_empty() { Ok(Sources { file, environment, flags }) } else { Err(ConfigErrors(errors)) }
    }
}

impl Config {
    /// Lays the sources over the built-in defaults and checks the whole.
    ///
    /// # Errors
    /// Everything that is wrong, not only the first.
    pub fn load(sources: &Sources) -> Result<Self, ConfigErrors> {
        let (mut config, layers) = Self::load_layers(sources)?;
        config.origins = Origins(Settings::of(&config, &layers).into());
        Ok(config)
    }

    /// As [`Config::load`], with where each value came from.
    pub(super) fn load_layers(sources: &Sources) -> Result<(Self, Layers), ConfigErrors> {
        let layers = layers(sources)?;
        let (mut values, mut errors, mut failed) = (layers.values.clone(), vec![], BTreeSet::new());
        layers.mend(&mut values, &mut |path, origin, problem| {
            errors.push(ConfigError::at(&path, origin, problem));
            failed.insert(path);
        });
        let empty = empty_texts(&mut values);
        // serde stops at the first error. So each bad value is reported, taken out, and the rest is read again.
        let raw = loop {
            let error = match Raw::deserialize(&values) {
                Ok(raw) => break raw,
                Err(error) => error,
            };
            let path = error.path.join(".");
            errors.push(ConfigError::at(
                &path,
                layers.origin(&path),
                describe(&error, &layers.origin(&path)),
            ));
            if !remove(&mut values, &error.path) {
                return Err(ConfigErrors(errors));
            }
            failed.insert(path);
        };
        let mut config = parse::config(raw, &layers, &failed, &mut errors);
        // Where nothing more fitting was said.
        for path in empty {
            if !errors.iter().any(|error| error.key == spell(&path)) {
                let problem = "is empty; write a value, or remove the key";
                errors.push(ConfigError::at(&path, layers.origin(&path), problem));
            }
        }
        config.unset.clone_from(&layers.unset);
        if errors.is_empty() { Ok((config, layers)) } else { Err(ConfigErrors(errors)) }
    }

    /// The built-in defaults with `text` over them, and nothing from outside. For tests, mostly.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn from_toml(text: &str) -> Result<Self, ConfigErrors> {
        Config::load(&Sources { file: Some((FILE.into(), text.into())), ..Sources::default() })
    }
}

/// All sources as one tree, of which every value still knows its origin.
pub(super) struct Layers {
    figment: Figment,
    values: Value,
    /// Environment variables that are there and empty.
    unset: Vec<String>,
}

impl Layers {
    /// Takes white space away from around every text, and refuses what would be read as something else than was meant.
    fn mend(&self, values: &mut Value, refuse: &mut impl FnMut(String, String, &str)) {
        texts(values, &mut vec![], &mut |path, text| {
            let trimmed = text.trim_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
            if trimmed.len() == text.len() || text.contains("-----BEGIN ") {
                return;
            }
            if SECRETS.contains(&path) {
                let problem = "begins or ends with white space, such as the line end of a file; remove it";
                refuse(path.to_owned(), self.origin(path), problem);
            } else {
                *text = trimmed.to_owned();
            }
        });
        if self.unset.iter().any(|variable| variable == BROKER.1) && self.origin_of_set(BROKER.0).is_none() {
            let origin = format!("environment variable {}", BROKER.1);
            let problem =
                "is empty; name the broker, as in nats://host:4222, or write memory: for the embedded one";
            refuse(BROKER.0.to_owned(), origin, problem);
        }
        let mut lists = vec![];
        lists_for_tables(values, &mut vec![], &raw::keys(), &mut lists);
        for path in lists {
            remove(values, &path);
            let path = path.join(".");
            refuse(path.clone(), self.origin(&path), "is a list; write one table, in single brackets");
        }
    }

    /// Where the value at `path` came from; if it was not set, where the table around it came from.
    pub(super) fn origin(&self, path: &str) -> String {
        let known = self.way(path).last().and_then(|value| self.name(value));
        known.unwrap_or_else(|| "built-in default".to_owned())
    }

    /// Where the value at `path` came from, if it was set.
    pub(super) fn origin_of_set(&self, path: &str) -> Option<String> {
        self.way(path).nth(path.split('.').count() - 1).and_then(|value| self.name(value))
    }

    /// The values on the way to `path`, as far as there are any.
    fn way(&self, path: &str) -> impl Iterator<Item = &Value> {
        let mut value = &self.values;
        path.split('.').map_while(move |segment| {
            value = match value {
                Value::Dict(_, dict) => dict.get(segment)?,
                Value::Array(_, items) => items.get(segment.parse::<usize>().ok()?)?,
                _ => return None,
            };
            Some(value)
        })
    }

    fn name(&self, value: &Value) -> Option<String> {
        self.figment.get_metadata(value.tag()).map(|metadata| metadata.name.to_string())
    }
}

/// One source, or one variable or flag of it, under the name that errors give it.
struct Layer {
    name: String,
    values: Dict,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Map::from([(Profile::Default, self.values.clone())]))
    }
}

fn layers(sources: &Sources) -> Result<Layers, ConfigErrors> {
    let mut figment = Figment::new();
    let (mut errors, mut unset) = (vec![], vec![]);
    if let Some((name, text)) = &sources.file {
        match toml(text) {
            Ok(values) => figment = figment.merge(Layer { name: name.clone(), values }),
            Err(problem) => errors.push(ConfigError::at("", name.clone(), problem)),
        }
    }
    for (variable, text) in &sources.environment {
        let Some(name) = variable.strip_prefix(PREFIX) else { continue };
        if variable == CLIENT_TOKEN || is_service_link(name, text) {
            continue;
        }
        // How compose files and charts say "not set"; or a slip, which is warned of.
        if text.trim().is_empty() {
            unset.push(variable.clone());
            continue;
        }
        let path = name.to_lowercase().replace("__", ".");
        let origin = format!("environment variable {variable}");
        if path == "topics" {
            match toml(&format!("topics = {text}")) {
                Ok(values) => figment = figment.merge(Layer { name: origin, values }),
                Err(_) => errors.push(ConfigError::at(
                    &path,
                    origin,
                    "cannot be read; write the whole list in TOML on one line, such as \
                     [{ match = \"orders/**\", read = \"anyone\" }]",
                )),
            }
            continue;
        }
        figment = figment.merge(Layer { name: origin, values: nested(&path, text) });
    }
    for (path, flag, text) in &sources.flags {
        figment = figment.merge(Layer { name: format!("flag {flag}"), values: nested(path, text) });
    }
    if !errors.is_empty() {
        return Err(ConfigErrors(errors));
    }
    match figment.find_value("") {
        Ok(values) => Ok(Layers { figment, values, unset }),
        // Our own layers do not fail; figment's signature allows it.
        Err(error) => Err(ConfigError::at("", "configuration".into(), error.to_string()).into()),
    }
}

/// The message and the line, but never the line's text, which may hold a secret.
fn toml(text: &str) -> Result<Dict, String> {
    Toml::from_str(text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start));
        let line = before.map_or(1, |before| before.matches('\n').count() + 1);
        let message = error.message().trim_end().replace('\n', ", ");
        format!("line {line} is not TOML: {message}")
    })
}

fn nested(path: &str, text: &str) -> Dict {
    let mut segments: Vec<&str> = path.split('.').collect();
    let last = segments.pop().unwrap_or_default();
    let leaf = Dict::from([(last.to_owned(), Value::from(text))]);
    segments.into_iter().rev().fold(leaf, |inner, key| Dict::from([(key.to_owned(), Value::from(inner))]))
}

/// Kubernetes tells every container of the services around it: a service called `topicgate` becomes
/// `TOPICGATE_SERVICE_HOST`, `TOPICGATE_PORT=tcp://…`, `TOPICGATE_PORT_8080_TCP_ADDR`. Nobody wrote those for us.
fn is_service_link(name: &str, text: &str) -> bool {
    if name.contains("__") {
        return false;
    }
    let port =
        name.split_once("PORT_").is_some_and(|(_, rest)| rest.starts_with(|c: char| c.is_ascii_digit()));
    name.ends_with("SERVICE_HOST")
        || name.contains("SERVICE_PORT")
        || port
        || (name.ends_with("PORT") && text.contains("://"))
}

fn describe(error: &figment::Error, origin: &str) -> String {
    match &error.kind {
        Kind::UnknownField(_, siblings) => unknown(&error.path, siblings, origin),
        // The value is not repeated: `broker = "nats://user:password@host"` would show a password.
        Kind::InvalidType(actual, expected) => {
            let expected =
                expected.replace("a sequence", "a list of tables").replace("path string", "a path");
            format!("is {}; write {expected}{}", kind(actual), example(&error.path, actual))
        }
        Kind::Message(message) => message.clone(),
        _ => "cannot be read; see the annotated topicgate.toml for its form".to_owned(),
    }
}

/// What is right where people often write something else.
fn example(path: &[String], actual: &Actual) -> String {
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    match (&path[..], actual) {
        (["topics"], Actual::Map) => ", each of which begins with [[topics]] in double brackets".into(),
        (["listen"] | ["admin", "listen"], _) => {
            let usual = if path.len() == 1 { 8080 } else { 9090 };
            let port = match actual {
                Actual::Unsigned(port) => u16::try_from(*port).unwrap_or(usual),
                Actual::Signed(port) => u16::try_from(*port).unwrap_or(usual),
                _ => usual,
            };
            format!(" of an address and a port, as in {} = \"127.0.0.1:{port}\"", path.join("."))
        }
        _ => String::new(),
    }
}

fn kind(actual: &Actual) -> &'static str {
    match actual {
        Actual::Bool(_) => "true or false",
        Actual::Unsigned(_) | Actual::Signed(_) | Actual::Float(_) => "a number",
        Actual::Char(_) | Actual::Str(_) => "text",
        Actual::Seq => "a list",
        Actual::Map => "a table",
        _ => "something else",
    }
}

/// The near name may be in another table, unless one here is but one letter away: people write `heartbeat` for `streams.heartbeat`, and
/// `TOPICGATE_LOG_LEVEL` for `TOPICGATE_LOG__LEVEL`.
fn unknown(path: &[String], siblings: &[&str], origin: &str) -> String {
    let path: Vec<&str> =
        path.iter().map(String::as_str).filter(|key| key.parse::<usize>().is_err()).collect();
    let Some((name, parents)) = path.split_last() else { return "no such key".to_owned() };
    let keys = raw::keys();
    let near = nearest(name, siblings.iter().copied());
    let sibling = near.map(|near| [parents, &[near]].concat().join("."));
    let slip = near.is_some_and(|near| strsim::damerau_levenshtein(name, near) == 1);
    let elsewhere = keys.iter().map(String::as_str).find(|key| {
        let leaf = key.rsplit_once('.').map_or(*key, |(_, leaf)| leaf);
        key.replace('.', "_") == path.join("_") || (leaf == *name && !slip)
    });
    match elsewhere.map(str::to_owned).or(sibling) {
        Some(key) if origin.starts_with("environment variable") => {
            format!("no such key; did you mean {PREFIX}{}?", key.to_uppercase().replace('.', "__"))
        }
        Some(key) => format!("no such key; did you mean {key}?"),
        None => format!("no such key; the keys here are {}", siblings.join(", ")),
    }
}
