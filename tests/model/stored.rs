//! Random schedules of two gateways over one broker that stores messages, and of a reader that moves between them: every
//! message arrives in order and once, or there is a gap in its place, with any trimming, recreation and late fetches.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use proptest::prelude::*;
use tokio::sync::mpsc;
use topicgate::internals::broker::Stored;
use topicgate::internals::config::{Config, Limits};
use topicgate::internals::ingest::encoder::Encoder;
use topicgate::internals::log::message::{FieldMapping, Format};
use topicgate::internals::log::{
    BACKFILL_CAPACITY, BackfillRequest, Bounds, Lease, RangeExtent, Registry, StoredPosition, seeks_needed,
};
use topicgate::internals::metrics::Metrics;
use topicgate::internals::protocol::codes::GapReason;
use topicgate::internals::protocol::event_id::{Epoch, Sequence, Tag, is_before_first};
use topicgate::internals::protocol::gzip::Content;
use topicgate::internals::protocol::headers::Headers;
use topicgate::internals::protocol::seek::{Seek, SeekResult, Start};
use topicgate::internals::protocol::seq::Seq;
use topicgate::internals::protocol::source::{Field, Source};
use topicgate::internals::protocol::topic::{Filter, Topic};
use topicgate::internals::reader::quota::Clients;
use topicgate::internals::stream::table::Table;
use topicgate::internals::stream::{Stream, StreamContext, StreamOptions};

use crate::client::{Life, Reader, is_end};
use crate::replica::{ample, at_most, filter, topic};

/// When the clocks of the brokers start, in milliseconds: late enough for the ids of a Redis Stream to be recognized. They
/// have nothing to do with the gateways' clock.
const START: u64 = (1 << 40) + 1_000_000;

/// Of one JetStream rule, of another, of Redis Streams, and of plain publish/subscribe.
const TOPICS: [&str; 8] = ["j/1", "j/2", "j/3", "k/1", "r/1", "r/2", "p/1", "p/2"];
const STREAMS: [&[&str]; 12] = [
    &["j/1"],
    &["j/*"],
    &["j/1", "j/2"],
    &["r/1"],
    &["r/1", "r/2"],
    &["j/1", "k/1"],
    &["j/**", "k/**", "r/1"],
    &["r/2", "j/2", "j/3"],
    &["j/1", "k/1", "r/1", "p/1"],
    &["p/1"],
    &["p/1", "p/2"],
    &["k/1", "p/2"],
];

/// The first of these are of what the brokers keep.
const STORED_STREAMS: usize = 8;

#[derive(Debug, Clone)]
enum Step {
    /// Messages to publish, each with a number of skipped numbers before it, and the step of the broker's clock.
    Publish {
        topic: usize,
        count: usize,
        left_out: u64,
        milliseconds: u64,
        /// The last of them ends the topic.
        ends: bool,
    },
    /// The clock of the broker that keeps a history is set back. The ids of a Redis Stream rise all the same.
    SetBack {
        history: usize,
        milliseconds: u64,
    },
    /// Another client takes the reader's place, and asks for what came since then, or for the last messages.
    BackfillRequest {
        replica: usize,
        start: AccessRequest,
    },
    /// A gateway hears of the next messages of a history.
    Hear {
        replica: usize,
        history: usize,
        count: usize,
    },
    /// The broker drops the oldest messages: this percentage.
    Trim {
        history: usize,
        part: usize,
    },
    /// The broker removes one of the messages that it holds out of the middle.
    Remove {
        history: usize,
        part: usize,
    },
    /// The history is deleted, and another one has its name. A key is only deleted: the next entry creates it again.
    Recreate(usize),
    /// What was asked for is fetched, or is not to be had.
    Fetch {
        replica: usize,
        count: usize,
        fails: bool,
        longest: usize,
    },
    Read {
        polls: usize,
    },
    /// Reads once, sees some of the events, and is cut off.
    Cut {
        seen: usize,
    },
    Resume {
        replica: usize,
    },
    /// Opens another list of topics with the last id, and closes the old stream.
    Change {
        replica: usize,
        stream: usize,
    },
    Sweep(usize),
}

