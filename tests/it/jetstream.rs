//! JetStream as a stored source: the second half of the contract of `broker`, against a real server.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use crate::common::document::blocks;
use crate::common::jetstream::{Admin, Kept, filter, seq, stream, topic, value};
use crate::common::nats::NatsServer;
use crate::common::{LIMIT, eventually, within};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use topicgate::internals::broker::{BrokerError, Change, Event, Link};
use topicgate::internals::protocol::headers::Headers;
use topicgate::internals::protocol::seek::{Seek, SeekResult};
use topicgate::internals::protocol::source::Source;

async fn start() -> (NatsServer, Admin, Kept) {
    let server = NatsServer::jetstream();
    let admin = Admin::connect(&server.url()).await;
    let kept = Kept::connect(&server.url());
    (server, admin, kept)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_have_the_numbers_and_times_of_the_stream() {
    let (_server, admin, mut kept) = start().await;
    admin.stream("ORDERS", &["orders.>", "other"], json!({})).await;
    admin.put("orders.eu", "before").await;
    let (_, head) = kept.follow("orders/**", &stream("ORDERS")).await;
    assert_eq!(head, 1);
    let before = SystemTime::now() - Duration::from_secs(1);
    admin.put_with("orders.eu", &[("Nats-Msg-Id", "a"), ("type", "new")], "one").await;
    admin.put("other", "not asked for").await;
    admin.put("orders.us.7", "two").await;
    let first = kept.message().await;
    let stored = first.stored.unwrap();
    assert_eq!((stored.number.get(), stored.change), (2, Change::Put));
    assert!(stored.time > before && stored.time < SystemTime::now() + Duration::from_secs(1));
    assert_eq!(value(&first), ("orders/eu".into(), "one".into()));
    assert_eq!(first.filter, filter("orders/**"));
    assert_eq!((first.headers.get("nats-msg-id"), first.headers.get("type")), (Some("a"), Some("new")));
    let second = kept.message().await;
    assert_eq!((second.stored.unwrap().number.get(), value(&second).0), (4, "orders/us/7".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_replica_sends_the_same_ids() {
    let (server, admin, mut one) = start().await;
    admin.stream("ORDERS", &["orders.>"], json!({})).await;
    let mut two = Kept::connect(&server.url());
    let (tag, head) = one.follow("orders/**", &stream("ORDERS")).await;
    admin.put("orders.eu", "a").await;
    let (other_tag, other_head) = two.follow("orders/**", &Source::JetStream { stream: None }).await;
    assert_eq!(tag, other_tag);
    assert_eq!((head, other_head), (0, 1));
    let last = admin.put_many("orders.us", 0..100, "").await;
    assert_eq!(one.message().await.stored.unwrap().number.get(), 1);
    let (told, other) = (one.read_until(1, last).await, two.read_until(1, last).await);
    assert_eq!(told.values(), other.values());
    assert_eq!(told.numbers(), other.numbers());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_found_by_its_subjects_or_the_refusal_names_the_key_to_set() {
    let (_server, admin, mut kept) = start().await;
    let found = Source::JetStream { stream: None };
    let refused = async |kept: &Kept, text: &str, source: &Source| match kept
        .broker
        .subscribe(filter(text), source.clone())
        .await
    {
        Err(BrokerError::Refused(why)) => why,
        other => panic!("{other:?}"),
    };
    let why = refused(&kept, "orders/**", &found).await;
    assert!(why.contains("no stream has subjects of orders.>"), "{why}");
    let why = refused(&kept, "orders/**", &stream("ORDERS")).await;
    assert!(
        why.contains("the stream \"ORDERS\" does not exist") && why.contains("nats stream add ORDERS"),
        "{why}"
    );
    admin.stream("EU", &["orders.eu"], json!({})).await;
    admin.stream("US", &["orders.us"], json!({})).await;
    let why = refused(&kept, "orders/**", &found).await;
    assert!(why.contains("several streams") && why.contains("EU") && why.contains("US"), "{why}");
    admin.stream("WORK", &["work.>"], json!({"retention": "workqueue"})).await;
    let why = refused(&kept, "work/**", &found).await;
    assert!(why.contains("retention must be limits"), "{why}");
    let why = refused(&kept, "work/a.b", &found).await;
    assert!(why.contains("dot"), "{why}");
    // Each of them may be asked again once it is put right.
    kept.follow("orders/eu", &found).await;
    admin.put("orders.eu", "x").await;
    assert_eq!(kept.message().await.stored.unwrap().number.get(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stored_topics_open_no_connection_until_one_is_needed() {
    let (server, admin, mut kept) = start().await;
    admin.stream("ORDERS", &["orders.>"], json!({})).await;
    let ours = || server.subscriptions().len();
    eventually("the connection for publish/subscribe is there", async || ours() == 1).await;
    kept.follow("orders/**", &stream("ORDERS")).await;
    assert_eq!(ours(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscriptions_continue_after_the_server_was_killed() {
    let (mut server, admin, mut kept) = start().await;
    admin.stream("ORDERS", &["orders.>"], json!({})).await;
    kept.follow("orders/**", &stream("ORDERS")).await;
    let mut after = 0;
    for round in 1..4 {
        let last = admin.put_many("orders.eu", round * 100..round * 100 + 50, "").await;
        if round == 2 {
            kept.read_until(after, last).await;
            after = last;
        }
        server.stop();
        let away = kept.broker.fetch(filter("orders/**"), stream("ORDERS"), seq(0), seq(1));
        let away = within("an answer", LIMIT, away).await;
        assert!(matches!(away, Err(BrokerError::Away(_))), "{away:?}");
        server.restart();
        let last = admin.put_until_stored("orders.eu", "back").await;
        let told = kept.read_until(after, last).await;
        assert_eq!(told.gone, [], "round {round}");
        assert_eq!(told.numbers(), (after + 1..=last).collect::<Vec<_>>());
        after = last;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_connection_reports_when_it_is_up_and_down() {
    let (mut server, admin, mut kept) = start().await;
    admin.stream("ORDERS", &["orders.>"], json!({})).await;
    kept.broker.subscribe(filter("orders/**"), stream("ORDERS")).await.unwrap();
    let mut next = async |expected: &str| loop {
        match within(expected, LIMIT, kept.events.recv()).await.unwrap() {
            Event::Up(Link::Stored) => break "up",
            Event::Down { link: Link::Stored, .. } => break "down",
            _ => {}
        }
    };
    assert_eq!(next("up").await, "up");
    server.stop();
    assert_eq!(next("down").await, "down");
    server.restart();
    loop {
        if next("up again").await == "up" {
            break; // it may have had several reasons to be down
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_takes_nothing_from_a_reader_that_has_read_everything() {
    let (_server, admin, mut kept) = start().await;
    admin.stream("ORDERS", &["orders.>", "other"], json!({})).await;
    for text in ["orders/**", "**"] {
        kept.follow(text, &stream("ORDERS")).await;
    }
    for _ in 0..2 {
        admin.put("orders.eu", "x").await;
        let read = (kept.message().await, kept.message().await);
        assert_eq!(read.0.stored, read.1.stored);
        admin.purge("ORDERS").await;
    }
    // Longer than it takes until the consumers are asked how far they have read.
    let silence = tokio::time::timeout(Duration::from_secs(4), kept.next()).await;
    assert!(silence.is_err(), "{silence:?}");
    admin.put("orders.eu", "after").await;
    assert_eq!(
        (
            kept.message().await.stored.unwrap().number.get(),
            kept.message().await.stored.unwrap().number.get()
        ),
        (3, 3)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_waited_for_the_next_request_and_were_purged_are_a_gap() {
    let server = NatsServer::jetstream();
    let admin = Admin::connect(&server.url()).await;
    admin.stream("ORDERS", &["orders.>", "other"], json!({})).await;
    let mut kept = Kept::with_room_for(&server.url(), 4);
    let (_, head) = kept.follow("orders/**", &stream("ORDERS")).await;
    // Nothing of it is taken. One by one, so that each is delivered before the next is there, until all that was requested
    // has been delivered: no message says that others wait.
    for _ in 0..1200 {
        admin.put("orders.eu", "x").await;
    }
    admin.purge("ORDERS").await;
    let end = admin.put("orders.eu", "end").await;
    let told = kept.read_until(head, end).await;
    assert_eq!(told.gone.len(), 1, "{} of 1200 messages came", told.numbers().len() - 1);
    assert_eq!(told.gone[0].1, end - 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_purged_before_they_are_read_are_a_gap_in_their_place() {
    let server = NatsServer::jetstream();
    let admin = Admin::connect(&server.url()).await;
    admin.stream("ORDERS", &["orders.>", "other"], json!({})).await;
    for (text, subject) in [("orders/**", "orders.eu"), ("**", "orders.eu")] {
        let mut kept = Kept::with_room_for(&server.url(), 4);
        let (_, head) = kept.follow(text, &stream("ORDERS")).await;
        // Nothing of it is taken: some of it is with us by now, the rest is not.
        let last = admin.put_many(subject, 0..3000, "").await;
        admin.purge("ORDERS").await;
        let end = admin.put(subject, "end").await;
        let told = kept.read_until(head, end).await;
        assert_eq!(told.gone.len(), 1, "{text}: {:?}, numbers {:?}", told.gone, told.numbers().len());
        let (from, through) = told.gone[0];
        assert_eq!((told.gone.len(), through), (1, last), "{text}: {:?}", told.gone);
        let expected: Vec<_> = (head + 1..=from).chain([end]).collect();
        assert_eq!(told.numbers(), expected, "{text}");
        assert!(from < last, "the channel was too large for this test");
    }
}

/// Whether or not another message comes, whose number would show it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_waited_for_the_next_request_and_were_purged_are_a_gap_without_another_message() {
    const ASKED_FOR: u64 = 500;
    let server = NatsServer::jetstream();
    let admin = Admin::connect(&server.url()).await;
    for has_another in [true, false] {
        admin.stream("ORDERS", &["orders.>", "other"], json!({})).await;
        let mut kept = Kept::with_room_for(&server.url(), 4);
        kept.follow("orders/**", &stream("ORDERS")).await;
        for number in 0..ASKED_FOR {
            admin.put("orders.eu", number.to_string()).await;
        }
        eventually("all that was asked for is delivered", async || {
            let consumers = admin.tell("CONSUMER.LIST.ORDERS", json!({})).await;
            consumers["consumers"][0]["delivered"]["consumer_seq"] == ASKED_FOR
        })
        .await;
        let last = admin.put_many("orders.eu", ASKED_FOR..2 * ASKED_FOR, "").await;
        admin.purge("ORDERS").await;
        let end = if has_another { admin.put("orders.eu", "end").await } else { last };
        let told = kept.read_until(0, end).await;
        assert_eq!(told.gone, [(ASKED_FOR, last)]);
        // What follows is not suspected any more.
        let next = admin.put("orders.eu", "next").await;
        assert_eq!(kept.message().await.stored.unwrap().number.get(), next);
        admin.tell("STREAM.DELETE.ORDERS", json!({})).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_of_unread_messages_is_noticed_without_another_message() {
    let server = NatsServer::jetstream();
    let admin = Admin::connect(&server.url()).await;
    admin.stream("ORDERS", &["orders.>", "other"], json!({})).await;
    for text in ["orders/**", "**"] {
        let mut kept = Kept::with_room_for(&server.url(), 4);
        let (_, head) = kept.follow(text, &stream("ORDERS")).await;
        let last = admin.put_many("orders.eu", 0..3000, "").await;
        admin.purge("ORDERS").await;
        let told = kept.read_until(head, last).await;
        assert_eq!(told.gone.len(), 1, "{text}: {:?}", told.gone);
        assert_eq!(told.gone[0].1, last, "{text}");
    }
}

/// A way to a server that can be shut and opened again.
struct Door {
    address: SocketAddr,
    to: SocketAddr,
    passing: Option<tokio::task::JoinHandle<()>>,
}

impl Door {
    async fn open(to: SocketAddr) -> Self {
        let mut door = Door { address: "127.0.0.1:0".parse().unwrap(), to, passing: None };
        door.reopen().await;
        door
    }

    async fn reopen(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        let to = self.to;
        self.address = listener.local_addr().unwrap();
        self.passing = Some(tokio::spawn(async move {
            let mut passing = tokio::task::JoinSet::new();
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                passing.spawn(async move {
                    let mut server = TcpStream::connect(to).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                });
            }
        }));
    }

    async fn shut(&mut self) {
        let passing = self.passing.take().unwrap();
        passing.abort();
        let _ = passing.await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_one_subject_purged_during_an_outage_are_a_gap() {
    let server = NatsServer::jetstream();
    let admin = Admin::connect(&server.url()).await;
    admin.stream("ORDERS", &["orders.>", "other"], json!({})).await;
    let mut door = Door::open(SocketAddr::from(([127, 0, 0, 1], server.port()))).await;
    let mut kept = Kept::connect(&format!("nats://{}", door.address));
    let (_, head) = kept.follow("orders/**", &stream("ORDERS")).await;
    admin.put("orders.eu", "1").await;
    assert_eq!(kept.read_until(head, 1).await.numbers(), [1]);
    // What is not of the filter alone comes while the way is shut: nothing is lost.
    door.shut().await;
    admin.put("other", "2").await;
    door.reopen().await;
    let last = admin.put_until_stored("orders.eu", "3").await;
    let told = kept.read_until(1, last).await;
    assert_eq!((told.numbers(), told.gone), (vec![last], vec![]));
    // Then what is: and it is purged, with something of others before and behind it that is held.
    door.shut().await;
    admin.put("other", "").await;
    let gone = admin.put("orders.eu", "unread").await;
    admin.put("other", "").await;
    admin.tell("STREAM.PURGE.ORDERS", json!({"filter": "orders.>"})).await;
    door.reopen().await;
    let told = kept.read_until(last, gone).await;
    assert_eq!((told.numbers(), told.gone.len()), (vec![], 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_falls_behind_the_limits_of_the_stream_receives_a_gap() {
    let server = NatsServer::jetstream();
    let admin = Admin::connect(&server.url()).await;
    admin.stream("ORDERS", &["orders.>"], json!({"max_msgs": 500})).await;
    let mut kept = Kept::with_room_for(&server.url(), 4);
    let (_, head) = kept.follow("orders/**", &stream("ORDERS")).await;
    let last = admin.put_many("orders.eu", 0..5000, "").await;
    let told = kept.read_until(head, last).await;
    assert!(!told.gone.is_empty());
    let covered = |number| told.gone.iter().any(|(from, through)| number > *from && number <= *through);
    for number in head + 1..=last {
        assert_ne!(told.messages.contains_key(&number), covered(number), "{number}: {:?}", told.gone);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleting_a_stream_ends_its_subscriptions() {
    let (_server, admin, mut kept) = start().await;
    admin.stream("ORDERS", &["orders.>"], json!({})).await;
    let (tag, _) = kept.follow("orders/**", &stream("ORDERS")).await;
    admin.put("orders.eu", "x").await;
    kept.message().await;
    admin.delete("ORDERS").await;
    let ended = kept.next().await;
    assert!(
        matches!(&ended, Event::Ended { filter: ended, .. } if *ended == filter("orders/**")),
        "{ended:?}"
    );
    let refused = kept.broker.subscribe(filter("orders/**"), stream("ORDERS")).await;
    assert!(matches!(refused, Err(BrokerError::Refused(_))), "{refused:?}");
    admin.stream("ORDERS", &["orders.>"], json!({})).await;
    let (other, head) = kept.follow("orders/**", &stream("ORDERS")).await;
    assert_ne!(tag, other);
    assert_eq!(head, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_created_again_has_another_tag() {
    let (mut server, admin, mut kept) = start().await;
    admin.stream("ORDERS", &["orders.>"], json!({})).await;
    let (tag, _) = kept.follow("orders/**", &stream("ORDERS")).await;
    admin.put("orders.eu", "x").await;
    kept.message().await;
    // In one go, with as many messages as before.
    admin.delete("ORDERS").await;
    admin.stream("ORDERS", &["orders.>"], json!({})).await;
    admin.put("orders.eu", "y").await;
    let ended = kept.next().await;
    assert!(matches!(&ended, Event::Ended { .. }), "{ended:?}");
    let (other, head) = kept.follow("orders/**", &stream("ORDERS")).await;
    assert_ne!(tag, other);
    assert_eq!(head, 1);
    // The same history keeps its tag when its server comes back.
    server.restart();
    let last = admin.put_until_stored("orders.eu", "z").await;
    kept.read_until(head, last).await;
    let (same, _) = Kept::connect(&server.url()).follow("orders/**", &stream("ORDERS")).await;
    assert_eq!(other, same);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ended_subscription_is_silent_and_leaves_no_consumer() {
    let (_server, admin, mut kept) = start().await;
    admin.stream("ORDERS", &["orders.>"], json!({})).await;
    for round in 0..3 {
        let (_, head) = kept.follow("orders/**", &stream("ORDERS")).await;
        // To follow it twice is to follow it once.
        kept.broker.subscribe(filter("orders/**"), stream("ORDERS")).await.unwrap();
        assert_eq!(admin.consumers("ORDERS").await, 1);
        admin.put_many("orders.eu", 0..200, "").await;
        assert_eq!(kept.message().await.stored.unwrap().number.get(), head + 1);
        assert!(kept.broker.try_unsubscribe(filter("orders/**"), &stream("ORDERS")));
        eventually("the consumer is gone", async || admin.consumers("ORDERS").await == 0).await;
        while let Ok(event) = kept.events.try_recv() {
            assert!(matches!(event, Event::Message(_) | Event::Up(_)), "{event:?}");
        }
        admin.put("orders.eu", format!("unheard {round}")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subject_that_is_no_topic_is_reported_and_counted_as_read() {
    let (_server, admin, mut kept) = start().await;
    admin.stream("ORDERS", &["orders.>"], json!({})).await;
    kept.follow("orders/**", &stream("ORDERS")).await;
    admin.put("orders.a/b", "x").await;
    admin.put("orders.eu", "y").await;
    let event = kept.next().await;
    assert!(matches!(event, Event::Unnameable { .. }), "{event:?}");
    assert_eq!(kept.message().await.stored.unwrap().number.get(), 2);
    assert_eq!(kept.fetch_all("orders/**", &stream("ORDERS"), 0, 2).await.numbers(), [2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishing_returns_the_number_or_the_reason() {
    let server = NatsServer::jetstream_with("max_payload: 2048");
    let (admin, mut kept) = (Admin::connect(&server.url()).await, Kept::connect(&server.url()));
    admin.stream("ORDERS", &["orders.>"], json!({"max_msg_size": 1024})).await;
    let found = Source::JetStream { stream: None };
    kept.follow("orders/**", &stream("ORDERS")).await;
    let store = async |name: &str, source: &Source, payload: Vec<u8>, headers: Headers| {
        kept.broker
            .publish(topic(name), source.clone(), payload.into(), headers)
            .await
            .map(|number| number.expect("a number"))
    };
    let mut headers = Headers::default();
    headers.insert("type", "new");
    for (number, source) in [(1, &stream("ORDERS")), (2, &found)] {
        let stored = store("orders/eu", source, b"x".to_vec(), headers.clone()).await;
        assert_eq!(stored.map(|stored| stored.number.get()), Ok(number));
    }
    for (name, source, size, words) in [
        ("orders/eu", stream("OTHER"), 1, "subjects of orders.eu are in ORDERS"),
        ("nobody/takes/this", found.clone(), 1, "no stream has subjects of nobody.takes.this"),
        ("nobody/takes/this", stream("OTHER"), 1, "the stream \"OTHER\" does not exist"),
        ("orders/a.b", found.clone(), 1, "dot"),
    ] {
        let refused = store(name, &source, vec![b'x'; size], Headers::default()).await;
        assert!(
            matches!(&refused, Err(BrokerError::Refused(why)) if why.contains(words)),
            "{words}: {refused:?}"
        );
    }
    for (size, words) in [(1500, "max_msg_size"), (4000, "at most 2048")] {
        let refused = store("orders/eu", &found, vec![b'x'; size], Headers::default()).await;
        assert!(
            matches!(&refused, Err(BrokerError::TooLarge(why)) if why.contains(words)),
            "{words}: {refused:?}"
        );
    }
    assert_eq!(kept.message().await.headers.get("type"), Some("new"));
    assert_eq!(kept.message().await.stored.unwrap().number.get(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_without_jetstream_says_so() {
    let server = NatsServer::start();
    let kept = Kept::connect(&server.url());
    let away = kept.broker.subscribe(filter("orders/**"), stream("ORDERS")).await.unwrap_err();
    assert!(away.to_string().contains("is it enabled"), "{away}");
}

/// The application's user may do everything, the gateway's what docs/security.md says, word for word.
fn narrow() -> String {
    let permissions = &blocks(include_str!("../../docs/security.md"), "JetStream and buckets", "conf")[0];
    format!(
        "accounts {{ APP {{ jetstream: enabled, users = [ {{ user: app, password: app }}\n\
         {{ user: topicgate, password: pass, {permissions} }} ] }} }}"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_narrow_user_is_enough() {
    let server = NatsServer::jetstream_with(&narrow());
    let options = async_nats::ConnectOptions::with_user_and_password("app".into(), "app".into());
    let admin = Admin { client: options.connect(server.url()).await.unwrap() };
    for direct in BOTH {
        admin.stream("ORDERS", &["orders.>"], json!({"allow_direct": direct})).await;
        let mut kept = Kept::connect(&server.url().replace("//", "//topicgate:pass@"));
        let source = Source::JetStream { stream: None };
        let (_, head) = kept.follow("orders/**", &source).await;
        let store = async |name| {
            kept.broker
                .publish(topic(name), stream("ORDERS"), "x".into(), Headers::default())
                .await
                .map(|number| number.expect("a number"))
        };
        let first = store("orders/in/eu").await.unwrap().number.get();
        let second = store("orders/in/eu").await.unwrap().number.get();
        let denied = store("orders/out").await;
        assert!(matches!(&denied, Err(BrokerError::Refused(why)) if why.contains("Violation")), "{denied:?}");
        assert_eq!(kept.read_until(head, second).await.numbers(), [first, second]);
        let past = kept.fetch_all("orders/in/*", &source, 0, second).await;
        assert_eq!((past.numbers(), past.gone.len()), (vec![first, second], 0));
        for place in [Seek::Last(1), Seek::Since(SystemTime::now())] {
            kept.locate("orders/**", &source, place).await;
        }
        assert!(kept.broker.try_unsubscribe(filter("orders/**"), &stream("ORDERS")));
        eventually("no consumer is left", async || admin.consumers("ORDERS").await == 0).await;
        admin.delete("ORDERS").await;
    }
    // The server reports commands without permission; only the publication above is one.
    let refused: Vec<_> =
        server.log().lines().filter(|line| line.contains("Violation")).map(str::to_owned).collect();
    assert_eq!(refused.len(), 2, "{refused:#?}");
}

/// With Direct Get, and without it as on servers before 2.11.
const BOTH: [bool; 2] = [true, false];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stored_messages_are_fetched_in_parts_exactly_as_they_were_delivered_live() {
    let (_server, admin, mut kept) = start().await;
    for direct in BOTH {
        let name = if direct { "DIRECT" } else { "OLD" };
        let (eu, us) = (format!("{name}.eu"), format!("{name}.us"));
        admin.stream(name, &[&format!("{name}.>")], json!({"allow_direct": direct})).await;
        let source = stream(name);
        let whole = format!("{name}/**");
        let (_, head) = kept.follow(&whole, &source).await;
        for round in 0..30 {
            admin
                .put_with(&eu, &[("Nats-Msg-Id", &format!("{round}")), ("Nats-Stream", "forged")], "eu")
                .await;
            admin.put_many(&us, round * 100..round * 100 + 99, "us").await;
        }
        let last = admin.put(&eu, vec![b'x'; 300_000]).await;
        let told = kept.read_until(head, last).await;
        let fetched = kept.fetch_all(&whole, &source, 0, last).await;
        assert_eq!((&fetched.gone, &told.gone), (&vec![], &vec![]));
        assert!(fetched.parts > 3, "at most {} at once", topicgate::internals::broker::FETCH_MESSAGES);
        for ((number, live), past) in told.messages.iter().zip(fetched.messages.values()) {
            assert_eq!((live.stored, &live.topic, &live.payload), (past.stored, &past.topic, &past.payload));
            assert_eq!(live.headers, past.headers, "{number}");
        }
        assert_eq!(told.numbers(), fetched.numbers());
        // A part of it, in the middle and of one topic.
        let some = kept.fetch_all(&whole, &source, 10, 20).await;
        assert_eq!(some.numbers(), (11..=20).collect::<Vec<_>>());
        let one = kept.fetch_all(&format!("{name}/eu"), &source, 0, last - 1).await;
        assert_eq!(one.numbers(), (0..30).map(|round| round * 100 + 1).collect::<Vec<_>>());
        assert_eq!((one.gone.len(), one.parts), (0, 1));
        // Nothing there, which is not to say that anything is gone.
        let none = kept.fetch_all(&format!("{name}/nothing"), &source, 0, last).await;
        assert_eq!((none.messages.len(), none.gone.len(), none.parts), (0, 0, 1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_the_stream_no_longer_holds_are_a_gap_before_those_it_holds() {
    let (_server, admin, kept) = start().await;
    for direct in BOTH {
        let name = if direct { "DIRECT" } else { "OLD" };
        let (eu, whole) = (format!("{name}.eu"), format!("{name}/**"));
        let config = json!({"allow_direct": direct, "max_msgs": 10});
        admin.stream(name, &[&format!("{name}.>")], config).await;
        let source = stream(name);
        let last = admin.put_many(&eu, 0..30, "").await;
        let told = kept.fetch_all(&whole, &source, 5, last).await;
        assert_eq!((&told.gone[..], told.numbers()), (&[(5, 20)][..], (21..=30).collect()));
        // The whole requested range is gone.
        let told = kept.fetch_all(&whole, &source, 5, 15).await;
        assert_eq!((&told.gone[..], told.numbers().len()), (&[(5, 15)][..], 0));
        admin.purge(name).await;
        let told = kept.fetch_all(&whole, &source, 25, last).await;
        assert_eq!((&told.gone[..], told.numbers().len()), (&[(25, 30)][..], 0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_were_taken_out_of_the_middle_are_a_gap_in_their_place() {
    let (_server, admin, kept) = start().await;
    for direct in BOTH {
        let name = if direct { "DIRECT" } else { "OLD" };
        let whole = format!("{name}/**");
        admin.stream(name, &[&format!("{name}.>")], json!({"allow_direct": direct})).await;
        let source = stream(name);
        for number in 1..=20 {
            admin.put(&format!("{name}.{}", number % 2), number.to_string()).await;
        }
        for number in [5, 6, 11] {
            admin.tell(&format!("STREAM.MSG.DELETE.{name}"), json!({"seq": number})).await;
        }
        // The messages before the first hole, then a gap that stands for both.
        let told = kept.fetch_all(&whole, &source, 0, 20).await;
        assert_eq!(told.gone, [(4, 6)], "{name}");
        assert!(
            kept.fetch(&whole, &source, 4, 20).await.torn,
            "a reader that begins after the gap would miss 11 silently"
        );
        let expected: Vec<u64> = (1..=20).filter(|number| ![5, 6, 11].contains(number)).collect();
        assert_eq!(told.numbers(), expected);
        assert!(!kept.fetch(&whole, &source, 9, 20).await.torn);
        // From where nothing is missing.
        let told = kept.fetch_all(&whole, &source, 11, 20).await;
        assert_eq!((told.gone.len(), told.numbers().len()), (0, 9));
        // Messages of one subject are purged; a reader of the other one loses nothing.
        admin.tell(&format!("STREAM.PURGE.{name}"), json!({"filter": format!("{name}.0"), "seq": 17})).await;
        let told = kept.fetch_all(&format!("{name}/0"), &source, 4, 20).await;
        assert_eq!((&told.gone[..], told.numbers()), (&[(4, 17)][..], vec![18, 20]));
        let told = kept.fetch_all(&format!("{name}/1"), &source, 7, 20).await;
        assert_eq!((told.gone.len(), told.numbers()), (0, vec![9, 13, 15, 17, 19]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn positions_of_every_kind_are_found_in_a_stream() {
    let (_server, admin, kept) = start().await;
    for direct in BOTH {
        let name = if direct { "DIRECT" } else { "OLD" };
        let (whole, one) = (format!("{name}/**"), format!("{name}/1"));
        let config = json!({"allow_direct": direct, "max_msgs": 90});
        admin.stream(name, &[&format!("{name}.>")], config).await;
        let source = stream(name);
        let mut times = vec![SystemTime::UNIX_EPOCH];
        for number in 1..=100 {
            times.push(SystemTime::now());
            // The third topic is rare.
            let topic = if number % 30 == 0 { 1 } else { 0 };
            admin.put(&format!("{name}.{topic}"), number.to_string()).await;
        }
        for (filter, place, expected) in [
            (&whole, Seek::After(seq(50)), SeekResult::At(seq(50))),
            (&whole, Seek::After(seq(100)), SeekResult::At(seq(100))),
            (&whole, Seek::After(seq(10)), SeekResult::At(seq(10))),
            (&whole, Seek::After(seq(9)), SeekResult::Evicted(seq(10))),
            (&whole, Seek::After(seq(101)), SeekResult::Unknown(seq(10))),
            (&whole, Seek::Oldest, SeekResult::At(seq(10))),
            (&whole, Seek::Last(0), SeekResult::At(seq(100))),
            (&whole, Seek::Last(1), SeekResult::At(seq(99))),
            (&whole, Seek::Last(30), SeekResult::At(seq(70))),
            (&whole, Seek::Last(90), SeekResult::At(seq(10))),
            (&whole, Seek::Last(1000), SeekResult::At(seq(10))),
            (&whole, Seek::Since(times[60]), SeekResult::At(seq(59))),
            (&whole, Seek::Since(times[5]), SeekResult::Evicted(seq(10))),
            (&whole, Seek::Since(SystemTime::now() + Duration::from_secs(60)), SeekResult::At(seq(100))),
            (&one, Seek::Last(3), SeekResult::At(seq(29))),
            (&one, Seek::Last(4), SeekResult::At(seq(10))),
            (&one, Seek::Since(times[60]), SeekResult::At(seq(59))),
        ] {
            let found = kept.locate(filter, &source, place).await;
            // Where others lie in between, each place among them is as good.
            let exactly = filter == &whole || !matches!(place, Seek::Last(_));
            match (found, expected) {
                (SeekResult::At(found), SeekResult::At(_)) if !exactly => {
                    let Seek::Last(count) = place else { unreachable!() };
                    let told = kept.fetch_all(filter, &source, found.get(), 100).await;
                    assert_eq!(told.numbers().len(), count.min(3), "{name} {place:?} {found}");
                }
                _ => assert_eq!(found, expected, "{name} {filter} {place:?}"),
            }
        }
        let empty = format!("{name}/nothing");
        assert_eq!(kept.locate(&empty, &source, Seek::Last(5)).await, SeekResult::At(seq(10)));
    }
    admin.stream("EMPTY", &["empty"], json!({})).await;
    for place in [Seek::After(seq(0)), Seek::Oldest, Seek::Last(3), Seek::Since(SystemTime::now())] {
        assert_eq!(kept.locate("empty", &stream("EMPTY"), place).await, SeekResult::At(seq(0)), "{place:?}");
    }
    assert_eq!(
        kept.locate("empty", &stream("EMPTY"), Seek::After(seq(7))).await,
        SeekResult::Unknown(seq(0))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_fetches_at_once_do_not_disturb_a_subscription() {
    let (_server, admin, mut kept) = start().await;
    admin.stream("ORDERS", &["orders.>"], json!({"allow_direct": false})).await;
    let last = admin.put_many("orders.eu", 0..2000, "").await;
    kept.follow("orders/**", &stream("ORDERS")).await;
    let looks: Vec<_> = (0..100)
        .map(|after| {
            let broker = kept.broker.clone();
            tokio::spawn(async move {
                broker.fetch(filter("orders/**"), stream("ORDERS"), seq(after), seq(last)).await
            })
        })
        .collect();
    let next = admin.put("orders.eu", "live").await;
    assert_eq!(kept.message().await.stored.unwrap().number.get(), next);
    for (after, look) in looks.into_iter().enumerate() {
        let fetched = within("an answer", LIMIT, look).await.unwrap().unwrap();
        assert_eq!(fetched.messages[0].stored.unwrap().number.get(), after as u64 + 1);
    }
    eventually("no consumer is left but one", async || admin.consumers("ORDERS").await == 1).await;
}
