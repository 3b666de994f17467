//! The recipes of docs/recipes.md, and the one of docs/security.md that contains a program, exactly as printed.

use crate::common::browser::Page;
use crate::common::client::{self, Reader};
use crate::common::document::blocks;
use crate::common::eventually;
use crate::common::gateway::Gateway;
use crate::common::ports::free_port;
use crate::common::redis::RedisServer;
use tokio::net::TcpStream;
use tokio::process::Command;

const SECURITY: &str = include_str!("../../docs/security.md");

const RECIPES: &str = include_str!("../../docs/recipes.md");

#[tokio::test]
async fn the_backend_of_the_document_lets_its_users_in_and_nobody_else() {
    let heading = "A session cookie and a backend";
    let (program, toml) = (blocks(SECURITY, heading, "js"), blocks(SECURITY, heading, "toml"));
    let port = free_port().to_string();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("backend.mjs");
    std::fs::write(&file, program[0].replace("3000", &port)).unwrap();
    let mut backend = Command::new("node").arg(&file).kill_on_drop(true).spawn().unwrap();
    let address = format!("127.0.0.1:{port}");
    eventually("the backend listens", async || TcpStream::connect(&address).await.is_ok()).await;

    // Without what is about the machine: listeners, certificates, the broker.
    let about_access =
        |table: &&str| ["[auth", "[cors", "[[topics"].iter().any(|name| table.starts_with(name));
    let access: Vec<&str> = toml[0].split("\n\n").filter(about_access).collect();
    assert_eq!(access.len(), 4, "{access:?}");
    let gateway = Gateway::with(&access.join("\n\n").replace("3000", &port)).await;

    let alice = [("cookie", "theme=dark; session=5f0c9d1b")];
    for topic in ["orders/eu", "orders/**", "users/alice/inbox", "users/alice/**"] {
        let mut reader = Reader::open(gateway.address, &format!("/topics/{topic}"), &alice).await;
        reader.expect("stream-open").await;
    }
    for topic in ["users/bob/inbox", "users/*/inbox", "users/*/**"] {
        let answer = gateway.request("GET", &format!("/topics/{topic}"), &alice).await;
        assert_eq!(answer.status, 403, "{topic}: {}", answer.text());
    }
    for cookie in ["", "session=", "session=5f0c9d1c", "xsession=5f0c9d1b"] {
        let answer = gateway.request("GET", "/topics/orders/eu", &[("cookie", cookie)]).await;
        assert_eq!(answer.status, 401, "{cookie}: {}", answer.text());
    }
    for topic in ["elsewhere", "users/**"] {
        let answer = gateway.request("GET", &format!("/topics/{topic}"), &alice).await;
        assert_eq!(answer.status, 404, "{topic}: {}", answer.text());
    }

    backend.kill().await.unwrap();
    let mut reader = Reader::open(gateway.address, "/topics/orders/us", &alice).await;
    assert_eq!(reader.control("stream-close").await["reconnect"], true);
}

/// The block in `language` of a recipe.
fn block(heading: &str, language: &str) -> String {
    let found = blocks(RECIPES, heading, language);
    assert_eq!(found.len(), 1, "the blocks of {language} under {heading}");
    found.into_iter().next().unwrap()
}

/// A recipe whose messages come from Redis: a server, a gateway with the recipe's configuration, and the page.
struct RedisRecipe {
    server: RedisServer,
    gateway: Gateway,
    heading: &'static str,
}

impl RedisRecipe {
    async fn start(heading: &'static str) -> Self {
        let server = RedisServer::start();
        let toml = block(heading, "toml").replace("redis://127.0.0.1:6379", &server.url());
        let gateway = Gateway::with(&toml).await;
        RedisRecipe { server, gateway, heading }
    }

    async fn page(&self) -> Page {
        Page::open(self.gateway.address, &block(self.heading, "html")).await
    }

