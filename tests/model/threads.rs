//! The same check with real tasks on real threads, against lost wake-ups and half-seen appends.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use eventsource_stream::Event;
use topicgate::internals::log::Lease;
use topicgate::internals::log::message::Format;
use topicgate::internals::protocol::seek::Start;
use topicgate::internals::protocol::topic::{Filter, Topic};
use topicgate::internals::protocol::view::{Interval, View};

use crate::client::{Body, Life};
use crate::replica::{Replica, at_most, filter, topic};

const TOPICS: [&str; 6] = ["a", "b", "w/1", "w/2", "w/a/1", "w/a/2"];
const STREAMS: [&[&str]; 7] = [
    &["a"],
    &["a", "b", "w/1"],
    &["w/1", "w/2"],
    &["w/*"],
    &["w/a/*", "w/1"],
    &["w/*/1", "w/a/2"],
    &["w/a/**", "w/2", "b"],
];

/// How long the last message may take to reach those who sleep.
const LIMIT: Duration = Duration::from_secs(10);

/// Messages that each come as their reader falls asleep.
const ROUNDS: usize = 30_000;

type Counts = BTreeMap<Topic, AtomicUsize>;

struct World {
    replica: Replica,
    /// Messages of each topic, counted before they are appended ...
    started: Counts,
    /// ... and after.
    done: Counts,
    stopping: AtomicBool,
    stopped: AtomicBool,
    /// Messages that the one reader has read, where there is one.
    read: AtomicUsize,
}

impl World {
    fn new() -> Self {
        let counts = || TOPICS.iter().map(|name| (topic(name), AtomicUsize::new(0))).collect();
        World {
            replica: Replica::new(at_most(900)),
            started: counts(),
            done: counts(),
            stopping: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            read: AtomicUsize::new(0),
        }
    }

    fn started(&self, topic: &Topic) -> usize {
        self.started[topic].load(Ordering::SeqCst)
    }

    fn publish(&self, topic: &Topic, lost: bool) {
        let number = self.started[topic].fetch_add(1, Ordering::SeqCst);
        if lost {
            self.replica.lose(Some(topic));
        } else {
            self.replica.deliver(topic, &format!("{topic}#{number}"), None);
        }
        self.done[topic].fetch_add(1, Ordering::SeqCst);
    }

    /// The one writer. It sweeps too, so that no message is in progress while its subscription ends and begins again.
    fn write(&self) {
        let begin = Instant::now();
        let topics: Vec<Topic> = TOPICS.iter().map(|name| topic(name)).collect();
        while begin.elapsed() < Duration::from_secs(2) {
            for _ in 0..fastrand::usize(1..20) {
                self.publish(&topics[fastrand::usize(..topics.len())], fastrand::usize(..200) == 0);
            }
            if fastrand::usize(..20) == 0 {
                self.replica.sweep();
            }
            std::thread::yield_now();
        }
        self.stopping.store(true, Ordering::SeqCst);
        // The last word, which nobody may sleep through.
        topics.iter().for_each(|topic| self.publish(topic, false));
        self.stopped.store(true, Ordering::SeqCst);
    }

    /// A stream, once the subscriptions that others have just begun are confirmed.
    fn open(&self, filters: &[Filter], start: &Start) -> Body {
        loop {
            if let Some(stream) = self.replica.open(filters, start, Format::Raw) {
                return Body::new(stream);
            }
            std::thread::yield_now();
        }
    }

    /// A new client's stream, and what it is promised.
    fn join(&self, filters: &[Filter]) -> (Body, Life) {
        let topics = self.started.keys().filter(|topic| filters.iter().any(|filter| filter.matches(topic)));
        let topics: Vec<(Topic, usize)> =
            topics.map(|topic| (topic.clone(), self.done[topic].load(Ordering::SeqCst))).collect();
        let stream = self.open(filters, &Start::Now);
        let topics = topics.into_iter().map(|(topic, least)| {
            let due = self.started(&topic);
            (topic, least, due)
        });
        (stream, Life::begin(Format::Raw, topics))
    }
}

/// What there is to read now.
fn read(stream: &mut Body) -> Option<Vec<Event>> {
    match stream.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(events) => events,
        Poll::Pending => None,
    }
}

