//! Header fields that cannot be read: nats-server passes on any bytes that a publisher wrote. Only these fields are lost.

use crate::common::eventually;
use crate::common::gateway::Gateway;
use crate::common::nats::{NatsServer, RawPublisher, UNREADABLE};

const RULES: &str = "[[topics]]\nmatch = \"**\"\nread = \"anyone\"\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fields_that_cannot_be_read_cost_neither_their_message_nor_another_topic() {
    let server = NatsServer::start();
    let gateway = Gateway::with(&format!("broker.url = {:?}\n{RULES}", server.url())).await;
    let mut odd = gateway.open("/topics/odd").await;
    let mut all = gateway.open("/topics/**").await;
    let mut numbers = gateway.open("/topics/numbers").await;
    for reader in [&mut odd, &mut all, &mut numbers] {
        reader.expect("stream-open").await;
    }
    let mut publisher = RawPublisher::connect(server.port()).unwrap();
    for (number, block) in UNREADABLE.iter().enumerate() {
        publisher.publish("odd", block, format!("odd {number}").as_bytes()).unwrap();
        publisher.publish("numbers", b"", number.to_string().as_bytes()).unwrap();
    }
    // Of these one line is lost, and the others are read.
    let partly = b"NATS/1.0\r\nX: caf\xe9\r\nEvent-Type: price\r\nno colon\r\nNats-Msg-Id: seven\r\n\r\n";
    publisher.publish("odd", partly, b"partly").unwrap();
    // A status is no field, and its description is not for readers.
    publisher.publish("odd", b"NATS/1.0 503 No Responders\r\n\r\n", b"status").unwrap();
    publisher.flush().unwrap();
    for number in 0..UNREADABLE.len() {
        assert_eq!(odd.message().await, format!("odd {number}"));
        assert_eq!(numbers.message().await, number.to_string());
        assert_eq!(all.message().await, format!("odd {number}"));
        assert_eq!(all.message().await, number.to_string());
    }
    let event = odd.next().await.unwrap();
    assert_eq!((event.event.as_str(), event.data.as_str()), ("price", "partly"));
    assert!(event.id.ends_with("-seven"), "{}", event.id);
    assert_eq!(odd.message().await, "status");
    let damaged = (UNREADABLE.len() + 1) as f64;
    // The pattern and the topic have a log each.
    let counted = "topicgate_rejected_total{what=\"header\"}";
    eventually("they are counted", async || gateway.metric(counted).await == 2.0 * damaged).await;
    assert_eq!(gateway.metric("topicgate_gaps_total{reason=\"broker\"}").await, 0.0);
    assert_eq!(gateway.metric("topicgate_upstream_losses_total").await, 0.0);
}
