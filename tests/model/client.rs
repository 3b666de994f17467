//! A client over its whole life, and the check of what it received.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use eventsource_stream::{Event, Eventsource};
use futures_util::{FutureExt, StreamExt};
use topicgate::internals::log::message::Format;
use topicgate::internals::protocol::frame::Coding;
use topicgate::internals::protocol::gzip::Content;
use topicgate::internals::protocol::topic::{Filter, Topic};
use topicgate::internals::stream::Stream;

use crate::gunzip::Gunzip;

/// Events as an independent parser reads them. One without an id of its own has the id of the one before it, or none.
fn parse(bytes: &Bytes) -> Vec<Event> {
    let chunks = futures_util::stream::iter([Ok::<_, std::io::Error>(bytes.to_vec())]);
    chunks.eventsource().map(|event| event.unwrap()).collect().now_or_never().unwrap()
}

/// What one client knows: the check of promise 1.
#[derive(Debug)]
pub struct Life {
    format: Format,
    topics: BTreeMap<Topic, Seen>,
    /// Messages that are missing, and are no gap for it.
    removed: BTreeSet<(Topic, usize)>,
    pub last_id: Option<String>,
    /// Gap events so far.
    pub gaps: usize,
    /// How its stream ends.
    ends: Ends,
}

/// What a client knows of the ends of its stream's topics.
#[derive(Debug, Default)]
struct Ends {
    /// Whether the stream may go on with others when a topic has ended.
    several: bool,
    /// Whether it never ends, because it reads a pattern.
    never: bool,
    /// Topics whose last message on this stream ended them, with no gap since.
    ended: BTreeSet<Topic>,
    /// The last event ended this topic, so that `stream-end` must follow.
    told_next: Option<Topic>,
}

/// Whether a message ends its topic, by its payload.
pub fn is_end(payload: &str) -> bool {
    payload.ends_with('!')
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    /// The next message that it must receive, or for which it must receive a gap.
    next: usize,
    /// Nothing came yet, so what was published before the first head may.
    fresh: bool,
    /// The oldest that may come to a stream that started at its head.
    least: usize,
    told: Told,
    /// As of the last event with an id: all that a client which is cut off keeps.
    told_at_id: Told,
}

/// The gap since the topic's last message.
#[derive(Debug, Clone, Copy, Default)]
struct Told {
    /// How many messages had been published at the gap: any of those may be missing.
    published: usize,
    /// The gap came because the cursor is unknown here, so older messages may come again.
    rewind: bool,
}

impl Life {
    /// `least` and `due` of each topic: the oldest message that may come, and the first that must.
    pub fn begin(format: Format, topics: impl IntoIterator<Item = (Topic, usize, usize)>) -> Self {
        let seen = |least, next| Seen {
            next,
            fresh: true,
            least,
            told: Told::default(),
            told_at_id: Told::default(),
        };
        let topics = topics.into_iter().map(|(topic, least, due)| (topic, seen(least, due))).collect();
        Life { format, topics, removed: BTreeSet::new(), last_id: None, gaps: 0, ends: Ends::default() }
    }

    /// The broker has removed these out of the middle. The client asked for what is there, so they are no gap for it.
    pub fn remove(&mut self, removed: impl IntoIterator<Item = (Topic, usize)>) {
        self.removed.extend(removed);
    }

    /// A stream over these begins.
    pub fn open(&mut self, filters: &[Filter]) {
        let never = filters.iter().any(Filter::is_pattern);
        self.ends = Ends { several: never || filters.len() > 1, never, ..Ends::default() };
    }

    /// The client goes on with these topics, of which so much was published. Of those that are new to it, it must receive
    /// what comes from now on.
    pub fn change(&mut self, topics: impl IntoIterator<Item = (Topic, usize)>) {
        let before = std::mem::take(&mut self.topics);
        let (told, told_at_id) = (Told::default(), Told::default());
        let new = |published| Seen { next: published, fresh: true, least: 0, told, told_at_id };
        let seen = |(topic, published)| {
            let seen = before.get(&topic).copied().unwrap_or(new(published));
            (topic, seen)
        };
        self.topics = topics.into_iter().map(seen).collect();
    }

