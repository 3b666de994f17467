//! JetStream and buckets where something is unusual: markers, ids, header fields that cannot be read, streams that drop
//! early, streams that a rule cannot be read from.

use crate::common::gateway::Gateway;
use crate::common::jetstream::{DAMAGED, Kept, RawPublisher, start, stream, topic};
use crate::common::nats::NatsServer;
use serde_json::{Value, json};
use topicgate::internals::broker::BrokerError;
use topicgate::internals::protocol::headers::Headers;

const ORDERS: &str = "match = \"orders/**\"\nsource = \"jetstream\"\nstream = \"ORDERS\"";

fn rules(server: &NatsServer, rules: &[&str]) -> String {
    let rule = |keys: &&str| format!("[[topics]]\nread = \"anyone\"\npublish = \"anyone\"\n{keys}\n");
    format!("broker.url = \"{}\"\n{}", server.url(), rules.iter().map(rule).collect::<String>())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_marker_of_an_expired_subject_is_a_deletion_live_and_later() {
    let (server, admin) = start().await;
    let second = 1_000_000_000u64;
    let limits = json!({"max_age": second, "allow_msg_ttl": true, "subject_delete_marker_ttl": 60 * second});
    admin.stream("ORDERS", &["orders.>"], limits).await;
    let gateway = Gateway::with(&rules(&server, &[ORDERS])).await;
    let mut reader = gateway.open("/topics/orders/eu").await;
    reader.expect("stream-open").await;
    admin.put("orders.eu", "here").await;
    assert_eq!(reader.message().await, "here");
    let deleted = reader.control("stream-delete").await;
    assert_eq!(deleted, json!({"topic": "orders/eu", "operation": "delete"}));
    // As another gateway reads it from the stream.
    let other = Gateway::with(&rules(&server, &[ORDERS])).await;
    let mut late = other.open("/topics/orders/eu?since=all").await;
    late.expect("stream-open").await;
    assert_eq!(late.control("stream-delete").await, deleted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_id_of_an_envelope_is_the_publishers_and_the_event_id_the_streams() {
    let (server, admin) = start().await;
    admin.stream("ORDERS", &["orders.>"], json!({})).await;
    let gateway = Gateway::with(&rules(&server, &[ORDERS])).await;
    let mut reader = gateway.open("/topics/orders/eu?format=cloudevents").await;
    reader.expect("stream-open").await;
    admin.put_with("orders.eu", &[("Nats-Msg-Id", "o-17")], "1").await;
    admin.put("orders.eu", "2").await;
    let mut envelopes = Vec::new();
    for _ in 0..2 {
        let event = reader.expect("message").await;
        let envelope: Value = serde_json::from_str(&event.data).unwrap();
        assert!(reader.last_id.ends_with(&format!("-{}", envelopes.len() + 1)), "{}", reader.last_id);
        envelopes.push((envelope["id"].clone(), reader.last_id.clone()));
    }
    assert_eq!(envelopes[0].0, "o-17");
    assert_eq!(envelopes[1].0, json!(envelopes[1].1));
}

/// A message as a reader receives it: the event id has its position, the data its payload.
fn number(id: &str) -> u64 {
    id.rsplit('-').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_with_unreadable_header_fields_loses_only_these_fields() {
    let (server, admin) = start().await;
    admin.stream("ORDERS", &["orders.>"], json!({})).await;
    admin.stream("STOCK", &["stock.>"], json!({})).await;
    let stock = "match = \"stock/**\"\nsource = \"jetstream\"";
    let config = rules(&server, &[ORDERS, stock]);
    let gateway = Gateway::with(&config).await;
    let mut reader = gateway.open("/topics/orders/eu").await;
    let first = number(&reader.expect("stream-open").await.id);
    let mut other = gateway.open("/topics/stock/x").await;
    other.expect("stream-open").await;
    let mut publisher = RawPublisher::connect(server.port()).await;
    let mut expected = Vec::new();
    // One after the other, and among others.
    for round in 0..40 {
        let block = DAMAGED[round % DAMAGED.len()];
        publisher.publish("orders.eu", block, &format!("damaged {round}")).await;
        expected.push(format!("damaged {round}"));
        if round % 3 == 0 {
            admin.put_with("orders.eu", &[("Event-Type", "message")], format!("whole {round}")).await;
            expected.push(format!("whole {round}"));
        }
        admin.put("stock.x", round.to_string()).await;
        gateway.publish("stock/x", format!("posted {round}")).await;
    }
    for (index, payload) in expected.iter().enumerate() {
        let event = reader.expect("message").await;
        assert_eq!((event.data.as_str(), number(&event.id)), (payload.as_str(), first + 1 + index as u64));
    }
    for round in 0..40 {
        assert_eq!(other.messages(2).await, [round.to_string(), format!("posted {round}")]);
    }
    assert_eq!(gateway.metric("topicgate_rejected_total{what=\"header\"}").await, 40.0);
    assert_eq!(gateway.metric("topicgate_upstream_losses_total").await, 0.0);
    // The past is the same at a gateway that was not there.
    let late = Gateway::with(&config).await;
    let mut all = late.open("/topics/orders/**?since=all").await;
    all.expect("stream-open").await;
    assert_eq!(all.messages(expected.len()).await, expected);
    let mut last = late.open("/topics/orders/eu?last=7").await;
    last.expect("stream-open").await;
    assert_eq!(last.messages(7).await, expected[expected.len() - 7..]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stored_message_cannot_pose_as_the_end_of_the_history() {
    let (server, admin) = start().await;
    for direct in [true, false] {
        admin.stream("ORDERS", &["orders.>"], json!({"allow_direct": direct})).await;
        let mut publisher = RawPublisher::connect(server.port()).await;
        let posing: [&[u8]; 4] = [
            b"NATS/1.0 404 No Messages\r\n\r\n",
            b"NATS/1.0 204 EOB\r\nNats-Num-Pending: 0\r\n\r\n",
            b"NATS/1.0 100 Idle Heartbeat\r\n\r\n",
            b"NATS/1.0\r\nNats-Sequence: 99\r\nNats-Subject: orders.us\r\nNats-Num-Pending: 0\r\n\r\n",
        ];
        let gateway = Gateway::with(&rules(&server, &[ORDERS])).await;
        let mut live = gateway.open("/topics/orders/eu").await;
        live.expect("stream-open").await;
        let mut expected = Vec::new();
        for (index, block) in posing.iter().enumerate() {
            publisher.publish("orders.eu", block, &format!("posing {index}")).await;
            admin.put("orders.eu", format!("after {index}")).await;
            expected.extend([format!("posing {index}"), format!("after {index}")]);
        }
        assert_eq!(live.messages(8).await, expected, "direct: {direct}");
        let late = Gateway::with(&rules(&server, &[ORDERS])).await;
        let mut reader = late.open("/topics/orders/eu?since=all").await;
        reader.expect("stream-open").await;
        assert_eq!(reader.messages(8).await, expected, "direct: {direct}");
        admin.delete("ORDERS").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_with_unreadable_header_fields_is_in_the_snapshot_of_its_bucket() {
    let (server, admin) = start().await;
    for history in [1, 5] {
        admin.bucket("PRICES", json!({"max_msgs_per_subject": history})).await;
        let mut publisher = RawPublisher::connect(server.port()).await;
        for (index, block) in DAMAGED.iter().enumerate() {
            publisher.publish(&format!("$KV.PRICES.k{index}"), block, &format!("v{index}")).await;
        }
        let prices = "match = \"prices/**\"\nsource = \"kv\"\nbucket = \"PRICES\"";
        let gateway = Gateway::with(&rules(&server, &[prices])).await;
        let mut reader = gateway.open("/topics/prices/**").await;
        reader.expect("stream-open").await;
        let expected: Vec<String> = (0..DAMAGED.len()).map(|index| format!("v{index}")).collect();
        assert_eq!(reader.messages(DAMAGED.len()).await, expected);
        admin.delete("KV_PRICES").await;
    }
}

/// Reads until `last`. Returns the messages, and between which of them there was a gap.
async fn read_until(reader: &mut crate::common::client::Reader, last: u64) -> (Vec<u64>, Vec<u64>) {
    let (mut read, mut gaps) = (Vec::new(), Vec::new());
    while read.last() != Some(&last) {
        let event = reader.next().await.unwrap();
        match event.event.as_str() {
            "message" => read.push(event.data.parse().unwrap()),
            "stream-gap" => gaps.push(read.last().copied().unwrap_or(0)),
            other => panic!("{other}"),
        }
    }
    (read, gaps)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loss_of_a_stream_that_drops_early_is_noticed_by_a_narrower_rule() {
    for settings in [
        json!({"max_msgs_per_subject": 1}),
        json!({"max_msgs_per_subject": 5}),
        json!({"max_msgs": 1}),
        json!({"max_bytes": 400}),
        json!({"allow_rollup_hdrs": true}),
    ] {
        let (server, admin) = start().await;
        admin.stream("ALL", &["orders.>", "stock.>"], settings.clone()).await;
        let rule = "match = \"orders/**\"\nsource = \"jetstream\"\nstream = \"ALL\"";
        let gateway = Gateway::with(&rules(&server, &[rule])).await;
        let mut reader = gateway.open("/topics/orders/eu").await;
        reader.expect("stream-open").await;
        let rollup = settings["allow_rollup_hdrs"] == true;
        // Bursts, with others between them.
        for number in 1..=300u64 {
            let mut fields = async_nats::HeaderMap::new();
            if rollup {
                fields.append("Nats-Rollup", "sub");
            }
            let payload = number.to_string().into();
            admin.client.publish_with_headers("orders.eu", fields, payload).await.unwrap();
            admin.client.publish("stock.x", number.to_string().into()).await.unwrap();
            if number % 100 == 0 {
                admin.put("stock.y", "").await;
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
        // Until one comes through: the last may be dropped too.
        let mut last = 300;
        let (read, gaps) = loop {
            last += 1;
            admin.put("orders.eu", last.to_string()).await;
            match tokio::time::timeout(std::time::Duration::from_secs(20), read_until(&mut reader, last))
                .await
            {
                Ok(told) => break told,
                Err(_) => assert!(last < 310, "{settings}: nothing comes"),
            }
        };
        let mut before = 0;
        for number in &read {
            let missing = *number > before + 1;
            assert!(*number > before, "{settings}: {number} after {before}");
            assert!(!missing || gaps.contains(&before), "{settings}: {number} after {before} without a gap");
            before = *number;
        }
        // A calm stream has no gap.
        for number in last + 1..last + 20 {
            admin.put("orders.eu", number.to_string()).await;
            assert_eq!(reader.expect("message").await.data, number.to_string(), "{settings}");
        }
    }
}

/// The refusal that a reader with `text/event-stream` receives instead of a stream, and how fast.
async fn refused(gateway: &Gateway, topic: &str) -> String {
    let begin = std::time::Instant::now();
    let mut reader = gateway.open(&format!("/topics/{topic}")).await;
    let close = reader.control("stream-close").await;
    assert!(begin.elapsed().as_secs() < 5, "it took {:?}", begin.elapsed());
    close["code"].as_str().unwrap().to_owned()
}

/// The reasons that the console shows.
async fn reasons(gateway: &Gateway) -> String {
    gateway.ask_admin("GET", "/state", &[]).await.json()["broker"]["refused"].to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_stream_is_refused_at_once_and_found_when_it_exists() {
    let (server, admin) = start().await;
    admin.stream("OTHER", &["other.>"], json!({})).await;
    let prices = "match = \"prices/**\"\nsource = \"kv\"\nbucket = \"PRICES\"";
    let unnamed = "match = \"unnamed/**\"\nsource = \"jetstream\"";
    let gateway = Gateway::with(&rules(&server, &[ORDERS, prices, unnamed])).await;
    for topic in ["orders/eu", "prices/eur", "unnamed/x"] {
        assert_eq!(refused(&gateway, topic).await, "refused", "{topic}");
    }
    let why = reasons(&gateway).await;
    for words in ["ORDERS", "PRICES", "unnamed.>", "OTHER"] {
        assert!(why.contains(words), "{words}: {why}");
    }
    assert!(gateway.ready().await.is_ok(), "it serves what there is, and says what is missing");
    admin.stream("ORDERS", &["orders.>"], json!({})).await;
    admin.bucket("PRICES", json!({})).await;
    for topic in ["orders/eu", "prices/eur"] {
        crate::common::eventually("it is found", async || {
            let mut reader = gateway.open(&format!("/topics/{topic}")).await;
            reader.next().await.is_some_and(|event| event.event == "stream-open")
        })
        .await;
    }
    crate::common::eventually("nothing is said of it", async || {
        !reasons(&gateway).await.contains("orders/**")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_cannot_serve_the_rule_is_refused_with_the_reason() {
    for (settings, words) in [
        (json!({"retention": "workqueue"}), "retention"),
        (json!({"retention": "interest"}), "retention"),
        (json!({"consumer_limits": {"inactive_threshold": 1_000_000_000u64}}), "inactive"),
        (json!({"subjects": ["stock.>"]}), "stock.>"),
        (json!({"subject_transform": {"src": "orders.>", "dest": "stored.>"}}), "stored.>"),
    ] {
        let (server, admin) = start().await;
        admin.stream("ORDERS", &["orders.>"], settings.clone()).await;
        let gateway = Gateway::with(&rules(&server, &[ORDERS])).await;
        assert_eq!(refused(&gateway, "orders/eu").await, "refused", "{settings}");
        let why = reasons(&gateway).await;
        assert!(why.contains(words), "{settings}: {why}");
    }
    let (server, admin) = start().await;
    admin.stream("ORDERS", &["orders.>"], json!({"max_consumers": 1})).await;
    let first = Gateway::with(&rules(&server, &[ORDERS])).await;
    first.open("/topics/orders/eu").await.expect("stream-open").await;
    let second = Gateway::with(&rules(&server, &[ORDERS])).await;
    assert_eq!(refused(&second, "orders/eu").await, "refused");
    assert!(reasons(&second).await.contains("consumers"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_post_that_no_stream_confirms_or_no_reader_gets_is_refused_and_stored_once_at_most() {
    let (server, admin) = start().await;
    admin.stream("ORDERS", &["orders.>"], json!({"no_ack": true})).await;
    let gateway = Gateway::with(&rules(&server, &[ORDERS])).await;
    let begin = std::time::Instant::now();
    let response = gateway.post("/topics/orders/eu", "1").await;
    assert_eq!(response.status, 502, "{}", response.text());
    assert!(begin.elapsed().as_secs() < 5);
    let held = admin.tell("STREAM.INFO.ORDERS", json!({})).await;
    assert_eq!(held["state"]["messages"], 0);
    admin.delete("ORDERS").await;
    let renaming = json!({"subject_transform": {"src": "orders.>", "dest": "stored.>"}});
    admin.stream("ORDERS", &["orders.>"], renaming).await;
    crate::common::eventually("it is refused", async || {
        gateway.post("/topics/orders/eu", "1").await.status == 502
    })
    .await;
    assert_eq!(admin.tell("STREAM.INFO.ORDERS", json!({})).await["state"]["messages"], 0);
    // A mirror takes no messages, and its origin has none of the subjects that only the mirror has.
    admin.stream("ORIGIN", &["made.>"], json!({})).await;
    let renaming = json!({"name": "ORIGIN", "subject_transforms": [{"src": "made.>", "dest": "copied.>"}]});
    let selecting = json!({"name": "ORIGIN", "subject_transforms": [{"src": "made.>", "dest": "made.>"}]});
    admin.stream("COPY", &[], json!({"mirror": renaming})).await;
    admin.stream("PART", &[], json!({"mirror": selecting})).await;
    let source = |topic: &str, stream: &str| {
        format!("match = \"{topic}/**\"\nsource = \"jetstream\"\nstream = \"{stream}\"")
    };
    let gateway = Gateway::with(&rules(&server, &[&source("copied", "COPY"), &source("made", "PART")])).await;
    let response = gateway.post("/topics/copied/eu", "1").await;
    assert_eq!(response.status, 502, "{}", response.text());
    assert_eq!(gateway.post("/topics/made/eu", "1").await.status, 202);
    let mut reader = gateway.open("/topics/copied/eu?since=all").await;
    reader.expect("stream-open").await;
    assert_eq!(reader.message().await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_post_under_a_subject_that_no_stream_takes_is_refused_with_the_reason() {
    let (server, admin) = start().await;
    admin.stream("OTHER", &["other.>"], json!({})).await;
    let renaming = json!({"subject_transform": {"src": "in.>", "dest": "stored.>"}});
    admin.stream("RENAMES", &["in.>"], renaming).await;
    admin.stream("COPIES", &[], json!({"sources": [{"name": "OTHER"}]})).await;
    admin.stream("GONE", &["gone.>"], json!({})).await;
    admin.stream("MIRROR", &[], json!({"mirror": {"name": "GONE"}})).await;
    admin.delete("GONE").await;
    let cases = [
        ("orders", "OTHER", "has no subjects of orders.eu; it has other.>"),
        ("stored", "RENAMES", "has no subjects of stored.eu; it has in.>"),
        ("other2", "COPIES", "has no subjects of other2.eu; it only copies other streams"),
        ("gone", "MIRROR", "is a mirror, and no stream has subjects of gone.eu"),
    ];
    let rule = |(topic, stream, _): &(&str, &str, &str)| {
        format!("match = \"{topic}/**\"\nsource = \"jetstream\"\nstream = \"{stream}\"")
    };
    let all: Vec<String> = cases.iter().map(rule).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let (gateway, kept) = (Gateway::with(&rules(&server, &all)).await, Kept::connect(&server.url()));
    for (name, stored_in, words) in cases {
        let response = gateway.post(&format!("/topics/{name}/eu"), "1").await;
        let code = response.json()["code"].clone();
        assert_eq!((response.status, code.as_str()), (502, Some("broker_refused")), "{stored_in}");
        let (name, source) = (topic(&format!("{name}/eu")), stream(stored_in));
        // What the gateway logs.
        let refused = kept.broker.publish(name, source, "1".into(), Headers::default()).await;
        assert!(
            matches!(&refused, Err(BrokerError::Refused(why)) if why.contains(words)),
            "{words}: {refused:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_of_a_bucket_has_the_keys_of_its_origin() {
    let (server, admin) = start().await;
    admin.bucket("PRICES", json!({})).await;
    admin.put("$KV.PRICES.eur", "1").await;
    for (name, origin) in [("KV_COPY", "KV_PRICES"), ("KV_COPY2", "KV_COPY")] {
        let config = json!({
            "name": name, "mirror": {"name": origin}, "retention": "limits", "storage": "file", "discard": "new",
            "max_msgs_per_subject": 1, "allow_direct": true, "mirror_direct": true, "num_replicas": 1,
            "max_consumers": -1, "max_msgs": -1, "max_bytes": -1, "max_age": 0,
        });
        admin.tell(&format!("STREAM.CREATE.{name}"), config).await;
    }
    let rule =
        |bucket: &str, at: &str| format!("match = \"{at}/**\"\nsource = \"kv\"\nbucket = \"{bucket}\"");
    let (copy, second) = (rule("COPY", "copy"), rule("COPY2", "second"));
    let gateway = Gateway::with(&rules(&server, &[&copy, &second])).await;
    for at in ["copy", "second"] {
        // The mirror takes it in a moment later.
        let mut reader = crate::common::found("the value is there", crate::common::LIMIT, async || {
            let mut reader = gateway.open(&format!("/topics/{at}/**")).await;
            reader.expect("stream-open").await;
            let next = tokio::time::timeout(std::time::Duration::from_secs(1), reader.next()).await;
            next.ok().flatten().map(|_| reader)
        })
        .await;
        admin.put("$KV.PRICES.eur", format!("2 {at}")).await;
        let mut last = reader.message().await;
        while last != format!("2 {at}") {
            last = reader.message().await;
        }
        gateway.publish(&format!("{at}/eur"), format!("3 {at}")).await;
        assert_eq!(reader.message().await, format!("3 {at}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_aggregate_of_buckets_is_read_if_its_keys_are_named_for_it_and_refused_otherwise() {
    let (server, admin) = start().await;
    admin.bucket("PRICES", json!({})).await;
    admin.put("$KV.PRICES.eur", "1").await;
    let renamed =
        json!([{"name": "KV_PRICES", "subject_transforms": [{"src": "$KV.PRICES.>", "dest": "$KV.GOOD.>"}]}]);
    admin.bucket("GOOD", json!({"sources": renamed})).await;
    admin.bucket("BAD", json!({"sources": [{"name": "KV_PRICES"}]})).await;
    let rule =
        |bucket: &str, at: &str| format!("match = \"{at}/**\"\nsource = \"kv\"\nbucket = \"{bucket}\"");
    let (good, bad) = (rule("GOOD", "good"), rule("BAD", "bad"));
    let gateway = Gateway::with(&rules(&server, &[&good, &bad])).await;
    crate::common::found("the value is there", crate::common::LIMIT, async || {
        let mut reader = gateway.open("/topics/good/eur").await;
        reader.expect("stream-open").await;
        tokio::time::timeout(std::time::Duration::from_secs(1), reader.next()).await.ok()?
    })
    .await;
    assert_eq!(refused(&gateway, "bad/eur").await, "refused");
    assert!(reasons(&gateway).await.contains("subject transform"));
}
