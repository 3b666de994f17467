//! Readers with a view: in any schedule, they receive a subsequence of each topic and type that ends with the newest
//! message, and no gap without a loss. Without an interval it is the whole sequence.

use std::collections::BTreeMap;
use std::task::Poll;
use std::time::Duration;

use eventsource_stream::Event;
use proptest::prelude::*;
use topicgate::internals::log::Bounds;
use topicgate::internals::log::message::Format;
use topicgate::internals::protocol::codes::CloseCode;
use topicgate::internals::protocol::seek::Start;
use topicgate::internals::protocol::topic::Filter;
use topicgate::internals::protocol::view::{Interval, View};

use crate::client::Reader;
use crate::replica::{Replica, ample, at_most, filter, topic};

const TOPICS: [&str; 4] = ["a/1", "a/2", "b", "w/1"];
const KINDS: [&str; 3] = ["message", "x", "y"];
const STREAMS: [&[&str]; 6] =
    [&["a/1"], &["a/*"], &["a/1", "b"], &["w/**"], &["a/*", "w/1", "b"], &["a/2", "w/1"]];
const VIEWS: [(&str, bool); 5] = [("", true), ("x", true), ("message,y", true), ("x,y", false), ("y", false)];
const CLIENTS: usize = 3;

#[derive(Debug, Clone)]
enum Step {
    Publish {
        topic: usize,
        kind: usize,
        count: usize,
        size: usize,
    },
    Lose(usize),
    Join {
        client: usize,
        stream: usize,
        view: usize,
        format: bool,
    },
    /// Polls `polls` times. With `cut`, only that many events of the last batch arrive.
    Read {
        client: usize,
        polls: usize,
        cut: Option<usize>,
    },
    Resume(usize),
    /// An interval passes.
    Pass,
}

/// A topic and a type.
type Key = (&'static str, &'static str);

/// A number for each key.
type Numbers = BTreeMap<Key, usize>;

struct Client {
    filters: Vec<Filter>,
    view: View,
    format: Format,
    reader: Option<Reader>,
    last_id: Option<String>,
    /// The last message of each key that came, or that was there before the stream.
    seen: Numbers,
    /// What may be missing, because a gap said so.
    told: Numbers,
    gaps: usize,
}

struct World {
    replica: Replica,
    published: Numbers,
    clients: [Option<Client>; CLIENTS],
}

impl Client {
    fn wants(&self, (topic, kind): &Key) -> bool {
        self.view.admits(Some(kind)) && self.filters.iter().any(|f| f.matches(&self::topic(topic)))
    }

    fn take(&mut self, event: &Event, published: &Numbers) {
        if !event.id.is_empty() {
            self.last_id = Some(event.id.clone());
        }
        match event.event.as_str() {
            "stream-open" | "stream-close" => return,
            "stream-gap" => {
                self.gaps += 1;
                self.told = published.clone();
                return;
            }
            _ => {}
        }
        let data: serde_json::Value = match self.format {
            Format::Raw => serde_json::Value::String(event.data.clone()),
            Format::CloudEvents => {
                serde_json::from_str::<serde_json::Value>(&event.data).unwrap()["data"].clone()
            }
        };
        let mut words = data.as_str().unwrap().split(' ');
        let mut word = || words.next().unwrap().to_owned();
        let (topic, kind, number) = (word(), word(), word().parse::<usize>().unwrap());
        let key = *published.keys().find(|key| (key.0, key.1) == (&*topic, &*kind)).unwrap();
        assert!(self.wants(&key), "{key:?} was not asked for");
        let before = self.seen.insert(key, number).unwrap();
        assert!(number > before, "TWICE or out of order: {key:?} {number} after {before}");
        if self.view.every.is_none() {
            assert!(
                number == before + 1 || self.told[&key] >= number - 1,
                "LOST: {key:?} {number} after {before}"
            );
        }
    }

    fn check(&self, published: &Numbers) {
        for (key, last) in published.iter().filter(|(key, _)| self.wants(key)) {
            let seen = self.seen[key].max(self.told[key]);
            assert!(seen >= *last, "LOST: {key:?} ends with {last}, {seen} was seen; {:?}", self.view);
        }
    }
}

