//! The Dockerfile and the compose files: they are read by their own tools, and compared with the gateway's real ports,
//! files and settings. (`image` builds and runs the image, where there is an engine.)

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::common::client;
use crate::common::deploy::{at, command, config, content, list, path, read, seconds, text, tool, yaml};
use crate::common::gateway::Gateway;
use clap::Parser as _;
use serde_json::Value;
use topicgate::internals::cli::{Cli, Command};
use topicgate::internals::config::{Config, is_loopback};

/// The instructions of the Dockerfile, lines that are continued joined.
fn instructions() -> Vec<(String, String)> {
    let text = read("Dockerfile").replace("\\\n", " ");
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let split = lines.map(|line| line.split_once(' ').unwrap());
    split
        .map(|(name, rest)| (name.to_owned(), rest.split_whitespace().collect::<Vec<_>>().join(" ")))
        .collect()
}

/// The instructions of this name in the final image.
fn image(name: &str) -> Vec<String> {
    let all = instructions();
    let last = all.iter().rposition(|(name, _)| name == "FROM").unwrap();
    all[last..].iter().filter(|(found, _)| found == name).map(|(_, rest)| rest.clone()).collect()
}

/// The variables that the image sets.
fn image_environment() -> Vec<(String, String)> {
    let split = |line: &String| line.split_once('=').map(|(name, value)| (name.into(), value.into()));
    image("ENV").iter().map(|line| split(line).unwrap()).collect()
}

#[test]
fn the_dockerfile_passes_its_linter() {
    content(tool("hadolint").arg("Dockerfile"));
}

#[test]
fn the_image_describes_the_gateway_correctly() {
    assert_eq!(image("FROM"), ["scratch"]);
    assert_ne!(image("USER")[0].split(':').next(), Some("0"), "not root");
    let program = "/usr/local/bin/topicgate";
    assert!(image("COPY").iter().any(|copy| copy == &format!("--from=build /topicgate {program}")));
    assert_eq!(image("ENTRYPOINT"), [format!("[\"{program}\"]")]);

    let environment = image_environment();
    let environment: Vec<(&str, &str)> =
        environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let config = config("", &environment);
    assert_eq!(image("EXPOSE"), [config.listen.port().to_string()]);
    assert!(config.listen.ip().is_unspecified(), "a container's loopback is nobody else's");

    let check = image("HEALTHCHECK").remove(0);
    let (options, words) = check.split_once(" CMD ").unwrap();
    let words: Vec<String> = serde_json::from_str(words).unwrap();
    assert_eq!(words[0], program);
    assert!(matches!(Cli::try_parse_from(&words).unwrap().command, Some(Command::Health(_))));
    // It gives up after three seconds itself, and says why; an engine that gives up before does not.
    assert!(options.contains("--timeout=5s"), "{options}");
}

#[test]
fn the_build_context_has_every_file_that_cargo_needs() {
    let ignore = read(".dockerignore");
    let admitted: Vec<&str> = ignore.lines().filter_map(|line| line.strip_prefix('!')).collect();
    let context = tempfile::tempdir().unwrap();
    for (name, rest) in instructions() {
        if name != "COPY" || rest.starts_with("--from") {
            continue;
        }
        let mut words: Vec<&str> = rest.split(' ').collect();
        words.pop();
        for source in words {
            let source = source.trim_start_matches("./");
            assert!(admitted.contains(&source), ".dockerignore keeps {source} out");
            content(command("cp").arg("-r").arg(source).arg(context.path()));
        }
    }
    let manifest = context.path().join("Cargo.toml");
    let known = content(
        command("cargo")
            .args(["metadata", "--no-deps", "--offline", "--format-version=1", "--manifest-path"])
            .arg(manifest),
    );
    assert!(known.contains("/src/main.rs"), "{known}");
    assert!(context.path().join("Cargo.lock").exists(), "which --locked asks for");
}

/// A project as docker compose sees it, and the directory of its files.
fn compose(files: &[&str]) -> Value {
    let mut command = tool("docker-compose");
    command.args(["--profile", "*"]);
    for file in files {
        command.arg("--file").arg(path("deploy/compose").join(file));
    }
    serde_json::from_str(&content(command.args(["config", "--format", "json"]))).unwrap()
}

/// Where a service finds what is at `target`, for each file that it is given.
fn mounts(service: &Value) -> BTreeMap<&str, &str> {
    let all = list(service, "/volumes").iter();
    all.map(|volume| {
        assert_eq!(at(volume, "/read_only"), true, "{volume}");
        (text(volume, "/target"), text(volume, "/source"))
    })
    .collect()
}

/// The gateway's service in it: what the image sets, then the file, then the service's own variables.
fn configured(service: &Value) -> Config {
    let mut environment = image_environment();
    for (name, value) in at(service, "/environment").as_object().unwrap() {
        environment.push((name.clone(), value.as_str().unwrap().to_owned()));
    }
    let environment: Vec<(&str, &str)> =
        environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    // Where the image looks for it.
    let file = format!("{}/topicgate.toml", image("WORKDIR")[0]);
    config(&fs::read_to_string(mounts(service)[file.as_str()]).unwrap(), &environment)
}

