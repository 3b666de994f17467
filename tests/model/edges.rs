//! Edge cases, one by one.

use std::task::Poll;
use std::time::{Duration, SystemTime};

use eventsource_stream::Event;
use futures_util::FutureExt;
use serde_json::json;
use topicgate::internals::log::Bounds;
use topicgate::internals::log::message::Format;
use topicgate::internals::protocol::codes::{CloseCode, GapReason};
use topicgate::internals::protocol::seek::Start;

use crate::client::Reader;
use crate::replica::{Replica, WARM, ample, at_most, filter, topic};

fn open(replica: &Replica, names: &[&str], start: &Start) -> Reader {
    let filters: Vec<_> = names.iter().map(|name| filter(name)).collect();
    Reader::new(replica.open(&filters, start, Format::Raw).unwrap())
}

fn after(id: &str) -> Start {
    Start::After(Some(id.to_owned()))
}

/// Publishes `<topic>#<number>` for each number.
fn publish(replica: &Replica, name: &str, numbers: std::ops::Range<usize>) {
    numbers.for_each(|number| _ = replica.deliver(&topic(name), &format!("{name}#{number}"), None));
}

/// Each event in a few words: `open`, `resumed`, `gap <topic> <reason>`, `close <code>`, or the payload.
fn told(events: &[Event]) -> Vec<String> {
    let word = |event: &Event| {
        let data = || serde_json::from_str::<serde_json::Value>(&event.data).unwrap();
        match event.event.as_str() {
            "stream-open" if data()["resumed"] == json!(true) => "resumed".into(),
            "stream-open" => "open".into(),
            "stream-gap" => {
                format!("gap {} {}", data()["topic"].as_str().unwrap(), data()["reason"].as_str().unwrap())
            }
            "stream-close" => format!("close {}", data()["code"].as_str().unwrap()),
            _ => event.data.clone(),
        }
    };
    events.iter().map(word).collect()
}

/// The events of a stream with this start, until there are no more.
fn read(replica: &Replica, names: &[&str], start: &Start) -> Vec<String> {
    told(&open(replica, names, start).read_all())
}

#[test]
fn a_cursor_at_each_edge_of_the_log_resumes_or_gets_a_gap() {
    let replica = Replica::new(at_most(3));
    let mut witness = open(&replica, &["a"], &Start::Now);
    witness.read_all();
    let mut ids = Vec::new();
    for number in 0..6 {
        publish(&replica, "a", number..number + 1);
        ids.extend(witness.read_all().into_iter().map(|event| event.id));
    }
    // Evicted are 0, 1 and 2.
    let held = ["a#3", "a#4", "a#5"];
    let expected = |first: &str, missing: Option<&str>, from: usize| {
        let gap = missing.map(|reason| format!("gap a {reason}"));
        let held = held[from..].iter().map(|payload| (*payload).to_owned());
        std::iter::once(first.to_owned()).chain(gap).chain(held).collect::<Vec<_>>()
    };
    assert_eq!(read(&replica, &["a"], &after(&ids[1])), expected("open", Some("evicted"), 0), "evicted - 1");
    assert_eq!(read(&replica, &["a"], &after(&ids[2])), expected("resumed", None, 0), "the last evicted");
    assert_eq!(read(&replica, &["a"], &after(&ids[3])), expected("resumed", None, 1), "the oldest held");
    assert_eq!(read(&replica, &["a"], &after(&ids[5])), expected("resumed", None, 3), "the head");
    let (epoch, head) = ids[5].split_once('-').unwrap();
    let beyond = format!("{epoch}-{}", head.parse::<u64>().unwrap() + 1);
    assert_eq!(read(&replica, &["a"], &after(&beyond)), expected("open", Some("unknown_id"), 0), "head + 1");
    let foreign = format!("00000000-{head}");
    assert_eq!(read(&replica, &["a"], &after(&foreign)), expected("open", Some("restarted"), 0), "foreign");
    assert_eq!(read(&replica, &["a"], &Start::After(None)), expected("open", Some("unknown_id"), 0));
}

