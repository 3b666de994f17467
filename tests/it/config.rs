//! The configuration: valid settings, the texts of errors, and which source wins. The tests use the library, or the binary
//! where they check its environment, its output or its exit code.

// Clippy's leave to unwrap in tests stops at the helpers of a test.

use crate::common::document;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use topicgate::internals::config::{Access, Config, ConfigErrors, Sources};

fn files(folder: &str) -> BTreeMap<PathBuf, String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let paths = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    // An editor's schema may lie beside them.
    let paths = paths.filter(|path| path.extension().is_some_and(|extension| extension == "toml"));
    let files: BTreeMap<_, _> = paths.map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect();
    assert!(!files.is_empty(), "{} has no files", folder.display());
    files
}

fn load(environment: &[(&str, &str)], file: &str) -> Result<Config, ConfigErrors> {
    Config::load(&Sources {
        file: Some(("topicgate.toml".into(), file.into())),
        environment: environment.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
        flags: vec![],
    })
}

/// The words in which `file` is refused.
fn refusal(file: &str) -> String {
    Config::from_toml(file).unwrap_err().to_string()
}

/// The binary in a directory of its own, with only the given environment.
fn topicgate(directory: &Path, environment: &[(&str, &str)], arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_topicgate"));
    command.current_dir(directory).env_clear().envs(environment.iter().copied()).args(arguments);
    command.output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn valid_files_load() {
    for (path, text) in files("tests/config/valid").into_iter().chain(files("config")) {
        Config::from_toml(&text).unwrap_or_else(|errors| panic!("{}: {errors}", path.display()));
    }
}

#[test]
fn every_configuration_in_the_documents_loads() {
    let documents = [
        ("README.md", include_str!("../../README.md")),
        ("docs/security.md", include_str!("../../docs/security.md")),
        ("docs/scaling.md", include_str!("../../docs/scaling.md")),
        ("docs/brokers.md", include_str!("../../docs/brokers.md")),
    ];
    for (name, text) in documents {
        let blocks = document::blocks(text, "", "toml");
        assert!(blocks.len() >= 2, "{name}");
        for block in blocks {
            // An ellipsis stands for a secret that the reader has.
            let filled = block.replace("…", &"x".repeat(64));
            Config::from_toml(&filled).unwrap_or_else(|errors| panic!("{name}: {errors}\nin\n{block}"));
        }
    }
}

#[test]
fn invalid_files_are_refused_in_the_words_of_their_first_line() {
    let mut faults = vec![];
    for (path, text) in files("tests/config/invalid") {
        let name = path.file_name().unwrap().display();
        let phrase = text.lines().next().and_then(|line| line.strip_prefix("# ")).unwrap();
        let phrase = phrase.replace("FILE", "topicgate.toml");
        match Config::from_toml(&text).map_err(|errors| errors.to_string()) {
            Ok(_) => faults.push(format!("{name} was accepted")),
            Err(words) if words.contains("s3cret") => faults.push(format!("{name} shows a secret: {words}")),
            Err(words) if !words.contains(&phrase) => {
                faults.push(format!("{name}: no {phrase:?} in {words}"))
            }
            Err(words) if words.lines().count() > 1 => {
                faults.push(format!("{name} has one fault only: {words}"))
            }
            Err(_) => {}
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn without_settings_the_defaults_open_the_embedded_broker_on_loopback() {
    // A file, even an empty one, ends the first look; nothing else differs.
    let config = Config { has_first_look: true, ..Config::from_toml("").unwrap() };
    assert_eq!(config, Config::default());
    assert_eq!(config, Config::load(&Sources::default()).unwrap());
    let [rule] = config.topics.as_slice() else { panic!("one rule is implied") };
    assert_eq!((rule.filter.as_str(), rule.read, rule.publish), ("**", Access::Anyone, Access::Anyone));
    assert_eq!(config.warnings(), Vec::<String>::new());
}

#[test]
fn without_rules_nothing_is_exposed_on_a_real_broker_or_a_public_listener() {
    for file in [
        "broker = { url = \"nats://h\" }",
        "broker = { url = \"redis://h\" }",
        "listen = \"0.0.0.0:80\"",
        "topics = []",
    ] {
        let config = Config::from_toml(file).unwrap();
        assert_eq!(config.topics, vec![], "{file}");
        assert!(config.warnings().concat().contains("nothing is exposed"), "{file}");
    }
}

#[test]
fn a_rule_admits_nobody_unless_it_says_otherwise() {
    let config = Config::from_toml("[[topics]]\nmatch = \"a\"").unwrap();
    assert_eq!((config.topics[0].read, config.topics[0].publish), (Access::Nobody, Access::Nobody));
}

#[test]
fn replay_given_in_part_keeps_the_other_defaults() {
    let config = Config::from_toml("[[topics]]\nmatch = \"a\"\nreplay = { messages = 7 }").unwrap();
    let default = Config::default().topics[0].replay.clone();
    assert_eq!(config.topics[0].replay, topicgate::internals::config::Replay { messages: 7, ..default });
}

#[test]
fn every_fault_is_reported_at_once() {
    let words = refusal(
        "lisen = \"x\"\ndrain = 5\n[limits]\nstreams = 0\nhead = \"x\"\n[broker]\nurl = \"nope\"\nseparator = \":\"\n\
         [[topics]]\nmatch = \"a b\"\nread = \"everyone\"\n",
    );
    for key in ["lisen", "drain", "limits.streams", "limits.head", "broker.url", "#1 match", "#1 read"] {
        assert!(words.contains(key), "{key} is not in:\n{words}");
    }
    assert_eq!(words.lines().count(), 7, "{words}");
}

#[test]
fn the_environment_wins_over_the_file_and_is_named_when_it_is_wrong() {
    let file = "limits = { streams = 1, topics = 2 }";
    let config = load(&[("TOPICGATE_LIMITS__STREAMS", "3"), ("OTHER", "x")], file).unwrap();
    assert_eq!((config.limits.streams, config.limits.topics), (3, 2));

    let words = load(&[("TOPICGATE_LIMITS__STREAMS", "0")], file).unwrap_err().to_string();
    assert!(
        words.starts_with("limits.streams (environment variable TOPICGATE_LIMITS__STREAMS): 0 is too"),
        "{words}"
    );
}

#[test]
fn the_environment_holds_every_type_as_text() {
    let config = load(
        &[
            ("TOPICGATE_BROKER__URL", "redis://h"),
            ("TOPICGATE_BROKER__PASSWORD", "0077"), // text, not the number 77
            ("TOPICGATE_STREAMS__RETRY", "2s"),
            ("TOPICGATE_LIMITS__MESSAGE", "1KiB"),
            ("TOPICGATE_CORS__ORIGINS", "https://a.example.com, https://b.example.com"),
            ("TOPICGATE_CORS__CREDENTIALS", "true"),
            ("TOPICGATE_TOPICS", "[{ match = \"a/**\", read = \"anyone\", replay = { messages = 5 } }]"),
            ("TOPICGATE_LISTEN", ""), // how a compose file says "not set"
        ],
        "",
    )
    .unwrap();
    assert_eq!(config.broker.password.unwrap().0, "0077");
    let origins: Vec<String> = config.cors.origins.iter().map(ToString::to_string).collect();
    assert_eq!(origins, ["https://a.example.com", "https://b.example.com"]);
    assert!(config.cors.credentials);
    assert_eq!(config.topics[0].replay.messages, 5);
    assert_eq!(config.listen, Config::default().listen);
}

#[test]
fn a_variable_holds_text_or_toml_and_both_say_the_same() {
    let rule = |text: &str| {
        load(&[("TOPICGATE_TOPICS", text), ("TOPICGATE_BROKER__URL", "nats://h")], "").unwrap().topics
    };
    let list = rule("[{ match = \"orders/**\", read = \"anyone\" }]");
    assert_eq!((list.len(), list[0].pattern()), (1, "orders/**".to_owned()));
    for same in [
        "{ match = \"orders/**\", read = \"anyone\" }",
        "[[topics]]\nmatch = \"orders/**\"\nread = \"anyone\"\n",
        "[\n  { match = \"orders/**\", read = \"anyone\" },\n]\n",
    ] {
        assert_eq!(rule(same), list, "{same}");
    }
    for (variable, text, toml) in [
        ("TOPICGATE_HOSTS", "a.example,b.example", "[\"a.example\", \"b.example\"]"),
        ("TOPICGATE_CORS__ORIGINS", "https://a.example", "[\"https://a.example\"]"),
        ("TOPICGATE_PROXIES__TRUSTED", "10.0.0.0/8, ::1", " [ '10.0.0.0/8', '::1' ]\n"),
        ("TOPICGATE_ADMIN__HOSTS", "[::1],a", "[\"[::1]\", \"a\"]"),
    ] {
        assert_eq!(
            load(&[(variable, text)], "").unwrap(),
            load(&[(variable, toml)], "").unwrap(),
            "{variable}"
        );
    }
    // Whole tables too; the keys of one come after it.
    let environment =
        [("TOPICGATE_LIMITS__STREAMS", "7"), ("TOPICGATE_LIMITS", "{ streams = 5, topics = 9 }")];
    let config = load(&environment, "").unwrap();
    assert_eq!((config.limits.streams, config.limits.topics), (7, 9));
    // TOML inside of a text stays text.
    let environment = [("TOPICGATE_BROKER__URL", "redis://h"), ("TOPICGATE_BROKER__PASSWORD", "[\"a\"]")];
    assert_eq!(load(&environment, "").unwrap().broker.password.unwrap().0, "[\"a\"]");
    for (variable, text, words) in [
        ("TOPICGATE_TOPICS", "orders/**", "cannot be read; write the whole list in TOML"),
        ("TOPICGATE_TOPICS", "[[topics]]\nmatch = \"a\"\n[limits]\nstreams = 1", "cannot be read"),
        ("TOPICGATE_LIMITS", "many", "is a table; write it in TOML on one line"),
        ("TOPICGATE_HOSTS", "[1, 2]", "a list that holds something else"),
        ("TOPICGATE_LIMITS", "{ streems = 5 }", "no such key; did you mean"),
    ] {
        let refused = load(&[(variable, text)], "").unwrap_err().to_string();
        assert!(refused.contains(words) && refused.contains(variable), "{variable}={text}: {refused}");
    }
}

#[test]
fn a_container_without_a_configuration_is_a_demo_and_anything_that_says_more_ends_it() {
    let image = [("TOPICGATE_LISTEN", "0.0.0.0:8080"), ("TOPICGATE_DEMO", "true")];
    let bare = |more: &[(&str, &str)], file: Option<&str>| {
        let is_kept = |kept: &&(&str, &str)| more.iter().all(|(name, _)| *name != kept.0);
        let all = image.iter().filter(is_kept).chain(more);
        let environment = all.map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let file = file.map(|text| ("topicgate.toml".to_owned(), text.to_owned()));
        Config::load(&Sources { file, environment, flags: vec![] }).unwrap()
    };
    for settings in [&[][..], &[("TOPICGATE_LIMITS__STREAMS", "5")], &[("TOPICGATE_LOG__LEVEL", "debug")]] {
        let demo = bare(settings, None);
        assert!(demo.is_demo && demo.topics.len() == 1 && demo.topics[0].read == Access::Anyone);
        let warnings = demo.warnings();
        assert!(
            warnings.len() == 1
                && warnings[0].starts_with("this is the demo: everyone who reaches 0.0.0.0:8080"),
            "{warnings:?}"
        );
        assert!(demo.explain().contains("This is the demo"));
    }
    for (more, file) in [
        (&[][..], Some("")),
        (&[][..], Some("[limits]\nstreams = 5")),
        (&[("TOPICGATE_BROKER__URL", "memory:")], None),
        (&[("TOPICGATE_BROKER__URL", "nats://h")], None),
        (&[("TOPICGATE_TOPICS", "[]")], None),
        (&[("TOPICGATE_TOPICS", "[{ match = \"a\" }]")], None),
        (&[("TOPICGATE_AUTH__JWT__PUBLIC_KEY", "k")], None),
        (&[("TOPICGATE_AUTH__FORWARD__URL", "http://127.0.0.1:1/")], None),
        (&[("TOPICGATE_DEMO", "false")], None),
    ] {
        let config = bare(more, file);
        assert!(
            !config.is_demo && config.topics.iter().all(|rule| rule.read == Access::Nobody),
            "{more:?} {file:?}"
        );
    }
    // Without the image's variable, the same binary opens itself to no network. In a file the switch would be its own end.
    assert!(
        !Config::load(&Sources {
            environment: vec![(image[0].0.into(), image[0].1.into())],
            ..Sources::default()
        })
        .unwrap()
        .is_demo
    );
    assert!(refusal("demo = true").starts_with("demo (topicgate.toml): has no effect in a file"));
    assert!(load(&image, "").is_ok());
}

#[test]
fn an_address_in_the_file_that_a_variable_overrides_gets_a_warning() {
    let file = "listen = \"127.0.0.1:9000\"\n[admin]\nlisten = \"127.0.0.1:9001\"\n[[topics]]\nmatch = \"a\"\nread = \"anyone\"";
    let warnings = load(&[("TOPICGATE_LISTEN", "0.0.0.0:8080")], file).unwrap().warnings();
    let expected = "listen = \"127.0.0.1:9000\" in topicgate.toml has no effect: the environment variable TOPICGATE_LISTEN overrides it";
    assert!(warnings.len() == 1 && warnings[0].starts_with(expected), "{warnings:?}");
    let admin = load(&[("TOPICGATE_ADMIN__LISTEN", "127.0.0.1:9002")], file).unwrap().warnings();
    assert!(admin[0].starts_with("admin.listen = \"127.0.0.1:9001\" in topicgate.toml"), "{admin:?}");
    assert_eq!(
        load(&[("TOPICGATE_LISTEN", "127.0.0.1:9000")], file).unwrap().warnings(),
        Vec::<String>::new()
    );
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("topicgate.toml"), file).unwrap();
    let page = stdout(&topicgate(directory.path(), &[("TOPICGATE_LISTEN", "0.0.0.0:8080")], &["check"]));
    assert!(page.contains(&format!("warning: {expected}")), "{page}");
}

#[test]
fn white_space_around_a_setting_does_not_change_its_meaning() {
    let file = "broker.url = \" nats://h:4222, nats://i:4222 \"\nlisten = \"127.0.0.1:1\\n\"\nhosts = [\" a.example\"]\n\
                [[topics]]\nmatch = \" orders/**\"\nread = \"anyone \"";
    let config = Config::from_toml(file).unwrap();
    assert_eq!(config.broker.kind().name(), "NATS");
    assert_eq!(config.broker.url.0, "nats://h:4222, nats://i:4222");
    assert_eq!((config.listen.port(), config.hosts.as_slice()), (1, &["a.example".to_owned()][..]));
    assert_eq!((config.topics[0].filter.as_str(), config.topics[0].read), ("orders/**", Access::Anyone));
    // As the value of a Kubernetes secret, or of a file, often ends.
    for (variable, value) in
        [("TOPICGATE_BROKER__URL", "\n redis://h:6379\n"), ("TOPICGATE_BROKER__URL", "redis://h\t")]
    {
        let config = load(&[(variable, value)], "").unwrap();
        assert_eq!(config.broker.kind().name(), "Redis", "{value:?}");
        assert_eq!(config.topics, vec![], "{value:?}");
    }
    let secret = "s3cret-0123456789abcdef0123456789\n";
    let words = load(&[("TOPICGATE_AUTH__JWT__SECRET", secret)], "").unwrap_err().to_string();
    assert!(words.contains("begins or ends with white space") && !words.contains("s3cret"), "{words}");
}

#[test]
fn a_broker_url_that_is_not_memory_never_means_the_embedded_broker() {
    for url in
        ["nats://h", " nats://h", "\tnats://h", "h:4222", "nats", "", "localhost", "NATS://h", "memory"]
    {
        let broker = topicgate::internals::config::Broker {
            url: topicgate::internals::config::Secret(url.into()),
            ..Config::default().broker
        };
        assert_ne!(broker.kind().name(), Config::default().broker.kind().name(), "{url:?}");
    }
}

#[test]
fn an_empty_variable_gets_a_warning_and_an_empty_broker_is_refused() {
    let config = load(&[("TOPICGATE_HOSTS", ""), ("TOPICGATE_LOG__LEVEL", " ")], "").unwrap();
    let warnings = config.warnings();
    for variable in ["TOPICGATE_HOSTS", "TOPICGATE_LOG__LEVEL"] {
        assert!(
            warnings.iter().any(|line| line.contains(variable) && line.contains("is empty")),
            "{warnings:?}"
        );
    }
    for empty in ["", " ", "\n"] {
        let words = load(&[("TOPICGATE_BROKER__URL", empty)], "").unwrap_err().to_string();
        assert!(
            words.contains("TOPICGATE_BROKER__URL) is empty") || words.contains("is empty; name the broker"),
            "{words}"
        );
    }
    let config = load(&[("TOPICGATE_BROKER__URL", "")], "broker.url = \"nats://h\"").unwrap();
    assert_eq!(config.broker.url.0, "nats://h");
}

#[test]
fn a_configuration_file_that_is_a_dangling_link_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("gone.toml", directory.path().join("topicgate.toml")).unwrap();
    let output = topicgate(directory.path(), &[], &["check"]);
    assert_eq!(output.status.code(), Some(64));
    assert!(stderr(&output).contains("topicgate.toml: cannot be read"), "{}", stderr(&output));
}

/// Faults that only the files or the broker's client can show: the configuration, and words of the refusal.
const UNUSABLE: [(&str, &str); 12] = [
    ("[tls]\ncert = \"missing.pem\"\nkey = \"missing.key\"", "tls.cert = \"missing.pem\": cannot be read"),
    ("[tls]\ncert = \"topicgate.toml\"\nkey = \"missing.key\"", "tls.key = \"missing.key\": cannot be read"),
    ("[tls]\ncert = \"topicgate.toml\"\nkey = \"topicgate.toml\"", "has no certificate"),
    ("[auth.jwt]\npublic_key = \"missing.pem\"", "auth.jwt.public_key: missing.pem cannot be read"),
    ("[broker]\nurl = \"nats://h\"\ncredentials = \"missing.creds\"", "broker.credentials: missing.creds: "),
    (
        "[broker]\nurl = \"nats://h\"\ncredentials = \"topicgate.toml\"",
        "broker.credentials: topicgate.toml: ",
    ),
    (
        "[broker]\nurl = \"nats://h\"\nnkey = \"SUAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\"",
        "broker.nkey: ",
    ),
    ("[broker]\nurl = \"tls://h\"\ntls = { ca = \"missing.pem\" }", "broker.tls.ca: missing.pem: "),
    ("[broker]\nurl = \"rediss://h\"\ntls = { ca = \"missing.pem\" }", "broker.tls.ca: missing.pem: "),
    ("[broker]\nurl = \"redis://user@h\"", "names a user without a password"),
    ("[broker]\nurl = \"redis://user@h,redis://i\"\nsentinel = \"m\"", "names a user without a password"),
    (
        "[broker]\nurl = \"rediss://h\"\ncluster = true\ntls = { cert = \"missing.pem\", key = \"missing.key\" }",
        "broker.tls.cert: missing.pem: ",
    ),
];

#[test]
fn check_and_the_start_find_the_same_faults_with_the_same_exit_code() {
    let directory = tempfile::tempdir().unwrap();
    let listen =
        "listen = \"127.0.0.1:0\"\nadmin = { listen = \"127.0.0.1:0\" }\nlog = { level = \"off\" }\n";
    for (settings, words) in UNUSABLE {
        fs::write(directory.path().join("topicgate.toml"), format!("{listen}{settings}")).unwrap();
        let (check, start) =
            (topicgate(directory.path(), &[], &["check"]), topicgate(directory.path(), &[], &[]));
        assert_eq!((check.status.code(), start.status.code()), (Some(64), Some(64)), "{settings}");
        assert!(stderr(&check).contains(words), "{settings}: {}", stderr(&check));
        assert_eq!(stderr(&check), stderr(&start), "{settings}");
    }
    // All of them at once.
    let several = "[tls]\ncert = \"a.pem\"\nkey = \"a.key\"\n[auth.jwt]\npublic_key = \"b.pem\"\n[broker]\nurl = \"nats://h\"\n\
                   credentials = \"c.creds\"";
    fs::write(directory.path().join("topicgate.toml"), several).unwrap();
    let words = stderr(&topicgate(directory.path(), &[], &["check"]));
    assert!(["a.pem", "b.pem", "c.creds"].iter().all(|file| words.contains(file)), "{words}");
}

#[test]
fn check_names_no_id_header_for_a_source_with_ids_of_its_own() {
    for (url, source, ids) in [
        (
            "nats://h",
            "source = \"pubsub\"",
            "Ids are in the header Nats-Msg-Id, types in the header Event-Type",
        ),
        (
            "nats://h",
            "source = \"jetstream\"",
            "Event ids come from the broker, types in the header Event-Type",
        ),
        ("nats://h", "source = \"kv\"\nbucket = \"B\"", "Event ids come from the broker, "),
        ("redis://h", "source = \"redis-stream\"", "Event ids come from the broker, and no types"),
        (
            "redis://h",
            "source = \"redis-stream\"\ntype = { header = \"kind\" }",
            "Event ids come from the broker, types in the field kind",
        ),
        ("redis://h", "id = { pointer = \"/id\" }", "Ids are in the JSON field /id, and no types"),
        (
            "redis://h",
            "source = \"pubsub\"",
            "Redis messages have no headers, so they carry no ids, and no types",
        ),
    ] {
        let file =
            format!("broker.url = \"{url}\"\n[[topics]]\nmatch = \"a/**\"\nread = \"anyone\"\n{source}");
        let page = Config::from_toml(&file).unwrap().explain();
        assert!(page.contains(ids), "{source} at {url}: no {ids:?} in\n{page}");
        assert_eq!(page.contains("Nats-Msg-Id"), ids.contains("Nats-Msg-Id"), "{source} at {url}:\n{page}");
    }
}

#[test]
fn check_says_which_rules_are_subscribed_from_the_start() {
    for (source, words) in [
        ("source = \"pubsub\"", "it is unsubscribed 1m after its last reader left"),
        ("replay = { warm = true }", "it is subscribed from the start"),
        ("source = \"jetstream\"", "it is subscribed from the start"),
        ("source = \"kv\"\nbucket = \"B\"", "it is subscribed from the start"),
    ] {
        let file =
            format!("broker.url = \"nats://h\"\n[[topics]]\nmatch = \"a/**\"\nread = \"anyone\"\n{source}");
        let page = Config::from_toml(&file).unwrap().explain();
        assert!(page.contains(words), "{source}:\n{page}");
    }
}

#[test]
fn the_empty_pointer_is_the_whole_document_in_every_field() {
    for (key, words) in [
        ("id", "Ids are in the whole JSON value"),
        ("type", "types in the whole JSON value"),
        ("data", "The payload is the JSON value of the whole message"),
        ("end", "A message ends its topic by its whole JSON value"),
    ] {
        let file = format!(
            "broker.url = \"redis://h\"\n[[topics]]\nmatch = \"a\"\nread = \"anyone\"\n{key} = {{ pointer = \"\" }}"
        );
        let config = Config::from_toml(&file).unwrap_or_else(|errors| panic!("{key}: {errors}"));
        assert!(config.explain().contains(words), "{key}:\n{}", config.explain());
    }
}

#[test]
fn a_misspelt_variable_gets_a_suggestion() {
    for (wrong, right) in [
        ("TOPICGATE_LOG_LEVEL", "TOPICGATE_LOG__LEVEL"),
        ("TOPICGATE_LIMITS__STREAM", "TOPICGATE_LIMITS__STREAMS"),
        ("TOPICGATE_LISTN", "TOPICGATE_LISTEN"),
        ("TOPICGATE_LIMIT__STREAMS", "TOPICGATE_LIMITS__STREAMS"),
        ("TOPICGATE_LIMIT__STREEMS", "TOPICGATE_LIMITS__STREAMS"),
        ("TOPICGATE_AUHT__JWT__SECRET", "TOPICGATE_AUTH__JWT__SECRET"),
        ("TOPICGATE_BROKER__TSL__CA", "TOPICGATE_BROKER__TLS__CA"),
    ] {
        let words = load(&[(wrong, "1")], "").unwrap_err().to_string();
        assert!(words.contains(wrong), "{words}");
        assert!(words.ends_with(&format!("did you mean {right}?")), "{words}");
    }
}

#[test]
fn a_misspelt_key_inside_of_a_variable_gets_a_key_as_its_suggestion() {
    for (name, value, right) in [
        ("TOPICGATE_TOPICS", "[{ match = \"a\", raed = \"anyone\" }]", "topics.read"),
        ("TOPICGATE_LIMITS", "{ stream = 5 }", "limits.streams"),
    ] {
        let words = load(&[(name, value)], "").unwrap_err().to_string();
        assert!(words.ends_with(&format!("did you mean {right}?")), "{words}");
    }
}

#[test]
fn variables_that_kubernetes_sets_for_a_service_called_topicgate_are_ignored() {
    let config = load(
        &[
            ("TOPICGATE_SERVICE_HOST", "10.0.0.1"),
            ("TOPICGATE_SERVICE_PORT", "8080"),
            ("TOPICGATE_SERVICE_PORT_HTTP", "8080"),
            ("TOPICGATE_PORT", "tcp://10.0.0.1:8080"),
            ("TOPICGATE_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
            ("TOPICGATE_PORT_8080_TCP_ADDR", "10.0.0.1"),
            ("TOPICGATE_ADMIN_PORT_9090_TCP_PROTO", "tcp"),
        ],
        "",
    );
    assert_eq!(config.unwrap(), Config::from_toml("").unwrap());
    assert!(load(&[("TOPICGATE_PORT", "8080")], "").is_err());
}

#[test]
fn a_rule_that_an_earlier_rule_covers_gets_a_warning() {
    let config = Config::from_toml(
        "[[topics]]\nmatch = \"a/**\"\nread = \"anyone\"\n[[topics]]\nmatch = \"a/b\"\nread = \"nobody\"",
    )
    .unwrap();
    let warnings = config.warnings();
    assert!(warnings[0].contains("[[topics]] #2 (a/b) is never reached: #1 (a/**)"), "{warnings:?}");
}

#[test]
fn settings_that_are_valid_but_unwise_get_a_warning() {
    for (file, phrase) in [
        ("listen = \"0.0.0.0:80\"\n[[topics]]\nmatch = \"a\"\npublish = \"anyone\"", "publish"),
        (
            "listen = \"0.0.0.0:80\"\nbroker = { url = \"nats://h\" }\n[[topics]]\nmatch = \"**\"\nread = \"anyone\"",
            "everything",
        ),
        ("cors = { origins = [\"*\"] }", "every web page"),
        ("admin = { listen = \"0.0.0.0:9090\" }", "admin.listen"),
        ("streams = { heartbeat = \"2m\" }", "silent connection"),
        ("streams = { retry = \"1m\" }", "is forgotten 1m after"),
        ("limits = { streams = 20000 }", "limits.connections"),
        ("cors = { credentials = true }", "cors.origins"),
        ("cors = { headers = [\"baggage\"] }", "cors.headers has no effect"),
        ("[[topics]]\nmatch = \"__sentinel__/**\"\npublish = \"anyone\"", "the broker's own servers"),
        ("hosts = [\"events.example.com\"]", "a proxy is in front"),
        ("cors = { origins = [\"https://app.example.com\"] }", "a proxy is in front"),
        ("proxies = { address = \"forwarded\" }", "proxies.address has no effect"),
        ("proxies = { trusted = [\"10.0.0.0/8\", \"::/0\"] }", "trusts everyone"),
        ("auth = { jwt = { public_key = \"k\" } }", "[auth] has no effect"),
        ("auth = { token = { query = true } }", "auth.token.query"),
        ("auth.forward.url = \"http://h\"\n[[topics]]\nmatch = \"a\"\nread = \"token\"", "in the clear"),
        (
            "proxies = { trusted = [\"10.0.0.0/8\"] }\ncors = { origins = [\"https://*.example.com\"], credentials = true }",
            "https://*.example.com",
        ),
        (
            "broker = { url = \"redis://h\" }\n[[topics]]\nmatch = \"a\"\nread = \"anyone\"\nid = { header = \"X\" }",
            "Redis",
        ),
        (
            "broker = { url = \"nats://h\" }\n[[topics]]\nmatch = \"a\"\nread = \"anyone\"\nend = { header = \"event-type\" }",
            "takes type and end from the same place",
        ),
        (
            "broker = { url = \"redis://h\" }\n[[topics]]\nmatch = \"a\"\nread = \"anyone\"\nid = { pointer = \"/a\" }\n\
             end = { pointer = \"/a\" }",
            "takes id and end from the same place",
        ),
    ] {
        let warnings = Config::from_toml(file).unwrap().warnings();
        assert_eq!(warnings.len(), 1, "{file}: {warnings:?}");
        assert!(warnings[0].contains(phrase), "{file}: {warnings:?}");
    }
}

#[test]
fn a_secret_is_masked_in_every_output() {
    let config = Config::from_toml(
        "broker = { url = \"nats://me:s3cret@h\" }\n[[topics]]\nmatch = \"a\"\nread = \"anyone\"",
    )
    .unwrap();
    let shown = [
        format!("{config:?}"),
        config.broker.url.to_string(),
        serde_json::to_string(&config.broker.url).unwrap(),
        config.broker.masked_url(),
        config.explain(),
    ];
    for text in shown {
        assert!(!text.contains("s3cret") && text.contains("***"), "{text}");
    }
}

#[test]
fn check_explains_which_callers_are_allowed_and_the_claims_that_a_token_needs() {
    let file = fs::read_to_string("tests/config/valid/every_key_auth.toml").unwrap();
    let page = Config::from_toml(&file).unwrap().explain();
    for part in [
        "users/{sub}/**: the subject itself may read, the subject itself, where granted, may publish",
        "verified with the public key in jwt.pem (PS384)",
        "the audience topicgate and the issuer https://a.example.com or https://b.example.com",
        "at /resource/topic~1gate, in Mercure's claim, in Centrifugo's channels",
        "the cookie __Host-session, or in the query parameter access_token",
    ] {
        assert!(page.contains(part), "{part} is not in:\n{page}");
    }
}

#[test]
fn a_claim_is_set_by_its_name_or_by_a_json_pointer() {
    for (claim, place) in [
        ("topicgate", "/topicgate"),
        ("a.b", "/a.b"),
        ("https://x/y~", "/https:~1~1x~1y~0"),
        ("/a/b", "/a/b"),
    ] {
        let file = format!("auth = {{ jwt = {{ public_key = \"k\", claim = {claim:?} }} }}");
        assert_eq!(Config::from_toml(&file).unwrap().auth.jwt.unwrap().claim, place);
    }
}

#[test]
fn flags_win_over_the_environment_over_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let file =
        "listen = \"127.0.0.1:1001\"\nadmin = { listen = \"127.0.0.1:2001\" }\nlog = { level = \"warn\" }";
    fs::write(directory.path().join("topicgate.toml"), file).unwrap();
    let environment = [("TOPICGATE_LISTEN", "127.0.0.1:1002"), ("TOPICGATE_ADMIN__LISTEN", "127.0.0.1:2002")];
    let page = stdout(&topicgate(directory.path(), &environment, &["check", "--listen", "127.0.0.1:1003"]));
    for part in ["127.0.0.1:1003", "127.0.0.1:2002", "level warn"] {
        assert!(page.contains(part), "{part} is not in:\n{page}");
    }
}

#[test]
fn check_names_each_error_with_its_origin_and_exits_with_64() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("mine.toml"), "[limits]\nstreams = 0\n").unwrap();
    let output = topicgate(
        directory.path(),
        &[("TOPICGATE_STREAMS__RETRY", "0s")],
        &["check", "--config", "mine.toml", "--listen", "nowhere"],
    );
    assert_eq!(output.status.code(), Some(64));
    let words = stderr(&output);
    for part in [
        "limits.streams (mine.toml)",
        "(environment variable TOPICGATE_STREAMS__RETRY)",
        "listen (flag --listen)",
    ] {
        assert!(words.contains(part), "{part} is not in:\n{words}");
    }
}

