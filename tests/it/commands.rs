//! The subcommands of the binary, as a person types them, against a real gateway where they need one.
#![cfg(unix)]

use std::process::Stdio;

use crate::common::command::{Ended, Running, run, run_with_input, topicgate};
use crate::common::gateway::Gateway;
use crate::common::process::Process;
use crate::common::proxy::Proxy;
use crate::common::tls::Files;
use crate::common::token::{JWT, SECRET, key, seconds, signed, token};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use topicgate::Config;

/// The secret of [`JWT`], as an environment has it.
const WITH_SECRET: [(&str, &str); 1] = [("TOPICGATE_AUTH__JWT__SECRET", SECRET)];

fn url(gateway: &Gateway, topic: &str) -> String {
    format!("http://{}/topics/{topic}", gateway.address)
}

fn json_line(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

/// Insists that all went well, and returns what it printed.
fn fine(ended: Ended) -> String {
    assert_eq!(ended.code, 0, "{ended:?}");
    ended.out
}

/// Insists that it failed with this code, and said so.
fn refused(ended: &Ended, code: i32, words: &str) {
    assert_eq!(ended.code, code, "{ended:?}");
    assert!(ended.err.contains(words), "no {words:?} in {ended:?}");
}

#[tokio::test]
async fn check_reports_limits_that_this_machine_cannot_keep_and_suggests_values() {
    let few = "ulimit -n 256 && exec \"$0\" check";
    let mut shell = tokio::process::Command::new("sh");
    shell.args(["-c", few, env!("CARGO_BIN_EXE_topicgate")]).env_clear();
    let page = fine(shell.current_dir(env!("CARGO_TARGET_TMPDIR")).output().await.unwrap().into());
    assert!(
        page.contains("warning: 256 file descriptors are allowed, but limits.connections = 12000"),
        "{page}"
    );
    assert!(page.contains("LimitNOFILE=12128"), "{page}");

    let page = fine(run(&["check"], &[("TOPICGATE_LIMITS__BUFFER", "1000GiB")]).await);
    assert!(page.contains("of memory, but limits.buffer = 1000.0 GiB"), "{page}");
    assert!(page.contains("lower limits.buffer to "), "{page}");

    let modest = [("TOPICGATE_LIMITS__CONNECTIONS", "100"), ("TOPICGATE_LIMITS__STREAMS", "100")];
    let page = fine(run(&["check"], &modest).await);
    assert!(!page.contains("file descriptors") && !page.contains("of memory"), "{page}");
}

#[tokio::test]
async fn config_shows_every_value_with_its_origin_and_no_secret() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("my.toml");
    let text = "listen = \"127.0.0.1:1001\"\nlog = { level = \"warn\" }\nauth = { jwt = { leeway = \"5s\" } }\n\
                [[topics]]\nmatch = \"orders/**\"\nread = \"granted\"\n";
    std::fs::write(&file, text).unwrap();
    let environment = [
        WITH_SECRET[0],
        ("TOPICGATE_LIMITS__STREAMS", "500"),
        ("TOPICGATE_BROKER__URL", "nats://me:s3cret@h:1"),
    ];
    let arguments = ["config", "--config", file.to_str().unwrap(), "--listen", "127.0.0.1:1002"];
    let page = fine(run(&arguments, &environment).await);
    assert!(!page.contains(SECRET) && !page.contains("s3cret"), "{page}");
    let name = file.to_str().unwrap();
    let from_file = format!("# {name}");
    for (value, origin) in [
        ("listen = \"127.0.0.1:1002\"", "# flag --listen"),
        ("streams = 500", "# environment variable TOPICGATE_LIMITS__STREAMS"),
        ("level = \"warn\"", &from_file),
        ("format = \"text\"", "# default"),
        ("leeway = \"5s\"", &from_file),
        ("secret = \"***\"", "# environment variable TOPICGATE_AUTH__JWT__SECRET"),
        ("url = \"nats://***@h:1\"", "# environment variable TOPICGATE_BROKER__URL"),
        ("match = \"orders/**\"", &from_file),
        ("publish = \"nobody\"", "# default"),
    ] {
        let line = page.lines().find(|line| line.starts_with(&format!("{value} ")));
        assert!(line.is_some_and(|line| line.ends_with(origin)), "no {value} {origin} in\n{page}");
    }
    let filled = page.replace("***@", "").replace("\"***\"", &format!("{SECRET:?}"));
    let again = Config::from_toml(&filled).unwrap_or_else(|errors| panic!("{errors}\nin\n{filled}"));
    assert_eq!((again.limits.streams, again.topics.len()), (500, 1));
}

