//! Random schedules of everything that can happen to a gateway and its clients.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::task::Poll;
use std::time::SystemTime;

use proptest::prelude::*;
use topicgate::internals::log::Bounds;
use topicgate::internals::log::message::Format;
use topicgate::internals::protocol::seek::Start;
use topicgate::internals::protocol::topic::{Filter, Topic};

use crate::client::{Life, Reader};
use crate::replica::{Replica, WARM, ample, at_most, filter, topic};

const TOPICS: [&str; 5] = ["a/1", "a/2", "b", "w/1", "w/2"];
const STREAMS: [&[&str]; 9] = [
    &["a/1"],
    &["a/1", "a/2", "b"],
    &["a/*"],
    &["w/1"],
    &["w/1", "w/2"],
    &["w/*"],
    &["w/**"],
    &["w/1", "b"],
    &["a/*", "w/2", "b"],
];
const CLIENTS: usize = 3;

#[derive(Debug, Clone)]
enum Step {
    Publish {
        topic: usize,
        count: usize,
        size: usize,
        publisher_id: bool,
        /// The last of them ends the topic.
        ends: bool,
    },
    /// The broker loses a message and says so.
    Lose(usize),
    LoseAll,
    /// The second replica hears of the next messages of a topic.
    Hear {
        topic: usize,
        count: usize,
    },
    Join {
        client: usize,
        stream: usize,
        start: usize,
        replica: usize,
        format: bool,
    },
    Read {
        client: usize,
        polls: usize,
    },
    /// Reads once, sees some of the events, and is cut off.
    Cut {
        client: usize,
        seen: usize,
    },
    Resume {
        client: usize,
        cursor: Cursor,
        rotate: usize,
    },
    Sweep(usize),
    Refuse(usize),
    /// A reload of one replica says whether the rule of the warm pattern is warm; also after the broker has ended that.
    Warm {
        replica: usize,
        is_warm: bool,
    },
    /// The broker says that one message of a warm topic was too large.
    TooLarge(usize),
}

#[derive(Debug, Clone, Copy)]
enum Cursor {
    Own,
    OtherReplica,
    Garbage,
    Forged,
}

struct Client {
    filters: Vec<Filter>,
    start: Start,
    format: Format,
    replica: usize,
    foreign: bool,
    reader: Option<Reader>,
    life: Life,
}

/// Payloads and publisher ids.
type Unheard = VecDeque<Option<(String, Option<String>)>>;

struct World {
    /// The first replica receives each message at once, the second on request, in another order across topics.
    replicas: [Replica; 2],
    published: BTreeMap<Topic, usize>,
    /// The messages that ended their topics.
    ends: BTreeSet<(Topic, usize)>,
    /// What the second has still to hear; `None` was lost on its way.
    unheard: BTreeMap<Topic, Unheard>,
    clients: [Option<Client>; CLIENTS],
    publisher_ids: usize,
}

impl World {
    fn new(bounds: &Bounds, max_bytes: usize) -> Self {
        World {
            replicas: [(); 2].map(|()| Replica::bounded(bounds.clone(), max_bytes)),
            published: TOPICS.iter().map(|name| (topic(name), 0)).collect(),
            ends: BTreeSet::new(),
            unheard: TOPICS.iter().map(|name| (topic(name), VecDeque::new())).collect(),
            clients: [const { None }; CLIENTS],
            publisher_ids: 0,
        }
    }

    fn publish(&mut self, topic: &Topic, count: usize, size: usize, publisher_id: bool, ends: bool) {
        let number = self.published.get_mut(topic).unwrap();
        let last = *number + count - 1;
        if ends {
            self.ends.insert((topic.clone(), last));
        }
        let messages = (*number..*number + count).map(|number| {
            let end = if ends && number == last { "!" } else { "" };
            let payload = format!("{topic}#{number}{}{end}", ".".repeat(size));
            let publisher_id = publisher_id.then(|| {
                self.publisher_ids += 1;
                format!("p-{}", self.publisher_ids)
            });
            (payload, publisher_id)
        });
        let messages: Vec<_> = messages.collect();
        *number += count;
        self.replicas[0].deliver_all(topic, &messages);
        self.unheard.get_mut(topic).unwrap().extend(messages.into_iter().map(Some));
    }

