//! deploy/kubernetes, as kubectl assembles it, checked against the published schemas of Kubernetes and against the real
//! ports, answers and metrics of the gateway. (Nothing is applied to a cluster.)

use std::path::Path;
use std::time::Duration;

use crate::common::client;
use crate::common::deploy::{at, command, config, content, list, path, read, seconds, text, tool, yaml};
use crate::common::gateway::Gateway;
use serde_json::Value;
use topicgate::Config;
use topicgate::internals::cli::Cli;

/// A set of manifests by its name, as text.
fn manifests(name: &str) -> String {
    if name.ends_with(".yaml") {
        return read(&format!("deploy/kubernetes/{name}"));
    }
    content(tool("kubectl").arg("kustomize").arg(path("deploy/kubernetes").join(name)))
}

/// The base with a component, as an overlay would use it.
fn with_component(name: &str) -> Objects {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    // kustomize takes no absolute paths.
    let up = "../".repeat(directory.path().canonicalize().unwrap().components().count() - 1);
    let from =
        |path: &Path| format!("{up}{}", path.canonicalize().unwrap().strip_prefix("/").unwrap().display());
    let base = from(&path("deploy/kubernetes/base"));
    let component = from(&path("deploy/kubernetes/components").join(name));
    let text = format!("resources: [\"{base}\"]\ncomponents: [\"{component}\"]\n");
    std::fs::write(directory.path().join("kustomization.yaml"), text).unwrap();
    let manifests = content(tool("kubectl").arg("kustomize").arg(directory.path().canonicalize().unwrap()));
    Objects(yaml(&manifests))
}

const ALL: [&str; 4] = ["base", "overlays/kind", "overlays/production", "sidecar.yaml"];

/// Kinds that are not Kubernetes' own, so that it has no schema for them. The tests below look at each.
const FOREIGN: [&str; 3] = ["HTTPRoute", "PrometheusRule", "ServiceMonitor"];

/// The objects of a set.
struct Objects(Vec<Value>);

impl Objects {
    fn of(name: &str) -> Self {
        Objects(yaml(&manifests(name)))
    }

    fn all(&self, kind: &str) -> Vec<&Value> {
        self.0.iter().filter(|object| object["kind"] == kind).collect()
    }

    /// The only one of this kind.
    fn one(&self, kind: &str) -> &Value {
        let all = self.all(kind);
        assert_eq!(all.len(), 1, "{kind}");
        all[0]
    }

    /// The deployment that has the gateway in it.
    fn deployment(&self) -> &Value {
        let has_it = |deployment: &&&Value| {
            list(deployment, "/spec/template/spec/containers").iter().any(|one| one["name"] == "topicgate")
        };
        self.all("Deployment").iter().find(has_it).unwrap()
    }

    fn pod(&self) -> &Value {
        at(self.deployment(), "/spec/template/spec")
    }

    fn labels(&self) -> &Value {
        at(self.deployment(), "/spec/template/metadata/labels")
    }

    /// The services that lead to the gateway.
    fn services(&self) -> Vec<&Value> {
        let all = self.all("Service").into_iter();
        let ours: Vec<_> = all.filter(|one| selects(at(one, "/spec/selector"), self.labels())).collect();
        assert!(!ours.is_empty());
        ours
    }

    /// The gateway's container.
    fn gateway(&self) -> &Value {
        list(self.pod(), "/containers").iter().find(|container| container["name"] == "topicgate").unwrap()
    }

    /// The number of a port of any container, by its name.
    fn port(&self, name: &str) -> u64 {
        let containers = list(self.pod(), "/containers").iter();
        let mut ports = containers.flat_map(|container| list(container, "/ports"));
        let port = ports.find(|port| port["name"] == name).unwrap_or_else(|| panic!("no port {name}"));
        port["containerPort"].as_u64().unwrap()
    }

    /// The configuration of the gateway: the file that its arguments name, in the volume that is mounted there.
    fn config(&self) -> Config {
        let arguments = list(self.gateway(), "/args").iter().map(|word| word.as_str().unwrap());
        let cli = <Cli as clap::Parser>::try_parse_from(["topicgate"].into_iter().chain(arguments)).unwrap();
        let file = cli.options.config.unwrap();
        let directory = file.parent().unwrap().to_str().unwrap();
        let mount =
            list(self.gateway(), "/volumeMounts").iter().find(|mount| mount["mountPath"] == directory);
        let volume =
            list(self.pod(), "/volumes").iter().find(|volume| volume["name"] == mount.unwrap()["name"]);
        let name = text(volume.unwrap(), "/configMap/name");
        let maps = self.all("ConfigMap");
        let map = maps.iter().find(|map| map["metadata"]["name"] == name).unwrap();
        config(text(map, &format!("/data/{}", file.file_name().unwrap().to_str().unwrap())), &[])
    }
}

