//! Metrics: `/metrics` compared with the document that explains them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Command, Stdio};

use crate::common::client::{self, Response};
use crate::common::eventually;
use crate::common::gateway::Gateway;
use crate::common::jetstream::Admin;
use crate::common::nats::NatsServer;
use crate::common::tls::Files;

const DOCUMENT: &str = include_str!("../../docs/metrics.md");

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0";

/// A metric: its type, and the names of its labels.
type Shape = (String, BTreeSet<String>);

async fn scrape(gateway: &Gateway, accept: &str) -> Response {
    client::request(gateway.admin, "GET", "/metrics", &[("accept", accept)], b"").await
}

/// Every metric that the text has, under the name that its samples have.
fn shown(text: &str) -> BTreeMap<String, Shape> {
    let mut shown = BTreeMap::<String, Shape>::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let suffix = match kind {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            current = format!("{name}{suffix}");
            shown.insert(current.clone(), (kind.to_owned(), BTreeSet::new()));
        } else if !line.starts_with('#') {
            let labels = line.split_once('{').map_or("", |(_, rest)| rest.split_once('}').unwrap().0);
            let names = labels.split("\",").filter_map(|label| label.split_once('=')).map(|(name, _)| name);
            let own = names.filter(|name| *name != "le").map(str::to_owned);
            shown.get_mut(&current).unwrap().1.extend(own);
        }
    }
    shown
}

/// Every metric in the tables of the document.
fn documented() -> BTreeMap<String, Shape> {
    let bare = |cell: &str| cell.trim().trim_matches('`').to_owned();
    let rows =
        DOCUMENT.lines().filter(|line| line.starts_with("| `topicgate_") || line.starts_with("| `process_"));
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').collect();
        let labels = cells[3].split_whitespace().map(bare).collect();
        assert!(!cells[4].trim().is_empty(), "{row}");
        (bare(cells[1]), (bare(cells[2]), labels))
    })
    .collect()
}

#[tokio::test]
async fn the_document_has_every_metric_with_its_type_and_labels_and_no_other() {
    let gateway = Gateway::start().await;
    let swept = async || scrape(&gateway, OPEN_METRICS).await.text().contains("topicgate_limit_used");
    eventually("it took stock once", swept).await;
    let mut all = shown(&scrape(&gateway, OPEN_METRICS).await.text());
    let files = Files::new();
    let secure = Gateway::with(&files.toml()).await;
    all.extend(shown(&scrape(&secure, OPEN_METRICS).await.text()));
    let documented = documented();
    let names = |of: &BTreeMap<String, Shape>| of.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(names(&all), names(&documented));
    assert_eq!(all, documented);
}

#[tokio::test]
async fn prometheus_own_tool_finds_nothing_wrong_with_it() {
    let gateway = Gateway::start().await;
    gateway.publish("a", "x").await;
    let text = scrape(&gateway, "text/plain").await.text();
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("promtool starts; scripts/tools installs it");
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.trim().is_empty(), "{said}\nin\n{text}");
}