    /// The connection is cut: everything since the last id must be sent again.
    pub fn cut(&mut self) {
        self.topics.values_mut().for_each(|seen| seen.told = seen.told_at_id);
        self.removed.clear(); // from its id on, every missing message is a gap
    }

    /// An event came, when `published` counted what was published. `foreign`: the stream's cursor was not of its process.
    pub fn take(&mut self, event: &Event, foreign: bool, published: impl Fn(&Topic) -> usize) {
        if let Some(topic) = self.ends.told_next.take() {
            assert_eq!(event.event, "stream-end", "after the end of {topic}");
        } else {
            assert_ne!(event.event, "stream-end");
        }
        match event.event.as_str() {
            "stream-open" | "stream-close" | "stream-end" => {}
            "stream-gap" => {
                self.gaps += 1;
                let gap: serde_json::Value = serde_json::from_str(&event.data).unwrap();
                let filter = Filter::parse(gap["topic"].as_str().unwrap(), 99).unwrap();
                for (topic, seen) in self.topics.iter_mut().filter(|(topic, _)| filter.matches(topic)) {
                    seen.told = Told { published: published(topic), rewind: foreign || seen.told.rewind };
                    self.ends.ended.remove(topic);
                }
            }
            _ => self.message(event),
        }
        let new = !event.id.is_empty() && self.last_id.as_ref() != Some(&event.id);
        if new {
            self.last_id = Some(event.id.clone());
            self.topics.values_mut().for_each(|seen| seen.told_at_id = seen.told);
        }
    }

    fn message(&mut self, event: &Event) {
        let envelope: serde_json::Value;
        let payload = match self.format {
            Format::Raw => event.data.as_str(),
            Format::CloudEvents => {
                envelope = serde_json::from_str(&event.data).unwrap();
                envelope["data"].as_str().unwrap()
            }
        };
        let (topic, number) = payload.split_once('#').unwrap();
        let number: usize = number.trim_end_matches(['.', '!']).parse().unwrap();
        let topic = Topic::parse(topic, 99).unwrap();
        if is_end(payload) {
            self.ends.ended.insert(topic.clone());
            self.ends.told_next = Some(topic.clone()).filter(|_| self.ends.several);
        } else {
            self.ends.ended.remove(&topic);
        }
        let seen = self.topics.get_mut(&topic).expect("a topic that was asked for");
        if seen.told.rewind {
            seen.least = 0;
        }
        assert!(number >= seen.least, "{topic} {number} is from before the head; {seen:?}");
        let is_expected = |next| self.removed.contains(&(topic.clone(), next));
        if number > seen.next && !(seen.next..number).all(is_expected) {
            assert!(number <= seen.told.published, "LOST IN SILENCE: {topic} {number}; {seen:?}");
        } else if number < seen.next {
            assert!(seen.fresh || seen.told.rewind, "TWICE: {topic} {number}; {seen:?}");
        }
        *seen = Seen { next: number + 1, fresh: false, told: Told::default(), ..*seen };
    }

    /// The stream has ended because its topics have, or was not opened because they had: the last message of each that
    /// the client received ended it, or is missing in a gap. `ended`: whether that message of the topic ends it.
    pub fn all_ended(&self, ended: impl Fn(&Topic, usize) -> bool) {
        for (topic, seen) in &self.topics {
            let from = if seen.fresh { seen.least.min(seen.next) } else { seen.next };
            let is_ended =
                (from..=seen.next).filter_map(|next| next.checked_sub(1)).any(|at| ended(topic, at));
            assert!(is_ended || seen.told.published > 0, "ENDED TOO EARLY: {topic}; {seen:?}");
        }
    }