/// Whether `selector` selects objects with these labels.
fn selects(selector: &Value, labels: &Value) -> bool {
    let wanted = selector.as_object().unwrap();
    !wanted.is_empty() && wanted.iter().all(|(name, value)| labels.get(name) == Some(value))
}

fn check_schemas(name: &str, manifests: &str) {
    let file = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
    std::fs::write(&file, manifests).unwrap();
    let said = content(
        command("python3")
            .env("PYTHONPATH", path(".tools/python"))
            .arg(path(".tools/python/bin/kubernetes-validate"))
            .arg("--strict")
            .arg(file.path()),
    );
    let all = yaml(manifests);
    let checked = said.lines().filter(|line| line.contains(" passed for resource ")).count();
    let foreign = all.iter().filter(|object| FOREIGN.contains(&object["kind"].as_str().unwrap())).count();
    assert_eq!(checked + foreign, all.len(), "{name}: {said}");
}

#[test]
fn every_manifest_fits_the_schema_that_kubernetes_publishes() {
    for name in ALL {
        check_schemas(name, &manifests(name));
    }
    for name in ["ingress", "gateway-api", "monitoring"] {
        let texts: Vec<String> = with_component(name).0.iter().map(Value::to_string).collect();
        check_schemas(name, &texts.join("\n---\n"));
    }
}

#[test]
fn the_ports_of_the_manifests_are_the_ports_of_the_gateway() {
    for name in ALL {
        let objects = Objects::of(name);
        let config = objects.config();
        assert!(config.listen.ip().is_unspecified() && config.admin.listen.ip().is_unspecified(), "{name}");
        assert_eq!(objects.port("admin"), u64::from(config.admin.listen.port()), "{name}");
        let public = if name == "sidecar.yaml" { "events" } else { "http" };
        assert_eq!(objects.port(public), u64::from(config.listen.port()), "{name}");
        for service in objects.services() {
            let for_readers = service["metadata"]["name"] != "topicgate-admin";
            for port in list(service, "/spec/ports") {
                let target = text(port, "/targetPort");
                objects.port(target);
                assert_eq!(
                    target == "admin",
                    !for_readers,
                    "{name}: the admin listener is nobody's business"
                );
            }
        }
        assert!(!config.topics.is_empty(), "{name}: nothing is exposed");
        // The network policy is the firewall that this one asks for.
        let unwise =
            config.warnings().into_iter().find(|warning| !warning.contains("keep it behind a firewall"));
        assert_eq!(unwise, None, "{name}");
    }
}

#[tokio::test]
async fn probes_use_paths_that_the_gateway_serves() {
    let gateway = Gateway::start().await;
    for name in ALL {
        let objects = Objects::of(name);
        let container = objects.gateway();
        for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
            let asked = at(container, &format!("/{probe}/httpGet"));
            assert_eq!(text(asked, "/port"), "admin", "{name}");
            let answer = client::request(gateway.admin, "GET", text(asked, "/path"), &[], b"").await;
            assert_eq!(answer.status, 200, "{name}, {probe}");
        }
        // A broker that is away must not take pods out of the service; the first connection to it is waited for.
        assert_eq!(text(container, "/startupProbe/httpGet/path"), "/readyz");
        let away = Gateway::unready("broker.url = \"nats://127.0.0.1:1\"").await;
        let ready = text(container, "/readinessProbe/httpGet/path");
        assert_eq!(client::request(away.admin, "GET", ready, &[], b"").await.status, 200, "{name}");
    }
}

#[test]
fn a_pod_is_given_the_time_that_it_needs_to_end() {
    for name in ALL {
        let objects = Objects::of(name);
        let before = seconds(objects.gateway(), "/lifecycle/preStop/sleep/seconds");
        let grace = seconds(objects.pod(), "/terminationGracePeriodSeconds");
        assert!(before + objects.config().drain + Duration::from_secs(2) < grace, "{name}");
    }
}

#[test]
fn the_gateway_is_given_no_more_than_it_needs() {
    for name in ALL {
        let objects = Objects::of(name);
        let (pod, container) = (objects.pod(), objects.gateway());
        // Some settings are the pod's or the container's, and the container's count.
        let setting = |name: &str| {
            let own = container.pointer(&format!("/securityContext/{name}"));
            own.unwrap_or_else(|| at(pod, &format!("/securityContext/{name}"))).clone()
        };
        assert_eq!(setting("runAsNonRoot"), true, "{name}");
        let user = read("Dockerfile").split("\nUSER ").nth(1).unwrap().split(':').next().unwrap().to_owned();
        assert_eq!(setting("runAsUser").to_string(), user, "{name}: the user of the image");
        assert_eq!(setting("readOnlyRootFilesystem"), true, "{name}");
        assert_eq!(setting("allowPrivilegeEscalation"), false, "{name}");
        assert_eq!(setting("capabilities/drop/0"), "ALL", "{name}");
        assert_eq!(setting("seccompProfile/type"), "RuntimeDefault", "{name}");
        let memory = text(container, "/resources/limits/memory").strip_suffix("Gi").unwrap();
        let memory = memory.parse::<u64>().unwrap() << 30;
        let limits = objects.config().limits;
        // As docs/operations.md calculates it, and all readers slow: then the kernel has 128 KiB for each.
        let (streams, topics) = (limits.streams as u64, limits.topics as u64);
        let worst = limits.buffer + streams * (130 << 10) + topics * (2 << 10) + (64 << 20);
        assert!(memory > worst, "{name}: the worst case is {} MiB", worst >> 20);
    }
}

