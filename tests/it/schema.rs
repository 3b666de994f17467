//! `topicgate config --schema` and `--init`, with a real validator: PyPI's jsonschema.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::deploy::{path, read};
use crate::common::document::blocks;
use serde_json::Value;
use topicgate::Config;

fn topicgate(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_topicgate")).env_clear().args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What the validator says about each file.
fn verdicts(files: &[PathBuf]) -> BTreeMap<PathBuf, String> {
    let directory = tempfile::tempdir().unwrap();
    let schema = directory.path().join("topicgate.schema.json");
    std::fs::write(&schema, topicgate(&["config", "--schema"])).unwrap();
    let mut command = Command::new("python3");
    command
        .env("PYTHONPATH", path(".tools/python"))
        .arg(path("tests/schemas/config.py"))
        .arg(&schema)
        .args(files);
    let output = command.output().expect("python3 is needed: run scripts/tools");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).unwrap();
    let line = |line: &str| line.split_once('\t').map(|(name, said)| (name.into(), said.to_owned())).unwrap();
    said.lines().map(line).collect()
}

fn files(folder: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path(folder)).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|extension| extension == "toml")).collect()
}

/// Every TOML file in the YAML of a folder, and below it: a ConfigMap has it as text.
fn in_yaml(folder: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            in_yaml(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            let text = std::fs::read_to_string(&path).unwrap();
            let documents = serde_saphyr::from_multiple::<Value>(&text).unwrap_or_default();
            documents.iter().for_each(|document| tomls(document, found));
        }
    }
}

fn tomls(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => members.iter().for_each(|(name, value)| match value {
            Value::String(text) if name.ends_with(".toml") => found.push(text.clone()),
            value => tomls(value, found),
        }),
        Value::Array(items) => items.iter().for_each(|item| tomls(item, found)),
        _ => {}
    }
}

#[test]
fn every_configuration_of_the_project_fits_the_schema() {
    let directory = tempfile::tempdir().unwrap();
    let mut texts = vec![];
    let documents = std::fs::read_dir(path("docs")).unwrap().map(|entry| entry.unwrap().path());
    for document in documents.chain([path("README.md"), path("deploy/README.md")]) {
        if document.extension().is_some_and(|extension| extension == "md") {
            texts.extend(blocks(&std::fs::read_to_string(document).unwrap(), "", "toml"));
        }
    }
    assert!(texts.len() > 10, "{}", texts.len());
    in_yaml(&path("deploy"), &mut texts);
    let mut all = [files("config"), files("tests/config/valid")].concat();
    for (index, text) in texts.iter().enumerate() {
        // Others than ours, such as a book's, are not meant.
        if Config::from_toml(&text.replace('…', &"x".repeat(64))).is_err() {
            continue;
        }
        let file = directory.path().join(format!("{index}.toml"));
        std::fs::write(&file, text).unwrap();
        all.push(file);
    }
    for (file, said) in verdicts(&all) {
        assert_eq!(said, "fits", "{}\n{}", file.display(), std::fs::read_to_string(&file).unwrap());
    }
}

/// A schema sees one key at a time. It must see these faults; others are for `topicgate check`.
const SEEN: [&str; 23] = [
    "cluster_word",
    "cors_not_text",
    "drain_without_unit",
    "far_from_any_key",
    "heartbeat_zero",
    "id_both",
    "id_text",
    "jwt_algorithm_none",
    "key_of_another_table",
    "listen_admin_number",
    "listen_name",
    "log_format",
    "match_missing",
    "proxies_address",
    "read_misspelt",
    "replay_no_messages",
    "rules_are_not_a_list",
    "rules_single_brackets",
    "source_unknown",
    "streams_absurd",
    "table_double_brackets",
    "traces_sample_too_much",
    "unknown_key_in_a_rule",
];

#[test]
fn an_error_in_a_single_key_does_not_fit_the_schema() {
    let verdicts = verdicts(&files("tests/config/invalid"));
    let refused: Vec<&str> = verdicts
        .iter()
        .filter(|(_, said)| *said != "fits")
        .map(|(file, _)| file.file_stem().unwrap().to_str().unwrap())
        .collect();
    let missed: Vec<&&str> = SEEN.iter().filter(|name| !refused.contains(*name)).collect();
    assert!(missed.is_empty(), "{missed:?} fit");
    assert!(refused.len() >= 45, "{} of {}: {refused:?}", refused.len(), verdicts.len());
}

#[test]
fn the_schema_describes_each_key_with_its_default() {
    let schema: Value = serde_json::from_str(&topicgate(&["config", "--schema"])).unwrap();
    let heartbeat = &schema["properties"]["streams"]["properties"]["heartbeat"];
    assert_eq!(heartbeat["default"], "15s");
    let about = heartbeat["description"].as_str().unwrap();
    for part in ["The silence after which", "From 1s to 30days", "TOPICGATE_STREAMS__HEARTBEAT"] {
        assert!(about.contains(part), "{about}");
    }
    let rule = &schema["properties"]["topics"]["items"];
    assert_eq!(rule["properties"]["read"]["enum"].as_array().unwrap().len(), 4);
    assert_eq!(rule["properties"]["replay"]["properties"]["messages"]["default"], 1000);
    assert!(schema["properties"]["listen"]["description"].as_str().unwrap().contains("needs a restart"));
}

#[test]
fn the_file_to_begin_with_is_the_one_of_the_project_and_names_the_schema() {
    for broker in ["nats", "redis"] {
        let file = topicgate(&["config", "--init", broker]);
        assert_eq!(file, read(&format!("config/{broker}.toml")));
        assert!(file.starts_with("#:schema ./topicgate.schema.json\n"));
        assert_eq!(Config::from_toml(&file).unwrap().warnings(), Vec::<String>::new(), "{broker}");
        // What is switched off in it must work as well.
        let on = |line: &str| match line.strip_prefix('#') {
            Some(setting) if setting.starts_with(|c: char| c == '[' || c.is_ascii_lowercase()) => {
                setting.to_owned()
            }
            _ => line.to_owned(),
        };
        let secret = |line: &String| !line.starts_with("user =");
        let all: Vec<String> = file.lines().map(on).filter(secret).collect();
        Config::from_toml(&all.join("\n")).unwrap_or_else(|errors| panic!("{broker}: {errors}"));
    }
    assert!(read("config/topicgate.toml").starts_with("#:schema ./topicgate.schema.json\n"));
    let refused =
        Command::new(env!("CARGO_BIN_EXE_topicgate")).args(["config", "--init", "kafka"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(64));
}