#[tokio::test]
async fn commands_refuse_the_settings_that_they_would_ignore() {
    for arguments in [
        &["sub", "http://127.0.0.1:1/topics/a", "--listen", "127.0.0.1:1"][..],
        &["--listen", "127.0.0.1:1", "check"],
        &["doctor", "127.0.0.1:8080/topics/a"],
        &["sub", "http://user:password@127.0.0.1/topics/a"],
    ] {
        assert_eq!(run(arguments, &[]).await.code, 64, "{arguments:?}");
    }
}

#[tokio::test]
async fn a_token_may_come_from_a_file_or_the_environment() {
    let rule = "[[topics]]\nmatch = \"**\"\nread = \"token\"\npublish = \"token\"\n";
    let gateway = Gateway::with(&format!("{JWT}{rule}")).await;
    let directory = tempfile::tempdir().unwrap();
    let (file, empty) = (directory.path().join("token"), directory.path().join("empty"));
    let token = token(json!({ "sub": "42" }));
    std::fs::write(&file, format!("{token}\n")).unwrap();
    std::fs::write(&empty, "\n").unwrap();
    let (file, empty, url) = (file.to_str().unwrap(), empty.to_str().unwrap(), url(&gateway, "a"));
    let with_newline = format!("{token}\n");
    let publish = ["pub", &url, "hello"];
    fine(run(&[&publish[..], &["--token-file", file]].concat(), &[]).await);
    fine(run(&publish, &[("TOPICGATE_TOKEN", &with_newline)]).await);
    // A flag wins, and its value must be a valid token.
    fine(run(&[&publish[..], &["--token-file", file]].concat(), &[("TOPICGATE_TOKEN", "other")]).await);
    refused(&run(&publish, &[]).await, 1, "401");
    refused(&run(&publish, &[("TOPICGATE_TOKEN", "")]).await, 1, "401");
    for (arguments, words) in [
        (&["--token-file", "missing"][..], "--token-file missing cannot be read"),
        (&["--token-file", empty][..], "is empty"),
        (&["--token", ""][..], "--token is empty"),
        (&["--token", "a", "--token-file", file][..], "cannot be used with"),
    ] {
        refused(&run(&[&publish[..], arguments].concat(), &[]).await, 64, words);
    }
    refused(&run(&publish, &[("TOPICGATE_TOKEN", "a\u{7f}b")]).await, 64, "TOPICGATE_TOKEN has characters");
    let examined = run(&["doctor", &url, "--idle", "0s", "--token-file", file], &[]).await;
    assert!(examined.out.contains("resume"), "{examined:?}");
    // It is not a setting, and disturbs no other command.
    fine(run(&["check"], &[("TOPICGATE_TOKEN", &token)]).await);
}

#[tokio::test]
async fn a_minted_token_admits_to_the_topics_that_it_grants_and_inspect_lists_them() {
    let rule = "[[topics]]\nmatch = \"**\"\nread = \"granted\"\npublish = \"granted\"\n";
    let gateway = Gateway::with(&format!("{JWT}claim = \"/realm/topics\"\n{rule}")).await;
    let environment = [WITH_SECRET[0], ("TOPICGATE_AUTH__JWT__CLAIM", "/realm/topics")];
    let arguments = ["token", "mint", "--subject", "42", "--subscribe", "orders/*", "--publish", "orders/eu"];
    let token = fine(run(&arguments, &environment).await);
    let token = token.trim();

    let words = fine(run(&["token", "inspect", token], &environment).await);
    for part in [
        "\"sub\": \"42\"",
        "accepted, for 1h ",
        "subject: \"42\"",
        "granted to read: orders/*",
        "granted to publish: orders/eu",
    ] {
        assert!(words.contains(part), "no {part} in\n{words}");
    }
    let url_of = |topic| url(&gateway, topic);
    let mut reader = Running::start(&["sub", &url_of("orders/eu"), "--json", "--token", token]);
    assert_eq!(json_line(&reader.line().await)["event"], "stream-open");
    let published = run(&["pub", &url_of("orders/eu"), "x", "--token", token], &[]).await;
    assert_eq!(fine(published), "{\"topic\":\"orders/eu\"}\n");
    assert_eq!(json_line(&reader.line().await)["data"], "x");
    let elsewhere = run(&["pub", &url_of("orders/us"), "x", "--token", token], &[]).await;
    refused(&elsewhere, 1, "not published: 403 missing_grant: ");
}

