use std::collections::BTreeSet;

use figment::providers::{Format, Toml};
use figment::value::{Dict, Value};
use serde::Deserialize;

use super::raw::{Raw, keys};
use super::*;

const ANNOTATED: &str = include_str!("../../config/topicgate.toml");

/// The annotated file with the settings that have no default switched on.
fn uncommented() -> String {
    let on = |line: &'static str| match line.strip_prefix('#') {
        Some(setting) if setting.starts_with(|c: char| c == '[' || c.is_ascii_lowercase()) => setting,
        _ => line,
    };
    ANNOTATED.lines().map(on).collect::<Vec<_>>().join("\n")
}

fn paths(value: &Value, prefix: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Dict(_, dict) => {
            for (key, value) in dict {
                let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                paths(value, &path, found);
                found.insert(path);
            }
        }
        Value::Array(_, items) => items.iter().for_each(|item| paths(item, prefix, found)),
        _ => {}
    }
}

#[test]
fn the_annotated_file_says_the_defaults() {
    assert_eq!(Config::from_toml(ANNOTATED).unwrap(), Config::default());
}

#[test]
fn the_annotated_file_names_every_key() {
    let values = Value::from(Toml::from_str::<Dict>(&uncommented()).unwrap());
    Raw::deserialize(&values).unwrap();
    let mut found = BTreeSet::new();
    paths(&values, "", &mut found);
    // A field is in a header or at a pointer, never both, and a rule has one source; the comments show the others.
    let mut keys = keys();
    for other in [
        "topics.id.pointer",
        "topics.type.pointer",
        "topics.stream",
        "topics.bucket",
        "topics.payload",
        "topics.payload.field",
    ] {
        assert!(keys.remove(other));
    }
    assert_eq!(found, keys);
}

#[test]
fn the_rule_in_the_annotated_file_says_the_defaults_of_a_rule() {
    let text = uncommented();
    let rule = &text[text.find("\n[[topics]]").unwrap()..];
    let config = Config::from_toml(rule).unwrap();
    let bare = Config::from_toml("[[topics]]\nmatch = \"orders/**\"").unwrap();
    assert_eq!(config.topics, bare.topics);
}

#[test]
fn the_optional_settings_in_the_annotated_file_fit_the_brokers_they_are_said_for() {
    for keep in ["user password", "token", "credentials"] {
        let switched_on = |line: &str| {
            line.strip_prefix('#')
                .filter(|setting| keep.split(' ').any(|key| setting.starts_with(&format!("{key} ="))))
                .unwrap_or(line)
                .to_owned()
        };
        let text: Vec<String> = ANNOTATED.lines().map(switched_on).collect();
        Config::from_toml(&text.join("\n").replace("memory:\"", "nats://h\"")).unwrap();
    }
}

#[test]
fn the_annotated_file_says_the_defaults_of_tokens_of_the_backend_and_of_traces() {
    for (needed, keys) in [
        (
            "[auth.jwt]\nsecret = \"0123456789abcdef0123456789abcdef\"\n",
            &["algorithm", "leeway", "claim", "mercure", "centrifugo"][..],
        ),
        ("[auth.jwt]\njwks_url = \"https://h\"\n", &["jwks_refresh"]),
        ("[auth.forward]\nurl = \"https://h\"\n", &["timeout", "cache", "concurrency"]),
        ("[traces]\nendpoint = \"https://h\"\n", &["sample"]),
    ] {
        let set = |line: &&str| keys.iter().any(|key| line.starts_with(&format!("{key} =")));
        let lines: Vec<&str> =
            ANNOTATED.lines().filter_map(|line| line.strip_prefix('#')).filter(set).collect();
        assert_eq!(lines.len(), keys.len());
        let said = Config::from_toml(&format!("{needed}{}", lines.join("\n"))).unwrap();
        assert_eq!(said, Config::from_toml(needed).unwrap());
    }
}
