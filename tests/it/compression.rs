//! `compress`: which clients receive a compressed stream, that it has the same events as any other stream, and the bytes
//! that it saves.

use std::time::Duration;

use crate::common::client::Reader;
use crate::common::eventually;
use crate::common::gateway::Gateway;
use crate::common::gunzip::Gunzip;
use crate::common::wire::{Wire, begun, dechunk, events, publish_all};
use serde_json::json;

const GZIP: (&str, &str) = ("accept-encoding", "gzip, deflate, br");

const RULE: &str = "[[topics]]\nmatch = \"**\"\nread = \"anyone\"\npublish = \"anyone\"\n";

/// A message of about 200 bytes, as applications send them: the names stay, the values change.
fn quote(number: usize) -> String {
    let noise = |factor: usize| number.wrapping_mul(factor) % 100_000;
    json!({
        "n": number, "symbol": (["EURUSD", "GBPUSD", "USDJPY"][number % 3]),
        "bid": format!("1.{:05}", noise(7919)), "ask": format!("1.{:05}", noise(104_729)), "volume": noise(15_485_863),
        "venue": "XETRA", "time": format!("2026-11-28T23:{:02}:{:02}.{:03}Z", noise(31) % 60, noise(37) % 60, noise(41) % 1000),
        "status": "open", "currency": "EUR",
    })
    .to_string()
}

/// The fields of the head that say whether a stream is compressed.
fn coding(reader: &Reader) -> (Option<String>, Vec<String>) {
    let all = |name| reader.headers.get_all(name).iter().map(|value| value.to_str().unwrap().to_owned());
    (all("content-encoding").next(), all("vary").collect())
}

#[tokio::test]
async fn a_stream_is_compressed_where_the_configuration_and_the_client_want_it() {
    let off = Gateway::start().await;
    let reader = Reader::open(off.address, "/topics/a", &[GZIP]).await;
    assert_eq!(coding(&reader), (None, vec!["origin, accept".to_owned()]), "off by default");

    let rules =
        "streams.compress = true\n[[topics]]\nmatch = \"secret/**\"\nread = \"anyone\"\ncompress = false\n";
    let gateway = Gateway::with(&format!("{rules}{RULE}")).await;
    let open = async |path: &str, accept: &str| {
        coding(&Reader::open(gateway.address, path, &[("accept-encoding", accept)]).await)
    };
    let is_gzip = async |path: &str| open(path, "gzip").await.0.is_some();
    for (accept, compressed) in [
        ("gzip", true),
        ("br, gzip;q=0.2", true),
        ("gzip;q=0", false),
        ("identity, gzip;q=0.5", false),
        ("br", false),
        ("", false),
    ] {
        let (coding, vary) = open("/topics/a", accept).await;
        assert_eq!(coding.as_deref(), compressed.then_some("gzip"), "{accept}");
        assert_eq!(vary, ["origin, accept-encoding, accept"], "{accept}");
    }
    assert!(!is_gzip("/topics/secret/1").await, "its rule says no");
    assert!(!is_gzip("/topics?topic=a&topic=secret/1").await, "one of its rules says no");
    assert!(is_gzip("/topics?topic=a&topic=b").await);
    let head = gateway.request("HEAD", "/topics/a", &[GZIP]).await;
    assert_eq!((head.header("content-encoding"), head.body.len()), ("gzip", 0));
    let refused = gateway.request("GET", "/topics/a%20b", &[GZIP]).await;
    assert_eq!(
        (refused.status, refused.header("content-encoding")),
        (400, ""),
        "only streams are compressed"
    );
    // A rule can also compress alone, and a reload counts for the streams that are opened after it.
    assert!(gateway.reload_with(&RULE.replace("read", "compress = true\nread")));
    assert!(is_gzip("/topics/a").await);
    assert!(gateway.reload_with(RULE));
    assert!(!is_gzip("/topics/a").await);
}