#[tokio::test]
async fn a_short_token_for_a_long_stream_is_minted_and_explained() {
    let until = |time| ["token", "mint", "--subscribe", "orders/*", "--expires", "30s", "--until", time];
    let token = fine(run(&until("8h"), &WITH_SECRET).await);
    let words = fine(run(&["token", "inspect", token.trim()], &WITH_SECRET).await);
    for part in ["\"until\": ", "accepted, for 5", "streams that it opens last for 8h"] {
        assert!(words.contains(part), "no {part} in\n{words}");
    }
    refused(
        &run(&until("13h"), &WITH_SECRET).await,
        64,
        "--until: streams may last for 12h at most, by auth.jwt.until_limit",
    );
    let over = signed("HS256", json!({ "exp": seconds(60.0), "topicgate": { "until": seconds(-1000.0) } }));
    let words = fine(run(&["token", "inspect", &over], &WITH_SECRET).await);
    assert!(words.contains("refused for reading: the token has expired"), "{words}");
    let elsewhere = [WITH_SECRET[0], ("TOPICGATE_AUTH__JWT__UNTIL", "/stream/until")];
    let token = fine(run(&until("8h"), &elsewhere).await);
    assert!(fine(run(&["token", "inspect", token.trim()], &elsewhere).await).contains("last for 8h"));
}

#[tokio::test]
async fn tokens_are_signed_with_private_keys_of_every_kind_and_not_with_a_key_that_does_not_match() {
    let public = |name: &str| key(&format!("{name}.pub.pem")).to_str().unwrap().to_owned();
    for (name, algorithm, says) in [
        ("p256", None, "ES256"),
        ("p384", None, "ES384"),
        ("ed25519", None, "EdDSA"),
        ("rsa", None, "RS256"),
        ("rsa", Some("PS512"), "PS512"),
    ] {
        let public = public(name);
        let mut environment = vec![("TOPICGATE_AUTH__JWT__PUBLIC_KEY", public.as_str())];
        environment.extend(algorithm.map(|algorithm| ("TOPICGATE_AUTH__JWT__ALGORITHM", algorithm)));
        let private = key(&format!("{name}.pem"));
        let mint = ["token", "mint", "--expires", "10m", "--key", private.to_str().unwrap()];
        let token = fine(run(&mint, &environment).await);
        let words = fine(run_with_input(&["token", "inspect"], &environment, token.as_bytes()).await);
        assert!(words.contains(&format!("\"alg\": \"{says}\"")) && words.contains("accepted"), "{words}");
    }
    let environment = [("TOPICGATE_AUTH__JWT__PUBLIC_KEY", &*public("p256"))];
    let other = key("other.pem");
    let ended = run(&["token", "mint", "--key", other.to_str().unwrap()], &environment).await;
    assert_ne!((ended.code, &*ended.out), (0, ""), "{ended:?}");
    assert!(ended.out.is_empty(), "a token that is refused is of no use: {ended:?}");
    refused(&run(&["token", "mint"], &environment).await, 64, "give the matching private key with --key");
    let wrong = key("p256.pub.pem");
    let ended = run(&["token", "mint", "--key", wrong.to_str().unwrap()], &environment).await;
    refused(&ended, 64, "is not an RSA, P-256, P-384 or Ed25519 private key");
    refused(&run(&["token", "mint"], &[]).await, 64, "set auth.jwt.secret");
    let ended = run(&["token", "mint", "--subscribe", "a//b"], &WITH_SECRET).await;
    refused(&ended, 64, "--subscribe \"a//b\": ");
}

#[tokio::test]
async fn inspect_says_why_a_token_is_refused() {
    for (token, words) in [
        (signed("HS256", json!({ "exp": seconds(-3600.0) })), "refused: the token has expired"),
        (token(json!({ "aud": "somebody" })), "refused: the token is for another audience"),
        (token(json!({})) + "x", "refused: the signature of the token is not valid"),
        (signed("ES256", json!({})), "refused: the token is not signed with the algorithm"),
    ] {
        let ended = run(&["token", "inspect", &token], &WITH_SECRET).await;
        assert!(ended.code == 1 && ended.out.contains(words), "no {words:?} in {ended:?}");
    }
    refused(&run(&["token", "inspect", "nonsense"], &WITH_SECRET).await, 64, "this is not a JWT");
    let words = fine(run(&["token", "inspect", &token(json!({ "sub": "42" }))], &[]).await);
    assert!(words.contains("\"sub\": \"42\"") && words.contains("not checked"), "{words}");
}