#[test]
fn two_logs_that_lost_the_same_number_both_get_a_gap_even_if_the_client_is_cut_off_between() {
    let replica = Replica::new(at_most(2));
    let id = open(&replica, &["b"], &Start::Now).read_all()[0].id.clone();
    publish(&replica, "w/1", 0..3);
    publish(&replica, "w/2", 0..2);
    let mut reader = open(&replica, &["w/1", "w/2"], &after(&id));
    let events = reader.read_all();
    assert_eq!(told(&events), ["open", "gap w/1 evicted", "gap w/2 evicted", "w/2#0", "w/2#1"]);
    // Cut after the first of the two gaps.
    drop(reader);
    let again = read(&replica, &["w/1", "w/2"], &after(&events[1].id));
    assert!(again.contains(&"gap w/2 evicted".to_owned()), "{again:?}");
    // After the second, every gap has been sent.
    let again = read(&replica, &["w/1", "w/2"], &after(&events[2].id));
    assert_eq!(again, ["resumed", "w/2#0", "w/2#1"]);
}

#[test]
fn a_full_batch_does_not_end_between_two_gaps_of_the_same_number() {
    let replica = Replica::new(at_most(2));
    let mut witness = open(&replica, &["b"], &Start::Now);
    let id = witness.read_all()[0].id.clone();
    // With this message and the first of the gaps there is more than a hand-out takes.
    replica.deliver(&topic("b"), &"x".repeat(64 * 1024 - 70), None);
    publish(&replica, "w/1", 0..3);
    publish(&replica, "w/2", 0..2);
    let all = read(&replica, &["b", "w/1", "w/2"], &after(&id));
    assert_eq!(all[2..], ["gap w/1 evicted", "gap w/2 evicted", "w/2#0", "w/2#1"]);
}

#[test]
fn a_client_that_is_cut_off_before_the_last_gap_receives_every_gap_again() {
    let replica = Replica::new(ample());
    let foreign = after("00000000-7");
    let events = open(&replica, &["a", "b"], &foreign).read_all();
    assert_eq!(told(&events), ["open", "gap a restarted", "gap b restarted"]);
    assert!(events[0].id.is_empty() && events[1].id.is_empty(), "an id would say that every gap was sent");
    assert_eq!(read(&replica, &["a", "b"], &foreign), told(&events));
}

#[test]
fn a_repeated_publisher_id_never_resumes_too_late() {
    let replica = Replica::new(at_most(3));
    let mut witness = open(&replica, &["a"], &Start::Now);
    let publish = |payload, id| _ = replica.deliver(&topic("a"), payload, id);
    publish("first", Some("x"));
    publish("between", None);
    publish("second", Some("x"));
    assert_eq!(read(&replica, &["a"], &after("x")), ["resumed", "between", "second"]);
    // The first is evicted. Which of the two the client has seen cannot be known.
    publish("between again", None);
    assert_eq!(read(&replica, &["a"], &after("x")), ["resumed", "between", "second", "between again"]);
    publish("third", Some("x"));
    let gap = ["open", "gap a evicted", "second", "between again", "third"];
    assert_eq!(read(&replica, &["a"], &after("x")), gap);
    publish("end", None);
    publish("end", None);
    publish("end", None);
    assert_eq!(read(&replica, &["a"], &after("x")), ["open", "gap a unknown_id", "end", "end", "end"]);
    witness.read_all();
}