impl World {
    fn new(bounds: Bounds) -> Self {
        let keys = TOPICS.iter().flat_map(|topic| KINDS.iter().map(|kind| ((*topic, *kind), 0)));
        World { replica: Replica::new(bounds), published: keys.collect(), clients: [const { None }; CLIENTS] }
    }

    fn open(&self, filters: &[Filter], start: &Start, format: Format, view: &View) -> Reader {
        let leases = filters.iter().map(|filter| self.replica.lease(filter)).collect();
        Reader::new(self.replica.open_with(leases, start, format, Some(view.clone())).unwrap())
    }

    fn join(&mut self, at: usize, stream: usize, view: usize, format: Format) {
        let (types, paced) = VIEWS[view];
        let mut view = View::default();
        if !types.is_empty() {
            view.add_types(types).unwrap();
        }
        view.every = paced.then(|| Interval::read("100ms").unwrap());
        let filters: Vec<_> = STREAMS[stream].iter().map(|name| filter(name)).collect();
        let reader = Some(self.open(&filters, &Start::Now, format, &view));
        let nothing = self.published.keys().map(|key| (*key, 0)).collect();
        let seen = self.published.clone();
        self.clients[at] =
            Some(Client { filters, view, format, reader, last_id: None, seen, told: nothing, gaps: 0 });
    }

    fn resume(&mut self, at: usize) {
        let Some(mut client) = self.clients[at].take() else { return };
        client.reader = None;
        match &client.last_id {
            Some(id) => {
                let start = Start::After(Some(id.clone()));
                client.reader = Some(self.open(&client.filters, &start, client.format, &client.view));
            }
            // A client that never received an id begins again.
            None => {
                client.seen = self.published.clone();
                client.reader = Some(self.open(&client.filters, &Start::Now, client.format, &client.view));
            }
        }
        self.clients[at] = Some(client);
    }