#[test]
fn a_compose_file_brings_a_gateway_that_finds_its_broker() {
    for broker in ["nats", "redis"] {
        let project = compose(&[&format!("{broker}.yaml")]);
        let service = at(&project, "/services/topicgate");
        let config = configured(service);
        assert_eq!(config.broker.url.0.split(':').next(), Some(broker));
        let host = config.broker.url.0.split("//").nth(1).unwrap().split(':').next().unwrap();
        assert!(at(&project, &format!("/services/{host}")).is_object());
        assert!(!config.topics.is_empty(), "{broker}: nothing is exposed");

        let ports: Vec<_> = list(service, "/ports").iter().map(|port| at(port, "/target")).collect();
        assert_eq!(ports, [config.listen.port(), config.admin.listen.port()]);
        for port in list(service, "/ports") {
            assert!(is_loopback(text(port, "/host_ip")), "until somebody decides otherwise");
        }
        assert!(seconds(service, "/stop_grace_period") > config.drain + Duration::from_secs(2));
        assert!(at(service, "/ulimits/nofile").as_u64().unwrap() > config.limits.connections as u64);
        assert_eq!(at(service, "/read_only"), true);
        assert_eq!(at(service, "/cap_drop/0"), "ALL");
        let dockerfile = Path::new(text(service, "/build/context")).join(text(service, "/build/dockerfile"));
        assert_eq!(dockerfile.canonicalize().unwrap(), path("Dockerfile").canonicalize().unwrap());
    }
}

#[test]
fn third_party_images_are_pinned() {
    for from in instructions().into_iter().filter(|(name, _)| name == "FROM").map(|(_, rest)| rest) {
        let base = from.split(' ').next().unwrap();
        let pinned = base.split_once("@sha256:").is_some_and(|(tag, digest)| {
            tag.contains(|letter: char| letter.is_ascii_digit()) && digest.len() == 64
        });
        assert!(base == "scratch" || pinned, "{base}");
    }
    for broker in ["nats", "redis"] {
        let project = compose(&[&format!("{broker}.yaml"), "monitoring.yaml"]);
        for (name, service) in at(&project, "/services").as_object().unwrap() {
            let (_, tag) =
                text(service, "/image").split_once(':').unwrap_or_else(|| panic!("{name}: no tag"));
            let version = tag.trim_start_matches('v').split('-').next().unwrap();
            assert!(version.split('.').count() >= 2, "{name}: {tag} is another image next month");
        }
        let ours = text(&project, "/services/topicgate/image").strip_prefix("topicgate:");
        assert_eq!(ours, Some(env!("CARGO_PKG_VERSION")));
    }
}

#[test]
fn the_demo_of_a_compose_file_shows_the_messages_of_its_publisher() {
    for broker in ["nats", "redis"] {
        let project = compose(&[&format!("{broker}.yaml")]);
        let (page, gateway) = (at(&project, "/services/page"), at(&project, "/services/topicgate"));
        let config = configured(gateway);
        let port = text(page, "/ports/0/published");
        let host = text(page, "/ports/0/host_ip");
        assert_eq!(text(gateway, "/environment/TOPICGATE_CORS__ORIGINS"), format!("http://{host}:{port}"));
        let html = fs::read_to_string(mounts(page)["/usr/share/nginx/html/index.html"]).unwrap();
        let url = html.split("EventSource(\"").nth(1).unwrap().split('"').next().unwrap();
        let asked = url.strip_prefix(&format!("http://{host}:{}/topics/", config.listen.port())).unwrap();
        assert_eq!(asked, config.topics[0].filter.to_string(), "what the rule exposes");
        let script = text(at(&project, "/services/publisher"), "/command/2");
        assert!(
            script.contains(&format!("{broker}:")) || script.contains(&format!("-h {broker}")),
            "{script}"
        );
        assert!(script.contains("orders"), "{script}");
    }
}

#[tokio::test]
async fn prometheus_scrapes_the_gateway_and_grafana_finds_prometheus_and_the_dashboard() {
    for broker in ["nats", "redis"] {
        let project = compose(&[&format!("{broker}.yaml"), "monitoring.yaml"]);
        let (prometheus, grafana) = (at(&project, "/services/prometheus"), at(&project, "/services/grafana"));
        let admin = configured(at(&project, "/services/topicgate")).admin.listen;
        assert!(admin.ip().is_unspecified());

        // promtool sees the files at the names that they have in the container.
        let container = tempfile::tempdir().unwrap();
        for (target, source) in mounts(prometheus) {
            let name = target.strip_prefix("/etc/prometheus/").unwrap();
            fs::copy(source, container.path().join(name)).unwrap_or_else(|error| panic!("{source}: {error}"));
        }
        let scraped = container.path().join("prometheus.yml");
        content(command("promtool").args(["check", "config"]).arg(&scraped));
        let scraped = yaml(&fs::read_to_string(scraped).unwrap()).remove(0);
        let targets = list(&scraped, "/scrape_configs/0/static_configs/0/targets");
        assert_eq!(targets, &[format!("topicgate:{}", admin.port())]);
        assert_eq!(scraped.pointer("/scrape_configs/0/metrics_path"), None, "and so it is /metrics");

        let mounts = mounts(grafana);
        let provisioned = |kind: &str| {
            let file = mounts[format!("/etc/grafana/provisioning/{kind}/topicgate.yaml").as_str()];
            yaml(&fs::read_to_string(file).unwrap()).remove(0)
        };
        let source = provisioned("datasources");
        let port = at(prometheus, "/ports/0/target");
        assert_eq!(text(&source, "/datasources/0/url"), format!("http://prometheus:{port}"));
        let directory = provisioned("dashboards");
        let directory = text(&directory, "/providers/0/options/path");
        let dashboard = mounts[format!("{directory}/topicgate.json").as_str()];
        let dashboard = fs::read_to_string(dashboard).unwrap_or_else(|error| panic!("{dashboard}: {error}"));
        let dashboard: Value = serde_json::from_str(&dashboard).unwrap();
        assert!(!list(&dashboard, "/panels").is_empty());
    }
    let gateway = Gateway::start().await;
    assert_eq!(client::request(gateway.admin, "GET", "/metrics", &[], b"").await.status, 200);
}
