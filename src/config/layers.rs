//! Gathers the settings of all sources and records the origin of every value. Built-in defaults, the file, the
//! environment and flags are merged in this order; later sources win.
//!
//! This file does not know the meaning of a value, only which keys have lists or tables: their variables may be written in
//! TOML. The environment is an argument, so that tests need not change the environment of the process.

use std::io::ErrorKind;
use std::path::Path;

use figment::providers::{Format, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};

use super::error::{ConfigError, ConfigErrors};
use super::key::Key;
use super::keys;

/// The file that is read from the working directory if no other is named.
pub(super) const FILE: &str = "topicgate.toml";

pub(super) const PREFIX: &str = "TOPICGATE_";

/// The environment variable with the token for `sub`, `pub` and `doctor`. It is not a setting, so the other commands run
/// in a shell that has it.
pub const CLIENT_TOKEN: &str = "TOPICGATE_TOKEN";

/// Where settings come from. Later ones override earlier ones: built-in defaults, the file, the environment, flags.
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
    /// Reads the file and the environment of this process. If you name a `file`, it must exist; otherwise
    /// `topicgate.toml` in the working directory is read if there is one.
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
            // A dangling link counts as a file, because somebody meant it to exist.
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

/// All sources as one tree, in which every value has its origin.
pub(super) struct Layers {
    figment: Figment,
    /// The outermost table.
    pub(super) values: Value,
    /// Environment variables that are set to an empty text.
    pub(super) unset: Vec<String>,
    /// The name of the file, and its values alone.
    file: Option<(String, Dict)>,
}

impl Layers {
    /// Nothing is set.
    pub(super) fn none() -> Self {
        Layers { figment: Figment::new(), values: Value::from(Dict::new()), unset: vec![], file: None }
    }

    pub(super) fn of(sources: &Sources) -> Result<Self, ConfigErrors> {
        let mut figment = Figment::new();
        let (mut errors, mut unset, mut file) = (vec![], vec![], None);
        if let Some((name, text)) = &sources.file {
            match toml(text) {
                Ok(values) => {
                    file = Some((name.clone(), values.clone()));
                    figment = figment.merge(Layer { name: name.clone(), values });
                }
                Err(problem) => errors.push(ConfigError::at("", name.clone(), problem)),
            }
        }
        // A variable of a whole table comes before those of its keys.
        let mut environment: Vec<&(String, String)> = sources.environment.iter().collect();
        environment.sort();
        for (variable, text) in environment {
            let Some(name) = variable.strip_prefix(PREFIX) else { continue };
            if variable == CLIENT_TOKEN || is_service_link(name, text) {
                continue;
            }
            // Compose files and charts write "not set" like this. It may also be a mistake, so there is a warning.
            if text.trim().is_empty() {
                unset.push(variable.clone());
                continue;
            }
            let origin = format!("environment variable {variable}");
            match of_variable(name, text) {
                Ok(values) => figment = figment.merge(Layer { name: origin, values }),
                Err(problem) => errors.push(ConfigError::at(&path_of(name), origin, problem)),
            }
        }
        for (path, flag, text) in &sources.flags {
            figment =
                figment.merge(Layer { name: format!("flag {flag}"), values: nested(path, text.as_str()) });
        }
        if !errors.is_empty() {
            return Err(ConfigErrors(errors));
        }
        match figment.find_value("") {
            Ok(values) => Ok(Layers { figment, values, unset, file }),
            // Our own layers do not fail; figment's signature allows it.
            Err(error) => Err(ConfigError::at("", "configuration".into(), error.to_string()).into()),
        }
    }

    /// The origin of the value at `path`; if it was not set, the origin of the table around it.
    pub(super) fn origin(&self, path: &str) -> String {
        let known = self.way(path).last().and_then(|value| self.name(value));
        known.unwrap_or_else(|| "built-in default".to_owned())
    }

    /// The origin of the value at `path`, if it was set.
    pub(super) fn origin_of_set(&self, path: &str) -> Option<String> {
        self.way(path).nth(path.split('.').count() - 1).and_then(|value| self.name(value))
    }

    /// Whether there is a file.
    pub(super) fn has_file(&self) -> bool {
        self.file.is_some()
    }

    /// The name of the file and its value at `path`, if a later source sets another value there.
    pub(super) fn overridden(&self, path: &str) -> Option<(&str, &Value)> {
        let (name, values) = self.file.as_ref()?;
        let mut segments = path.split('.');
        let first = values.get(segments.next()?)?;
        let written = segments.try_fold(first, |value, segment| value.as_dict()?.get(segment))?;
        let in_force = self.way(path).nth(path.split('.').count() - 1)?;
        (in_force != written).then_some((name, written))
    }

    /// The values along `path`, as far as they exist.
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

/// One source, or one variable or flag of it, with its name in errors.
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

/// The message and the line, but never the line's text, which may hold a secret.
fn toml(text: &str) -> Result<Dict, String> {
    Toml::from_str(text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start));
        let line = before.map_or(1, |before| before.matches('\n').count() + 1);
        let message = error.message().trim_end().replace('\n', ", ");
        format!("line {line} is not TOML: {message}")
    })
}

/// The key that a variable sets; `name` is without the prefix.
fn path_of(name: &str) -> String {
    name.to_lowercase().replace("__", ".")
}

/// The tree of a variable: lists and tables may be written as in a file. `name` is without the prefix.
fn of_variable(name: &str, text: &str) -> Result<Dict, &'static str> {
    let path = path_of(name);
    let is_table = path == "topics" || keys::is_table(&path);
    if is_table || keys::at(&path).is_some_and(Key::has_parts) {
        let first = text.trim_start().chars().next();
        let is_toml = if path == "topics" { true } else { matches!(first, Some('[' | '{')) };
        let value = toml(&format!("it = {text}")).ok().and_then(|mut values| values.remove("it"));
        match value.filter(|_| is_toml) {
            // One rule needs no brackets.
            Some(rule @ Value::Dict(..)) if path == "topics" => return Ok(nested(&path, vec![rule])),
            Some(value) => return Ok(nested(&path, value)),
            None if path == "topics" => return rules(text),
            None if is_table => {
                return Err(
                    "is a table; write it in TOML on one line, such as { streams = 1000 }, or set its keys one by one",
                );
            }
            // An IPv6 address in brackets is a text.
            None => {}
        }
    }
    Ok(nested(&path, text))
}

/// Rules as in a file, each under its heading.
fn rules(text: &str) -> Result<Dict, &'static str> {
    let values =
        toml(text).ok().filter(|values| values.keys().all(|key| key == "topics") && !values.is_empty());
    values.ok_or(
        "cannot be read; write the whole list in TOML on one line, such as [{ match = \"orders/**\", read = \"anyone\" }]",
    )
}

fn nested(path: &str, value: impl Into<Value>) -> Dict {
    let mut segments: Vec<&str> = path.split('.').collect();
    let last = segments.pop().unwrap_or_default();
    let leaf = Dict::from([(last.to_owned(), value.into())]);
    segments.into_iter().rev().fold(leaf, |inner, key| Dict::from([(key.to_owned(), Value::from(inner))]))
}

/// Kubernetes sets variables in every container for the services of its namespace: for a service called `topicgate`,
/// `TOPICGATE_SERVICE_HOST`, `TOPICGATE_PORT=tcp://…` and `TOPICGATE_PORT_8080_TCP_ADDR`. They are not settings.
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