    /// Runs a command of the recipe with other values.
    async fn publish(&self, channel: &str, payload: &str) {
        assert!(RECIPES.contains(&format!("PUBLISH {channel} ")), "the recipe publishes on another channel");
        let mut publish = redis::cmd("PUBLISH");
        publish.arg(channel).arg(payload).exec_async(&mut self.server.connect().await).await.unwrap();
    }

    async fn is_read(&self, channel: &str) {
        eventually("the page reads", async || self.server.channel_subscribers(channel).await == 1).await;
    }
}

#[tokio::test]
async fn a_page_has_the_state_and_every_change_since_it_was_read() {
    let heading = "State and stream";
    let gateway = Gateway::with(&block(heading, "toml")).await;
    let port = free_port().to_string();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("server.mjs");
    let program = block(heading, "js").replace("127.0.0.1:8080", &gateway.address.to_string());
    std::fs::write(&file, program.replace("3000", &port)).unwrap();
    let _server = Command::new("node").arg(&file).kill_on_drop(true).spawn().unwrap();
    let server: std::net::SocketAddr = format!("127.0.0.1:{port}").parse().unwrap();
    eventually("the server listens", async || TcpStream::connect(server).await.is_ok()).await;

    let html = client::request(server, "GET", "/", &[], b"").await.text();
    assert!(html.contains("packed"), "{html}");
    // While the page is on its way to the browser.
    client::request(server, "POST", "/", &[], b"shipped").await;
    let mut page = Page::open(gateway.address, &html).await;
    page.shows("#status", "shipped").await;
    page.shows("#live", "live").await;
    client::request(server, "POST", "/", &[], b"delivered").await;
    page.shows("#status", "delivered").await;
}

#[tokio::test]
async fn laravel_echo_reads_the_broadcasts_of_laravel() {
    let recipe = RedisRecipe::start("Laravel").await;
    let mut page = recipe.page().await;
    page.shows("#status", "subscribed").await;
    let payload = r#"{"event":"OrderShipped","data":{"id":42,"carrier":"Sea & Co"},"socket":null}"#;
    recipe.publish("orders.42", payload).await;
    page.shows("#status", "order 42 is with Sea & Co").await;
}

#[tokio::test]
async fn turbo_acts_on_the_broadcasts_of_rails() {
    let recipe = RedisRecipe::start("Rails and Turbo").await;
    let mut page = recipe.page().await;
    recipe.is_read("shop_production:messages").await;
    for text in ["one", "two"] {
        let html = format!(
            r#""\u003cturbo-stream action=\"append\" target=\"messages\"\u003e\n\u003ctemplate\u003e\u003cp\u003e{text}\u003c/p\u003e\u003c/template\u003e\u003c/turbo-stream\u003e""#
        );
        recipe.publish("shop_production:messages", &html).await;
    }
    page.shows("#messages", "onetwo").await;
}

#[tokio::test]
async fn datastar_merges_fragments() {
    let recipe = RedisRecipe::start("Datastar").await;
    let mut page = recipe.page().await;
    recipe.is_read("games:7").await;
    for score in ["2 : 1", "3 : 1"] {
        let payload = format!(
            r#"{{"event":"datastar-merge-fragments","data":"fragments <b id=\"score\">{score}</b>"}}"#
        );
        recipe.publish("games:7", &payload).await;
        page.shows("#score", score).await;
    }
}