    fn hear(&mut self, topic: &Topic, count: usize) {
        let unheard = self.unheard.get_mut(topic).unwrap();
        let count = count.min(unheard.len());
        for message in unheard.drain(..count) {
            match message {
                Some((payload, id)) => _ = self.replicas[1].deliver(topic, &payload, id.as_deref()),
                None => self.replicas[1].lose(Some(topic)),
            }
        }
    }

    /// A new life, on that replica.
    fn begin(&self, filters: &[Filter], start: &Start, replica: usize, format: Format) -> Life {
        let topics = self.published.iter().filter(|(topic, _)| filters.iter().any(|f| f.matches(topic)));
        let topics = topics.map(|(topic, published)| {
            let unheard = if replica == 0 { 0 } else { self.unheard[topic].len() };
            let least = if *start == Start::Now { published - unheard } else { 0 };
            (topic.clone(), least, *published)
        });
        Life::begin(format, topics)
    }

    fn join(&mut self, client: usize, stream: usize, start: Start, replica: usize, format: Format) {
        let filters: Vec<Filter> = STREAMS[stream].iter().map(|name| filter(name)).collect();
        let mut life = self.begin(&filters, &start, replica, format);
        life.open(&filters);
        let reader = self.replicas[replica].open(&filters, &start, format).map(Reader::new);
        self.clients[client] = Some(Client { filters, start, format, replica, foreign: false, reader, life });
    }

    fn resume(&mut self, at: usize, cursor: Cursor, rotate: usize) {
        let Some(mut client) = self.clients[at].take() else { return };
        client.reader = None;
        client.life.cut();
        if let Cursor::OtherReplica = cursor {
            client.replica = 1 - client.replica;
        }
        let replica = &self.replicas[client.replica];
        let id = match cursor {
            Cursor::Own | Cursor::OtherReplica => client.life.last_id.clone(),
            Cursor::Garbage => Some("gar bage".into()),
            Cursor::Forged => Some(format!("{}-{}", replica.epoch, 1u64 << 40)),
        };
        let own = id.as_ref().is_some_and(|id| id.starts_with(&replica.epoch));
        client.foreign = id.is_some() && (!own || matches!(cursor, Cursor::Forged));
        let count = client.filters.len();
        client.filters.rotate_left(rotate % count);
        let start = match id {
            Some(id) => Start::After(Some(id)),
            // One that never saw an id asks again as it asked at first, and is promised what comes after that.
            None => {
                client.life = self.begin(&client.filters, &client.start, client.replica, client.format);
                client.start.clone()
            }
        };
        client.life.open(&client.filters);
        let opened = replica.try_open(&client.filters, &start, client.format);
        if let Some(None) = opened {
            client.life.all_ended(|topic, number| self.ends.contains(&(topic.clone(), number)));
        }
        client.reader = opened.flatten().map(Reader::new);
        self.clients[at] = Some(client);
    }

