//! MQTT devices through a NATS server, with a real MQTT client, as docs/brokers.md sets them up.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::common::document::blocks;
use crate::common::gateway::Gateway;
use crate::common::jetstream::Admin;
use crate::common::nats::NatsServer;
use crate::common::ports::free_port;
use crate::common::within;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

const DOCUMENT: &str = include_str!("../../docs/brokers.md");
const HEADING: &str = "MQTT devices, through NATS";

/// The client of tests/clients/mqtt.mjs.
struct Device {
    _child: Child,
    input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    received: Vec<(String, String)>,
}

impl Device {
    async fn connect(port: u16) -> Self {
        let mut child = Command::new("node")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/mqtt.mjs"))
            .args([&format!("mqtt://127.0.0.1:{port}"), "commands/#"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("node is needed, and `npm ci` in tests/clients: run scripts/tools");
        let input = child.stdin.take().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut device = Device { _child: child, input, lines, received: vec![] };
        assert_eq!(device.line().await["kind"], "ready");
        device
    }

    async fn line(&mut self) -> Value {
        let line = within("the device says something", Duration::from_secs(60), self.lines.next_line()).await;
        serde_json::from_str(&line.unwrap().expect("the device ended")).unwrap()
    }

    /// Publishes, and waits until the server has confirmed it.
    async fn publish(&mut self, message: Value) {
        self.input.write_all(format!("{message}\n").as_bytes()).await.unwrap();
        while self.receive().await {}
    }

    /// Takes the next line. Returns whether it was a message.
    async fn receive(&mut self) -> bool {
        let line = self.line().await;
        let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
        let is_message = line["kind"] == "message";
        if is_message {
            self.received.push((text("topic"), text("payload")));
        }
        is_message
    }
}

/// The server and the rules of the document.
async fn setup() -> (NatsServer, u16, String) {
    let port = free_port();
    let lines = blocks(DOCUMENT, HEADING, "").remove(0);
    let server = NatsServer::inside(tempfile::tempdir().unwrap(), "");
    let store = server.directory().join("jetstream");
    let lines = lines.replace("/var/lib/nats", store.to_str().unwrap());
    server.configure(&lines.replace("0.0.0.0", "127.0.0.1").replace("1883", &port.to_string()));
    let mut server = server;
    server.restart();
    let rules = blocks(DOCUMENT, HEADING, "toml").remove(0).replace("nats://127.0.0.1:4222", &server.url());
    (server, port, rules)
}

#[tokio::test]
async fn a_device_and_a_page_speak_to_each_other_under_the_same_topics() {
    let (_server, port, rules) = setup().await;
    let gateway = Gateway::with(&rules).await;
    let mut page = gateway.open("/topics?topic=sensors/**&topic=commands/**").await;
    page.expect("stream-open").await;
    let mut one = gateway.open("/topics/sensors/cold-1/temp").await;
    one.expect("stream-open").await;
    let mut device = Device::connect(port).await;
    for qos in 0..3 {
        let payload = format!("{qos}.5");
        device.publish(json!({"topic": "sensors/cold-1/temp", "payload": payload, "qos": qos})).await;
        assert_eq!((page.message().await, one.message().await), (payload.clone(), payload));
    }
    // Only topics that NATS writes in another way are left out.
    for topic in ["sensors/v1.2/temp", "/sensors/temp", "sensors//temp"] {
        device.publish(json!({"topic": topic, "payload": "lost", "qos": 1})).await;
    }
    device.publish(json!({"topic": "sensors/älter/temp", "payload": "-4", "qos": 1})).await;
    assert_eq!(page.message().await, "-4");

    gateway.publish("commands/cold-1/heater", "on").await;
    while device.receive().await && device.received.is_empty() {}
    assert_eq!(device.received, [("commands/cold-1/heater".to_owned(), "on".to_owned())]);
    assert_eq!(page.message().await, "on");
}

#[tokio::test]
async fn the_last_value_of_each_sensor_comes_first_if_a_stream_keeps_it() {
    let (server, port, rules) = setup().await;
    let admin = Admin::connect(&server.url()).await;
    admin.stream("SENSORS", &["sensors.>"], json!({"max_msgs_per_subject": 1})).await;
    let source = "match = \"sensors/**\"\nsource = \"jetstream\"\nstream = \"SENSORS\"";
    let gateway = Gateway::with(&rules.replace("match = \"sensors/**\"", source)).await;
    let mut live = gateway.open("/topics/sensors/**").await;
    live.expect("stream-open").await;
    let mut device = Device::connect(port).await;
    for (sensor, payload) in [("c", "0"), ("a", "1"), ("b", "2"), ("a", "3")] {
        let topic = format!("sensors/{sensor}/temp");
        device.publish(json!({"topic": topic, "payload": payload, "qos": 1, "retain": true})).await;
    }
    assert_eq!(live.messages(4).await, ["0", "1", "2", "3"]);
    // This gateway still has what the stream has replaced, and another one does not.
    let late = Gateway::with(&rules.replace("match = \"sensors/**\"", source)).await;
    for (gateway, query, values) in [
        (&gateway, "since=all", &["0", "1", "2", "3"][..]),
        (&gateway, "since=all&every=1s", &["0", "2", "3"]),
        (&late, "since=all", &["0", "2", "3"]),
    ] {
        let mut page = gateway.open(&format!("/topics/sensors/**?{query}")).await;
        page.expect("stream-open").await;
        assert_eq!(page.messages(values.len()).await, values, "{query}");
    }
    let mut page = gateway.open("/topics?topic=sensors/a/temp&topic=sensors/b/temp&last=1").await;
    page.expect("stream-open").await;
    let mut values = [page.message().await, page.message().await];
    values.sort();
    assert_eq!(values, ["2", "3"]);
    device.publish(json!({"topic": "sensors/b/temp", "payload": "4"})).await;
    assert_eq!(page.message().await, "4");
}
