//! Client addresses take turns: one that requests many stored messages, or many answers of the backend, delays nobody
//! else.

use std::net::SocketAddr;
use std::time::Instant;

use crate::common::backend::{Backend, Reply};
use crate::common::client::Reader;
use crate::common::eventually;
use crate::common::gateway::Gateway;
use crate::common::jetstream::Admin;
use crate::common::nats::NatsServer;
use serde_json::json;
use tokio::net::{TcpSocket, TcpStream};

/// A connection from another address of this machine.
async fn from(last: u8, gateway: &Gateway) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, last], 0))).unwrap();
    socket.connect(gateway.address).await.unwrap()
}

const TOPICS: usize = 40;
const MESSAGES: usize = 64;
const BYTES: usize = 2 * 1024;

/// A stream with messages of which the gateway holds none, and one that may fetch 64 KiB a second for an address.
async fn with_a_history() -> (NatsServer, Gateway) {
    let nats = NatsServer::jetstream();
    let admin = Admin::connect(&nats.url()).await;
    admin.stream("ORDERS", &["orders.>"], json!({})).await;
    let payload = "x".repeat(BYTES);
    for topic in 0..=TOPICS {
        admin.put_many(&format!("orders.{topic}"), 0..MESSAGES as u64, &payload).await;
    }
    let rule =
        "[[topics]]\nmatch = \"orders/*\"\nread = \"anyone\"\nsource = \"jetstream\"\nstream = \"ORDERS\"\n";
    let limits = "limits = { resume_bytes = \"64KiB\" }\n";
    let gateway = Gateway::with(&format!("broker.url = \"{}\"\n{limits}{rule}", nats.url())).await;
    (nats, gateway)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fetches_for_one_address_are_paced_and_do_not_delay_another_address() {
    let (_nats, gateway) = with_a_history().await;
    let begin = Instant::now();
    let mut greedy = vec![];
    for topic in 0..TOPICS {
        let mut reader = gateway.open(&format!("/topics/orders/{topic}?since=all")).await;
        reader.expect("stream-open").await;
        greedy.push(reader);
    }
    let mut modest =
        Reader::over(from(2, &gateway).await, &format!("/topics/orders/{TOPICS}?since=all"), &[]).await;
    modest.expect("stream-open").await;
    assert_eq!(modest.messages(MESSAGES).await.len(), MESSAGES);
    let fetched = gateway.metric("topicgate_recalled_bytes_total").await;
    // Five seconds' worth at once, what has come since, what was fetched at once before any of it counted, and the other's.
    let part = (MESSAGES * BYTES) as f64;
    let allowed = 65536.0 * (5.0 + begin.elapsed().as_secs_f64()) + 9.0 * part + part;
    assert!(fetched <= allowed, "{fetched} of {allowed}");
    assert!(fetched < part * TOPICS as f64, "the others wait still");
    eventually("the waiting requests are counted", async || {
        gateway.metric("topicgate_limit_met_total{limit=\"resume_bytes\"}").await >= 1.0
    })
    .await;
    // They miss nothing for that.
    assert_eq!(greedy[0].messages(MESSAGES).await.len(), MESSAGES);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_no_reader_waits_for_any_more_are_not_fetched() {
    let (_nats, gateway) = with_a_history().await;
    for topic in 0..TOPICS {
        gateway.open(&format!("/topics/orders/{topic}?since=all")).await.expect("stream-open").await;
    }
    let waiting = async || gateway.metric("topicgate_limit_used{limit=\"lookups\"}").await;
    let mut modest =
        Reader::over(from(2, &gateway).await, &format!("/topics/orders/{TOPICS}?since=all"), &[]).await;
    modest.expect("stream-open").await;
    modest.messages(MESSAGES).await;
    eventually("nothing is in line", async || waiting().await == 0.0).await;
    let fetched = gateway.metric("topicgate_recalls_total{result=\"fetched\"}").await;
    assert!(fetched < TOPICS as f64, "{fetched}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_take_turns_for_questions_to_the_backend_and_the_one_with_most_questions_loses_one() {
    let backend = Backend::start(|_| Reply::status(200).held()).await;
    let rule = "[[topics]]\nmatch = \"**\"\nread = \"token\"\n";
    let settings = "concurrency = 1\ntimeout = \"20s\"";
    let forward = format!("[auth.forward]\nurl = \"{}\"\n{settings}\n", backend.url("/"));
    let gateway = Gateway::with(&format!("{forward}{rule}")).await;
    let address = gateway.address;
    let mut readers = vec![];
    for n in 0..30 {
        readers.push(tokio::spawn(async move {
            let cookie = format!("session={n}");
            drop(Reader::ask(address, "/topics/a", &[("cookie", &cookie)]).await);
        }));
    }
    let busy = async || gateway.metric("topicgate_forward_questions_total{outcome=\"busy\"}").await;
    // One is asked, sixteen wait, and the others found no place in line.
    eventually("the line is full", async || busy().await == 13.0).await;
    let socket = from(2, &gateway).await;
    let other = tokio::spawn(async move {
        let mut reader = Reader::over(socket, "/topics/a", &[("cookie", "session=other")]).await;
        reader.expect("stream-open").await;
    });
    eventually("the newest of the first gives way", async || busy().await == 14.0).await;
    backend.release(3);
    other.await.unwrap();
    assert!(backend.count() <= 4, "it waited for the one that was asked, and for one other");
    readers.iter().for_each(|reader| reader.abort());
}