#[derive(Debug, Clone, Copy)]
enum AccessRequest {
    /// So long after the first message can have come.
    Since(u64),
    Last(usize),
}

/// What numbers the messages of a filter: a rule, a key, or the gateway.
fn sequence_of(filter: &Filter) -> &str {
    let text = filter.as_str();
    if text.starts_with('r') { text } else { &text[..1] }
}

fn at(milliseconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(milliseconds)
}

/// One that a history holds.
#[derive(Debug, Clone)]
struct Held {
    number: Seq,
    /// In milliseconds.
    time: u64,
    topic: Topic,
    payload: String,
}

/// What the broker keeps under one name.
struct History {
    /// The subscription that follows it.
    followed: Filter,
    source: Source,
    incarnation: u8,
    last: Seq,
    /// When that came, and what the clock says now.
    last_time: u64,
    clock: u64,
    /// Up to here nothing is held any more, and of what is gone this was the latest time.
    floor: Seq,
    floor_time: Option<u64>,
    held: Vec<Held>,
    /// The numbers of messages that were removed out of the middle.
    holes: BTreeSet<Seq>,
    /// The last number of a key that was deleted. The ids of the next one are higher, because they are times.
    deleted: Seq,
}

impl History {
    fn new(followed: &str, source: Source) -> Self {
        History {
            followed: filter(followed),
            source,
            incarnation: 0,
            last: Seq::START,
            last_time: 0,
            clock: START,
            floor: Seq::START,
            floor_time: None,
            held: Vec::new(),
            holes: BTreeSet::new(),
            deleted: Seq::START,
        }
    }

    fn put(&mut self, topic: Topic, payload: String, left_out: u64) {
        let next = self.last.max(self.deleted).get() + 1 + left_out;
        let is_key = !self.source.is_shared(); // the ids of entries are times
        self.last = Seq::new(if is_key { next.max(self.clock << 20) } else { next });
        self.last_time = self.clock;
        self.held.push(Held { number: self.last, time: self.clock, topic, payload });
    }

    /// That of a Redis Stream is made of the name of its key alone.
    fn tag(&self) -> Tag {
        let incarnation = if self.source.is_shared() { self.incarnation } else { 0 };
        Tag::of(&[self.followed.as_str().as_bytes(), &[incarnation]])
    }

    /// Removes a message that is not the last of its topic: that one says whether the topic has ended.
    fn remove(&mut self, part: usize) -> Option<Held> {
        let index = self.held.len() * part / 100;
        let topic = &self.held.get(index).filter(|_| index > 0)?.topic;
        self.held[index + 1..].iter().find(|later| later.topic == *topic)?;
        self.holes.insert(self.held[index].number);
        Some(self.held.remove(index))
    }

    /// The last hole above `after` and below `before`.
    fn hole(&self, after: Seq, before: Seq) -> Option<Seq> {
        if after.next() >= before {
            None
        } else {
            self.holes.range(after.next()..before).next_back().copied()
        }
    }

    /// The number before the oldest that it holds. A key does not know more of its past.
    fn oldest(&self) -> Seq {
        match self.held.first() {
            _ if self.source.is_shared() => self.floor,
            Some(held) => held.number.previous(),
            None => self.last,
        }
    }

    /// A gateway that follows it from here knows that it was at its last number, or that a key was empty, at this time.
    fn begins_at(&self) -> u64 {
        if self.last.is_start() && !self.source.is_shared() { self.clock } else { self.last_time }
    }