    fn read(&mut self, at: usize, polls: usize, cut: Option<usize>) {
        let Some(client) = &mut self.clients[at] else { return };
        for poll in 0..polls {
            let Some(reader) = &mut client.reader else { return };
            reader.asleep &= client.view.every.is_none(); // the clock may wake it at any moment
            let events = match reader.poll() {
                Poll::Pending => break,
                Poll::Ready(None) => {
                    client.reader = None;
                    return;
                }
                Poll::Ready(Some(events)) => events,
            };
            let arrives = if poll + 1 == polls { cut.unwrap_or(usize::MAX) } else { usize::MAX };
            for event in events.iter().take(arrives) {
                client.take(event, &self.published);
            }
        }
        if cut.is_some() {
            client.reader = None;
        }
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::Publish { topic: at, kind, count, size } => {
                let key = (TOPICS[at], KINDS[kind]);
                for _ in 0..count {
                    let number = self.published.get_mut(&key).unwrap();
                    *number += 1;
                    let payload = format!("{} {} {number} {}", key.0, key.1, ".".repeat(size));
                    let kind = Some(key.1).filter(|kind| *kind != "message");
                    self.replica.deliver_typed(&topic(key.0), kind, &payload);
                }
            }
            Step::Lose(at) => self.replica.lose(Some(&topic(TOPICS[at]))),
            Step::Join { client, stream, view, format } => {
                self.join(client, stream, view, if format { Format::CloudEvents } else { Format::Raw });
            }
            Step::Read { client, polls, cut } => self.read(client, polls, cut),
            Step::Resume(client) => self.resume(client),
            Step::Pass => std::thread::sleep(Duration::from_millis(101)),
        }
    }

    /// Every client comes back, and is closed: then it has the last state.
    fn settle(&mut self) {
        for client in 0..CLIENTS {
            let is_open = self.clients[client].as_ref().is_some_and(|client| client.reader.is_some());
            if !is_open {
                self.resume(client);
            }
        }
        self.replica.table.close(usize::MAX, CloseCode::Draining);
        for at in 0..CLIENTS {
            self.read(at, usize::MAX, None);
            if let Some(client) = &self.clients[at] {
                assert!(client.reader.is_none(), "it was not closed");
                client.check(&self.published);
            }
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    let size = prop_oneof![6 => Just(0usize), 1 => Just(30_000)];
    let publish = (0..TOPICS.len(), 0..KINDS.len(), 1..8usize, size)
        .prop_map(|(topic, kind, count, size)| Step::Publish { topic, kind, count, size });
    let join = (0..CLIENTS, 0..STREAMS.len(), 0..VIEWS.len(), any::<bool>())
        .prop_map(|(client, stream, view, format)| Step::Join { client, stream, view, format });
    let read = (0..CLIENTS, 1..5usize, proptest::option::weighted(0.3, 0..5usize))
        .prop_map(|(client, polls, cut)| Step::Read { client, polls, cut });
    prop_oneof![
        12 => publish,
        2 => join,
        8 => read,
        3 => (0..CLIENTS).prop_map(Step::Resume),
        1 => Just(Step::Pass),
    ]
}

fn schedule(lossy: bool) -> impl Strategy<Value = (usize, usize, Vec<Step>)> {
    let lose = (0..TOPICS.len()).prop_map(Step::Lose);
    let step = if lossy { prop_oneof![20 => step(), 1 => lose].boxed() } else { step().boxed() };
    (0..STREAMS.len(), 0..VIEWS.len(), proptest::collection::vec(step, 1..40))
}

fn run(bounds: Bounds, stream: usize, view: usize, steps: &[Step]) -> World {
    let mut world = World::new(bounds);
    world.join(0, stream, view, Format::Raw);
    steps.iter().for_each(|step| world.run(step));
    world.settle();
    world
}

proptest! {
    #![proptest_config(ProptestConfig { cases: crate::cases(60), failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_view_ends_with_the_newest_message_of_each_topic_and_type_or_with_a_gap(
        (stream, view, steps) in schedule(true),
        bound in prop_oneof![Just(2usize), Just(6), Just(100_000)],
    ) {
        run(at_most(bound), stream, view, &steps);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: crate::cases(40), failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn messages_that_a_view_leaves_out_are_never_a_gap((stream, view, steps) in schedule(false)) {
        let world = run(ample(), stream, view, &steps);
        for client in world.clients.iter().flatten() {
            prop_assert_eq!(client.gaps, 0);
        }
    }
}

fn paced(replica: &Replica, name: &str) -> Reader {
    let mut view = View::default();
    view.every = Some(Interval::read("1min").unwrap());
    let leases = vec![replica.lease(&filter(name))];
    let mut reader = Reader::new(replica.open_with(leases, &Start::Now, Format::Raw, Some(view)).unwrap());
    reader.read_all();
    reader
}

#[test]
fn readers_with_an_interval_are_woken_once_for_any_number_of_messages_and_share_a_batch() {
    let replica = Replica::new(ample());
    let mut readers: Vec<_> = (0..50).map(|_| paced(&replica, "a")).collect();
    replica.deliver(&topic("a"), "first", None);
    for reader in &mut readers {
        assert!(reader.flag.is_raised(), "the first message wakes it");
        assert_eq!(reader.read_all().len(), 1, "and comes at once");
    }
    for number in 0..1_000 {
        replica.deliver(&topic("a"), &number.to_string(), None);
    }
    assert!(
        readers.iter().all(|reader| !reader.flag.is_raised()),
        "messages woke readers between their ticks"
    );
    // The last state is one batch for all of them.
    replica.table.close(usize::MAX, CloseCode::Draining);
    let mut shared = Vec::new();
    for reader in &mut readers {
        let Poll::Ready(Some(bytes)) = reader.poll_bytes() else { panic!("it has nothing to read") };
        assert!(bytes.ends_with(b"data: 999\n\n"), "{bytes:?}");
        shared.push(bytes.as_ptr());
    }
    shared.dedup();
    assert_eq!(shared.len(), 1, "the batch was made more than once");
}