    /// Polls up to `polls` times; of the last hand-out only `seen` events arrive, if that is given.
    fn read(&mut self, client: usize, polls: usize, seen: Option<usize>) {
        let (published, ends) = (&self.published, &self.ends);
        let all_heard = self.unheard.values().all(VecDeque::is_empty);
        let Some(client) = &mut self.clients[client] else { return };
        for _ in 0..polls {
            let Some(reader) = &mut client.reader else { return };
            match reader.poll() {
                Poll::Pending => {
                    if client.replica == 0 || all_heard {
                        client.life.caught_up(|topic| published[topic]);
                    }
                    client.life.waits(|topic| published[topic]);
                    break;
                }
                Poll::Ready(None) => client.reader = None,
                Poll::Ready(Some(events)) => {
                    for event in events.iter().take(seen.unwrap_or(usize::MAX)) {
                        client.life.take(event, client.foreign, |topic| published[topic]);
                        if event.event == "stream-close" && event.data.contains("ended") {
                            assert!(event.data.contains("\"reconnect\":false"));
                            client.life.all_ended(|topic, number| ends.contains(&(topic.clone(), number)));
                        }
                    }
                }
            }
        }
        if seen.is_some() {
            client.reader = None;
        }
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::Publish { topic: at, count, size, publisher_id, ends } => {
                self.publish(&topic(TOPICS[at]), count, size, publisher_id, ends);
            }
            Step::Lose(at) => {
                let topic = topic(TOPICS[at]);
                *self.published.get_mut(&topic).unwrap() += 1;
                self.replicas[0].lose(Some(&topic));
                self.unheard.get_mut(&topic).unwrap().push_back(None);
            }
            Step::LoseAll => self.replicas.iter().for_each(|replica| replica.lose(None)),
            Step::Hear { topic: at, count } => self.hear(&topic(TOPICS[at]), count),
            Step::Join { client, stream, start, replica, format } => {
                let start = match start {
                    0 => Start::Last(3),
                    1 => Start::All,
                    2 => Start::Since(SystemTime::UNIX_EPOCH),
                    3 => Start::Since(SystemTime::now()),
                    _ => Start::Now,
                };
                self.join(
                    client,
                    stream,
                    start,
                    replica,
                    if format { Format::CloudEvents } else { Format::Raw },
                );
            }
            Step::Read { client, polls } => self.read(client, polls, None),
            Step::Cut { client, seen } => self.read(client, 1, Some(seen)),
            Step::Resume { client, cursor, rotate } => self.resume(client, cursor, rotate),
            Step::Sweep(replica) => self.replicas[replica].sweep(),
            Step::Warm { replica, is_warm } => self.replicas[replica].keep_warm(is_warm),
            Step::TooLarge(at) => {
                let topic = topic(["w/1", "w/2"][at]);
                *self.published.get_mut(&topic).unwrap() += 1;
                self.replicas[0].lose_one(&topic);
                self.unheard.get_mut(&topic).unwrap().push_back(None);
            }
            Step::Refuse(which) => self.replicas[0].refuse(&filter(["a/1", "a/*", WARM, "b"][which])),
        }
    }

    /// Whatever happened, every client that comes back once more is at the end whole.
    fn settle(&mut self) {
        TOPICS.iter().for_each(|name| self.hear(&topic(name), usize::MAX));
        for client in 0..CLIENTS {
            self.read(client, usize::MAX, None);
            self.resume(client, Cursor::Own, 0);
            self.read(client, usize::MAX, None);
            if let Some(client) = &self.clients[client] {
                client.life.caught_up(|topic| self.published[topic]);
            }
        }
    }
}

fn publish() -> impl Strategy<Value = Step> {
    let size = prop_oneof![6 => Just(0usize), 2 => Just(200), 1 => Just(20_000)];
    let steps = (0..TOPICS.len(), 1..4usize, size, any::<bool>(), prop::bool::weighted(0.3));
    steps.prop_map(|(topic, count, size, publisher_id, ends)| Step::Publish {
        topic,
        count,
        size,
        publisher_id,
        ends,
    })
}

fn client() -> std::ops::Range<usize> {
    0..CLIENTS
}