    fn locate(&self, filter: &Filter, place: Seek) -> SeekResult {
        let is_whole = !self.source.is_shared() && self.floor.is_start();
        let held = || self.held.iter().filter(|held| filter.matches(&held.topic)).map(|held| held.number);
        match place {
            Seek::After(number) if is_before_first(number) => SeekResult::Evicted(self.oldest()),
            Seek::After(number) if number > self.last => SeekResult::Unknown(self.oldest()),
            Seek::After(Seq::START) if is_whole => SeekResult::At(Seq::START),
            Seek::After(number) if number < self.oldest() => SeekResult::Evicted(self.oldest()),
            Seek::After(number) => SeekResult::At(number),
            Seek::Oldest => SeekResult::At(self.oldest()),
            Seek::Last(count) => {
                let numbers: Vec<Seq> = held().collect();
                let first = numbers[numbers.len().saturating_sub(count)..].first();
                SeekResult::At(first.map_or(self.last, |first| first.previous()))
            }
            Seek::Since(time) if self.floor_time.is_some_and(|gone| at(gone) >= time) => {
                SeekResult::Evicted(self.oldest())
            }
            Seek::Since(time) => {
                let first = self.held.iter().find(|held| at(held.time) >= time);
                SeekResult::At(first.map_or(self.last, |first| first.number.previous()))
            }
        }
    }
}

struct Gateway {
    shared: Arc<StreamContext>,
    registry: Arc<Registry>,
    table: Arc<Table>,
    clients: Arc<Clients>,
    asks: mpsc::Receiver<BackfillRequest>,
    encoder: Encoder,
    bounds: Bounds,
    /// The last number that was heard of each subscription that is followed.
    heard: BTreeMap<Filter, Seq>,
    /// Streams opened so far. Two of three are compressed, and each log for any number of readers.
    opened: usize,
}

impl Gateway {
    fn new(bounds: &Bounds) -> Self {
        let (asks, receiver) = mpsc::channel(BACKFILL_CAPACITY);
        let registry = Registry::new(Sequence::new(Epoch::random()), 1_000, usize::MAX, asks);
        registry.set_crowd(1);
        let hour = Duration::from_secs(3_600);
        let metrics = Arc::new(Metrics::new());
        let shared = Arc::new(StreamContext {
            registry: registry.clone(),
            metrics: metrics.clone(),
            heartbeat: hour,
            retry: hour,
            max_age: None,
            write_timeout: hour,
            why: Arc::default(),
        });
        let table = Table::new(1_000);
        let most = 1_000_000_000;
        let limits = Limits { opens_per_second: most, resume_bytes: most as u64, ..Config::default().limits };
        Gateway {
            shared,
            registry,
            clients: Clients::new(&limits, table.clock()),
            table,
            asks: receiver,
            encoder: Encoder::new(metrics, Arc::new((1 << 20).into())),
            bounds: bounds.clone(),
            heard: BTreeMap::new(),
            opened: 0,
        }
    }

    fn fields(source: &Source) -> Arc<FieldMapping> {
        let field = |name: &str| Field::Header(name.into());
        Arc::new(FieldMapping {
            source: source.clone(),
            id: field("id"),
            kind: field("type"),
            data: None,
            end: field("end"),
        })
    }

    fn begin(&mut self, history: &History) {
        self.registry.begin(&history.followed, history.tag(), history.last, at(history.begins_at()));
        self.heard.insert(history.followed.clone(), history.last);
    }

    /// A shared history is followed from the start.
    fn follow(&mut self, history: &History) {
        if history.source.is_shared() {
            let fields = Self::fields(&history.source);
            self.registry.warm(&history.followed, &self.bounds, &fields).unwrap().accepted();
            self.begin(history);
        }
    }

    fn lease(&mut self, filter: &Filter, history: Option<&History>) -> Lease {
        let source = history.map_or(Source::Pubsub, |history| history.source.clone());
        let warm = history.filter(|history| history.source.is_shared()).map(|history| &history.followed);
        let (lease, subscription) =
            self.registry.lease(filter, &self.bounds, &Self::fields(&source), warm).unwrap();
        if let Some(subscription) = subscription {
            subscription.accepted();
            match history {
                Some(history) => self.begin(history),
                None => _ = self.heard.insert(filter.clone(), Seq::START),
            }
        }
        assert!(lease.ready().now_or_never().is_some_and(|ready| ready.is_ok()));
        lease
    }