#[test]
fn a_publisher_id_is_no_position_within_a_pattern() {
    let (here, there) = (Replica::new(ample()), Replica::new(ample()));
    let mut reader = open(&here, &["a/*"], &Start::Now);
    let _warm = open(&there, &["a/*"], &Start::Now);
    here.deliver(&topic("a/1"), "one", Some("1"));
    there.deliver(&topic("a/2"), "two", Some("2"));
    there.deliver(&topic("a/1"), "one", Some("1"));
    let seen = reader.read_all();
    // The other replica took two in before one, so it is not among what comes after one.
    assert_eq!(read(&there, &["a/*"], &after(&seen[1].id)), ["open", "gap a/* restarted"]);
}

#[test]
fn since_starts_with_the_first_message_at_that_very_time() {
    let replica = Replica::new(at_most(3));
    let _reader = open(&replica, &["a"], &Start::Now);
    let mut times: Vec<SystemTime> = Vec::new();
    for number in 0..5 {
        while times.last().is_some_and(|last| SystemTime::now() <= *last) {}
        times.push(replica.deliver(&topic("a"), &format!("a#{number}"), None));
    }
    let tick = Duration::from_nanos(1);
    let all = ["a#2", "a#3", "a#4"];
    let since = |time| read(&replica, &["a"], &Start::Since(time));
    assert_eq!(since(times[3]), ["resumed", "a#3", "a#4"]);
    assert_eq!(since(times[3] + tick), ["resumed", "a#4"]);
    assert_eq!(since(times[4] + tick), ["resumed"]);
    assert_eq!(since(times[1] + tick)[1..], all, "all at that time or later is held");
    assert_eq!(since(times[1] + tick)[0], "resumed");
    assert_eq!(since(times[1])[..2], ["open", "gap a evicted"]);
    assert_eq!(since(times[1])[2..], all);
    assert_eq!(since(SystemTime::UNIX_EPOCH)[..2], ["open", "gap a evicted"]);
}

#[test]
fn a_client_that_is_cut_off_at_the_head_of_since_gets_no_older_messages() {
    let replica = Replica::new(ample());
    let _reader = open(&replica, &["a", "b"], &Start::Now);
    publish(&replica, "a", 0..1);
    publish(&replica, "b", 0..9);
    let last = replica.deliver(&topic("b"), "b#9", None);
    while SystemTime::now() <= last {}
    let events = open(&replica, &["a", "b"], &Start::Since(SystemTime::now())).read_all();
    assert_eq!(told(&events), ["resumed"]);
    assert_eq!(read(&replica, &["a", "b"], &after(&events[0].id)), ["resumed"]);
}

#[test]
fn since_a_time_before_the_broker_had_confirmed_is_a_gap() {
    let (replica, subscription) = Replica::before_warm(ample(), usize::MAX);
    let fed = replica.lease(&filter("w/1"));
    let before = SystemTime::now();
    while SystemTime::now() <= before {}
    replica.confirm(subscription);
    let mut reader = Reader::new(replica.open_leases(vec![fed], &Start::Since(before), Format::Raw).unwrap());
    assert_eq!(told(&reader.read_all()), ["open", "gap w/1 evicted"]);
    assert_eq!(read(&replica, &[WARM], &Start::Since(before)), ["open", "gap w/** evicted"]);
}

#[test]
fn last_counts_messages_for_each_topic_and_pattern() {
    let replica = Replica::new(ample());
    let _reader = open(&replica, &["a", "b", "c/*"], &Start::Now);
    publish(&replica, "a", 0..2);
    publish(&replica, "b", 0..1);
    replica.lose(None);
    publish(&replica, "a", 2..3);
    for name in ["c/1", "c/2"] {
        publish(&replica, name, 0..2);
    }
    for topics in [["c/*", "b", "a"], ["a", "b", "c/*"]] {
        let last = |count| read(&replica, &topics, &Start::Last(count));
        assert_eq!(last(0), ["open"]);
        // Of b the last one is before the gap.
        assert_eq!(last(1), ["open", "b#0", "gap b broker", "a#2", "c/2#1"]);
        assert_eq!(last(2)[1..3], ["a#1", "b#0"]);
        assert_eq!(last(2).last().unwrap(), "c/2#1");
        assert_eq!(last(2).iter().filter(|told| told.starts_with("c/")).count(), 2);
        assert_eq!(last(3)[1], "a#0");
        assert_eq!(last(usize::MAX)[1], "a#0");
    }
}

