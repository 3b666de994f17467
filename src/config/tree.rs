//! Reads the tree of all settings by the table of keys: it parses each value, or reports what is wrong and what would be
//! right. For an unknown key, it suggests the key that was most likely meant.

use figment::value::{Dict, Value};

use super::error::nearest;
use super::input::Input;
use super::key::{Key, Kind};
use super::keys;
use super::layers::{Layers, PREFIX};
use super::value::{Given, sort};

const TABLE: &str = "is a list; write one table, in single brackets";

/// Reads the whole tree. A value that cannot be used is reported and counts as not set.
pub(super) fn read(layers: &Layers) -> Input<'_> {
    let mut tree = Tree { input: Input::new(layers), path: vec![] };
    if let Value::Dict(_, dict) = &layers.values {
        tree.table(dict);
    }
    tree.input
}

struct Tree<'a> {
    input: Input<'a>,
    /// The path of the current value, with the number of a rule as a segment.
    path: Vec<String>,
}

impl Tree<'_> {
    /// Reads the value of `name` in the current table.
    fn step_into(&mut self, name: &str, read: impl FnOnce(&mut Self)) {
        self.path.push(name.to_owned());
        read(self);
        self.path.pop();
    }

    fn fail(&mut self, problem: impl Into<String>) {
        self.input.fail(&self.path.join("."), problem);
    }

    fn table(&mut self, dict: &Dict) {
        let parents = self.names().join(".");
        let siblings = keys::names(&parents);
        for (name, value) in dict {
            self.step_into(name, |tree| {
                if siblings.contains(&name.as_str()) {
                    tree.entry(value);
                } else {
                    tree.unknown(&siblings);
                }
            });
        }
    }

    fn entry(&mut self, value: &Value) {
        let path = self.names().join(".");
        match (value, keys::at(&path)) {
            (_, Some(key)) => self.value(key, value),
            (Value::Array(_, rules), None) if path == "topics" => self.rules(rules),
            (Value::Dict(..), None) if path == "topics" => {
                self.fail("is a table; write a list of tables, each of which begins with [[topics]] in double brackets");
            }
            (_, None) if path == "topics" => self.fail(format!("is {}; write a list of tables", sort(value))),
            (Value::Dict(_, dict), None) => self.table(dict),
            (Value::Array(..), None) => self.fail(TABLE),
            (_, None) => self.fail(format!("is {}; write a table of keys", sort(value))),
        }
    }

    fn rules(&mut self, rules: &[Value]) {
        self.input.set_rules(rules.len());
        for (index, rule) in rules.iter().enumerate() {
            self.step_into(&index.to_string(), |tree| match rule {
                Value::Dict(_, dict) => tree.table(dict),
                _ => tree.fail(format!("is {}; write a table of keys", sort(rule))),
            });
        }
    }

    fn value(&mut self, key: &Key, value: &Value) {
        if let (Kind::Named(names), Value::Dict(_, dict)) = (key.kind, value) {
            return self.named(names, dict);
        }
        let path = self.path.join(".");
        let trimmed = trimmed(value);
        if key.kind == Kind::Secret && value.as_str() != trimmed.as_str() {
            return self.fail("begins or ends with white space, such as the line end of a file; remove it");
        }
        if has_empty_text(&trimmed) {
            self.input.set_empty(path.clone());
        }
        match key.read(&trimmed) {
            Ok(given) => self.input.set(path, given),
            Err(_) if matches!((key.kind, value), (Kind::Named(_), Value::Array(..))) => self.fail(TABLE),
            Err(problem) => self.fail(problem),
        }
    }

    /// A table whose keys together are one value.
    fn named(&mut self, names: &'static [&'static str], dict: &Dict) {
        let mut given = vec![];
        for (name, value) in dict {
            self.step_into(name, |tree| {
                let Some(name) = names.iter().find(|known| *known == name) else {
                    return tree.unknown(names);
                };
                let value = trimmed(value);
                if has_empty_text(&value) {
                    tree.input.set_empty(tree.path.join("."));
                }
                match value.as_str() {
                    Some(text) => given.push((*name, text.to_owned())),
                    None => tree.fail(format!("is {}; write a string", sort(&value))),
                }
            });
        }
        let path = self.path.join(".");
        // If several keys are possible, one is required, and the rule reports that. If one is, an empty table is not set.
        let is_nothing = given.is_empty() && names.len() == 1;
        if !is_nothing && !self.input.has_failed_within(&path) {
            self.input.set(path, Given::Named(given));
        }
    }

    /// The path without the number of a rule.
    fn names(&self) -> Vec<&str> {
        let is_rule = |index: usize| index == 1 && self.path.first().is_some_and(|first| first == "topics");
        let names = self.path.iter().map(String::as_str).enumerate();
        names.filter(|(index, _)| !is_rule(*index)).map(|(_, name)| name).collect()
    }

    /// The similar name may be in another table, unless one here differs by a single letter: people write `heartbeat`
    /// for `streams.heartbeat`, and `TOPICGATE_LOG_LEVEL` for `TOPICGATE_LOG__LEVEL`.
    fn unknown(&mut self, siblings: &[&str]) {
        let path = self.names();
        let Some((name, parents)) = path.split_last() else { return };
        let near = nearest(name, siblings.iter().copied());
        let sibling = near.map(|near| [parents, &[near]].concat().join("."));
        let slip = near.is_some_and(|near| strsim::damerau_levenshtein(name, near) == 1);
        let elsewhere = keys::all().into_iter().find(|key| {
            let leaf = key.rsplit_once('.').map_or(key.as_str(), |(_, leaf)| leaf);
            key.replace('.', "_") == path.join("_") || (leaf == *name && !slip)
        });
        let origin = self.input.origin(&self.path.join("."));
        let variable = format!("environment variable {PREFIX}{}", path.join("__").to_uppercase());
        let problem = match (elsewhere.or(sibling), origin.strip_prefix(&variable)) {
            // The variable of a table or a list has keys in its value, which have no variables.
            (Some(key), Some(rest)) => {
                let key = key_within(&key, rest).unwrap_or(key);
                format!("no such key; did you mean {PREFIX}{}?", key.to_uppercase().replace('.', "__"))
            }
            (Some(key), None) => format!("no such key; did you mean {key}?"),
            (None, _) => format!("no such key; the keys here are {}", siblings.join(", ")),
        };
        self.fail(problem);
    }
}

/// The key or table in `table` that was meant by `rest`, the end of the name of a variable.
fn key_within(table: &str, rest: &str) -> Option<String> {
    let rest = rest.strip_prefix("__")?.to_lowercase().replace("__", ".");
    let key = format!("{table}.{rest}");
    if keys::at(&key).is_some() || keys::is_table(&key) {
        return Some(key);
    }
    let near = nearest(&rest, keys::names(table).into_iter())?;
    Some(format!("{table}.{near}"))
}

/// The value without white space around its texts, which is never meant. A key in PEM ends with a line end.
fn trimmed(value: &Value) -> Value {
    match value {
        Value::String(tag, text) if !text.contains("-----BEGIN ") => {
            let space = |c: char| c.is_whitespace() || c == '\u{feff}';
            Value::String(*tag, text.trim_matches(space).to_owned())
        }
        Value::Array(tag, items) => Value::Array(*tag, items.iter().map(trimmed).collect()),
        other => other.clone(),
    }
}

fn has_empty_text(value: &Value) -> bool {
    match value {
        Value::String(_, text) => text.is_empty(),
        Value::Array(_, items) => items.iter().any(|item| item.as_str() == Some("")),
        _ => false,
    }
}
