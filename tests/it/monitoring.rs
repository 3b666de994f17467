//! The alerts and the dashboard: they are read by their own tools, and use only metrics that a gateway has.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use crate::common::client;
use crate::common::eventually;
use crate::common::gateway::Gateway;
use serde_json::Value;

const ALERTS: &str = "deploy/prometheus/alerts.yml";
const TESTS: &str = "tests/prometheus/alerts.test.yml";
const DASHBOARD: &str = "deploy/grafana/topicgate.json";

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap()
}

/// Insists that promtool is content, from the root of the repository.
fn promtool(arguments: &[&str]) {
    let output =
        Command::new("promtool").args(arguments).output().expect("promtool; scripts/tools installs it");
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "promtool {arguments:?}: {said}");
}

/// Values of a key that stands on a line of its own.
fn values<'a>(yaml: &'a str, key: &'a str) -> impl Iterator<Item = &'a str> {
    let prefix = format!("{key}: ");
    yaml.lines().filter_map(move |line| line.trim_start().trim_start_matches("- ").strip_prefix(&prefix))
}

/// The names of metrics in an expression, without the suffixes of a histogram.
fn metrics(expression: &str) -> BTreeSet<String> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = words.filter(|word| word.starts_with("topicgate_") || word.starts_with("process_"));
    ours.map(|word| word.trim_end_matches("_bucket").to_owned()).collect()
}

/// Names of all metrics that a gateway shows; not those that have no sample yet.
async fn shown() -> BTreeSet<String> {
    let gateway = Gateway::start().await;
    let scrape = async || client::request(gateway.admin, "GET", "/metrics", &[], b"").await.text();
    eventually("it took stock once", async || scrape().await.contains("topicgate_limit_used")).await;
    let text = scrape().await;
    let names = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    // Only with TLS; tests/metrics.rs has it there.
    names.map(str::to_owned).chain(["topicgate_tls_certificate_expires".to_owned()]).collect()
}

fn expressions(dashboard: &Value) -> Vec<String> {
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.filter_map(|panel| panel["targets"].as_array()).flatten();
    targets.map(|target| target["expr"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn promtool_accepts_the_alerts_and_tests_each_as_firing_and_as_silent() {
    promtool(&["check", "rules", ALERTS]);
    promtool(&["test", "rules", TESTS]);
    let (alerts, tests) = (read(ALERTS), read(TESTS));
    for alert in values(&alerts, "alert") {
        let tested = values(&tests, "alertname").filter(|name| *name == alert).count();
        assert_eq!(tested, 2, "{alert} is tested once when it fires, and once when it does not");
    }
}

#[test]
fn each_alert_has_a_severity_a_summary_and_a_runbook() {
    let alerts = read(ALERTS);
    let names: Vec<_> = values(&alerts, "alert").collect();
    let runbooks: Vec<_> = values(&alerts, "runbook").map(str::to_owned).collect();
    let expected: Vec<_> =
        names.iter().map(|name| format!("docs/operations.md#{}", name.to_lowercase())).collect();
    assert_eq!(runbooks, expected);
    assert!(values(&alerts, "severity").all(|severity| ["critical", "warning", "info"].contains(&severity)));
    for key in ["severity", "summary", "description"] {
        assert_eq!(values(&alerts, key).count(), names.len(), "{key}");
    }
}

#[tokio::test]
async fn the_alerts_and_the_dashboard_use_only_metrics_that_a_gateway_has() {
    let shown = shown().await;
    let dashboard = serde_json::from_str(&read(DASHBOARD)).unwrap();
    let (alerts, expressions) = (read(ALERTS), expressions(&dashboard));
    let used = values(&alerts, "expr").chain(expressions.iter().map(String::as_str)).flat_map(metrics);
    let used: BTreeSet<_> = used.collect();
    assert!(used.len() > 30, "{used:?}");
    let unknown: Vec<_> = used.difference(&shown).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

#[tokio::test]
async fn the_dashboard_shows_every_metric() {
    let dashboard = serde_json::from_str(&read(DASHBOARD)).unwrap();
    let used: BTreeSet<_> =
        expressions(&dashboard).iter().flat_map(|expression| metrics(expression)).collect();
    let shown = shown().await;
    let missing: Vec<_> = shown.difference(&used).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn the_dashboard_has_the_structure_that_grafana_loads() {
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).unwrap();
    assert!(dashboard["schemaVersion"].as_u64().unwrap() >= 36);
    assert_eq!(
        (dashboard["uid"].as_str(), dashboard["title"].as_str()),
        (Some("topicgate"), Some("topicgate"))
    );
    // Grafana sets it on import; an id of another Grafana would conflict.
    assert!(dashboard.get("id").is_none_or(Value::is_null));
    let variables: Vec<_> = dashboard["templating"]["list"]
        .as_array()
        .unwrap()
        .iter()
        .map(|variable| &variable["name"])
        .collect();
    assert_eq!(variables, ["datasource", "instance"]);
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len());
    let mut taken = BTreeSet::new();
    for panel in panels {
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        for (x, y) in
            (at("x")..at("x") + at("w")).flat_map(|x| (at("y")..at("y") + at("h")).map(move |y| (x, y)))
        {
            assert!(x < 24 && taken.insert((x, y)), "{} lies over another panel", panel["title"]);
        }
        if panel["type"] == "row" {
            continue;
        }
        assert!(["stat", "timeseries"].contains(&panel["type"].as_str().unwrap()));
        assert!(!panel["title"].as_str().unwrap().is_empty());
        assert_eq!(panel["datasource"]["uid"], "${datasource}");
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty());
        let references: BTreeSet<_> =
            targets.iter().map(|target| target["refId"].as_str().unwrap()).collect();
        assert_eq!(references.len(), targets.len());
        for target in targets {
            let expression = target["expr"].as_str().unwrap();
            assert!(expression.contains("instance=~\"$instance\""), "{expression}");
        }
    }
}

#[test]
fn promtool_reads_every_expression_of_the_dashboard() {
    let dashboard = serde_json::from_str(&read(DASHBOARD)).unwrap();
    let mut rules = String::from("groups:\n  - name: dashboard\n    rules:\n");
    for (index, expression) in expressions(&dashboard).iter().enumerate() {
        let plain = expression.replace("$__rate_interval", "5m").replace("$instance", ".*");
        assert!(!plain.contains('$'), "{plain}");
        rules += &format!("      - record: dashboard:{index}\n        expr: {}\n", serde_json::json!(plain));
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rules.yml");
    fs::write(&path, rules).unwrap();
    promtool(&["check", "rules", path.to_str().unwrap()]);
}