#[tokio::test]
async fn sub_asks_for_the_types_and_the_interval_that_its_flags_name() {
    let gateway = Gateway::start().await;
    let url = url(&gateway, "a");
    let flags = ["sub", &url, "--type", "price,trade", "--no-events", "--every", "100ms", "--json"];
    let mut reader = Running::start(&flags);
    assert_eq!(json_line(&reader.line().await)["event"], "stream-open");
    let asked = &gateway.ask_admin("GET", "/streams", &[]).await.json()["streams"][0];
    let view = (&asked["types"], &asked["without_types"], &asked["every_ms"]);
    assert_eq!(view, (&json!(["price", "trade"]), &json!(true), &json!(100)));
    for (kind, message) in [("news", "1"), ("price", "2")] {
        fine(run(&["pub", &url, message, "--type", kind], &[]).await);
    }
    let line = json_line(&reader.line().await);
    assert_eq!((&line["event"], &line["data"]), (&json!("message"), &json!("2")));
    refused(&run(&["sub", &url, "--every", "1ms"], &[]).await, 1, "every must be a duration");
    refused(&run(&["sub", &url, "--type", ""], &[]).await, 1, "type must be a list");
}

#[tokio::test]
async fn published_messages_are_printed_with_id_and_type() {
    let gateway = Gateway::start().await;
    let url = url(&gateway, "orders/eu");
    let mut plain = Running::start(&["sub", &url]);
    let mut json = Running::start(&["sub", &url, "--json"]);
    let open = json_line(&json.line().await);
    assert_eq!(open["event"], "stream-open");
    crate::common::eventually("both read", async || {
        gateway.metric("topicgate_streams{http=\"1.1\"}").await == 2.0
    })
    .await;

    let answer = fine(run(&["pub", &url, "first", "--type", "price", "--id", "o-17"], &[]).await);
    assert_eq!(answer, "{\"topic\":\"orders/eu\",\"id\":\"o-17\"}\n");
    fine(run_with_input(&["pub", &url], &[], b"two\nlines \x1b[2J").await);
    let event = json_line(&json.line().await);
    assert_eq!((&event["event"], &event["data"]), (&json!("price"), &json!("first")));
    assert!(event["id"].as_str().unwrap().ends_with("-o-17"), "{event}");
    assert_eq!(json_line(&json.line().await)["data"], "two\nlines \u{1b}[2J");

    // Control characters beyond ASCII, and characters that turn the text after them around.
    fine(run_with_input(&["pub", &url], &[], "x\u{9b}31m\u{7f}\u{202e}y\u{2066}".as_bytes()).await);
    let line = json.line().await;
    assert!(line.is_ascii(), "{line:?}");
    assert_eq!(json_line(&line)["data"], "x\u{9b}31m\u{7f}\u{202e}y\u{2066}");

    let line = plain.line().await;
    assert!(line.ends_with("-o-17 price first"), "{line}");
    let (first, second) = (plain.line().await, plain.line().await);
    let indent = " ".repeat(first.len() - "two".len());
    assert!(first.ends_with(" two"), "{first}");
    assert_eq!(second, format!("{indent}lines \\u{{1b}}[2J"), "no control character reaches the terminal");
    let line = plain.line().await;
    assert!(line.ends_with(r" x\u{9b}31m\u{7f}\u{202e}y\u{2066}"), "{line:?}");
}

#[tokio::test]
async fn a_stream_that_is_cut_goes_on_where_it_was() {
    let gateway = Gateway::with("streams = { retry = \"500ms\" }").await;
    let proxy = Proxy::start(gateway.address, 4, |connection| 400 + connection * 150).await;
    let through = format!("http://{}/topics/a", proxy.address);
    let mut reader = Running::start(&["sub", &through, "--json"]);
    assert_eq!(json_line(&reader.line().await)["event"], "stream-open");
    for number in 0..40 {
        gateway.publish("a", number.to_string()).await;
    }
    let mut seen = vec![];
    while seen.len() < 40 {
        let event = json_line(&reader.line().await);
        match event["event"].as_str().unwrap() {
            "message" => seen.push(event["data"].as_str().unwrap().to_owned()),
            "stream-open" => assert!(event["data"].as_str().unwrap().contains("\"resumed\":true"), "{event}"),
            other => panic!("{other}: {event}"),
        }
    }
    assert_eq!(seen, (0..40).map(|number| number.to_string()).collect::<Vec<_>>());
    assert!(proxy.cuts() >= 3, "{} cuts", proxy.cuts());
    reader.says("reconnecting in ").await;
}