#[tokio::test]
async fn a_crowd_is_sent_less_than_a_third_of_the_bytes_and_a_few_readers_take_no_compressor() {
    const MESSAGES: usize = 500;
    let gateway = Gateway::with(&format!("streams.compress = true\n{RULE}replay.linger = \"0s\"\n")).await;
    let mut crowd = Vec::new();
    for _ in 0..40 {
        crowd.push(Wire::gzip(gateway.address, "/topics/a", None).await);
    }
    let mut few = [
        Reader::open(gateway.address, "/topics/few", &[GZIP]).await,
        Reader::open(gateway.address, "/topics/few", &[GZIP]).await,
    ];
    for wire in &mut crowd {
        wire.take(10_000).await;
    }
    for number in 0..MESSAGES {
        gateway.publish("a", quote(number)).await;
        gateway.publish("few", quote(number)).await;
    }
    for reader in &mut few {
        reader.expect("stream-open").await;
        assert_eq!(reader.messages(MESSAGES).await, (0..MESSAGES).map(quote).collect::<Vec<_>>());
    }
    for wire in &mut crowd {
        let events = loop {
            let plain = Gunzip::default().feed(&begun(&wire.body));
            if String::from_utf8_lossy(&plain).contains(&format!("\"n\":{},", MESSAGES - 1)) {
                break events(plain).await;
            }
            assert!(wire.take(1 << 16).await > 0);
        };
        let received: Vec<String> = events[1..].iter().map(|event| event.data.clone()).collect();
        assert_eq!(received, (0..MESSAGES).map(quote).collect::<Vec<_>>());
        let plain: usize =
            events.iter().map(|event| event.data.len() + event.id.len() + "id: \ndata: \n\n".len()).sum();
        assert!(wire.body.len() * 3 < plain, "{} of {plain} bytes", wire.body.len());
    }
    eventually("one topic is compressed", async || gateway.metric("topicgate_compressors").await == 1.0)
        .await;
    let (sent, saved) = (
        gateway.metric("topicgate_sent_bytes_total").await,
        gateway.metric("topicgate_saved_bytes_total").await,
    );
    assert!(saved > 1.8 * sent, "{saved} {sent}");
    drop(crowd);
    eventually("and no longer", async || gateway.metric("topicgate_compressors").await == 0.0).await;
}

#[tokio::test]
async fn heartbeats_gaps_and_the_close_are_part_of_the_compressed_stream() {
    let mut gateway =
        Gateway::compressing(&format!("streams.heartbeat = \"1s\"\n{RULE}replay = {{ messages = 3 }}\n"))
            .await;
    let mut readers = Vec::new();
    for path in ["/topics/a", "/topics/a", "/topics/a", "/topics/*", "/topics?topic=a&topic=b"] {
        let mut reader = Reader::open(gateway.address, path, &[GZIP]).await;
        assert_eq!(coding(&reader).0.as_deref(), Some("gzip"));
        reader.expect("stream-open").await;
        readers.push(reader);
    }
    let mut wire = Wire::gzip(gateway.address, "/topics/a", None).await;
    for round in 0..3 {
        for number in 0..70 {
            let payload = quote(100 * round + number);
            gateway.publish("a", &payload).await;
            for reader in &mut readers {
                assert_eq!(reader.message().await, payload);
            }
        }
        // A heartbeat for each of them.
        let before = begun_text(&wire).matches("\n:\n").count();
        while begun_text(&wire).matches("\n:\n").count() == before {
            assert!(wire.take(1 << 16).await > 0);
        }
    }
    let id = readers[0].last_id.clone();
    for number in 0..9 {
        gateway.publish("a", quote(number)).await;
    }
    let mut resumed = Reader::open(gateway.address, "/topics/a", &[GZIP, ("last-event-id", &id)]).await;
    assert_eq!(resumed.control("stream-open").await["resumed"], false);
    assert_eq!(resumed.control("stream-gap").await["reason"], "evicted");
    assert_eq!(resumed.messages(3).await, [quote(6), quote(7), quote(8)]);
    for reader in &mut readers {
        assert_eq!(reader.messages(9).await, (0..9).map(quote).collect::<Vec<_>>());
    }
    gateway.begin_to_stop();
    for reader in readers.iter_mut().chain([&mut resumed]) {
        assert_eq!(reader.control("stream-close").await["code"], "draining");
        assert_eq!(reader.next().await, None, "with the checksum of all of it");
    }
    let body = dechunk(wire.until_end().await);
    let mut gunzip = Gunzip::default();
    let plain = gunzip.feed(&body);
    assert!(gunzip.is_whole());
    assert_eq!(events(plain).await.len(), 1 + 3 * 70 + 9 + 1);
}