/// Joins, reads, is cut off, comes back, until the writer has stopped.
async fn come_and_go(world: Arc<World>, names: &'static [&'static str]) {
    let filters: Vec<Filter> = names.iter().map(|name| filter(name)).collect();
    let (mut stream, mut life) = world.join(&filters);
    loop {
        let stopped = world.stopped.load(Ordering::SeqCst);
        for _ in 0..fastrand::usize(1..30) {
            let Some(events) = read(&mut stream) else { break };
            let cut = fastrand::usize(..5) == 0;
            let seen = if cut { fastrand::usize(..=events.len()) } else { events.len() };
            events[..seen].iter().for_each(|event| life.take(event, false, |topic| world.started(topic)));
            if cut {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(stream);
        life.cut();
        match life.last_id.clone() {
            Some(id) if fastrand::usize(..20) > 0 || stopped => {
                let start = Start::After(Some(id));
                stream = world.open(&filters, &start);
            }
            _ => (stream, life) = world.join(&filters),
        }
        if stopped {
            while let Some(events) = read(&mut stream) {
                events.iter().for_each(|event| life.take(event, false, |topic| world.started(topic)));
            }
            return life.caught_up(|topic| world.started(topic));
        }
        tokio::task::yield_now().await;
    }
}

/// Stays, and sleeps until it is woken, until it has everything.
async fn stay(world: Arc<World>, names: &'static [&'static str]) {
    let filters: Vec<Filter> = names.iter().map(|name| filter(name)).collect();
    let (mut stream, mut life) = world.join(&filters);
    loop {
        let events = poll_fn(|cx| stream.poll(cx)).await.unwrap();
        events.iter().for_each(|event| life.take(event, false, |topic| world.started(topic)));
        if world.stopping.load(Ordering::SeqCst) && life.is_whole(|topic| world.started(topic)) {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_reader_misses_a_message_or_sleeps_through_the_last_one() {
    let world = Arc::new(World::new());
    let mut tasks = tokio::task::JoinSet::new();
    for names in STREAMS.iter().cycle().take(10) {
        tasks.spawn(stay(world.clone(), names));
        tasks.spawn(come_and_go(world.clone(), names));
    }
    let writer = world.clone();
    tokio::task::spawn_blocking(move || writer.write()).await.unwrap();
    while let Some(ended) = tokio::time::timeout(LIMIT, tasks.join_next()).await.expect("somebody sleeps") {
        ended.unwrap();
    }
}

/// The next message is published the moment the last one has come, while its reader is about to sleep.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_comes_as_its_reader_falls_asleep_wakes_it() {
    let world = Arc::new(World::new());
    let a = topic("a");
    let (mut stream, _) = world.join(&[filter("a")]);
    let writer = world.clone();
    let writer = tokio::task::spawn_blocking(move || {
        for number in 0..ROUNDS {
            writer.publish(&a, false);
            let begin = Instant::now();
            while writer.read.load(Ordering::SeqCst) <= number {
                assert!(begin.elapsed() < LIMIT, "asleep with message {number} to read");
                std::hint::spin_loop();
            }
        }
    });
    let reader = tokio::spawn(async move {
        while world.read.load(Ordering::SeqCst) < ROUNDS {
            let events = poll_fn(|cx| stream.poll(cx)).await.unwrap();
            let messages = events.iter().filter(|event| event.event == "message").count();
            world.read.fetch_add(messages, Ordering::SeqCst);
        }
    });
    let ended = writer.await;
    reader.abort();
    ended.unwrap();
}

/// A reader with an interval, until it has the last message of each of its topics.
async fn see_the_newest(world: Arc<World>, names: &'static [&'static str]) {
    let filters: Vec<Filter> = names.iter().map(|name| filter(name)).collect();
    let mut view = View::default();
    view.every = Some(Interval::read("100ms").unwrap());
    // Others may have begun the same subscriptions a moment ago.
    let leases: Vec<Lease> = filters.iter().map(|filter| world.replica.lease(filter)).collect();
    for lease in &leases {
        lease.ready().await.unwrap();
    }
    let mut stream =
        Body::new(world.replica.open_with(leases, &Start::Now, Format::Raw, Some(view)).unwrap());
    let mut seen: BTreeMap<Topic, usize> = BTreeMap::new();
    let is_mine = |topic: &Topic| filters.iter().any(|filter| filter.matches(topic));
    let last = |topic: &Topic| world.started(topic) - 1;
    loop {
        let events = poll_fn(|cx| stream.poll(cx)).await.unwrap();
        for event in events.iter().filter(|event| event.event != "stream-open") {
            assert_eq!(event.event, "message", "{event:?}");
            let (name, number) = event.data.split_once('#').unwrap();
            let number = number.parse().unwrap();
            let before = seen.insert(topic(name), number);
            assert!(before.is_none_or(|before| before < number), "{name} {number} after {before:?}");
        }
        if world.stopped.load(Ordering::SeqCst)
            && world
                .started
                .keys()
                .filter(|topic| is_mine(topic))
                .all(|topic| seen.get(topic) == Some(&last(topic)))
        {
            return;
        }
    }
}

/// The pauses are about as long as the interval, so that readers fall asleep and are woken by messages and by ticks.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_reader_with_an_interval_sleeps_through_the_last_message() {
    let world = Arc::new(World::new());
    let table = world.replica.table.clone();
    let ticks = tokio::spawn(async move { table.ticks().run().await });
    let mut tasks = tokio::task::JoinSet::new();
    for names in STREAMS.iter().cycle().take(21) {
        tasks.spawn(see_the_newest(world.clone(), names));
    }
    let writer = world.clone();
    let writer = tokio::task::spawn_blocking(move || {
        let topics: Vec<Topic> = TOPICS.iter().map(|name| topic(name)).collect();
        for _ in 0..30 {
            for _ in 0..fastrand::usize(1..40) {
                writer.publish(&topics[fastrand::usize(..topics.len())], false);
            }
            std::thread::sleep(Duration::from_millis(fastrand::u64(..200)));
        }
        // Known to be over before the last word, which wakes everyone.
        writer.stopped.store(true, Ordering::SeqCst);
        topics.iter().for_each(|topic| writer.publish(topic, false));
    });
    writer.await.unwrap();
    while let Some(ended) = tokio::time::timeout(LIMIT, tasks.join_next()).await.expect("somebody sleeps") {
        ended.unwrap();
    }
    ticks.abort();
}