    /// What the model's messages carry beside their payload.
    fn headers(payload: &str) -> Headers {
        let mut headers = Headers::default();
        if is_end(payload) {
            headers.insert("end", "true");
        }
        headers
    }

    fn append(&self, followed: &Filter, topic: &Topic, payload: &str, position: Option<StoredPosition>) {
        let stored = position.map(|StoredPosition { number, time }| Stored {
            number,
            time,
            change: topicgate::internals::broker::Change::Put,
        });
        let message = topicgate::internals::broker::Message {
            filter: followed.clone(),
            topic: topic.clone(),
            payload: payload.to_owned().into(),
            headers: Self::headers(payload),
            stored,
        };
        self.registry.append(followed, topic, position, |sequence, number, time, fields| {
            self.encoder.encode(&message, sequence, number, time, fields)
        });
        while self.registry.wake(1) {}
    }

    fn hear(&mut self, history: &History, count: usize) {
        let Some(last) = self.heard.get_mut(&history.followed) else { return };
        if history.floor > *last {
            self.registry.skip(&history.followed, None, history.floor, GapReason::Broker);
            while self.registry.wake(1) {}
            *last = history.floor;
        }
        let new = history.held.iter().filter(|held| held.number > *last).take(count);
        let new: Vec<_> = new.cloned().collect();
        let heard = *last;
        if let Some(held) = new.last() {
            *last = held.number;
        }
        let mut before = heard;
        for Held { number, time, topic, payload } in new {
            if let Some(hole) = history.hole(before, number) {
                self.registry.skip(&history.followed, None, hole, GapReason::Broker);
                while self.registry.wake(1) {}
            }
            before = number;
            self.append(&history.followed, &topic, &payload, Some(StoredPosition { number, time: at(time) }));
        }
    }

    fn fetch(&mut self, histories: &[History], fails: bool, longest: usize) -> bool {
        let Ok(ask) = self.asks.try_recv() else { return false };
        let Some((sequence, fields)) = ask.reading().filter(|_| !fails) else {
            if ask.after.get() % 2 == 0 {
                ask.give_up();
            } // else what fetches has panicked, and the ask is dropped
            return true;
        };
        let history = histories.iter().find(|history| history.followed.covers(ask.filter())).unwrap();
        let held = history.held.iter().filter(|held| {
            held.number > ask.after && held.number <= ask.until && ask.filter().matches(&held.topic)
        });
        let mut held: Vec<_> = held.take(longest + 1).cloned().collect();
        let mut through = if held.len() > longest {
            held.pop();
            held.last().unwrap().number
        } else {
            ask.until
        };
        let is_whole = ask.after.is_start() && history.floor.is_start();
        let oldest = history.oldest();
        let mut gone = (!is_whole && oldest > ask.after).then(|| oldest.min(through));
        // A range can only begin with a gap, and ends before the next hole.
        let holes = |after: Seq| history.holes.range(after.next()..).next().copied();
        let mut is_hole = false;
        if gone.is_none()
            && let Some(hole) = holes(ask.after).filter(|hole| *hole <= through)
            && held.first().is_none_or(|first| first.number > hole)
        {
            gone = Some(held.first().map_or(through, |first| first.number.previous()));
            is_hole = true;
        }
        if let Some(hole) = holes(gone.unwrap_or(ask.after)).filter(|hole| *hole <= through) {
            held.retain(|held| held.number < hole);
            through = hole.previous();
        }
        let entries = held.into_iter().map(|Held { number, time, topic, payload }| {
            let now = at(time);
            let message = topicgate::internals::broker::Message {
                filter: ask.filter().clone(),
                topic,
                headers: Self::headers(&payload),
                payload: payload.into(),
                stored: Some(Stored { number, time: now, change: topicgate::internals::broker::Change::Put }),
            };
            (
                StoredPosition { number, time: now },
                self.encoder.encode(&message, &sequence, number, now, &fields),
            )
        });
        let extent = RangeExtent { through, gone, is_hole, torn: false };
        self.registry.answer_backfill(&ask, extent, entries.collect::<Vec<_>>());
        true
    }

