//! The code that runs for every message or every reader, each part measured by itself through the library's internals:
//! `cargo bench -p topicgate-bench`.

#![allow(clippy::expect_used, reason = "a benchmark that cannot be set up may end in a panic")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use divan::Bencher;
use divan::counter::ItemsCount;
use tokio::sync::mpsc;
use topicgate::internals::log::message::{Extracted, FieldMapping, Format, Message};
use topicgate::internals::log::{Bounds, Cursors, EntryKind, Lease, Read, Registry};
use topicgate::internals::protocol::event_id::{Epoch, Sequence};
use topicgate::internals::protocol::frame::{self, Coding};
use topicgate::internals::protocol::publisher::PublisherId;
use topicgate::internals::protocol::seek::Start;
use topicgate::internals::protocol::seq::Seq;
use topicgate::internals::protocol::source::{Field, Source};
use topicgate::internals::protocol::topic::{Filter, Topic};
use topicgate::internals::reader::handle::ReaderHandle;

fn main() {
    divan::main();
}

/// Entries of a full log.
const FULL: usize = 100_000;

/// A registry with that many topics, each kept by a lease.
struct Logs {
    registry: Arc<Registry>,
    topics: Vec<Topic>,
    /// Held so that the logs stay.
    _leases: Vec<Lease>,
    payload: Bytes,
}

impl Logs {
    fn new(topics: usize, payload: usize) -> Self {
        let registry = Registry::new(Sequence::new(Epoch::random()), topics, usize::MAX, mpsc::channel(1).0);
        let topics: Vec<Topic> = (0..topics)
            .map(|index| Topic::parse(&format!("bench/{index}"), 200).expect("a good topic"))
            .collect();
        let leases = topics.iter().map(|topic| lease(&registry, topic)).collect();
        Logs { registry, topics, _leases: leases, payload: vec![b'x'; payload].into() }
    }

    /// Appends `count` messages to each topic in turn. Each has a publisher id.
    fn fill(&self, count: usize) {
        for number in 0..count {
            self.topics.iter().for_each(|topic| self.append(topic, Some(format!("id-{number}"))));
        }
        self.registry.wake(1); // nobody waits; it forgets which logs were appended to
    }

    fn append(&self, topic: &Topic, publisher_id: Option<String>) {
        self.registry.append(&Filter::from(topic.clone()), topic, None, |sequence, number, time, _| {
            let publisher_id = publisher_id.and_then(PublisherId::new);
            let found = Extracted { publisher_id, ..Extracted::default() };
            EntryKind::Message(Message::new(topic.clone(), time, sequence, number, found, &self.payload))
        });
    }

    /// Cursors over every topic.
    fn open(&self, start: &Start) -> Cursors {
        let leases = self.topics.iter().map(|topic| lease(&self.registry, topic)).collect();
        Cursors::open(leases, &Arc::new(ReaderHandle::default()), start, &[]).cursors
    }

    fn read(&self, cursors: &mut Cursors) -> usize {
        let mut entries = 0;
        let signal = Arc::new(ReaderHandle::default());
        while let Read::Batch(batch) = cursors.read(Format::Raw, Coding::Chunked, &signal) {
            entries += batch.entries;
        }
        entries
    }
}

fn lease(registry: &Arc<Registry>, topic: &Topic) -> Lease {
    let bounds = Bounds {
        messages: FULL,
        bytes: usize::MAX,
        age: Duration::from_secs(3600),
        linger: Duration::from_secs(60),
        rule: Default::default(),
    };
    let field = |name: &str| Field::Header(name.to_owned());
    let fields = Arc::new(FieldMapping {
        source: Source::Pubsub,
        id: field("Nats-Msg-Id"),
        kind: field("Event-Type"),
        data: None,
        end: Field::Nowhere,
    });
    let filter = Filter::from(topic.clone());
    let (lease, subscription) = registry.lease(&filter, &bounds, &fields, None).expect("there is room");
    if let Some(subscription) = subscription {
        subscription.accepted();
    }
    lease
}