fn begun_text(wire: &Wire) -> String {
    String::from_utf8(Gunzip::default().feed(&begun(&wire.body))).unwrap()
}

#[tokio::test]
async fn a_reader_that_is_slow_within_a_compressed_stream_gets_whole_events_and_a_gap() {
    let gateway =
        Gateway::compressing(&format!("{RULE}replay = {{ messages = 10, bytes = \"2MiB\" }}\n")).await;
    let mut pacer = Reader::open(gateway.address, "/topics/a", &[GZIP]).await;
    pacer.expect("stream-open").await;
    let mut slow = Wire::gzip(gateway.address, "/topics/a", Some(4 * 1024)).await;
    // Data that does not compress, so that its socket is soon full.
    let mut rng = fastrand::Rng::with_seed(3);
    let noise = |rng: &mut fastrand::Rng| -> String { (0..100_000).map(|_| rng.alphanumeric()).collect() };
    let payloads: Vec<String> = (0..60).map(|number| format!("{number} {}", noise(&mut rng))).collect();
    for payload in &payloads {
        gateway.publish("a", payload).await;
        assert!(pacer.message().await == *payload);
    }
    gateway.publish("a", "last").await;
    while !begun_text(&slow).ends_with("data: last\n\n") {
        assert!(slow.take(1 << 20).await > 0);
    }
    let received = events(begun_text(&slow).into_bytes()).await;
    let gap = received.iter().position(|event| event.event == "stream-gap").expect("a gap");
    assert!(received[gap].data.contains("slow"), "{:?}", received[gap]);
    let numbers: Vec<usize> = received[1..]
        .iter()
        .filter(|event| event.event == "message" && event.data != "last")
        .map(|event| event.data.split_once(' ').unwrap().0.parse().unwrap())
        .collect();
    assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
    for (number, event) in numbers.iter().zip(received.iter().filter(|event| event.data.len() > 1000)) {
        assert!(event.data == payloads[*number], "{number} came otherwise than it was published");
    }
}

#[tokio::test]
async fn bursts_of_any_size_are_read_by_a_crowd_at_many_places() {
    let gateway =
        Gateway::compressing(&format!("{RULE}replay = {{ messages = 5000, bytes = \"64MiB\" }}\n")).await;
    let payloads: Vec<String> = (0..1500)
        .map(|number| if number % 97 == 0 { quote(number).repeat(400) } else { quote(number) })
        .collect();
    let mut readers = Vec::new();
    let mut expected = Vec::new();
    for (index, burst) in payloads.chunks(150).enumerate() {
        // Each burst finds readers that have just come, that read since long ago, and that resume.
        let since = if index % 2 == 0 { "" } else { "?last=40" };
        let mut reader = Reader::open(gateway.address, &format!("/topics/a{since}"), &[GZIP]).await;
        reader.expect("stream-open").await;
        readers.push(reader);
        let before = index * 150;
        let from = if index % 2 == 0 { before } else { before - 40 };
        expected.push(from);
        publish_all(gateway.address, "a", burst).await;
    }
    for (reader, from) in readers.iter_mut().zip(expected) {
        for payload in &payloads[from..] {
            assert!(reader.message().await == *payload, "not what was published");
        }
        reader.quiet(Duration::from_millis(1)).await;
    }
}