    /// `None`: its topics have ended, and it was read to their ends.
    fn open(&mut self, filters: &[Filter], start: &Start, histories: &[History]) -> Option<Stream> {
        let of = |filter: &Filter| histories.iter().find(|history| history.followed.covers(filter));
        let leases: Vec<Lease> = filters.iter().map(|filter| self.lease(filter, of(filter))).collect();
        let last = |lease: &Lease| {
            let held = of(lease.filter())?.held.iter();
            held.rev().find(|held| lease.filter().matches(&held.topic))
        };
        for lease in leases.iter().filter(|_| *start != Start::Now) {
            let Some(question) = lease.asks_for_end().now_or_never().flatten() else { continue };
            question.answer(last(lease).filter(|last| is_end(&last.payload)).map(|last| last.number));
        }
        // As the gateway asks before it says that everything has ended.
        let is_last = |lease: &Lease| {
            of(lease.filter()).is_none() || last(lease).map(|last| last.number) == lease.end()
        };
        let may_have_ended = leases.iter().all(|lease| lease.end().is_none() || is_last(lease));
        let answers = seeks_needed(&leases, start).into_iter().zip(filters);
        let located: Vec<Option<SeekResult>> =
            answers.map(|(question, filter)| Some(of(filter)?.locate(filter, question?))).collect();
        let ticket = self.table.enter(topicgate::internals::reader::Reader::default()).unwrap();
        let place = self.clients.enter(ticket.handle().clone(), leases.len()).unwrap();
        self.opened += 1;
        let content = if self.opened % 3 == 2 { Content::Identity } else { Content::Gzip };
        let options = StreamOptions {
            start,
            located: &located,
            format: Format::Raw,
            content,
            expires: None,
            until_end: true,
            may_have_ended,
            without_control: false,
        };
        Stream::open(self.shared.clone(), ticket, place, leases, options)
    }
}

struct World {
    gateways: [Gateway; 2],
    histories: Vec<History>,
    published: BTreeMap<Topic, usize>,
    /// The messages that ended their topics.
    ends: BTreeSet<(Topic, usize)>,
    /// The messages that were removed out of the middle.
    removed: BTreeSet<(Topic, usize)>,
    /// Whether the client asked for what is there.
    asks_for_what_is_there: bool,
    /// When each message came, by the clock of its broker.
    times: BTreeMap<Topic, Vec<u64>>,
    filters: Vec<Filter>,
    reader: Option<Reader>,
    life: Life,
    gaps: usize,
    /// The gateway said that its topics have ended.
    is_over: bool,
}

impl World {
    fn new(bounds: &Bounds, stream: usize, start: &Start, is_gapless: bool) -> Self {
        let jetstream = || Source::JetStream { stream: None };
        let redis = || Source::RedisStream { payload: None };
        let histories = vec![
            History::new("j/**", jetstream()),
            History::new("k/**", jetstream()),
            History::new("r/1", redis()),
            History::new("r/2", redis()),
        ];
        let mut gateways = [(); 2].map(|()| Gateway::new(bounds));
        for gateway in &mut gateways {
            histories.iter().for_each(|history| gateway.follow(history));
        }
        let mut world = World {
            gateways,
            histories,
            published: TOPICS.iter().map(|text| (topic(text), 0)).collect(),
            ends: BTreeSet::new(),
            removed: BTreeSet::new(),
            asks_for_what_is_there: false,
            times: TOPICS.iter().map(|text| (topic(text), Vec::new())).collect(),
            filters: STREAMS[stream].iter().map(|text| filter(text)).collect(),
            reader: None,
            life: Life::begin(Format::Raw, []),
            gaps: 0,
            is_over: false,
        };
        if is_gapless {
            // Before the first entry of a key, a gateway that has not followed it cannot know that there was none.
            ["r/1", "r/2"].iter().for_each(|key| world.publish(key, 0, 0, false));
        }
        world.life = world.new_life();
        world.join(0, start);
        world
    }