#[tokio::test]
async fn a_scraper_gets_the_format_that_it_asks_for() {
    let gateway = Gateway::start().await;
    let prometheus = scrape(
        &gateway,
        "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
    )
    .await;
    assert_eq!(
        prometheus.header("content-type"),
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    );
    assert!(prometheus.text().ends_with("# EOF\n"));
    for accept in ["*/*", "text/plain"] {
        let plain = scrape(&gateway, accept).await;
        assert_eq!(plain.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
        assert!(plain.text().contains("# TYPE topicgate_gaps_total counter\n"));
        assert!(!plain.text().contains("# EOF"));
    }
}

#[tokio::test]
async fn each_rule_has_its_messages_events_gaps_and_readers_and_topics_have_none() {
    let rules = "[[topics]]\nmatch = \"orders/**\"\nread = \"anyone\"\npublish = \"anyone\"\n\
                 [[topics]]\nmatch = \"prices/*\"\nread = \"anyone\"\npublish = \"anyone\"\n\
                 replay = { messages = 1 }\n";
    let gateway = Gateway::with(rules).await;
    let of = async |metric: &str, rule: &str| {
        gateway.metric(&format!("topicgate_rule_{metric}{{rule=\"{rule}\"}}")).await
    };
    let mut one = gateway.open("/topics/orders/eu").await;
    let mut both = gateway.open("/topics?topic=orders/eu&topic=prices/*").await;
    one.expect("stream-open").await;
    both.expect("stream-open").await;
    assert_eq!((of("readers", "orders/**").await, of("readers", "prices/*").await), (2.0, 1.0));
    let mut cursor = String::new();
    for (topic, payload) in [("orders/eu", "1"), ("prices/a", "2"), ("prices/a", "3")] {
        gateway.publish(topic, payload).await;
        assert_eq!(both.message().await, payload);
        if cursor.is_empty() {
            cursor.clone_from(&both.last_id);
        }
    }
    assert_eq!(one.message().await, "1");
    assert_eq!((of("messages_total", "orders/**").await, of("messages_total", "prices/*").await), (1.0, 2.0));
    assert_eq!((of("events_total", "orders/**").await, of("events_total", "prices/*").await), (2.0, 2.0));
    assert_eq!((of("gaps_total", "orders/**").await, of("gaps_total", "prices/*").await), (0.0, 0.0));
    let mut late = gateway.resume("/topics/prices/*", &cursor).await;
    late.expect("stream-open").await;
    late.expect("stream-gap").await;
    assert_eq!((of("gaps_total", "orders/**").await, of("gaps_total", "prices/*").await), (0.0, 1.0));
    drop((one, both, late));
    eventually("all have left", async || {
        (of("readers", "orders/**").await, of("readers", "prices/*").await) == (0.0, 0.0)
    })
    .await;
    let text = scrape(&gateway, "*/*").await.text();
    assert!(!text.contains("orders/eu") && !text.contains("prices/a"), "{text}");
}

#[tokio::test]
async fn a_limit_shows_its_bound_its_use_and_how_often_it_was_met() {
    let limits = "[limits]\nstreams = 2\ntopic_length = 50\ntopics_per_stream = 2\nmessage = \"1KiB\"\n";
    let gateway = Gateway::with(limits).await;
    let of = async |metric: &str, limit: &str| {
        gateway.metric(&format!("topicgate_limit{metric}{{limit=\"{limit}\"}}")).await
    };
    let mut readers = [gateway.open("/topics/a").await, gateway.open("/topics?topic=b&topic=c").await];
    for reader in &mut readers {
        reader.expect("stream-open").await;
    }
    gateway.open("/topics/a").await.expect("stream-close").await;
    assert_eq!(of("", "streams").await, 2.0);
    assert_eq!(of("_met_total", "streams").await, 1.0);
    eventually("it takes stock", async || of("_used", "streams").await == 2.0).await;
    assert_eq!(of("_used", "topics").await, 3.0);
    assert_eq!(of("_used", "topics_per_address").await, 3.0);
    assert_eq!(of("_used", "streams_per_address").await, 2.0);
    for (path, status) in
        [(format!("/topics/{}", "x".repeat(51)), 400), ("/topics?topic=a&topic=b&topic=c".into(), 400)]
    {
        assert_eq!(gateway.get(&path).await.status, status, "{path}");
    }
    assert_eq!(gateway.post("/topics/a", "x".repeat(1025)).await.status, 413);
    let long = "x".repeat(20_000);
    assert_eq!(gateway.request("GET", "/topics/a", &[("x", &long)]).await.status, 431);
    for limit in ["topic_length", "topics_per_stream", "message", "head"] {
        eventually(limit, async || of("_met_total", limit).await == 1.0).await;
    }
    assert_eq!(of("_met_total", "topics").await, 0.0);
}

#[tokio::test]
async fn rules_that_reloads_removed_have_no_series_once_their_topics_are_gone() {
    let toml = |rule: &str| {
        format!(
            "[[topics]]\nmatch = \"{rule}\"\nread = \"anyone\"\npublish = \"anyone\"\nreplay.linger = \"0s\"\n"
        )
    };
    let gateway = Gateway::with(&toml("a/0/**")).await;
    let rules = async || {
        let text = scrape(&gateway, OPEN_METRICS).await.text();
        let series = text.lines().filter(|line| line.starts_with("topicgate_rule_readers{"));
        series.map(str::to_owned).collect::<Vec<_>>()
    };
    let mut reader = gateway.open("/topics/a/0/x").await;
    reader.expect("stream-open").await;
    for number in 1..100 {
        assert!(gateway.reload_with(&toml(&format!("a/{number}/**"))));
    }
    drop(reader);
    eventually("one rule is shown", async || rules().await == ["topicgate_rule_readers{rule=\"a/99/**\"} 0"])
        .await;
    // One that is back counts on.
    assert!(gateway.reload_with(&toml("a/0/**")));
    let mut reader = gateway.open("/topics/a/0/x").await;
    reader.expect("stream-open").await;
    eventually("it is shown", async || rules().await == ["topicgate_rule_readers{rule=\"a/0/**\"} 1"]).await;
}

#[tokio::test]
async fn a_limit_on_connections_is_met_when_the_last_of_them_is_taken() {
    let gateway = Gateway::with("limits = { connections = 2 }").await;
    let met = "topicgate_limit_met_total{limit=\"connections\"}";
    let mut first = gateway.open("/topics/a").await;
    first.expect("stream-open").await;
    assert_eq!(gateway.metric(met).await, 0.0);
    let mut last = gateway.open("/topics/a").await;
    last.expect("stream-open").await;
    eventually("it is counted", async || gateway.metric(met).await == 1.0).await;
}

#[tokio::test]
async fn the_times_of_opening_of_publishing_and_of_delivery_are_observed() {
    let gateway = Gateway::start().await;
    let mut reader = gateway.open("/topics/a").await;
    reader.expect("stream-open").await;
    // A sample of deliveries is looked at.
    let mut sent = 0;
    while gateway.metric("topicgate_delivery_seconds_count").await == 0.0 {
        assert!(sent < 2_000, "one in sixteen");
        gateway.publish("a", "x").await;
        assert_eq!(reader.message().await, "x");
        sent += 1;
    }
    let longest = crate::common::LIMIT.as_secs_f64();
    for (metric, count) in [("delivery", 1.0), ("open", 1.0), ("publish", f64::from(sent))] {
        assert_eq!(gateway.metric(&format!("topicgate_{metric}_seconds_count")).await, count, "{metric}");
        let sum = gateway.metric(&format!("topicgate_{metric}_seconds_sum")).await;
        assert!(sum > 0.0 && sum < longest * count, "{metric} {sum}");
    }
}

#[tokio::test]
async fn a_replay_is_not_taken_for_a_slow_delivery() {
    let gateway = Gateway::start().await;
    let mut first = gateway.open("/topics/a").await;
    first.expect("stream-open").await;
    for payload in 0..3 {
        gateway.publish("a", payload.to_string()).await;
        first.message().await;
    }
    let before = gateway.metric("topicgate_delivery_seconds_count").await;
    for _ in 0..100 {
        let mut replayed = gateway.open("/topics/a?since=all").await;
        replayed.expect("stream-open").await;
        assert_eq!(replayed.messages(3).await, ["0", "1", "2"]);
    }
    assert_eq!(gateway.metric("topicgate_delivery_seconds_count").await, before);
}

#[tokio::test]
async fn readiness_is_a_metric_too() {
    let mut nats = NatsServer::start();
    let gateway = Gateway::with(&format!("broker.url = \"{}\"", nats.url())).await;
    eventually("it is ready", async || gateway.metric("topicgate_ready").await == 1.0).await;
    assert_eq!(gateway.metric("topicgate_upstream_up").await, 1.0);
    nats.stop();
    eventually("it is not", async || gateway.metric("topicgate_ready").await == 0.0).await;
    assert_eq!(gateway.metric("topicgate_upstream_up").await, 0.0);
    assert_eq!(gateway.metric("topicgate_upstream_losses_total").await, 1.0);
}

#[tokio::test]
async fn the_lag_of_a_broker_that_says_when_it_took_a_message_is_observed() {
    let nats = NatsServer::jetstream();
    let admin = Admin::connect(&nats.url()).await;
    admin.stream("ORDERS", &["orders.>"], serde_json::json!({})).await;
    let rule =
        "[[topics]]\nmatch = \"orders/**\"\nread = \"anyone\"\nsource = \"jetstream\"\nstream = \"ORDERS\"\n";
    let gateway = Gateway::with(&format!("broker.url = \"{}\"\n{rule}", nats.url())).await;
    let mut reader = gateway.open("/topics/orders/eu").await;
    reader.expect("stream-open").await;
    admin.put("orders.eu", "x").await;
    assert_eq!(reader.message().await, "x");
    assert_eq!(gateway.metric("topicgate_upstream_lag_seconds_count").await, 1.0);
    assert!(gateway.metric("topicgate_upstream_lag_seconds_sum").await < crate::common::LIMIT.as_secs_f64());
}