/// A payload of one line, and one of many.
#[divan::bench(args = [(200, 1), (4096, 1), (4096, 64)])]
fn frame_encoding(bencher: Bencher, (size, lines): (usize, usize)) {
    let line = "x".repeat(size / lines - 1);
    let payload = Bytes::from(vec![line; lines].join("\n"));
    let id = Sequence::new(Epoch::random()).event_id(Seq::new(123_456), None);
    bencher.bench(|| frame::message(&id, None, black_box(&payload)));
}

/// A message into a log that is full, so that each append evicts.
#[divan::bench(args = [200, 4096])]
fn append(bencher: Bencher, size: usize) {
    let logs = Logs::new(1, size);
    logs.fill(FULL);
    let topic = logs.topics[0].clone();
    bencher.bench_local(|| logs.append(&topic, None));
}

/// The work of a reader for one new message.
#[divan::bench]
fn cursor_read_one(bencher: Bencher) {
    let logs = Logs::new(1, 200);
    logs.fill(1);
    let (mut cursors, signal) = (logs.open(&Start::Now), Arc::default());
    bencher
        .with_inputs(|| logs.append(&logs.topics[0], None))
        .bench_local_values(|()| cursors.read(Format::Raw, Coding::Chunked, &signal));
}

/// The work of the second and every later reader at one position for a thousand messages.
#[divan::bench]
fn cursor_read_shared(bencher: Bencher) {
    let logs = Logs::new(1, 200);
    let start = Start::After(Some(logs.registry.sequence().event_id(Seq::START, None).into()));
    logs.fill(1000);
    logs.read(&mut logs.open(&start));
    bencher
        .counter(ItemsCount::new(1000usize))
        .with_inputs(|| logs.open(&start))
        .bench_local_refs(|cursors| assert_eq!(logs.read(cursors), 1000));
}

/// Resuming in the middle of a full log: by our event id, by a publisher id, by time.
#[divan::bench(args = ["own", "publisher", "since"])]
fn resume_lookup(bencher: Bencher, by: &str) {
    let logs = Logs::new(1, 20);
    logs.fill(FULL);
    let middle = FULL as u64 / 2;
    let start = match by {
        "own" => Start::After(Some(logs.registry.sequence().event_id(Seq::new(middle), None).into())),
        "publisher" => Start::After(Some(format!("id-{middle}"))),
        _ => Start::Since(SystemTime::now() - Duration::from_millis(1)),
    };
    bencher.bench_local(|| logs.open(black_box(&start)));
}

/// Resuming at our event id and reading the first batch: the cost must not grow with the log.
#[divan::bench(args = [1_000, 10_000, 100_000])]
fn resume_and_read_first(bencher: Bencher, held: usize) {
    let logs = Logs::new(1, 20);
    logs.fill(held);
    let start = Start::After(Some(logs.registry.sequence().event_id(Seq::new(held as u64 / 2), None).into()));
    bencher.bench_local(|| {
        let (mut cursors, signal) = (logs.open(&start), Arc::default());
        cursors.read(Format::Raw, Coding::Chunked, &signal)
    });
}

/// One stream over a hundred topics reads a thousand messages.
#[divan::bench]
fn merge_hundred_logs(bencher: Bencher) {
    let logs = Logs::new(100, 200);
    let start = Start::After(Some(logs.registry.sequence().event_id(Seq::START, None).into()));
    logs.fill(10);
    bencher
        .counter(ItemsCount::new(1000usize))
        .with_inputs(|| logs.open(&start))
        .bench_local_refs(|cursors| assert_eq!(logs.read(cursors), 1000));
}

/// One stream over a hundred topics reads one new message, as it does live.
#[divan::bench]
fn merge_hundred_logs_one(bencher: Bencher) {
    let logs = Logs::new(100, 200);
    logs.fill(10);
    let (mut cursors, signal) = (logs.open(&Start::Now), Arc::default());
    bencher
        .with_inputs(|| logs.append(&logs.topics[0], None))
        .bench_local_values(|()| cursors.read(Format::Raw, Coding::Chunked, &signal));
}