    /// What a client must be given that comes now.
    fn new_life(&self) -> Life {
        Life::begin(Format::Raw, self.asked().map(|(topic, published)| (topic.clone(), 0, *published)))
    }

    /// The topics that the client asks for, and how much of each was published.
    fn asked(&self) -> impl Iterator<Item = (&Topic, &usize)> {
        self.published.iter().filter(|(topic, _)| self.filters.iter().any(|filter| filter.matches(topic)))
    }

    fn join(&mut self, gateway: usize, start: &Start) {
        self.life.open(&self.filters);
        self.asks_for_what_is_there = matches!(start, Start::All | Start::Last(_));
        if self.asks_for_what_is_there {
            self.life.remove(self.removed.iter().cloned());
        }
        let stream = self.gateways[gateway].open(&self.filters, start, &self.histories);
        self.is_over = stream.is_none();
        if self.is_over {
            self.life.all_ended(|topic, number| self.ends.contains(&(topic.clone(), number)));
        }
        self.reader = stream.map(Reader::new);
    }

    fn publish(&mut self, name: &str, left_out: u64, milliseconds: u64, ends: bool) {
        let topic = topic(name);
        let number = self.published.get_mut(&topic).unwrap();
        let payload = format!("{topic}#{number}{}", if ends { "!" } else { "" });
        if ends {
            self.ends.insert((topic.clone(), *number));
        }
        *number += 1;
        let filter = Filter::from(topic.clone());
        match self.histories.iter_mut().find(|history| history.followed.covers(&filter)) {
            Some(history) => {
                history.clock += milliseconds;
                self.times.get_mut(&topic).unwrap().push(history.clock);
                history.put(topic, payload, left_out);
            }
            None => {
                self.times.get_mut(&topic).unwrap().push(u64::MAX); // by a clock of this century
                for gateway in &self.gateways {
                    gateway.append(&filter, &topic, &payload, None);
                }
            }
        }
    }

