//! Redis Streams behind the broker contract: following, fetching and storing entries, and every way to lose some of them.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime};

use crate::common::redis::RedisServer;
use crate::common::{broker_config, eventually, within};
use bytes::Bytes;
use futures_util::future::join_all;
use redis::aio::MultiplexedConnection;
use tokio::sync::mpsc;
use topicgate::internals::broker::{Broker, BrokerError, Change, EVENT_CAPACITY, Event, Link, Message};
use topicgate::internals::protocol::event_id::{Tag, pack_entry_id};
use topicgate::internals::protocol::headers::Headers;
use topicgate::internals::protocol::seek::{Seek, SeekResult};
use topicgate::internals::protocol::seq::Seq;
use topicgate::internals::protocol::source::Source;
use topicgate::internals::protocol::topic::{Filter, Topic};

/// How long anything may take that has no limit of its own.
const SOON: Duration = Duration::from_secs(8);

/// A broker under test, and its events.
struct Fixture {
    broker: Broker,
    events: mpsc::Receiver<Event>,
    source: Source,
}

fn start_at(url: &str, capacity: usize) -> Fixture {
    let (sender, mut events) = mpsc::channel(EVENT_CAPACITY);
    let (narrow, told) = mpsc::channel(capacity);
    let broker = Broker::redis(&broker_config(url), sender).unwrap();
    // Without what plain publish/subscribe tells beside.
    tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            let is_other = matches!(
                &event,
                Event::Up(Link::Pubsub)
                    | Event::Down { link: Link::Pubsub, .. }
                    | Event::Lost { .. }
                    | Event::Interrupted { .. }
                    | Event::Resumed { .. }
            );
            if !is_other && narrow.send(event).await.is_err() {
                return;
            }
        }
    });
    Fixture { broker, events: told, source: Source::RedisStream { payload: Some("body".into()) } }
}

/// A broker whose own event channel has room for `capacity` events. It tells of plain publish/subscribe too.
fn start_narrow(url: &str, capacity: usize) -> Fixture {
    let (sender, events) = mpsc::channel(capacity);
    let broker = Broker::redis(&broker_config(url), sender).unwrap();
    Fixture { broker, events, source: Source::RedisStream { payload: Some("body".into()) } }
}

fn start(server: &RedisServer) -> Fixture {
    start_at(&server.url(), EVENT_CAPACITY)
}

impl Fixture {
    async fn next(&mut self) -> Event {
        within("an event", SOON, self.events.recv()).await.expect("the broker's task runs")
    }

    /// The next event but those of connections.
    async fn told(&mut self) -> Event {
        loop {
            match self.next().await {
                Event::Up(_)
                | Event::Down { .. }
                | Event::Interrupted { .. }
                | Event::Resumed { .. }
                | Event::Lost { .. } => {}
                event => return event,
            }
        }
    }

    async fn message(&mut self) -> Message {
        match self.told().await {
            Event::Message(message) => message,
            other => panic!("a message was expected: {other:?}"),
        }
    }

    async fn gone(&mut self) -> u64 {
        match self.told().await {
            Event::Gone { through, .. } => through.get(),
            other => panic!("a gap was expected: {other:?}"),
        }
    }

    async fn begun(&mut self) -> (Filter, Tag, u64) {
        match self.told().await {
            Event::Begun { filter, tag, head, .. } => (filter, tag, head.get()),
            other => panic!("a begin was expected: {other:?}"),
        }
    }

    async fn until_down(&mut self, limit: Duration) -> String {
        let down = async {
            loop {
                if let Event::Down { link: Link::Stored, why } = self.events.recv().await.unwrap() {
                    return why;
                }
            }
        };
        within("the connection is down", limit, down).await
    }

    async fn until_up(&mut self) {
        let up = async { while !matches!(self.events.recv().await.unwrap(), Event::Up(Link::Stored)) {} };
        within("the connection is up", SOON, up).await;
    }

    async fn try_follow(&self, text: &str) -> Result<(), BrokerError> {
        within("an answer", SOON, self.broker.subscribe(filter(text), self.source.clone())).await
    }

    /// Follows and returns the head.
    async fn follow(&mut self, text: &str) -> u64 {
        self.try_follow(text).await.unwrap();
        let (of, tag, head) = self.begun().await;
        let key = text.replace('/', ":");
        assert_eq!((of, tag), (filter(text), Tag::of(&[b"redis-stream", key.as_bytes()])));
        head
    }

    async fn locate(&self, text: &str, place: Seek) -> SeekResult {
        within("an answer", SOON, self.broker.locate(filter(text), self.source.clone(), place)).await.unwrap()
    }

