use std::collections::BTreeSet;

use figment::providers::{Format, Toml};
use figment::value::{Dict, Value};
use proptest::prelude::*;
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
    // A field is in a header or at a pointer, never both; the comments show the other.
    let mut keys = keys();
    for other in ["topics.id.pointer", "topics.type.pointer"] {
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

fn config(rules: &[(String, bool)]) -> Config {
    let rule = |(filter, open): &(String, bool)| Rule {
        filter: Filter::parse(filter, 200).unwrap(),
        read: if *open { Access::Anyone } else { Access::Nobody },
        ..Rule::everything()
    };
    Config { topics: rules.iter().map(rule).collect(), ..Config::default() }
}

fn readable(config: &Config, filter: &str) -> bool {
    let rule = config.decide(&Filter::parse(filter, 200).unwrap());
    rule.is_some_and(|rule| rule.read == Access::Anyone)
}

#[test]
fn the_first_rule_that_matches_decides() {
    let config = config(&[("a/b".into(), false), ("a/*".into(), true), ("**".into(), false)]);
    assert!(!readable(&config, "a/b"));
    assert!(readable(&config, "a/c"));
    assert!(!readable(&config, "b"));
    assert_eq!(config.decide(&Filter::parse("$SYS/x", 200).unwrap()), None);
}

#[test]
fn a_pattern_that_only_partly_may_be_read_is_refused() {
    let rules = [("a/secret".into(), false), ("a/**".into(), true)];
    assert!(!readable(&config(&rules), "a/*"));
    assert!(readable(&config(&rules), "a/b/*"));
    assert!(!readable(&config(&rules), "*/b"));
}

fn filters() -> impl Strategy<Value = String> {
    let words = proptest::collection::vec(proptest::sample::select(vec!["a", "b", "$S", "*"]), 1..4);
    (words, any::<bool>()).prop_map(|(mut words, rest)| {
        if rest {
            words.push("**");
        }
        words.join("/")
    })
}

/// Every topic of up to five segments: longer than any pattern above, so no two patterns differ only beyond it.
fn universe() -> Vec<Topic> {
    let mut all: Vec<String> = vec![];
    let mut layer = vec![String::new()];
    for _ in 0..5 {
        let longer = |head: &String| ["a", "b", "c", "$S"].map(|word| format!("{head}{word}/"));
        layer = layer.iter().flat_map(longer).collect();
        all.extend(layer.iter().map(|topic| topic.trim_end_matches('/').to_owned()));
    }
    all.iter().map(|topic| Topic::parse(topic, 200).unwrap()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn whatever_a_pattern_lets_read_each_of_its_topics_lets_read(
        rules in proptest::collection::vec((filters(), any::<bool>()), 0..6),
        pattern in filters(),
    ) {
        let config = config(&rules);
        let pattern = Filter::parse(&pattern, 200).unwrap();
        let allowed = config.decide(&pattern).is_some_and(|rule| rule.read == Access::Anyone);
        for topic in universe() {
            let alone = config.decide_topic(&topic);
            prop_assert_eq!(alone, config.decide(&Filter::from(topic.clone())));
            if allowed && pattern.matches(&topic) {
                prop_assert_eq!(alone.map(|rule| rule.read), Some(Access::Anyone), "{} of {}", topic, pattern);
            }
        }
    }
}