    /// Takes up to `seen` of the events that come with one poll. Returns whether there were any.
    fn poll(&mut self, seen: usize) -> bool {
        let Some(reader) = &mut self.reader else { return false };
        match reader.poll() {
            Poll::Ready(Some(events)) => {
                for event in events.iter().take(seen) {
                    let rewinds = event.event == "stream-gap"
                        && ["restarted", "unknown_id"].iter().any(|reason| event.data.contains(reason));
                    self.gaps += usize::from(event.event == "stream-gap");
                    self.life.take(event, rewinds, |topic| self.published[topic]);
                    if event.event == "stream-close" && event.data.contains("ended") {
                        // An EventSource asks once more: only 204 is the end of it.
                        self.life.all_ended(|topic, number| self.ends.contains(&(topic.clone(), number)));
                    }
                }
                true
            }
            Poll::Ready(None) => {
                self.reader = None;
                false
            }
            Poll::Pending => {
                self.life.waits(|topic| self.published[topic]);
                false
            }
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Publish { topic, count, left_out, milliseconds, ends } => {
                (1..=count)
                    .for_each(|at| self.publish(TOPICS[topic], left_out, milliseconds, ends && at == count));
            }
            Step::SetBack { history, milliseconds } => {
                let history = &mut self.histories[history];
                if history.source.is_shared() {
                    history.clock = history.clock.saturating_sub(milliseconds).max(START);
                }
            }
            Step::BackfillRequest { replica, start } => {
                self.reader = None;
                self.life = self.new_life();
                let start = match start {
                    AccessRequest::Last(count) => Start::Last(count),
                    AccessRequest::Since(after) => {
                        let due = |topic: &Topic| {
                            let times = &self.times[topic];
                            times.iter().position(|time| *time >= START + after).unwrap_or(times.len())
                        };
                        self.life = Life::begin(
                            Format::Raw,
                            self.asked().map(|(topic, _)| (topic.clone(), 0, due(topic))),
                        );
                        Start::Since(at(START + after))
                    }
                };
                self.join(replica, &start);
            }
            Step::Hear { replica, history, count } => {
                self.gateways[replica].hear(&self.histories[history], count);
            }
            Step::Trim { history, part } => {
                let history = &mut self.histories[history];
                let index = history.held.len() * part / 100;
                if let Some(last) = history.held[..index].last() {
                    history.floor = last.number;
                    let gone = history.held.drain(..index).map(|held| held.time).max();
                    history.floor_time = history.floor_time.max(gone);
                }
            }
            Step::Remove { history, part } => {
                let Some(Held { topic, payload, .. }) = self.histories[history].remove(part) else { return };
                let number = payload.split_once('#').unwrap().1.trim_end_matches('!').parse().unwrap();
                self.removed.insert((topic.clone(), number));
                if self.asks_for_what_is_there && self.reader.is_some() {
                    self.life.remove([(topic, number)]);
                }
            }
            Step::Recreate(index) => {
                let history = &mut self.histories[index];
                let (incarnation, source) = (history.incarnation + 1, history.source.clone());
                let deleted = if source.is_shared() { Seq::START } else { history.last.max(history.deleted) };
                let new = History::new(history.followed.as_str(), source);
                // What was in it is gone with it, whatever of it was asked for.
                let gone = history.held.iter().map(|held| held.time).max();
                // Within one millisecond, an empty key looks like the one before.
                let (last_time, clock) = (history.last_time, history.clock + 1);
                let floor_time = history.floor_time.max(gone);
                *history = History { incarnation, deleted, last_time, clock, floor_time, ..new };
                for gateway in &mut self.gateways {
                    gateway.registry.end(&history.followed);
                    gateway.heard.remove(&history.followed);
                    gateway.follow(history);
                }
            }
            Step::Fetch { replica, count, fails, longest } => {
                (0..count).for_each(|_| _ = self.gateways[replica].fetch(&self.histories, fails, longest));
            }
            Step::Read { polls } => (0..polls).for_each(|_| _ = self.poll(usize::MAX)),
            Step::Cut { seen } => {
                self.poll(seen);
                self.reader = None;
                self.life.cut();
            }
            Step::Resume { replica } => {
                if self.reader.is_none() {
                    self.life.cut();
                    let start = match &self.life.last_id {
                        Some(id) => Start::After(Some(id.clone())),
                        None => {
                            // It has seen nothing of the stream, and is another client.
                            self.life = self.new_life();
                            Start::Now
                        }
                    };
                    self.join(replica, &start);
                }
            }
            Step::Change { replica, stream } => {
                let Some(id) = self.life.last_id.clone().filter(|_| self.reader.is_some()) else { return };
                let filters: Vec<Filter> = STREAMS[stream].iter().map(|text| filter(text)).collect();
                // If nothing goes on, no client would send the id.
                let goes_on =
                    |new: &Filter| self.filters.iter().any(|old| sequence_of(old) == sequence_of(new));
                if !filters.iter().any(goes_on) {
                    return;
                }
                self.life.cut();
                self.filters = filters;
                let topics: Vec<_> =
                    self.asked().map(|(topic, published)| (topic.clone(), *published)).collect();
                self.life.change(topics);
                self.join(replica, &Start::After(Some(id)));
                // It keeps the old stream until it has what the new one begins with.
                self.poll(usize::MAX);
            }
            Step::Sweep(replica) => {
                let gateway = &mut self.gateways[replica];
                let heard = &mut gateway.heard;
                gateway.registry.sweep(|filter, _| {
                    heard.remove(filter);
                    true
                });
            }
        }
    }

