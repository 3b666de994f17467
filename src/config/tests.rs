use std::collections::BTreeSet;

use figment::providers::{Format, Toml};
use figment::value::{Dict, Value};
use humantime::format_duration;

use super::key::Kind;
use super::keys::{self, KEYS};
use super::value::Given;
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
    assert_eq!(Config::from_toml(ANNOTATED).unwrap(), defaults_of_a_file());
}

#[test]
fn the_annotated_file_names_every_key() {
    let values = Value::from(Toml::from_str::<Dict>(&uncommented()).unwrap());
    let mut found = BTreeSet::new();
    paths(&values, "", &mut found);
    // A field is in a header or at a pointer, never both, and a rule has one source; the comments show the others.
    let mut keys = keys::all();
    for other in [
        "topics.id.pointer",
        "topics.type.pointer",
        "topics.stream",
        "topics.bucket",
        "topics.payload",
        "topics.payload.field",
        "topics.end.pointer",
        "topics.data",
        "topics.data.pointer",
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
fn the_optional_settings_in_the_annotated_file_are_valid_when_uncommented() {
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

/// The table of keys in the documentation, as the table in the code has it.
fn documented() -> String {
    let size = |size| Given::Size(size).to_toml().as_str().unwrap().to_owned();
    let mut page = "| key | value | default | |\n|---|---|---|---|\n".to_owned();
    for key in KEYS {
        let value = match key.kind {
            Kind::Text | Kind::Secret => "text".to_owned(),
            Kind::Url => "URL".to_owned(),
            Kind::Path => "path".to_owned(),
            Kind::Address => "address:port".to_owned(),
            Kind::List => "list".to_owned(),
            Kind::Flag => "true, false".to_owned(),
            Kind::Share => "0 to 1".to_owned(),
            Kind::Count { .. } => "count".to_owned(),
            Kind::Size { min, max } => format!("{} to {}", size(min), size(max)),
            Kind::Duration { min, max } => format!("{} to {}", format_duration(min), format_duration(max)),
            Kind::Choice(words) => words.join(", "),
            Kind::Named(names) => {
                names.iter().map(|name| format!("`{{ {name} = … }}`")).collect::<Vec<_>>().join(", ")
            }
        };
        let default = match key.default {
            None => "–".to_owned(),
            Some("") => "`[]`".to_owned(),
            Some(default) => format!("`{default}`"),
        };
        let restart = if key.needs_restart { " *(restart)*" } else { "" };
        page += &format!("| `{}` | {value} | {default} | {}{restart} |\n", key.path, key.about);
    }
    page
}

fn document(name: &str) -> String {
    std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

#[test]
fn the_documented_table_of_keys_is_the_one_in_the_code() {
    let page = document("docs/configuration.md");
    let (_, section) = page.split_once("\n## Every key\n").unwrap();
    let rows = section.lines().skip_while(|line| !line.starts_with('|'));
    let rows: String = rows.take_while(|line| line.starts_with('|')).flat_map(|row| [row, "\n"]).collect();
    let table = documented();
    assert!(rows == table, "write this into docs/configuration.md:\n{table}");
}

/// The examples in TOML of a document.
fn examples(page: &str) -> impl Iterator<Item = &str> {
    page.split("\n```toml\n").skip(1).map(|rest| rest.split_once("\n```").unwrap().0)
}

#[test]
fn the_example_for_production_is_a_configuration() {
    let page = document("docs/configuration.md");
    let [example] = *examples(&page).collect::<Vec<_>>() else { panic!("one example") };
    let config = Config::from_toml(example).unwrap();
    assert_eq!((config.broker.kind(), config.topics.len()), (BrokerKind::Nats, 1));
    assert!(config.tls.is_some() && !config.proxies.trusted.is_empty() && !config.cors.origins.is_empty());
}

#[test]
fn the_documents_name_every_key_that_needs_a_restart_and_no_other() {
    let table = |key: &'static str| key.split_once('.').map_or(key, |(table, _)| table);
    let is_whole = |of: &str| KEYS.iter().filter(|key| table(key.path) == of).all(|key| key.needs_restart);
    let keys = KEYS.iter().filter(|key| key.needs_restart && table(key.path) != "topics").map(|key| key.path);
    let names: BTreeSet<String> = keys
        .map(|key| match table(key) {
            whole if whole != key && is_whole(whole) => format!("[{whole}]"),
            _ => key.to_owned(),
        })
        .collect();
    let page = document("docs/operations.md");
    let row = page.lines().find(|line| line.starts_with("| **needs a restart** |")).unwrap();
    // Of [tls], whether there is one.
    let (listed, _) = row.split_once("`[tls]`").unwrap();
    assert_eq!(listed.split('`').skip(1).step_by(2).map(str::to_owned).collect::<BTreeSet<_>>(), names);
    let head = ANNOTATED.split_once("SIGHUP loads everything again; ").unwrap().1;
    let head = head.split_once(", and adding or removing [tls]").unwrap().0.replace("\n# ", " ");
    assert_eq!(head.split(", ").map(str::to_owned).collect::<BTreeSet<_>>(), names);
}

#[test]
fn every_default_is_a_value_that_its_key_takes() {
    for key in KEYS {
        assert_eq!(key.default.is_some(), key.default_value().is_some(), "{}", key.path);
        let is_sentence = key.about.starts_with(|c: char| c.is_uppercase()) && key.about.ends_with('.');
        assert!(is_sentence, "{}: {}", key.path, key.about);
    }
}

/// The defaults, as a file has them: a file, even an empty one, ends the first look.
fn defaults_of_a_file() -> Config {
    Config { has_first_look: false, ..Config::default() }
}

#[test]
fn an_empty_file_is_the_default_configuration() {
    assert!(Config::default().has_first_look);
    assert_eq!(Config::from_toml("").unwrap(), defaults_of_a_file());
}

#[test]
fn every_word_that_a_key_accepts_has_its_own_meaning() {
    let rest = |path: &str| match path {
        "proxies.address" => "proxies.trusted = [\"10.0.0.0/8\"]\n",
        _ => "broker = { url = \"redis://h\", cluster = true }\nauth.jwt.public_key = \"k\"\n",
    };
    for key in KEYS {
        let Kind::Choice(words) = key.kind else { continue };
        let mut seen: Vec<Config> = vec![];
        for word in words {
            let file = match key.path.strip_prefix("topics.") {
                Some(name) => format!("{}[[topics]]\nmatch = \"a/*\"\n{name} = {word:?}", rest(key.path)),
                None => format!("{}{} = {word:?}", rest(key.path), key.path),
            };
            let file = match *word {
                "jetstream" => file.replace("redis://h\", cluster = true", "nats://h\""),
                "kv" => file.replace("redis://h\", cluster = true", "nats://h\"") + "\nbucket = \"B\"",
                secret if secret.starts_with("HS") => {
                    file.replace("public_key = \"k\"", "secret = \"0123456789abcdef0123456789abcdef\"")
                }
                _ => file,
            };
            let config = Config::from_toml(&file).unwrap_or_else(|errors| panic!("{file}: {errors}"));
            assert!(!seen.contains(&config), "{} = {word:?} means what another word does", key.path);
            seen.push(config);
        }
    }
}

#[test]
fn keys_that_the_table_marks_as_needing_a_restart_keep_their_values() {
    let running = Config::from_toml("broker.url = \"nats://h\"").unwrap();
    let file = "listen = \"127.0.0.1:1\"\nadmin = { listen = \"127.0.0.1:2\", console = false, hosts = [\"a\"] }\nlimits.connections = 20000\n\
                log.format = \"json\"\ntraces = { endpoint = \"http://h\", sample = 0.5 }\nstreams.retry = \"4s\"\n";
    let tls = "tls = { ca = \"a\", cert = \"c\", key = \"k\" }";
    let mut kept = vec![];
    for broker in [
        format!("url = \"nats://i\", user = \"u\", password = \"p\", settle = \"1s\", {tls}"),
        "url = \"nats://i\", token = \"t\", jetstream = { domain = \"d\" }".to_owned(),
        "url = \"nats://i\", jetstream = { prefix = \"p\" }".to_owned(),
        format!("url = \"nats://i\", nkey = \"SU{}\"", "A".repeat(56)),
        "url = \"nats://i\", credentials = \"f\"".to_owned(),
    ] {
        let mut config = Config::from_toml(&format!("{file}broker = {{ {broker} }}")).unwrap();
        kept.extend(config.keep_until_restart(&running).unwrap());
        let admin = Admin { hosts: vec!["a".into()], ..running.admin.clone() };
        let streams = Streams { retry: Duration::from_secs(4), ..running.streams.clone() };
        assert_eq!(config, Config { admin, streams, ..running.clone() });
    }
    let redis = Config::from_toml("broker.url = \"redis://h\"").unwrap();
    for broker in ["sentinel = \"m\"", "cluster = true", "separator = \".\""] {
        let mut config = Config::from_toml(&format!("broker = {{ url = \"redis://h\", {broker} }}")).unwrap();
        kept.extend(config.keep_until_restart(&redis).unwrap());
        assert_eq!(config, redis);
    }
    for key in KEYS.iter().filter(|key| key.needs_restart && !key.path.starts_with("topics.")) {
        let table = key.path.split('.').next().unwrap_or_default();
        assert!(kept.iter().any(|kept| kept == key.path || kept == table), "{} is not in {kept:?}", key.path);
    }
    let of_table = |kept: &String| kept == "traces" || keys::at(kept).is_some_and(|key| key.needs_restart);
    assert!(kept.iter().all(of_table), "{kept:?}");
}

#[test]
fn a_changed_secret_needs_a_restart_although_both_secrets_are_masked() {
    let file = |secret: &str| format!("broker = {{ url = \"redis://h\", password = \"{secret}\" }}");
    let running = Config::from_toml(&file("one")).unwrap();
    let mut config = Config::from_toml(&file("two")).unwrap();
    assert_eq!(config.keep_until_restart(&running).unwrap(), ["broker.password"]);
    assert!(!format!("{config:?}").contains("two"));
}