#[test]
fn a_gap_of_one_topic_takes_nothing_from_the_others_that_a_warm_log_feeds() {
    let replica = Replica::new(ample());
    let time = SystemTime::now();
    while SystemTime::now() <= time {}
    publish(&replica, "w/1", 0..2);
    publish(&replica, "w/2", 0..1);
    let id = open(&replica, &[WARM], &Start::All).read_all().pop().unwrap().id;
    replica.registry.append_gap(Some(&[filter(WARM)]), Some(&topic("w/2")), GapReason::TooLarge);
    publish(&replica, "w/1", 2..3);
    publish(&replica, "w/2", 1..2);
    assert_eq!(read(&replica, &["w/1"], &Start::Since(time)), ["resumed", "w/1#0", "w/1#1", "w/1#2"]);
    assert_eq!(read(&replica, &["w/1"], &after(&id)), ["resumed", "w/1#2"]);
    let two = ["resumed", "w/2#0", "gap w/2 too_large", "w/2#1"];
    assert_eq!(read(&replica, &["w/2"], &Start::Since(time)), two);
    assert_eq!(read(&replica, &["w/2"], &after(&id)), ["resumed", "gap w/2 too_large", "w/2#1"]);
    let pattern = ["resumed", "gap w/* too_large", "w/1#2", "w/2#1"];
    assert_eq!(read(&replica, &["w/*"], &after(&id)), pattern);
    // A gap of unknown topic goes to all.
    replica.lose(None);
    replica.sweep();
    assert_eq!(read(&replica, &["w/1"], &after(&id)), ["open", "gap w/1 evicted"]);
}

#[test]
fn a_reader_that_has_seen_one_gap_of_a_loss_receives_the_others_from_a_new_feed() {
    // The order of the topics is by chance.
    for lost in std::iter::repeat_n([None, Some(topic("w/1"))], 20).flatten() {
        let replica = Replica::new(ample());
        let mut reader = open(&replica, &["w/1", "w/2"], &Start::Now);
        reader.read_all();
        replica.lose(lost.as_ref());
        let events = reader.read_all();
        let (seen, missed) = (told(&events[..1]), told(&events[1..]));
        assert_eq!((seen.len(), missed.len()), (1, 1));
        drop(reader);
        replica.sweep();
        let again = read(&replica, &["w/1", "w/2"], &after(&events[0].id));
        let missed = missed[0].replace("broker", "evicted");
        assert!(again.contains(&missed), "{missed} is not in {again:?}");
    }
}

#[test]
fn messages_published_while_there_was_no_log_are_a_gap_even_if_no_message_follows() {
    let replica = Replica::new(ample());
    let id = open(&replica, &["a"], &Start::Now).read_all()[0].id.clone();
    replica.sweep();
    publish(&replica, "a", 0..1);
    assert_eq!(read(&replica, &["a"], &after(&id)), ["open", "gap a evicted"]);
}

#[test]
fn when_a_warm_subscription_ends_the_readers_of_its_topics_are_closed_to_reconnect() {
    let replica = Replica::new(ample());
    let mut readers = [WARM, "w/1"].map(|name| open(&replica, &[name], &Start::Now));
    let ids: Vec<String> = readers.iter_mut().map(|reader| reader.read_all()[0].id.clone()).collect();
    replica.refuse(&filter(WARM));
    publish(&replica, "w/1", 0..1);
    for ((reader, id), name) in readers.iter_mut().zip(ids).zip([WARM, "w/1"]) {
        assert_eq!(told(&reader.read_all()), ["close refused"]);
        assert_eq!(read(&replica, &[name], &after(&id)), ["open", &format!("gap {name} evicted")]);
    }
    // Its topics have subscriptions of their own now.
    let mut reader = open(&replica, &["w/2"], &Start::Now);
    publish(&replica, "w/2", 0..1);
    assert_eq!(told(&reader.read_all()), ["open", "w/2#0"]);
}