    /// Everything is heard, fetched and read.
    fn settle(&mut self) {
        for _ in 0..2_000 {
            for gateway in &mut self.gateways {
                self.histories.iter().for_each(|history| gateway.hear(history, usize::MAX));
                while gateway.fetch(&self.histories, false, 3) {}
            }
            if self.reader.is_none() {
                self.step(&Step::Resume { replica: 1 });
            }
            if !self.poll(usize::MAX)
                && (self.reader.is_some() || self.is_over)
                && self.gateways.iter().all(|g| g.asks.is_empty())
            {
                return;
            }
        }
        panic!("it goes on for ever");
    }
}

fn step() -> impl Strategy<Value = Step> {
    let (history, replica) = (0..4_usize, 0..2_usize);
    prop_oneof![
        6 => (0..TOPICS.len(), 1..6_usize, 0..3_u64, prop_oneof![Just(0_u64), 1..4_000_u64], prop::bool::weighted(0.3))
            .prop_map(|(topic, count, left_out, milliseconds, ends)| {
                Step::Publish { topic, count, left_out, milliseconds, ends }
            }),
        1 => (history.clone(), prop_oneof![1..900_u64, 1_000..20_000_u64])
            .prop_map(|(history, milliseconds)| Step::SetBack { history, milliseconds }),
        1 => (replica.clone(), asked()).prop_map(|(replica, start)| Step::BackfillRequest { replica, start }),
        6 => (replica.clone(), history.clone(), 1..9_usize)
            .prop_map(|(replica, history, count)| Step::Hear { replica, history, count }),
        1 => (history.clone(), 0..=100_usize).prop_map(|(history, part)| Step::Trim { history, part }),
        2 => (history.clone(), 0..=100_usize).prop_map(|(history, part)| Step::Remove { history, part }),
        1 => history.prop_map(Step::Recreate),
        5 => (replica.clone(), 1..4_usize, proptest::bool::weighted(0.2), 1..6_usize)
            .prop_map(|(replica, count, fails, longest)| Step::Fetch { replica, count, fails, longest }),
        6 => (1..5_usize).prop_map(|polls| Step::Read { polls }),
        3 => (0..4_usize).prop_map(|seen| Step::Cut { seen }),
        5 => replica.clone().prop_map(|replica| Step::Resume { replica }),
        2 => (replica.clone(), 0..STREAMS.len())
            .prop_map(|(replica, stream)| Step::Change { replica, stream }),
        1 => replica.prop_map(Step::Sweep),
    ]
}

fn asked() -> impl Strategy<Value = AccessRequest> {
    prop_oneof![(0..60_000_u64).prop_map(AccessRequest::Since), (0..6_usize).prop_map(AccessRequest::Last)]
}

fn bounds() -> impl Strategy<Value = Bounds> {
    prop_oneof![Just(ample()), (1..8_usize).prop_map(at_most)]
}

fn start() -> impl Strategy<Value = Start> {
    prop_oneof![Just(Start::Now), Just(Start::All), (1..5_usize).prop_map(Start::Last)]
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 3_000, ..ProptestConfig::with_cases(crate::cases(1_500)) })]
    #[test]
    fn a_reader_that_is_moved_between_two_gateways_gets_each_message_once_in_order_or_a_gap(
        bounds in bounds(),
        stream in 0..STREAMS.len(),
        start in start(),
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let mut world = World::new(&bounds, stream, &start, false);
        steps.iter().for_each(|step| world.step(step));
        world.settle();
        world.life.caught_up(|topic| world.published[topic]);
    }

    #[test]
    fn a_reader_of_untrimmed_stored_sources_never_receives_a_gap(
        bounds in bounds(),
        stream in 0..STORED_STREAMS,
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let mut world = World::new(&bounds, stream, &Start::All, true);
        let harmless = |step: &&Step| match step {
            Step::Trim { .. } | Step::Remove { .. } | Step::Recreate(_) => false,
            Step::Change { stream, .. } => *stream < STORED_STREAMS,
            _ => true,
        };
        steps.iter().filter(harmless).for_each(|step| world.step(step));
        world.settle();
        world.life.caught_up(|topic| world.published[topic]);
        prop_assert_eq!(world.gaps, 0);
    }
}