#[tokio::test]
async fn a_page_follows_a_job_to_its_end_and_one_that_comes_late_sees_the_end() {
    let heading = "The progress of a job";
    let gateway = Gateway::with(&block(heading, "toml")).await;
    let html = block(heading, "html");
    let mut page = Page::open(gateway.address, &html).await;
    let streams = async || gateway.metric("topicgate_streams{http=\"1.1\"}").await;
    eventually("the page reads", async || streams().await == 1.0).await;
    gateway.publish("jobs/7", r#"{"done":40,"of":100}"#).await;
    page.shows("#state", "40 of 100").await;
    let answer = gateway.post("/topics/jobs/7?end=true", r#"{"done":100,"of":100}"#).await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    page.shows("#state", "100 of 100, complete").await;
    let mut late = Page::open(gateway.address, &html).await;
    late.shows("#state", "100 of 100, complete").await;
    // One that does not look at stream-close: the browser comes back once, and stops.
    let plain = html.replace("stream-close", "not-listened-to");
    let mut plain = Page::open(gateway.address, &plain.replace("const source", "var source")).await;
    plain.shows("#state", "100 of 100").await;
    eventually("the browser has stopped", async || plain.run("source.readyState").await == 2).await;
    assert_eq!(gateway.metric("topicgate_resumes_total{outcome=\"ended\"}").await, 1.0);
}

/// The back end of examples/answer, in which a function writes answers to a Redis Stream.
async fn answering(redis: &RedisServer) -> (tokio::process::Child, std::net::SocketAddr) {
    let port = free_port();
    let mut node = Command::new("node");
    node.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/answer/server.mjs")).kill_on_drop(true);
    node.env("REDIS", redis.url()).env("PORT", port.to_string());
    let child = node.spawn().unwrap();
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    eventually("the back end listens", async || TcpStream::connect(address).await.is_ok()).await;
    (child, address)
}

#[tokio::test]
async fn the_ai_sdk_reads_an_answer_while_it_is_written_and_afterwards() {
    let redis = RedisServer::start();
    let toml = include_str!("../../examples/answer/topicgate.toml");
    let gateway = Gateway::with(&toml.replace("redis://127.0.0.1:6379", &redis.url())).await;
    let (_backend, address) = answering(&redis).await;
    let asked = client::request(address, "POST", "/ask", &[], br#"{"question":"Tea?"}"#).await;
    let id = serde_json::from_str::<serde_json::Value>(&asked.text()).unwrap();
    let id = id["id"].as_str().unwrap();
    let recipe = block("An AI answer with the AI SDK", "html");
    let html = recipe.replace("chatId: \"7\"", &format!("chatId: \"{id}\""));
    let mut page = Page::open(gateway.address, &html).await;
    for is_written in [false, true] {
        if is_written {
            page.reload().await;
        }
        page.shows("#state", "complete").await;
        let answer = page.run("document.querySelector('#answer').textContent").await;
        let answer = answer.as_str().unwrap();
        assert!(
            answer.starts_with("Cold tea is still tea. It loses") && answer.ends_with("in the glass."),
            "{answer}"
        );
    }
    // It takes the answer to a cursor at the end for "there is nothing to resume".
    let number = {
        let mut last = redis::cmd("XREVRANGE");
        last.arg(format!("answers:{id}")).arg("+").arg("-").arg("COUNT").arg(1);
        let found: Vec<(String, Vec<String>)> = last.query_async(&mut redis.connect().await).await.unwrap();
        found[0].0.clone()
    };
    let path = format!("/topics/answers/{id}?control=none&last_event_id={number}");
    assert_eq!(gateway.get(&path).await.status, 204);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dashboard_shows_a_thousand_sensors_and_skips_intermediate_values() {
    let recipe = RedisRecipe::start("A dashboard of 1,000 sensors").await;
    eventually("the rule is warm", async || recipe.server.patterns().await == 1).await;
    let mut redis = recipe.server.connect().await;
    let mut page = recipe.page().await;
    let mut all = redis::pipe();
    for (celsius, sensor) in (0..20).flat_map(|celsius| (0..1_000).map(move |sensor| (celsius, sensor))) {
        let payload = format!(r#"{{"sensor":{sensor},"celsius":{celsius}}}"#);
        all.publish(format!("sensors:{sensor}"), payload);
    }
    all.exec_async(&mut redis).await.unwrap();
    page.shows("#sensors tr:nth-child(1000) td:nth-child(2)", "19").await;
    page.shows("#sensors tr:nth-child(1) td:nth-child(2)", "19").await;
    let sent = recipe.gateway.metric("topicgate_events_sent_total").await;
    assert!(sent < 15_000.0, "{sent} of 20,000 messages were sent");
    assert_eq!(recipe.gateway.metric("topicgate_gaps_total{reason=\"slow\"}").await, 0.0);
}