#[test]
fn a_named_file_must_exist_and_an_unknown_flag_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let output = topicgate(directory.path(), &[], &["check", "--config", "missing.toml"]);
    assert_eq!(output.status.code(), Some(64));
    assert!(stderr(&output).contains("missing.toml: cannot be read"), "{}", stderr(&output));
    assert_eq!(topicgate(directory.path(), &[], &["--lisen", "x"]).status.code(), Some(64));
    assert_eq!(topicgate(directory.path(), &[], &["check"]).status.code(), Some(0));
}

#[test]
fn check_shows_no_secret() {
    let directory = tempfile::tempdir().unwrap();
    let rule = ("TOPICGATE_TOPICS", "[{ match = \"a\", read = \"anyone\" }]");
    let seed = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY";
    for environment in [
        vec![rule, ("TOPICGATE_BROKER__URL", "nats://me:s3cret@h:4222")],
        vec![rule, ("TOPICGATE_BROKER__URL", "redis://h?password=s3cret")],
        vec![rule, ("TOPICGATE_BROKER__URL", "nats://h"), ("TOPICGATE_BROKER__TOKEN", "s3cret")],
        vec![rule, ("TOPICGATE_BROKER__URL", "nats://h"), ("TOPICGATE_BROKER__NKEY", seed)],
        vec![rule, ("TOPICGATE_BROKER__URL", "redis://h"), ("TOPICGATE_BROKER__PASSWORD", "s3cret")],
        vec![rule, ("TOPICGATE_AUTH__JWT__SECRET", "s3cret-0123456789abcdef0123456789")],
        vec![rule, ("TOPICGATE_AUTH__JWT__SECRET", "s3cret")],
        vec![rule, ("TOPICGATE_AUTH__JWT__JWKS_URL", "https://me:s3cret@h/jwks.json?key=s3cret")],
        vec![rule, ("TOPICGATE_AUTH__JWT__JWKS_URL", "https://h/jwks.json?key=s3cret")],
        vec![rule, ("TOPICGATE_AUTH__FORWARD__URL", "https://h/may?key=s3cret")],
        vec![rule, ("TOPICGATE_BROKER__URL", "s3cret"), ("TOPICGATE_BROKER__PASSWORD", "s3cret")],
    ] {
        let output = topicgate(directory.path(), &environment, &["check"]);
        let all = String::from_utf8(output.stdout.clone()).unwrap() + &stderr(&output);
        assert!(!all.is_empty() && !all.contains("s3cret") && !all.contains(seed), "{environment:?}:\n{all}");
    }
}

#[test]
fn help_shows_the_three_ways_to_start() {
    let directory = tempfile::tempdir().unwrap();
    let help = stdout(&topicgate(directory.path(), &[], &["--help"]));
    for part in ["nats://", "redis://", "curl -N", "topicgate check"] {
        assert!(help.contains(part), "{part} is not in:\n{help}");
    }
    assert!(stdout(&topicgate(directory.path(), &[], &["--version"])).contains(env!("CARGO_PKG_VERSION")));
}
