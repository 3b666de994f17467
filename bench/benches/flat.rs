//! Costs that must not grow with the number of topics, patterns and messages that other clients use: each is measured at
//! a small size and at large ones, with the ratio. `cargo bench -p topicgate-bench --bench flat` fails if a ratio is
//! above the bar. It uses the library's internals.

#![allow(clippy::expect_used, reason = "a benchmark that cannot be set up may end in a panic")]

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::sync::mpsc;
use topicgate::internals::log::message::{Extracted, FieldMapping, Format, Message};
use topicgate::internals::log::{Bounds, Cursors, EntryKind, Lease, Read, Registry};
use topicgate::internals::protocol::event_id::{Epoch, Sequence};
use topicgate::internals::protocol::frame::Coding;
use topicgate::internals::protocol::seek::Start;
use topicgate::internals::protocol::source::{Field, Source};
use topicgate::internals::protocol::topic::{Filter, Topic};
use topicgate::internals::reader::handle::ReaderHandle;

/// The highest ratio of the cost at a large size to the cost at the smallest.
const BAR: f64 = 1.5;

/// A shorter wait cannot be distinguished from the scheduler's own. Measure on a machine with two idle processors.
const NOISE: Duration = Duration::from_millis(5);

/// A message costs its stream more than this on the way to the socket, so a smaller cost of finding it does not matter.
const WAY: Duration = Duration::from_nanos(500);

/// How often each cost is measured; the lowest counts.
const TIMES: usize = 7;

fn main() -> ExitCode {
    let unit = Duration::ZERO;
    let flat = [
        compare("a message in a warm rule, by patterns in the rule", &[0, 1_000, 10_000], unit, message),
        compare("a message that matches 4 patterns, by patterns", &[10, 1_000, 10_000], unit, overlapping),
        compare("a new topic in a warm rule, by messages in the rule", &[1_000, 100_000], unit, new_topic),
        compare("a message of a catch-up, by topics of the stream", &[1, 10, 100], WAY, catch_up),
        compare("a live message, by topics of the stream", &[1, 10, 100], unit, live),
        compare("the longest wait while fed logs are released, by logs", &[900, 90_000], NOISE, give_up),
        compare(
            "the longest wait while patterns are released, by patterns",
            &[100, 10_000],
            NOISE,
            give_up_patterns,
        ),
        compare("the longest wait while rules change, by topics", &[800, 80_000], NOISE, reload),
        compare(
            "the longest wait for a new pattern, by messages in the rule",
            &[1_000, 100_000],
            NOISE,
            new_pattern,
        ),
    ];
    if flat.into_iter().all(|flat| flat) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Prints the cost at each size, and its ratio to the cost at the smallest. A cost below `noise` counts as `noise`.
fn compare(what: &str, sizes: &[usize], noise: Duration, cost: fn(usize) -> Duration) -> bool {
    println!("{what}");
    let mut first = None;
    let mut flat = true;
    for size in sizes {
        let best = (0..TIMES).map(|_| cost(*size)).min().expect("it is measured more than once");
        let first = *first.get_or_insert(best.max(noise));
        let ratio = best.max(noise).as_secs_f64() / first.as_secs_f64();
        flat &= ratio <= BAR;
        println!(
            "  {size:>7}  {best:>12.2?}  {ratio:>6.2} x{}",
            if ratio <= BAR { "" } else { "  above the bar" }
        );
    }
    flat
}

/// A registry with the warm log of `w/**`.
struct Logs {
    registry: Arc<Registry>,
    bounds: Bounds,
    fields: Arc<FieldMapping>,
    payload: Bytes,
}

impl Logs {
    fn new() -> Self {
        let hour = Duration::from_secs(3600);
        let field = |name: &str| Field::Header(name.to_owned());
        let logs = Logs {
            registry: Registry::new(
                Sequence::new(Epoch::random()),
                1_000_000,
                usize::MAX,
                mpsc::channel(1).0,
            ),
            bounds: Bounds {
                messages: 1_000_000,
                bytes: usize::MAX,
                age: hour,
                linger: Duration::ZERO,
                rule: Default::default(),
            },
            fields: Arc::new(FieldMapping {
                source: Source::Pubsub,
                id: field("id"),
                kind: field("type"),
                data: None,
                end: Field::Nowhere,
            }),
            payload: vec![b'x'; 200].into(),
        };
        if let Some(subscription) = logs.registry.warm(&warm(), &logs.bounds, &logs.fields) {
            subscription.accepted();
        }
        logs
    }

    fn lease(&self, filter: &Filter) -> Lease {
        let warm = warm();
        let warm = warm.covers(filter).then_some(&warm);
        let (lease, subscription) =
            self.registry.lease(filter, &self.bounds, &self.fields, warm).expect("there is room");
        if let Some(subscription) = subscription {
            subscription.accepted();
        }
        while lease.ready().now_or_never().is_none() {}
        lease
    }

    fn append(&self, subscribed: &Filter, topic: &Topic) {
        self.registry.append(subscribed, topic, None, |sequence, number, time, _| {
            let (topic, found) = (topic.clone(), Extracted::default());
            EntryKind::Message(Message::new(topic, time, sequence, number, found, &self.payload))
        });
    }

    /// Appends `messages` messages to the warm log, ten per topic. Returns the topics.
    fn fill(&self, messages: usize) -> Vec<Topic> {
        let topics: Vec<Topic> = (0..messages / 10).map(|index| topic(&format!("w/{index}/x"))).collect();
        for _ in 0..10 {
            topics.iter().for_each(|topic| self.append(&warm(), topic));
        }
        while self.registry.wake(usize::MAX) {}
        topics
    }

    /// The longest wait of the writer while `work` is done.
    fn longest_wait(&self, work: impl FnOnce()) -> Duration {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut longest = Duration::ZERO;
                while !done.load(Ordering::Relaxed) {
                    let begin = Instant::now();
                    self.registry.topics();
                    longest = longest.max(begin.elapsed());
                    std::hint::spin_loop();
                }
                longest
            });
            std::thread::sleep(Duration::from_millis(5));
            work();
            done.store(true, Ordering::Relaxed);
            writer.join().expect("it measures")
        })
    }
}