#[test]
fn a_stream_that_joins_as_its_subscription_ends_is_closed_to_reconnect() {
    let replica = Replica::new(ample());
    let lease = replica.lease(&filter("a"));
    assert_eq!(lease.ready().now_or_never(), Some(Ok(())));
    replica.refuse(&filter("a"));
    let mut reader = Reader::new(replica.open_leases(vec![lease], &Start::Now, Format::Raw).unwrap());
    assert_eq!(told(&reader.read_all()), ["open", "close refused"]);
}

#[test]
fn stream_close_has_no_id_so_the_cursor_stays_at_the_last_event_that_was_read() {
    let replica = Replica::new(ample());
    let mut reader = open(&replica, &["a", "b"], &Start::Now);
    let id = reader.read_all()[0].id.clone();
    replica.refuse(&filter("a"));
    publish(&replica, "a", 0..1);
    let _another = open(&replica, &["a"], &Start::Now);
    let events = reader.read_all();
    assert_eq!((told(&events), events[0].id.as_str()), (vec!["close refused".to_owned()], ""));
    assert_eq!(read(&replica, &["a", "b"], &after(&id)), ["open", "gap a evicted"]);
}

#[test]
fn topics_of_a_warm_pattern_that_was_never_confirmed_are_released() {
    let (replica, subscription) = Replica::before_warm(ample(), usize::MAX);
    drop(replica.lease(&filter("w/1")));
    assert_eq!(replica.registry.topics(), 2);
    replica.sweep();
    assert_eq!(replica.registry.topics(), 1);
    // Nor does one that will never be confirmed leave them behind.
    let lease = replica.lease(&filter("w/1"));
    drop(subscription);
    assert_eq!(lease.ready().now_or_never(), Some(Err(CloseCode::Unavailable)));
    assert_eq!(replica.registry.topics(), 0);
}

#[test]
fn envelopes_count_in_the_buffered_bytes() {
    let replica = Replica::bounded(ample(), 100_000);
    let filters = [filter("a")];
    let mut raw = Reader::new(replica.open(&filters, &Start::Now, Format::Raw).unwrap());
    for _ in 0..5 {
        replica.deliver(&topic("a"), &"\u{1}".repeat(5_000), None); // six bytes each in JSON
    }
    let before = replica.registry.bytes();
    assert!(before < 50_000);
    let mut reader = Reader::new(replica.open(&filters, &Start::All, Format::CloudEvents).unwrap());
    while let Poll::Ready(Some(_)) = reader.poll() {}
    assert!(replica.registry.bytes() > before + 5 * 30_000);
    replica.sweep();
    assert!(replica.registry.bytes() <= 100_000);
    // What is counted when it is made is uncounted when it goes.
    raw.read_all();
    drop((raw, reader));
    replica.sweep();
    assert_eq!(replica.registry.bytes(), 0);
}

#[test]
fn the_newest_message_is_delivered_even_if_it_exceeds_the_bound_of_its_log() {
    let replica = Replica::new(Bounds { bytes: 2_000, ..ample() });
    for names in [&["a"][..], &["a", "b"]] {
        let mut reader = open(&replica, names, &Start::Now);
        reader.read_all();
        let payload = "x".repeat(9_000);
        replica.deliver(&topic("a"), &payload, None);
        assert!(reader.flag.is_raised());
        assert!(told(&reader.read_all()) == [payload.as_str()]);
        replica.deliver(&topic("a"), &payload, None);
        replica.deliver(&topic("a"), "y", None);
        assert_eq!(told(&reader.read_all()), ["gap a slow", "y"]);
    }
}