fn calm_step() -> impl Strategy<Value = Step> {
    let join = (client(), 0..STREAMS.len(), any::<bool>()).prop_map(|(client, stream, format)| Step::Join {
        client,
        stream,
        start: 9,
        replica: 0,
        format,
    });
    let resume = (client(), 0..3usize).prop_map(|(client, rotate)| Step::Resume {
        client,
        cursor: Cursor::Own,
        rotate,
    });
    prop_oneof![
        6 => publish(),
        1 => join,
        4 => (client(), 1..4usize).prop_map(|(client, polls)| Step::Read { client, polls }),
        3 => (client(), 0..6usize).prop_map(|(client, seen)| Step::Cut { client, seen }),
        3 => resume,
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let cursor = prop_oneof![
        6 => Just(Cursor::Own),
        2 => Just(Cursor::OtherReplica),
        1 => Just(Cursor::Garbage),
        1 => Just(Cursor::Forged)
    ];
    let join = (client(), 0..STREAMS.len(), 0..12usize, 0..2usize, any::<bool>()).prop_map(
        |(client, stream, start, replica, format)| Step::Join { client, stream, start, replica, format },
    );
    prop_oneof![
        20 => calm_step(),
        2 => (0..TOPICS.len()).prop_map(Step::Lose),
        1 => Just(Step::LoseAll),
        6 => (0..TOPICS.len(), 1..5usize).prop_map(|(topic, count)| Step::Hear { topic, count }),
        1 => join,
        5 => (client(), cursor, 0..3usize)
            .prop_map(|(client, cursor, rotate)| Step::Resume { client, cursor, rotate }),
        3 => (0..2usize).prop_map(Step::Sweep),
        1 => (0..4usize).prop_map(Step::Refuse),
        3 => (0..2usize, any::<bool>()).prop_map(|(replica, is_warm)| Step::Warm { replica, is_warm }),
        1 => (0..2usize).prop_map(Step::TooLarge),
    ]
}

/// A schedule that begins with a client, so that few of them are about nothing.
fn schedule(step: impl Strategy<Value = Step>) -> impl Strategy<Value = (usize, Vec<Step>)> {
    (0..STREAMS.len(), proptest::collection::vec(step, 1..50))
}

fn run(bounds: &Bounds, max_bytes: usize, stream: usize, steps: &[Step]) -> World {
    let mut world = World::new(bounds, max_bytes);
    world.join(0, stream, Start::Now, 0, Format::Raw);
    steps.iter().for_each(|step| world.run(step));
    world.settle();
    world
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases: crate::cases(cases),
        failure_persistence: None,
        max_shrink_iters: 3_000,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config(1_500))]
    #[test]
    fn in_any_schedule_each_message_arrives_in_order_and_once_or_a_gap_replaces_it(
        (stream, steps) in schedule(step()),
        bounds in 0..4usize,
    ) {
        let (bounds, max_bytes) = match bounds {
            0 => (ample(), usize::MAX),
            1 => (at_most(4), usize::MAX),
            2 => (Bounds { bytes: 2_500, ..ample() }, usize::MAX),
            _ => (ample(), 6_000),
        };
        run(&bounds, max_bytes, stream, &steps);
    }
}

proptest! {
    #![proptest_config(config(400))]
    #[test]
    fn a_client_that_misses_nothing_never_receives_a_gap((stream, steps) in schedule(calm_step())) {
        let world = run(&ample(), usize::MAX, stream, &steps);
        for client in world.clients.iter().flatten() {
            prop_assert_eq!(client.life.gaps, 0);
        }
    }
}

#[test]
fn a_reader_that_is_cut_before_the_gap_of_a_topic_that_was_refused_gets_it_when_it_resumes() {
    let steps = [
        Step::Read { client: 0, polls: 1 },
        Step::Refuse(3),
        Step::Publish { topic: 3, count: 3, size: 0, publisher_id: false, ends: false },
        Step::Publish { topic: 2, count: 1, size: 0, publisher_id: false, ends: false },
        Step::Resume { client: 0, cursor: Cursor::Own, rotate: 0 },
        Step::Read { client: 0, polls: 1 },
        Step::Cut { client: 0, seen: 1 },
    ];
    run(&ample(), usize::MAX, 7, &steps);
}