fn warm() -> Filter {
    filter("w/**")
}

fn filter(text: &str) -> Filter {
    Filter::parse(text, 200).expect("a good filter")
}

fn topic(text: &str) -> Topic {
    Topic::parse(text, 200).expect("a good topic")
}

/// The time of each of `count` times `work`.
fn each(count: usize, mut work: impl FnMut(usize)) -> Duration {
    let begin = Instant::now();
    (0..count).for_each(&mut work);
    begin.elapsed() / count as u32
}

fn message(patterns: usize) -> Duration {
    let logs = Logs::new();
    let _leases: Vec<_> = (0..patterns).map(|index| logs.lease(&filter(&format!("w/{index}/*/x")))).collect();
    let (warm, topic) = (warm(), topic("w/a/b/c"));
    each(2_000, |_| logs.append(&warm, &topic))
}

const MATCHING: [&str; 4] = ["w/*/b/c", "w/a/*/c", "w/a/**", "w/*/*/*"];

fn overlapping(patterns: usize) -> Duration {
    let logs = Logs::new();
    let mut leases: Vec<_> = MATCHING.iter().map(|text| logs.lease(&filter(text))).collect();
    leases.extend((MATCHING.len()..patterns).map(|index| logs.lease(&filter(&format!("w/*/{index}/*")))));
    let (warm, topic) = (warm(), topic("w/a/b/c"));
    each(2_000, |_| logs.append(&warm, &topic))
}

fn new_topic(messages: usize) -> Duration {
    let logs = Logs::new();
    let topics = logs.fill(messages);
    let mut leases = Vec::new();
    each(100, |index| leases.push(logs.lease(&Filter::from(topics[index].clone()))))
}

/// A stream over that many topics, with 10,000 messages in total.
fn opened(logs: &Logs, topics: &[Topic], start: &Start) -> Cursors {
    let leases = topics.iter().map(|topic| logs.lease(&Filter::from(topic.clone()))).collect();
    Cursors::open(leases, &Arc::new(ReaderHandle::default()), start, &[]).cursors
}

fn topics(count: usize) -> Vec<Topic> {
    (0..count).map(|index| topic(&format!("t/{index}"))).collect()
}

fn catch_up(count: usize) -> Duration {
    const MESSAGES: usize = 10_000;
    let (logs, topics) = (Logs::new(), topics(count));
    let _leases: Vec<_> = topics.iter().map(|topic| logs.lease(&Filter::from(topic.clone()))).collect();
    let start =
        Start::After(Some(logs.registry.sequence().event_id(logs.registry.sequence().head(), None).into()));
    for _ in 0..MESSAGES / count {
        topics.iter().for_each(|topic| logs.append(&Filter::from(topic.clone()), topic));
    }
    // The pieces that a first reader leaves to the next one are not measured.
    let mut cursors = opened(&logs, &topics, &start);
    let (signal, begin, mut read) = (Arc::default(), Instant::now(), 0);
    while let Read::Batch(batch) = cursors.read(Format::Raw, Coding::Chunked, &signal) {
        read += batch.entries;
    }
    assert_eq!(read, MESSAGES);
    begin.elapsed() / MESSAGES as u32
}

fn live(count: usize) -> Duration {
    const MESSAGES: usize = 5_000;
    let (logs, topics) = (Logs::new(), topics(count));
    let mut cursors = opened(&logs, &topics, &Start::Now);
    let signal = Arc::default();
    each(MESSAGES, |index| {
        let topic = &topics[index % count];
        logs.append(&Filter::from(topic.clone()), topic);
        assert!(matches!(cursors.read(Format::Raw, Coding::Chunked, &signal), Read::Batch(_)));
    })
}

fn give_up(count: usize) -> Duration {
    let logs = Logs::new();
    (0..count).for_each(|index| drop(logs.lease(&filter(&format!("w/{index}")))));
    logs.longest_wait(|| _ = logs.registry.sweep(|_, _| true))
}

fn give_up_patterns(count: usize) -> Duration {
    let logs = Logs::new();
    (0..count).for_each(|index| drop(logs.lease(&filter(&format!("w/{index}/*")))));
    logs.longest_wait(|| _ = logs.registry.sweep(|_, _| true))
}

fn reload(count: usize) -> Duration {
    let logs = Logs::new();
    let _leases: Vec<_> = (0..count).map(|index| logs.lease(&filter(&format!("w/{index}")))).collect();
    let rules: Vec<Filter> = (0..200).map(|index| filter(&format!("r{index}/**"))).collect();
    logs.longest_wait(|| {
        logs.registry.set_rules(|filter| {
            let covered = rules.iter().any(|rule| rule.covers(filter));
            (!covered).then(|| (logs.bounds.clone(), logs.fields.clone()))
        });
    })
}

fn new_pattern(messages: usize) -> Duration {
    let logs = Logs::new();
    logs.fill(messages);
    logs.longest_wait(|| drop(logs.lease(&filter("w/*/x"))))
}
