//! Real clients through the gateway from real brokers: Chromium, npm `eventsource` and undici read difficult payloads as
//! they were sent or as documented, and resume after a cut with nothing missing.

use crate::common::browser::Client;
use crate::common::gateway::Gateway;
use crate::common::proxy::Proxy;
use crate::common::upstream::Upstream;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

const CLIENTS: [&str; 3] = ["chromium", "eventsource", "undici"];

#[derive(Deserialize)]
struct Payloads {
    payloads: Vec<Payload>,
}

#[derive(Deserialize)]
struct Payload {
    name: String,
    base64: Text,
    raw: Text,
}

/// A text, or one many times over.
#[derive(Deserialize)]
#[serde(untagged)]
enum Text {
    Once(String),
    Often { repeat: String, times: usize },
}

impl Text {
    fn expand(&self) -> String {
        match self {
            Text::Once(text) => text.clone(),
            Text::Often { repeat, times } => repeat.repeat(*times),
        }
    }

    fn decode(&self) -> Vec<u8> {
        match self {
            Text::Once(text) => STANDARD.decode(text).unwrap(),
            Text::Often { repeat, times } => STANDARD.decode(repeat).unwrap().repeat(*times),
        }
    }
}

/// With these settings; compressed, if that is so.
async fn gateway(settings: &str, is_compressed: bool) -> Gateway {
    if is_compressed { Gateway::compressing(settings).await } else { Gateway::with(settings).await }
}

async fn every_client_gets_hard_payloads(upstream: Upstream, is_compressed: bool) {
    let text = include_str!("../clients/payloads.json");
    let Payloads { payloads } = serde_json::from_str(text).unwrap();
    assert!(payloads.len() >= 22, "{}", payloads.len());
    // 256 KiB payloads of many lines grow as frames; the buffer is no part of this test.
    let settings = format!("{}replay = {{ bytes = \"64MiB\" }}\n", upstream.toml());
    let gateway = gateway(&settings, is_compressed).await;
    let mut clients = Vec::new();
    for name in CLIENTS {
        clients.push((name, Client::open(name, gateway.address, "/topics/hard").await));
    }
    for payload in &payloads {
        upstream.publish("hard", payload.base64.decode()).await;
    }
    for (client, reader) in &mut clients {
        for payload in &payloads {
            let event = reader.message().await;
            // Compared without printing 256 KiB of it.
            assert!(event.data == payload.raw.expand(), "{client}: {}: {:.300?}", payload.name, event.data);
        }
    }
    for (_, client) in clients {
        client.close().await;
    }
    let saved = gateway.metric("topicgate_saved_bytes_total").await;
    assert_eq!(saved > 0.0, is_compressed, "all of them accept gzip");
}

#[tokio::test]
async fn chromium_and_two_libraries_get_hard_payloads_from_nats() {
    every_client_gets_hard_payloads(Upstream::nats().await, false).await;
}

#[tokio::test]
async fn chromium_and_two_libraries_get_hard_payloads_from_redis() {
    every_client_gets_hard_payloads(Upstream::redis().await, false).await;
}

#[tokio::test]
async fn chromium_and_two_libraries_get_hard_payloads_that_are_compressed() {
    every_client_gets_hard_payloads(Upstream::nats().await, true).await;
}

/// Where the first connections of a client are cut: within `stream-open`, and at and inside messages, and one within the
/// head. That one ends with RST: Chromium takes a head that ends with FIN for a whole one, whatever is missing of it.
fn cut_after(connection: usize) -> usize {
    [521, 40, 330, 700, 903, 1117][connection]
}

async fn clients_that_are_cut_off_resume(upstream: Upstream, is_compressed: bool) {
    const MESSAGES: usize = 400;
    let settings = format!("{}[streams]\nretry = \"500ms\"\n", upstream.toml());
    let gateway = gateway(&settings, is_compressed).await;
    let mut readers = Vec::new();
    for name in CLIENTS {
        // The first of all connections brings the client up; those after it are cut.
        let proxy = Proxy::start(gateway.address, 6, cut_after).await;
        let client = Client::open(name, proxy.address, "/topics/numbers").await;
        readers.push((name, client, proxy));
    }
    let publisher = tokio::spawn(async move {
        for number in 0..MESSAGES {
            upstream.publish("numbers", number.to_string()).await;
            tokio::time::sleep(std::time::Duration::from_millis(10)).await; // so that the cuts fall among them
        }
        upstream
    });
    for (name, reader, proxy) in &mut readers {
        for number in 0..MESSAGES {
            assert_eq!(reader.message().await.data, number.to_string(), "{name}");
        }
        assert!(proxy.cuts() >= 4, "{name} was cut {} times", proxy.cuts());
    }
    publisher.await.unwrap();
    for (_, client, _) in readers {
        client.close().await;
    }
}

#[tokio::test]
async fn chromium_and_two_libraries_lose_nothing_of_nats_when_cut_off() {
    clients_that_are_cut_off_resume(Upstream::nats().await, false).await;
}

#[tokio::test]
async fn chromium_and_two_libraries_lose_nothing_of_redis_when_cut_off() {
    clients_that_are_cut_off_resume(Upstream::redis().await, false).await;
}

#[tokio::test]
async fn chromium_and_two_libraries_lose_nothing_that_is_compressed_when_cut_off() {
    clients_that_are_cut_off_resume(Upstream::nats().await, true).await;
}

#[tokio::test]
async fn the_page_of_the_embedded_broker_publishes_and_shows_the_messages() {
    let gateway = Gateway::start().await;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/page.mjs");
    let url = format!("http://{}/", gateway.address);
    let output = tokio::process::Command::new("node").args([script, &url]).output().await.unwrap();
    let (shown, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && shown.starts_with("hello from the form"), "{shown}{errors}");
}