#[test]
fn the_network_policy_allows_the_connections_that_the_gateway_needs() {
    for name in ["base", "overlays/production"] {
        let objects = Objects::of(name);
        let policy = objects.one("NetworkPolicy");
        assert!(selects(at(policy, "/spec/podSelector/matchLabels"), objects.labels()), "{name}: no others");
        for rule in list(policy, "/spec/ingress") {
            let port = text(rule, "/ports/0/port");
            objects.port(port);
            assert_eq!(rule.get("from").is_some(), port == "admin", "{name}: who may ask the admin listener");
        }
        let broker = objects.config().broker.url.0;
        for server in broker.split(',') {
            let (host, port) = server.rsplit_once(':').unwrap();
            let port: u16 = port.parse().unwrap();
            let to = list(policy, "/spec/egress").iter().find(|rule| rule["ports"][0]["port"] == port);
            let space = text(to.unwrap(), "/to/0/namespaceSelector/matchLabels/kubernetes.io~1metadata.name");
            assert_eq!(host.rsplit('.').next(), Some(space), "{name}: {server}");
        }
        let ports: Vec<u64> = list(policy, "/spec/egress")
            .iter()
            .flat_map(|rule| list(rule, "/ports").iter().map(|port| port["port"].as_u64().unwrap()))
            .collect();
        assert_eq!(ports, [53, 53, 4222, 6379, 4318], "{name}: DNS, NATS, Redis, traces");
    }
}

#[test]
fn a_disruption_takes_one_pod_at_a_time() {
    for name in ["base", "overlays/production"] {
        let objects = Objects::of(name);
        let budget = objects.one("PodDisruptionBudget");
        assert!(selects(at(budget, "/spec/selector/matchLabels"), objects.labels()), "{name}");
        assert_eq!(at(budget, "/spec/maxUnavailable"), 1, "{name}");
    }
}

#[tokio::test]
async fn the_autoscaler_uses_an_existing_metric_and_a_suitable_target() {
    let objects = Objects::of("overlays/production");
    let scaler = objects.one("HorizontalPodAutoscaler");
    let deployment = objects.deployment();
    assert_eq!(at(scaler, "/spec/scaleTargetRef/name"), at(deployment, "/metadata/name"));
    assert_eq!(deployment.pointer("/spec/replicas"), None, "an apply would undo what it decided");
    let metric = at(scaler, "/spec/metrics/0/pods");
    let wanted: usize = text(metric, "/target/averageValue").parse().unwrap();
    assert_eq!(wanted, objects.config().limits.streams / 2);

    let gateway = Gateway::start().await;
    let _reader = gateway.open("/topics/a").await;
    let metrics = client::request(gateway.admin, "GET", "/metrics", &[], b"").await.text();
    let samples = metrics.lines().filter_map(|line| line.strip_prefix(text(metric, "/metric/name")));
    let streams =
        samples.filter(|rest| rest.starts_with(['{', ' '])).map(|rest| rest.rsplit(' ').next().unwrap());
    assert_eq!(streams.map(|value| value.parse::<f64>().unwrap()).sum::<f64>(), 1.0, "{metrics}");
}

#[test]
fn a_service_monitor_leads_to_the_metrics_of_every_pod() {
    let objects = Objects::of("overlays/production");
    let monitor = objects.one("ServiceMonitor");
    assert_eq!(monitor["apiVersion"], "monitoring.coreos.com/v1");
    let selector = at(monitor, "/spec/selector/matchLabels");
    let services = objects.services();
    let chosen: Vec<_> =
        services.into_iter().filter(|service| selects(selector, at(service, "/metadata/labels"))).collect();
    assert_eq!(chosen.len(), 1, "one service, or every pod is scraped twice");
    let endpoint = at(monitor, "/spec/endpoints/0");
    assert_eq!(endpoint["path"], "/metrics");
    let port = list(chosen[0], "/spec/ports").iter().find(|port| port["name"] == endpoint["port"]).unwrap();
    assert_eq!(objects.port(text(port, "/targetPort")), u64::from(objects.config().admin.listen.port()));
}