#[tokio::test]
async fn a_gap_and_a_close_are_printed_beside_the_messages() {
    let process = Process::start(&[("TOPICGATE_DRAIN", "1s")]).await;
    let url = format!("http://{}/topics/a", process.address);
    let mut reader = Running::start(&["sub", &url, "--last-event-id", "elsewhere-7"]);
    assert!(reader.says("gap: messages of a are missing here").await.contains("unknown_id"));
    process.signal("TERM");
    reader.says("closed by the gateway (draining)").await;
    reader.says("reconnecting in ").await;
}

#[tokio::test]
async fn commands_that_can_never_work_end_at_once_with_the_reason() {
    let gateway = Gateway::with("[[topics]]\nmatch = \"open/**\"\nread = \"anyone\"\n").await;
    refused(&run(&["sub", &url(&gateway, "shut")], &[]).await, 1, "404 not_found: ");
    refused(&run(&["sub", &url(&gateway, "a//b")], &[]).await, 1, "400 bad_topic: ");
    refused(&run(&["pub", &url(&gateway, "open/a"), "x"], &[]).await, 1, "not published: 404 not_found: ");
    refused(&run(&["sub", &format!("http://{}/livez", gateway.admin)], &[]).await, 1, "not an event stream");
    let nowhere = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    refused(&run(&["sub", &format!("http://{nowhere}/topics/a")], &[]).await, 1, "refused");
    let missing = ["sub", "https://localhost:1/topics/a", "--ca", "missing.pem"];
    refused(&run(&missing, &[]).await, 64, "--ca: missing.pem cannot be read");
}

#[tokio::test]
async fn over_tls_only_the_authority_that_is_named_is_trusted() {
    let files = Files::new();
    let gateway = Gateway::with(&files.toml()).await;
    let url = format!("https://localhost:{}/topics/a", gateway.address.port());
    let ca = files.cert();
    let mut reader = Running::start(&["sub", &url, "--json", "--ca", ca.to_str().unwrap()]);
    assert_eq!(json_line(&reader.line().await)["event"], "stream-open");
    fine(run(&["pub", &url, "secret", "--ca", ca.to_str().unwrap()], &[]).await);
    assert_eq!(json_line(&reader.line().await)["data"], "secret");
    refused(&run(&["sub", &url], &[]).await, 1, "certificate");
}

#[tokio::test]
async fn the_command_ends_silently_when_its_output_is_closed() {
    let gateway = Gateway::start().await;
    let url = url(&gateway, "a");
    let mut child = topicgate(&["sub", &url, "--json"], &[]).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let ended: Ended = crate::common::within("it ends", crate::common::LIMIT, child.wait_with_output())
        .await
        .unwrap()
        .into();
    assert_eq!((ended.code, &*ended.err), (0, ""));
}

#[tokio::test]
async fn help_that_cannot_be_written_is_a_failure() {
    for arguments in [&["--help"][..], &["--version"], &["help", "sub"], &["config"]] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let child = topicgate(arguments, &[]).stdout(full).spawn().unwrap();
        let ended: Ended = child.wait_with_output().await.unwrap().into();
        refused(&ended, 1, "standard output cannot be written");
    }
}

#[tokio::test]
async fn shells_complete_the_commands_that_the_manual_describes() {
    let script = "eval \"$(\"$0\" completions bash)\"; COMP_WORDS=(topicgate do); COMP_CWORD=1; \
                  _topicgate topicgate do topicgate; echo \"${COMPREPLY[@]}\"";
    let mut bash = tokio::process::Command::new("bash");
    let completed = bash.args(["-c", script, env!("CARGO_BIN_EXE_topicgate")]).output().await.unwrap();
    assert_eq!(fine(completed.into()), "doctor\n");
    for shell in ["zsh", "fish"] {
        assert!(fine(run(&["completions", shell], &[]).await).contains("doctor"));
    }
    assert_eq!(run(&["completions", "dos"], &[]).await.code, 64);

    let page = fine(run(&["man"], &[]).await);
    for command in ["check", "config", "doctor", "sub", "pub", "token"] {
        assert!(page.contains(&format!("topicgate\\-{command}(1)")), "{command}");
        let page = fine(run(&["man", command], &[]).await);
        assert!(page.contains(&format!(".TH topicgate-{command} 1")), "{page}");
    }
    assert!(fine(run(&["man", "doctor"], &[]).await).contains("\\-\\-idle"));
    refused(&run(&["man", "dance"], &[]).await, 64, "the commands are check, config");
}