    /// Its stream waits for more.
    pub fn waits(&self, published: impl Fn(&Topic) -> usize) {
        let is_over = !self.ends.never && self.ends.ended.len() == self.topics.len();
        // Otherwise it may wait for what is fetched from the broker.
        let has_all = self.topics.iter().all(|(topic, seen)| seen.next >= published(topic));
        assert!(!is_over || !has_all, "A STREAM OF ENDED TOPICS STAYS OPEN: {:?}", self.topics);
    }

    /// Whether it has everything, or a gap.
    pub fn is_whole(&self, published: impl Fn(&Topic) -> usize) -> bool {
        self.topics.iter().all(|(topic, seen)| seen.next.max(seen.told.published) >= published(topic))
    }

    /// The client has read everything there is.
    pub fn caught_up(&self, published: impl Fn(&Topic) -> usize) {
        let counts: Vec<usize> = self.topics.keys().map(&published).collect();
        assert!(self.is_whole(published), "LOST IN SILENCE: of {counts:?}; {:?}", self.topics);
    }
}

/// Whether a stream's task would run.
#[derive(Default)]
pub struct Flag(AtomicBool);

impl Flag {
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// An open stream, and what its body gives.
pub struct Body {
    stream: Stream,
    /// If it is compressed.
    gunzip: Option<Gunzip>,
    /// Bytes that came, and the bytes of the events in them.
    pub received: (usize, usize),
}

impl Body {
    pub fn new(stream: Stream) -> Self {
        let gunzip = (stream.content() == Content::Gzip).then(Gunzip::default);
        Body { stream, gunzip, received: (0, 0) }
    }

    /// The events of one hand-out, which are whole. `Ready(None)` at the end.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Vec<Event>>> {
        self.poll_bytes(cx).map(|bytes| bytes.map(|bytes| parse(&bytes)))
    }

    /// The same as bytes.
    fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let bytes = std::task::ready!(self.stream.poll_next(cx, Coding::Plain));
        let Some(bytes) = bytes else {
            assert!(self.gunzip.as_ref().is_none_or(Gunzip::is_whole), "the body has no end");
            return Poll::Ready(None);
        };
        let events = match &mut self.gunzip {
            Some(gunzip) => gunzip.feed(&bytes).into(),
            None => bytes.clone(),
        };
        self.received = (self.received.0 + bytes.len(), self.received.1 + events.len());
        assert!(events.ends_with(b"\n"), "a hand-out ends within an event");
        Poll::Ready(Some(events))
    }
}

/// An open stream, polled by hand.
pub struct Reader {
    pub body: Body,
    pub flag: Arc<Flag>,
    /// It slept when it was last polled.
    pub asleep: bool,
    polls: usize,
}

impl Reader {
    pub fn new(stream: Stream) -> Self {
        Reader { body: Body::new(stream), flag: Arc::default(), asleep: false, polls: 0 }
    }

    /// The events of one hand-out. `Ready(None)` at the end; a stream that slept and has something must have been woken.
    pub fn poll(&mut self) -> Poll<Option<Vec<Event>>> {
        self.poll_bytes().map(|bytes| bytes.map(|bytes| parse(&bytes)))
    }

    /// As [`Reader::poll`], as bytes.
    pub fn poll_bytes(&mut self) -> Poll<Option<Bytes>> {
        self.polls += 1;
        assert!(self.polls < 5_000, "a stream without end");
        let woken = self.flag.is_raised();
        self.flag.0.store(false, Ordering::SeqCst);
        let waker = Waker::from(self.flag.clone());
        let polled = self.body.poll_bytes(&mut Context::from_waker(&waker));
        assert!(!self.asleep || woken || polled.is_pending(), "a stream sleeps with something to read");
        self.asleep = polled.is_pending();
        polled
    }

    /// Everything there is to read.
    pub fn read_all(&mut self) -> Vec<Event> {
        let mut all = Vec::new();
        while let Poll::Ready(Some(events)) = self.poll() {
            all.extend(events);
        }
        all
    }
}
