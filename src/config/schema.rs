//! The JSON Schema of the configuration file, for editors, generated from the table of keys. It checks each key alone;
//! `topicgate check` also checks combinations of keys.

use serde_json::{Map, Value, json};

use super::key::{Key, Kind};
use super::keys::KEYS;
use super::layers::PREFIX;
use super::value::bytes;

/// The draft that editors of TOML support.
const DRAFT: &str = "http://json-schema.org/draft-07/schema#";

/// A number and a unit, perhaps several, as in `1h 30m`.
const DURATION: &str = r"^(\s*\d+\s*[a-zA-Zµ]+)+\s*$";

/// The same, but not zero. The validators of editors support no look-ahead.
const POSITIVE_DURATION: &str =
    r"^(\s*\d+\s*[a-zA-Zµ]+)*\s*\d*[1-9]\d*\s*[a-zA-Zµ]+(\s*\d+\s*[a-zA-Zµ]+)*\s*$";

/// A number of bytes, perhaps with a unit.
const SIZE: &str = r"^\s*\d+(\.\d+)?\s*([kKmMgGtTpP][iI]?)?[bB]?\s*$";

/// An address and a port, both as numbers.
const ADDRESS: &str = r"^\s*([0-9.]+|\[[0-9a-fA-F:.%]+\]):\d{1,5}\s*$";

/// The schema, as text.
pub(crate) fn schema() -> String {
    let mut root = table("Settings of topicgate.");
    root["$schema"] = DRAFT.into();
    root["title"] = "topicgate.toml".into();
    let mut rule = table("The first rule whose match covers a topic decides about it.");
    rule["required"] = json!(["match"]);
    for key in KEYS {
        match key.path.strip_prefix("topics.") {
            Some(path) => put(&mut rule, path, key),
            None => put(&mut root, key.path, key),
        }
    }
    let about = "What is exposed, and to whom. A topic that no rule names is not exposed.";
    root["properties"]["topics"] = json!({ "type": "array", "items": rule, "description": about });
    format!("{root:#}\n")
}

fn table(about: &str) -> Value {
    json!({ "type": "object", "properties": {}, "additionalProperties": false, "description": about })
}

/// Inserts a key at its path, and the tables on the way.
fn put(root: &mut Value, path: &str, key: &Key) {
    match path.split_once('.') {
        None => root["properties"][path] = described(key),
        Some((name, rest)) => {
            let tables = &mut root["properties"];
            if tables[name].is_null() {
                tables[name] = table(&format!(
                    "The table of {}.",
                    key.path.trim_end_matches(rest).trim_end_matches('.')
                ));
            }
            put(&mut tables[name], rest, key);
        }
    }
}

fn described(key: &Key) -> Value {
    let (mut value, bounds) = of(key.kind);
    let restart = if key.needs_restart { " A change needs a restart." } else { "" };
    let variable = match key.path.starts_with("topics.") {
        true => String::new(),
        false => format!(" Environment: {PREFIX}{}.", key.path.to_uppercase().replace('.', "__")),
    };
    value["description"] = format!("{}{bounds}{restart}{variable}", key.about).into();
    if let Some(default) = key.default_value() {
        value["default"] = serde_json::to_value(default.to_toml()).unwrap_or_default();
    }
    value
}

/// The allowed values; bounds that a schema cannot express are given in words.
fn of(kind: Kind) -> (Value, String) {
    let text = |pattern: &str| json!({ "type": "string", "pattern": pattern });
    // Text is accepted in place of a number, a boolean or a list.
    let or_text = |value: Value, pattern: &str| json!({ "anyOf": [value, text(pattern)] });
    let value = match kind {
        Kind::Text | Kind::Secret | Kind::Url | Kind::Path => json!({ "type": "string", "minLength": 1 }),
        Kind::Address => text(ADDRESS),
        Kind::List => json!({ "anyOf": [
            { "type": "array", "items": { "type": "string" } },
            { "type": "string", "description": "Several are separated by commas." },
        ] }),
        Kind::Flag => or_text(json!({ "type": "boolean" }), r"^\s*(true|false)\s*$"),
        Kind::Share => {
            or_text(json!({ "type": "number", "minimum": 0, "maximum": 1 }), r"^\s*[0-9.eE+-]+\s*$")
        }
        Kind::Count { min, max } => {
            or_text(json!({ "type": "integer", "minimum": min, "maximum": max }), r"^\s*\+?\d+\s*$")
        }
        Kind::Size { min, max } => {
            let value = or_text(json!({ "type": "integer", "minimum": min, "maximum": max }), SIZE);
            return (value, format!(" From {} to {}.", bytes(min), bytes(max)));
        }
        Kind::Duration { min, max } => {
            let pattern = if min.is_zero() { DURATION } else { POSITIVE_DURATION };
            let [min, max] = [min, max].map(humantime::format_duration);
            return (text(pattern), format!(" From {min} to {max}."));
        }
        Kind::Choice(words) => json!({ "type": "string", "enum": words }),
        Kind::Named(names) => {
            let text = |name: &&str| ((*name).to_owned(), json!({ "type": "string" }));
            let properties: Map<String, Value> = names.iter().map(text).collect();
            let least = usize::from(names.len() > 1);
            json!({
                "type": "object", "properties": properties, "additionalProperties": false,
                "minProperties": least, "maxProperties": 1,
            })
        }
    };
    (value, String::new())
}