    /// Everything that is stored after `after` up to `until`, with the gaps, as a reader would receive it.
    async fn history(&self, text: &str, after: u64, until: u64) -> Vec<Told> {
        let mut told = Vec::new();
        let mut at = after;
        while at < until {
            let fetch = self.broker.fetch(filter(text), self.source.clone(), seq(at), seq(until));
            let part = within("an answer", SOON, fetch).await.unwrap();
            let through = part.through.get();
            assert!(through > at && through <= until, "{at} to {through}");
            if let Some(gone) = part.gone.map(Seq::get) {
                assert!(gone > at && gone <= through);
                told.push(Told::Gone(gone));
                at = gone;
            }
            for message in part.messages {
                let number = message.stored.unwrap().number.get();
                assert!(number > at && number <= through && message.filter == filter(text));
                told.push(Told::Message(number));
                at = number;
            }
            at = through;
        }
        told
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Message(u64),
    Gone(u64),
}

/// Checks the promise: each of `added` was sent after `head`, in order and once, or is inside of a gap in its place.
fn assert_nothing_is_lost_in_silence(head: u64, added: &BTreeSet<u64>, told: &[Told]) {
    let mut last = head;
    let mut missing: Vec<u64> = Vec::new();
    for one in told {
        let (number, is_gap) = match *one {
            Told::Message(number) => (number, false),
            Told::Gone(through) => (through, true),
        };
        assert!(number > last, "{number} after {last}");
        if is_gap {
            missing.clear();
        }
        let end = if is_gap { number + 1 } else { number };
        if !is_gap {
            missing.extend(added.range(last + 1..end));
        }
        last = number;
    }
    // A gap may stand a little after the place, but before anything else is silent for ever.
    assert!(missing.is_empty(), "never told: {missing:?} in {told:?}");
    let rest: Vec<_> = added.range(last + 1..).collect();
    assert!(rest.is_empty(), "not told yet: {rest:?}");
}

fn seq(number: u64) -> Seq {
    Seq::new(number)
}

fn filter(text: &str) -> Filter {
    Filter::parse(text, 200).unwrap()
}

fn topic(text: &str) -> Topic {
    Topic::parse(text, 200).unwrap()
}

fn number(id: &str) -> u64 {
    let (ms, seq) = id.split_once('-').unwrap();
    pack_entry_id(ms.parse().unwrap(), seq.parse().unwrap()).unwrap().get()
}

async fn command<T: redis::FromRedisValue>(connection: &mut MultiplexedConnection, words: &str) -> T {
    let mut words = words.split(' ');
    let mut command = redis::cmd(words.next().unwrap());
    words.for_each(|word| {
        command.arg(word);
    });
    command.query_async(connection).await.unwrap()
}

/// Adds an entry with this body; its number.
async fn add(connection: &mut MultiplexedConnection, key: &str, body: &str) -> u64 {
    number(&command::<String>(connection, &format!("XADD {key} * body {body}")).await)
}

#[tokio::test]
async fn entries_that_are_added_after_the_subscription_arrive_in_order_with_number_and_fields() {
    let server = RedisServer::start();
    let mut redis = server.connect().await;
    let mut gate = start(&server);
    let before = add(&mut redis, "orders:eu", "before").await;
    assert_eq!(gate.follow("orders/eu").await, before);
    assert_eq!(gate.follow("orders/us").await, 0, "a key that does not exist is an empty stream");

    let begin = SystemTime::now() - Duration::from_secs(1);
    let id: String = command(&mut redis, "XADD orders:eu * kind created body 1 id 42").await;
    let message = gate.message().await;
    assert_eq!(
        (message.topic, message.filter, &message.payload[..]),
        (topic("orders/eu"), filter("orders/eu"), &b"1"[..])
    );
    assert_eq!(message.headers.iter().collect::<Vec<_>>(), [("kind", "created"), ("id", "42")]);
    let stored = message.stored.unwrap();
    assert_eq!((stored.number.get(), stored.change), (number(&id), Change::Put));
    assert!(stored.time > begin && stored.time < SystemTime::now() + Duration::from_secs(1));

    let added = [add(&mut redis, "orders:us", "a").await, add(&mut redis, "orders:us", "b").await];
    let told =
        [gate.message().await, gate.message().await].map(|message| message.stored.unwrap().number.get());
    assert_eq!(told, added);
    command::<String>(&mut redis, "XADD orders:us * other field").await;
    let message = gate.message().await;
    assert!(message.payload.is_empty() && message.headers.get("other") == Some("field"));
}

#[tokio::test]
async fn without_a_payload_field_the_payload_is_all_fields_as_json() {
    let server = RedisServer::start();
    let mut redis = server.connect().await;
    let mut gate = Fixture { source: Source::RedisStream { payload: None }, ..start(&server) };
    gate.follow("orders/eu").await;
    let mut binary = redis::cmd("XADD");
    binary.arg("orders:eu").arg("*").arg("z").arg("1").arg("a").arg("\"é\n").arg("b").arg(&[0xff_u8][..]);
    let _: String = binary.query_async(&mut redis).await.unwrap();
    let message = gate.message().await;
    let expected = r#"{"z":"1","a":"\"é\n","b":"data:application/octet-stream;base64,/w=="}"#;
    assert_eq!(std::str::from_utf8(&message.payload).unwrap(), expected);
    assert_eq!(message.headers.iter().count(), 2, "bytes are no header");
}

#[tokio::test]
async fn a_stored_message_arrives_with_the_number_that_publishing_returned() {
    let server = RedisServer::start();
    let mut gate = start(&server);
    gate.follow("orders/eu").await;
    let mut headers = Headers::default();
    headers.insert("kind", "created");
    let body = Bytes::from_static(b"\xff1");
    let store = async |source: &Source, body: &'static [u8], headers: &Headers| {
        let body = Bytes::from_static(body);
        let stored = gate.broker.publish(topic("orders/eu"), source.clone(), body, headers.clone()).await;
        stored.map(|number| number.expect("a number"))
    };
    let number = store(&gate.source, b"\xff1", &headers).await.unwrap().number.get();
    let json = Source::RedisStream { payload: None };
    let second = store(&json, br#"{"body":"2","n":{"a":1}}"#, &headers).await.unwrap().number.get();
    for bad in [&b"no json"[..], b"[1]", b"{}"] {
        let answer = store(&json, bad, &Headers::default()).await;
        assert!(matches!(&answer, Err(BrokerError::Unfit(why)) if why.contains("JSON object")), "{answer:?}");
    }
    headers.insert("body", "twice");
    assert!(matches!(store(&gate.source, b"", &headers).await, Err(BrokerError::Unfit(_))));

    let message = gate.message().await;
    assert_eq!((message.stored.unwrap().number.get(), &message.payload), (number, &body));
    assert_eq!(message.headers.get("kind"), Some("created"));
    let message = gate.message().await;
    assert_eq!((message.stored.unwrap().number.get(), &message.payload[..]), (second, &b"2"[..]));
    assert_eq!(
        (message.headers.get("n"), message.headers.get("kind")),
        (Some(r#"{"a":1}"#), Some("created"))
    );
}

#[tokio::test]
async fn keys_that_can_never_be_read_are_refused_with_the_reason() {
    let server = RedisServer::start_with(&["user gate on >secret ~orders:* +@all"]);
    let mut redis = server.connect().await;
    command::<String>(&mut redis, "SET orders:text no").await;
    command::<String>(&mut redis, "XADD orders:late 99999999999999-0 f v").await;
    let gate = start_at(&server.url().replace("//", "//gate:secret@"), EVENT_CAPACITY);
    for (text, reason) in [
        ("orders/*", "pattern"),
        ("orders/text", "WRONGTYPE"),
        ("secret/plans", "NOPERM"),
        ("orders/late", "2527"),
        ("orders/a:b", "separator"),
    ] {
        let refused = |answer: Result<(), BrokerError>| {
            assert!(
                matches!(&answer, Err(BrokerError::Refused(why)) if why.contains(reason)),
                "{text}: {answer:?}"
            );
        };
        refused(gate.try_follow(text).await);
        if text != "orders/late" {
            refused(gate.broker.fetch(filter(text), gate.source.clone(), seq(0), seq(9)).await.map(drop));
            refused(gate.broker.locate(filter(text), gate.source.clone(), Seek::Oldest).await.map(drop));
        }
    }
    let stream = Source::JetStream { stream: None };
    let other = gate.broker.subscribe(filter("orders/eu"), stream).await;
    assert!(matches!(other, Err(BrokerError::Refused(_))));
}

#[tokio::test]
async fn following_twice_changes_nothing_and_ends_at_once() {
    let server = RedisServer::start();
    let mut redis = server.connect().await;
    let mut gate = start(&server);
    gate.follow("orders/eu").await;
    gate.try_follow("orders/eu").await.unwrap();
    let both = join_all([gate.try_follow("orders/us"), gate.try_follow("orders/us")]).await;
    assert!(both.iter().all(Result::is_ok));
    assert_eq!(gate.begun().await.0, filter("orders/us"));
    let added = add(&mut redis, "orders:eu", "1").await;
    assert_eq!(gate.message().await.stored.unwrap().number.get(), added);
    assert!(gate.broker.try_unsubscribe(filter("orders/eu"), &gate.source));
    assert!(gate.broker.try_unsubscribe(filter("orders/never"), &gate.source));
    gate.try_follow("orders/ap").await.unwrap();
    add(&mut redis, "orders:eu", "2").await;
    add(&mut redis, "orders:ap", "3").await;
    assert_eq!(gate.begun().await.0, filter("orders/ap"));
    assert_eq!(gate.message().await.topic, topic("orders/ap"));
}

#[tokio::test]
async fn stored_topics_open_no_connection_until_one_is_needed_and_then_two() {
    let server = RedisServer::start();
    let mut redis = server.connect().await;
    let mut gate = start(&server);
    let clients = async |redis: &mut MultiplexedConnection| {
        let list: String = command(redis, "CLIENT LIST TYPE normal").await;
        list.lines().filter(|line| !line.is_empty()).count()
    };
    let unused = 2; // the test's own, and that of publish/subscribe
    eventually("publish/subscribe is connected", async || {
        clients(&mut server.connect().await).await == unused + 1
    })
    .await;
    assert_eq!(clients(&mut redis).await, unused);
    let topics: Vec<String> = (0..3000).map(|number| format!("orders/{number}")).collect();
    let followed = join_all(topics.iter().map(|topic| gate.try_follow(topic))).await;
    assert!(followed.iter().all(Result::is_ok));
    assert_eq!(clients(&mut redis).await, unused + 2);
    for _ in &topics {
        gate.begun().await;
    }
    for number in [0, 1500, 2999] {
        add(&mut redis, &format!("orders:{number}"), "1").await;
        assert_eq!(gate.message().await.topic, topic(&format!("orders/{number}")));
    }
}

#[tokio::test]
async fn a_key_that_is_followed_again_is_read_at_once_while_other_keys_are_silent() {
    // The minimal permissions of docs/security.md, without the optional ones.
    let least = "+info +client|id +client|unblock +xread +xrange +xrevrange +xinfo|stream (%W~* +xadd)";
    for (user, limit) in [(least, 400), ("+xread +xinfo|stream", 700)] {
        let server = RedisServer::start_with(&[&format!("user gate on >secret %R~* -@all {user}")]);
        let mut redis = server.connect().await;
        let mut gate = start_at(&server.url().replace("//", "//gate:secret@"), EVENT_CAPACITY);
        gate.follow("orders/silent").await;
        for number in 0..5 {
            // Long enough for the read of those before to have begun to wait.
            tokio::time::sleep(Duration::from_millis(150)).await;
            gate.follow(&format!("orders/{number}")).await;
            let begin = Instant::now();
            add(&mut redis, &format!("orders:{number}"), "1").await;
            gate.message().await;
            assert!(begin.elapsed() < Duration::from_millis(limit), "{:?} with {user}", begin.elapsed());
        }
    }
}

#[tokio::test]
async fn stored_entries_are_fetched_in_parts_without_loss_or_repetition() {
    let server = RedisServer::start();
    let mut redis = server.connect().await;
    let gate = start(&server);
    let mut pipeline = redis::pipe();
    for number in 0..2500 {
        pipeline.cmd("XADD").arg("orders:eu").arg("*").arg("body").arg(number);
    }
    let ids: Vec<String> = pipeline.query_async(&mut redis).await.unwrap();
    let numbers: Vec<u64> = ids.iter().map(|id| number(id)).collect();
    let head = numbers[2499];
    let all: Vec<Told> = numbers.iter().copied().map(Told::Message).collect();
    assert_eq!(gate.history("orders/eu", 0, head).await, all);
    assert_eq!(gate.history("orders/eu", numbers[99], numbers[199]).await, all[100..200]);
    assert_eq!(gate.history("orders/eu", head, head + 5).await, []);
    assert_eq!(gate.history("orders/none", 0, 10).await, []);

    let large = "x".repeat(100_000);
    let mut last = 0;
    for _ in 0..20 {
        last = add(&mut redis, "orders:large", &large).await;
    }
    assert_eq!(gate.history("orders/large", 0, last).await.len(), 20);
    let part =
        gate.broker.fetch(filter("orders/large"), gate.source.clone(), seq(0), seq(last)).await.unwrap();
    assert!((1..=4).contains(&part.messages.len()), "{}", part.messages.len());
}

#[tokio::test]
async fn trimmed_or_deleted_entries_are_a_gap_in_their_place_in_a_fetch() {
    let server = RedisServer::start();
    let mut redis = server.connect().await;
    let gate = start(&server);
    for seq in 1..=9 {
        command::<String>(&mut redis, &format!("XADD k 7-{} body {seq}", seq * 10)).await;
    }
    let at = |seq: u64| pack_entry_id(7, seq * 10).unwrap().get();
    command::<i64>(&mut redis, "XTRIM k MINID 7-40").await;
    let held = |from: u64| (from..=9).map(|seq| Told::Message(at(seq)));
    let with_gap: Vec<Told> = [Told::Gone(at(4) - 1)].into_iter().chain(held(4)).collect();
    for after in [0, at(1), at(3)] {
        // After 3 nothing is missing, but the server does not remember that it was there.
        assert_eq!(gate.history("k", after, at(9)).await, with_gap, "{after}");
    }
    assert_eq!(gate.history("k", at(4), at(9)).await, held(5).collect::<Vec<_>>());

    command::<i64>(&mut redis, "XDEL k 7-60 7-70").await;
    let deleted = [Told::Message(at(5)), Told::Gone(at(8) - 1), Told::Message(at(8)), Told::Message(at(9))];
    assert_eq!(gate.history("k", at(4), at(9)).await, deleted);
    command::<i64>(&mut redis, "XDEL k 7-90").await;
    assert_eq!(gate.history("k", at(7), at(9)).await, [Told::Message(at(8)), Told::Gone(at(9))]);
    command::<i64>(&mut redis, "XTRIM k MAXLEN 0").await;
    assert_eq!(gate.history("k", at(7), at(9)).await, [Told::Gone(at(9))]);
    assert_eq!(gate.history("k", 0, at(9)).await, [Told::Gone(at(9))]);
}

#[tokio::test]
async fn positions_in_a_redis_stream_are_found_or_reported_gone() {
    let server = RedisServer::start();
    let mut redis = server.connect().await;
    let gate = start(&server);
    let at = |ms: u64| pack_entry_id(ms, 0).unwrap().get();
    let since = |ms: u64| Seek::Since(SystemTime::UNIX_EPOCH + Duration::from_millis(ms));
    assert_eq!(gate.locate("k", Seek::After(seq(0))).await, SeekResult::At(seq(0)));
    assert_eq!(gate.locate("k", Seek::After(seq(at(1)))).await, SeekResult::Unknown(seq(0)));
    let before_first = Seek::After(seq(number("1795912345678-1047551")));
    assert_eq!(gate.locate("k", before_first).await, SeekResult::Evicted(seq(0)));
    assert_eq!(gate.locate("k", Seek::Oldest).await, SeekResult::At(seq(0)));
    assert_eq!(gate.locate("k", Seek::Last(3)).await, SeekResult::At(seq(0)));
    for ms in [10, 20, 30, 40, 50] {
        command::<String>(&mut redis, &format!("XADD k {ms}-0 body 1")).await;
    }
    assert_eq!(gate.locate("k", Seek::After(seq(0))).await, SeekResult::At(seq(0)));
    assert_eq!(gate.locate("k", before_first).await, SeekResult::Evicted(seq(at(10) - 1)));
    assert_eq!(
        gate.locate("k", Seek::Last(9)).await,
        SeekResult::At(seq(at(10) - 1)),
        "there never were nine"
    );
    // Nothing was ever before the first entry of a stream that is whole.
    assert_eq!(gate.locate("k", since(5)).await, SeekResult::At(seq(at(10) - 1)));
    command::<i64>(&mut redis, "XTRIM k MAXLEN 3").await;
    for (place, found) in [
        (Seek::After(seq(at(40))), SeekResult::At(seq(at(40)))),
        (Seek::After(seq(at(50))), SeekResult::At(seq(at(50)))),
        (Seek::After(seq(at(50) + 1)), SeekResult::Unknown(seq(at(30) - 1))),
        (Seek::After(seq(at(10))), SeekResult::Evicted(seq(at(30) - 1))),
        (Seek::After(seq(0)), SeekResult::Evicted(seq(at(30) - 1))),
        (Seek::Oldest, SeekResult::At(seq(at(30) - 1))),
        (Seek::Last(2), SeekResult::At(seq(at(40) - 1))),
        (Seek::Last(3), SeekResult::At(seq(at(30) - 1))),
        (Seek::Last(4), SeekResult::Evicted(seq(at(30) - 1))),
        (since(40), SeekResult::At(seq(at(40) - 1))),
        (since(35), SeekResult::At(seq(at(35) - 1))),
        (since(25), SeekResult::Evicted(seq(at(30) - 1))),
        (since(99), SeekResult::At(seq(at(50)))),
    ] {
        assert_eq!(gate.locate("k", place).await, found, "{place:?}");
    }
    let left = [30, 40, 50].map(|ms| Told::Message(at(ms)));
    assert_eq!(
        gate.history("k", at(30) - 1, at(50)).await,
        left,
        "a position that was found has no second gap"
    );
}

#[tokio::test]
async fn entries_that_are_trimmed_before_they_are_read_are_a_gap_in_their_place() {
    let server = RedisServer::start();
    let mut redis = server.connect().await;
    let mut gate = start_narrow(&server.url(), 8);
    let head = gate.follow("k").await;
    let mut added = BTreeSet::new();
    for _ in 0..3 {
        for body in 0..200 {
            let id: String = command(&mut redis, &format!("XADD k MAXLEN 20 * body {body}")).await;
            added.insert(number(&id));
            if body % 50 == 0 {
                tokio::task::yield_now().await;
            }
        }
    }
    let last = *added.last().unwrap();
    let mut told = Vec::new();
    while told.last() != Some(&Told::Message(last)) {
        told.push(match gate.told().await {
            Event::Message(message) => Told::Message(message.stored.unwrap().number.get()),
            Event::Gone { through, .. } => Told::Gone(through.get()),
            other => panic!("{other:?}"),
        });
    }
    assert!(told.iter().any(|one| matches!(one, Told::Gone(_))), "nothing was lost: {told:?}");
    assert_nothing_is_lost_in_silence(head, &added, &told);
}

#[tokio::test]
async fn an_entry_that_is_removed_at_once_is_a_gap_even_if_no_entry_follows() {
    let server = RedisServer::start();
    let mut redis = server.connect().await;
    let mut gate = start(&server);
    gate.follow("k").await;
    let ids: (String, i64) = redis::pipe()
        .atomic()
        .cmd("XADD")
        .arg("k")
        .arg("*")
        .arg("body")
        .arg("1")
        .cmd("XTRIM")
        .arg("k")
        .arg("MAXLEN")
        .arg(0)
        .query_async(&mut redis)
        .await
        .unwrap();
    assert_eq!(gate.gone().await, number(&ids.0));
    let next = add(&mut redis, "k", "2").await;
    assert_eq!(gate.message().await.stored.unwrap().number.get(), next);
}

#[tokio::test]
async fn in_a_short_stream_every_entry_that_is_trimmed_at_once_is_a_gap_in_its_place() {
    let server = RedisServer::start();
    let mut redis = server.connect().await;
    let mut gate = start(&server);
    gate.follow("k").await;
    for n in 0..20 {
        let mut both = redis::pipe();
        both.atomic();
        for body in [n, n + 1] {
            both.cmd("XADD").arg("k").arg("MAXLEN").arg(1).arg("*").arg("body").arg(body);
        }
        let ids: (String, String) = both.query_async(&mut redis).await.unwrap();
        let (gone, message) = (gate.gone().await, gate.message().await.stored.unwrap().number.get());
        assert!(gone >= number(&ids.0) && gone < message && message == number(&ids.1), "{n}");
    }
}

#[tokio::test]
async fn random_bursts_that_trim_a_short_stream_have_every_gap_in_its_place() {
    let server = RedisServer::start();
    let mut redis = server.connect().await;
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut gate = start(&server);
    gate.follow("k").await;
    add(&mut redis, "k", "first").await;
    let mut before = gate.message().await.stored.unwrap().number.get();
    let mut added = BTreeSet::new();
    for _ in 0..300 {
        let (mut burst, kept) = (redis::pipe(), random.u8(1..60));
        if random.bool() {
            burst.atomic();
        }
        for body in 0..random.u8(1..80) {
            burst.cmd("XADD").arg("k").arg("MAXLEN").arg(kept).arg("*").arg("body").arg(body);
        }
        let ids: Vec<String> = burst.query_async(&mut redis).await.unwrap();
        added.extend(ids.iter().map(|id| number(id)));
        if random.bool() {
            tokio::time::sleep(Duration::from_micros(random.u64(..2000))).await;
        }
    }
    let (last, mut gone, mut gaps) = (*added.last().unwrap(), None, 0);
    while before < last {
        match gate.told().await {
            Event::Message(message) => {
                let number = message.stored.unwrap().number.get();
                let missing = added.range(before + 1..number).count();
                // Where it is not known whether entries before or after an answer are missing, there are two gaps.
                assert!(missing == 0 || gone.is_some(), "seed {seed}: {missing} before {number}");
                (before, gone) = (number, None);
            }
            Event::Gone { through, .. } => (gone, gaps) = (Some(through), gaps + 1),
            other => panic!("seed {seed}: {other:?}"),
        }
    }
    assert!(gaps > 0, "seed {seed}: nothing was trimmed before it was read");
}

#[tokio::test]
async fn a_key_that_is_deleted_and_created_again_ends_its_subscription() {
    let server = RedisServer::start();
    let mut redis = server.connect().await;
    let mut gate = start(&server);
    gate.follow("other").await;
    for again in ["XADD k * body new", "XADD k 5-0 body new", "PING"] {
        let head = gate.follow("k").await;
        let first = add(&mut redis, "k", "1").await;
        assert_eq!(gate.message().await.stored.unwrap().number.get(), first);
        assert!(first > head);
        // In the same millisecond the new key would have the same id and the same count: nothing tells it from the old.
        while millisecond(&mut redis).await <= first >> 20 {}
        // Sampled lately: what is added right after it is not compared yet.
        command::<i64>(&mut redis, "DEL k").await;
        command::<redis::Value>(&mut redis, again).await;
        assert_eq!(gate.ended_after_messages().await, filter("k"), "{again}");
        command::<i64>(&mut redis, "DEL k").await;
    }
    add(&mut redis, "other", "1").await;
    assert_eq!(gate.message().await.topic, topic("other"));
}

/// The server's clock.
async fn millisecond(redis: &mut MultiplexedConnection) -> u64 {
    let (seconds, micros) = command::<(u64, u64)>(redis, "TIME").await;
    seconds * 1000 + micros / 1000
}

impl Fixture {
    /// Messages that are added within a moment of the end may come before it, and then a gap.
    async fn ended_after_messages(&mut self) -> Filter {
        loop {
            match self.told().await {
                Event::Message(_) | Event::Gone { .. } => {}
                Event::Ended { filter, .. } => return filter,
                other => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn a_key_that_is_no_stream_any_more_is_refused_and_the_others_go_on() {
    let server = RedisServer::start();
    let mut redis = server.connect().await;
    let mut gate = start(&server);
    gate.follow("a").await;
    gate.follow("b").await;
    command::<String>(&mut redis, "SET a text").await;
    match gate.told().await {
        Event::Refused { filter: of, why } => {
            assert!(of == filter("a") && why.contains("WRONGTYPE"), "{why}")
        }
        other => panic!("{other:?}"),
    }
    add(&mut redis, "b", "1").await;
    assert_eq!(gate.message().await.topic, topic("b"));
}

#[tokio::test]
async fn an_entry_id_that_has_no_number_is_a_gap_or_refused() {
    let server = RedisServer::start();
    let mut redis = server.connect().await;
    let mut gate = start(&server);
    gate.follow("k").await;
    for id in ["7-1", "7-1048576", "7-1048577", "8-0"] {
        command::<String>(&mut redis, &format!("XADD k {id} body 1")).await;
    }
    assert_eq!(gate.message().await.stored.unwrap().number.get(), number("7-1"));
    assert_eq!(gate.gone().await, number("7-1048575"));
    assert_eq!(gate.message().await.stored.unwrap().number.get(), number("8-0"));
    let told = [Told::Message(number("7-1")), Told::Gone(number("7-1048575")), Told::Message(number("8-0"))];
    assert_eq!(gate.history("k", 0, number("8-0")).await, told);
    command::<String>(&mut redis, "XADD k 17592186044416-0 body 1").await;
    assert!(matches!(gate.told().await, Event::Refused { why, .. } if why.contains("2527")));
}

#[tokio::test]
async fn a_lost_connection_loses_nothing_and_causes_no_gap() {
    let server = RedisServer::start();
    let mut redis = server.connect().await;
    let mut gate = start(&server);
    let head = gate.follow("k").await;
    gate.follow("l").await;
    let mut added = BTreeSet::new();
    for round in 0..5 {
        for _ in 0..50 {
            added.insert(add(&mut redis, "k", "1").await);
        }
        if round < 4 {
            command::<i64>(&mut redis, "CLIENT KILL TYPE normal SKIPME yes").await;
        }
    }
    let mut told = Vec::new();
    while told.last() != added.last() {
        told.push(gate.message().await.stored.unwrap().number.get());
    }
    assert!(told.iter().eq(&added) && told[0] > head);
    add(&mut redis, "l", "1").await;
    assert_eq!(gate.message().await.topic, topic("l"));
}

#[tokio::test]
async fn a_server_that_restarts_with_its_file_has_lost_nothing() {
    let mut server = RedisServer::start_with(&["appendonly yes", "appendfsync always"]);
    let mut gate = start(&server);
    gate.follow("k").await;
    let mut redis = server.connect().await;
    let mut added = Vec::new();
    for _ in 0..5 {
        added.push(add(&mut redis, "k", "1").await);
    }
    server.restart();
    let mut redis = server.connect().await;
    for _ in 0..5 {
        added.push(add(&mut redis, "k", "1").await);
    }
    for number in added {
        assert_eq!(gate.message().await.stored.unwrap().number.get(), number);
    }
}

#[tokio::test]
async fn a_server_that_returns_without_its_entries_is_noticed() {
    let mut server = RedisServer::start();
    let mut gate = start(&server);
    let mut redis = server.connect().await;
    gate.follow("k").await;
    gate.follow("empty").await;
    add(&mut redis, "k", "1").await;
    let told = gate.message().await.stored.unwrap().number.get();
    server.stop();
    gate.until_down(SOON).await;
    let refused = gate.try_follow("l").await;
    assert!(matches!(refused, Err(BrokerError::Away(_))), "{refused:?}");
    server.restart();
    let mut of = vec![gate.told().await, gate.told().await];
    of.push(gate.told().await);
    let gaps = of.iter().filter(|event| matches!(event, Event::Gone { .. })).count();
    assert_eq!(gaps, 2, "{of:?}");
    assert!(
        of.iter().any(|event| matches!(event, Event::Gone { through, .. } if through.get() > told)),
        "{of:?}"
    );
    assert!(matches!(&of[2], Event::Ended { filter: of, .. } if *of == filter("k")), "{of:?}");
}

#[tokio::test]
async fn a_server_that_hangs_is_noticed() {
    let server = RedisServer::start();
    let mut gate = start(&server);
    let mut redis = server.connect().await;
    gate.follow("k").await;
    server.pause();
    gate.until_down(Duration::from_secs(15)).await;
    server.resume();
    gate.until_up().await;
    let added = add(&mut redis, "k", "1").await;
    assert_eq!(gate.message().await.stored.unwrap().number.get(), added);
}

#[tokio::test]
async fn a_key_far_behind_delays_no_other_key() {
    let server = RedisServer::start();
    let mut redis = server.connect().await;
    let mut gate = start(&server);
    gate.follow("busy").await;
    gate.follow("calm").await;
    let add_all = || {
        let mut pipeline = redis::pipe();
        pipeline.atomic();
        for _ in 0..10_000 {
            pipeline.cmd("XADD").arg("busy").arg("*").arg("body").arg("1");
        }
        pipeline.cmd("XADD").arg("calm").arg("*").arg("body").arg("1");
        pipeline
    };
    let _: redis::Value = add_all().query_async(&mut redis).await.unwrap();
    let (mut busy, mut calm_at) = (0, None);
    while busy < 10_000 || calm_at.is_none() {
        match gate.message().await.topic.as_str() {
            "busy" => busy += 1,
            _ => calm_at = Some(busy),
        }
    }
    assert!(calm_at.unwrap() < 10_000, "the calm one waited for all of the busy one");
}

#[tokio::test]
async fn random_changes_of_a_key_lose_no_entry_silently() {
    let server = RedisServer::start();
    let mut redis = server.connect().await;
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut gate = start_narrow(&server.url(), 16);
    let mut head = gate.follow("k").await;
    let mut added = BTreeSet::new();
    let mut told = Vec::new();
    let until = Instant::now() + Duration::from_secs(6);
    while Instant::now() < until {
        match random.u8(..) {
            0..2 => drop(command::<i64>(&mut redis, "CLIENT KILL TYPE normal SKIPME yes").await),
            2..10 => drop(command::<i64>(&mut redis, &format!("XTRIM k MAXLEN {}", random.u8(..5))).await),
            10..14 if !added.is_empty() => {
                let (ms, seq) =
                    topicgate::internals::protocol::event_id::unpack_entry_id(seq(*added.last().unwrap()));
                command::<i64>(&mut redis, &format!("XDEL k {ms}-{seq}")).await;
            }
            14..200 => {
                let id: String =
                    command(&mut redis, &format!("XADD k MAXLEN {} * body 1", random.u8(1..))).await;
                added.insert(number(&id));
            }
            _ => {
                while let Ok(event) = gate.events.try_recv() {
                    told.push(event);
                }
            }
        }
    }
    let last = add(&mut redis, "k", "last").await;
    added.insert(last);
    let mut sequence = Vec::new();
    let mut events = told.into_iter();
    // A gap may take the number of an entry that stands where there is no room for it.
    let is_last = |one: &Told| matches!(*one, Told::Message(number) | Told::Gone(number) if number >= last);
    while !sequence.last().is_some_and(is_last) {
        let event = match events.next() {
            Some(event) => event,
            None => gate.next().await,
        };
        match event {
            Event::Message(message) => sequence.push(Told::Message(message.stored.unwrap().number.get())),
            Event::Gone { through, .. } => sequence.push(Told::Gone(through.get())),
            Event::Begun { head: new, .. } => head = new.get(),
            Event::Up(_)
            | Event::Down { .. }
            | Event::Interrupted { .. }
            | Event::Resumed { .. }
            | Event::Lost { .. } => {}
            other => panic!("seed {seed}: {other:?}"),
        }
    }
    // A gap that is detected late is sent within a moment after the last message.
    let late = tokio::time::timeout(Duration::from_secs(2), async {
        loop {
            if let Event::Gone { through, .. } = gate.next().await {
                return through.get();
            }
        }
    });
    sequence.extend(late.await.ok().map(Told::Gone));
    eprintln!("seed {seed}: {} added, {} told", added.len(), sequence.len());
    assert_nothing_is_lost_in_silence(head, &added, &sequence);
    eventually("the broker lives", async || gate.try_follow("k").await.is_ok()).await;
}
