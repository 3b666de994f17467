//! Every setting in force with its origin, as `topicgate config` prints them: as TOML, which can be used as a configuration
//! file if no secret is masked in it.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use super::input::Input;
use super::keys::{self, KEYS};
use super::value::Given;

/// The settings from which a [`super::Config`] was read. All of them compare as equal, because configurations are equal if
/// their values are, wherever these were set.
#[derive(Debug, Clone, Default)]
pub struct Origins(pub Arc<Settings>);

impl PartialEq for Origins {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// One setting.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Setting {
    /// The path, with dots; the number of a rule, from 0, is a segment: `topics.0.match`.
    pub key: String,
    /// The value as TOML. `None`: not set, and there is no default.
    pub value: Option<String>,
    /// A file, an environment variable, a flag, or `default`.
    pub origin: String,
    /// The value with its secrets.
    #[serde(skip)]
    pub(super) given: Option<Given>,
}

/// All settings, in the order of config/topicgate.toml; printed as TOML with the origins as comments.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Settings(pub Vec<Setting>);

impl Settings {
    /// The settings in force, once every table has been read.
    pub(super) fn of(input: &Input<'_>) -> Self {
        let mut settings = vec![];
        for table in tables() {
            let keys = KEYS.iter().map(|key| key.path).filter(|key| table_of(key) == table);
            if keys.clone().all(|key| input.in_force(key).is_none()) {
                settings.push(Setting {
                    key: table.into(),
                    value: None,
                    origin: origin(input, table),
                    given: None,
                });
            } else {
                settings.extend(keys.map(|key| setting(input, key)));
            }
        }
        let rules = input.rules().unwrap_or_default();
        if rules == 0 {
            let (key, value) = ("topics".to_owned(), Some("[]".to_owned()));
            settings.push(Setting { origin: origin(input, &key), key, value, given: None });
        }
        // In TOML, the keys outside of tables come first.
        settings.sort_by_key(|setting| setting.key.contains('.'));
        for index in 0..rules {
            let keys = KEYS.iter().filter_map(|key| key.path.strip_prefix("topics."));
            settings.extend(keys.map(|key| setting(input, &format!("topics.{index}.{key}"))));
        }
        Settings(settings)
    }
}

/// The tables outside of rules, in their order. The outermost one has no name.
fn tables() -> Vec<&'static str> {
    let keys = KEYS.iter().map(|key| key.path).filter(|key| !key.starts_with("topics."));
    let mut tables: Vec<&str> = keys.map(table_of).collect();
    tables.dedup();
    tables
}

pub(super) fn table_of(key: &str) -> &str {
    key.rsplit_once('.').map_or("", |(table, _)| table)
}

fn setting(input: &Input<'_>, key: &str) -> Setting {
    let given = input.in_force(key).flatten().cloned();
    let value = given.as_ref().map(|given| given.to_toml().to_string());
    Setting { key: key.to_owned(), value, origin: origin(input, key), given }
}

fn origin(input: &Input<'_>, key: &str) -> String {
    input.origin_of_set(key).unwrap_or_else(|| "default".to_owned())
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = "";
        for Setting { key, value, origin, .. } in &self.0 {
            let about = keys::at(key).map(|key| key.about);
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
                // The name of a file may have any characters, even a line end.
                Some(value) => writeln!(f, "{:<44} # {}", format!("{key} = {value}"), origin.escape_debug())?,
                None => writeln!(
                    f,
                    "# {key} is not set{}",
                    about.map_or(String::new(), |about| format!(". {about}"))
                )?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::Config;

    fn settings(file: &str) -> Settings {
        (*Config::from_toml(file).unwrap().origins.0).clone()
    }

    #[test]
    fn every_key_is_listed() {
        let file = "auth = { jwt = { jwks_url = \"https://h\" }, forward = { url = \"https://h\" } }\n\
                    tls = { cert = \"c\", key = \"k\" }\ntraces = { endpoint = \"http://h\" }\ntopics = [{ match = \"a\" }]";
        let listed: BTreeSet<String> =
            settings(file).0.into_iter().map(|setting| setting.key.replace("topics.0", "topics")).collect();
        assert_eq!(listed, KEYS.iter().map(|key| key.path.to_owned()).collect());
    }

    #[test]
    fn printed_settings_are_read_back_as_the_same_configuration() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/config/valid");
        let mut compared = 0;
        for file in std::fs::read_dir(folder).unwrap() {
            let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
            let printed = settings(&text).to_string();
            if !printed.contains("***") {
                let (read, meant) = (Config::from_toml(&printed).unwrap(), Config::from_toml(&text).unwrap());
                // Here the demo's implied rule is explicit.
                let read = Config { is_demo: meant.is_demo, ..read };
                assert_eq!(read, meant, "{printed}");
                compared += 1;
            }
        }
        assert!(compared >= 5, "{compared}");
    }
}