#[tokio::test]
async fn the_rule_of_the_adapter_offers_the_metric_of_the_autoscaler() {
    let objects = Objects::of("overlays/production");
    let wanted = text(objects.one("HorizontalPodAutoscaler"), "/spec/metrics/0/pods/metric/name");
    let values = yaml(&read("deploy/kubernetes/overlays/production/prometheus-adapter.yaml")).remove(0);
    let rule = at(&values, "/rules/custom/0");
    assert_eq!(text(rule, "/name/matches"), format!("^{wanted}$"));
    let (series, labels) = text(rule, "/seriesQuery").split_once('{').unwrap();
    assert_eq!(series, wanted);
    for (label, _) in at(rule, "/resources/overrides").as_object().unwrap() {
        assert!(labels.contains(&format!("{label}!=\"\"")), "{label}");
    }
}

/// The label that the stack of Prometheus and Grafana looks for.
const STACK: &str = "kube-prometheus-stack";

#[test]
fn the_monitoring_component_has_the_alerts_and_the_dashboard_of_deploy() {
    for objects in [with_component("monitoring"), Objects::of("overlays/production")] {
        for kind in ["ServiceMonitor", "PrometheusRule"] {
            assert_eq!(at(objects.one(kind), "/metadata/labels/release"), STACK, "{kind}");
        }
        let alerts = yaml(&read("deploy/prometheus/alerts.yml")).remove(0);
        let spec = at(objects.one("PrometheusRule"), "/spec");
        assert_eq!(spec, &alerts, "the head of prometheusrule.yaml says how to make it again");
        let maps = objects.all("ConfigMap");
        let labelled = |map: &&&Value| map.pointer("/metadata/labels/grafana_dashboard").is_some();
        let dashboard = text(maps.iter().find(labelled).unwrap(), "/data/topicgate.json");
        assert_eq!(dashboard, read("deploy/grafana/topicgate.json"));
    }
}

#[test]
fn ingress_and_gateway_api_lead_to_the_readers_port_and_cut_no_stream() {
    let ingress = with_component("ingress");
    let rule = at(ingress.one("Ingress"), "/spec/rules/0");
    let backend = at(rule, "/http/paths/0/backend/service");
    let service =
        ingress.services().into_iter().find(|one| one["metadata"]["name"] == backend["name"]).unwrap();
    let port = list(service, "/spec/ports").iter().find(|port| port["name"] == backend["port"]["name"]);
    assert_eq!(port.unwrap()["targetPort"], "http");
    assert_eq!(at(rule, "/http/paths/0/path"), "/topics");
    assert_eq!(at(rule, "/http/paths/1/path"), "/topicgate.js", "the browser module");
    assert_eq!(at(ingress.one("Ingress"), "/spec/tls/0/hosts/0"), at(rule, "/host"));

    let gateway = with_component("gateway-api");
    let route = gateway.one("HTTPRoute");
    assert_eq!(at(route, "/spec/rules/0/timeouts/request"), "0s", "a stream has no end");
    assert_eq!(at(route, "/spec/rules/0/matches/0/path/value"), "/topics");
    assert_eq!(at(route, "/spec/rules/0/matches/1/path/value"), "/topicgate.js", "the browser module");
    let backend = at(route, "/spec/rules/0/backendRefs/0");
    let service =
        gateway.services().into_iter().find(|one| one["metadata"]["name"] == backend["name"]).unwrap();
    let port = list(service, "/spec/ports").iter().find(|port| port["port"] == backend["port"]);
    assert_eq!(port.unwrap()["targetPort"], "http");
    // The names that the production overlay serves.
    let hosts = Objects::of("overlays/production").config().hosts;
    for host in [at(rule, "/host"), at(route, "/spec/hostnames/0")] {
        assert!(hosts.iter().any(|one| host == one.as_str()), "{host}");
    }
}

#[test]
fn the_base_begins_with_how_to_set_its_image() {
    let text = read("deploy/kubernetes/base/kustomization.yaml");
    assert!(text.starts_with("# Needs an image"), "{text}");
    assert!(text.lines().nth(1).unwrap().contains("kustomize edit set image topicgate="), "{text}");
    // On kind it is on the node, and must not be asked for at a registry.
    let objects = Objects::of("overlays/kind");
    assert_eq!(text_of_image(&objects), concat!("topicgate:", env!("CARGO_PKG_VERSION")));
    assert_eq!(objects.gateway()["imagePullPolicy"], "Never");
    let production = text_of_image(&Objects::of("overlays/production"));
    assert!(production.ends_with(concat!(":", env!("CARGO_PKG_VERSION"))), "{production}");
}

fn text_of_image(objects: &Objects) -> String {
    text(objects.gateway(), "/image").to_owned()
}
