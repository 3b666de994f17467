//! One gateway process without its network: the logs, and a broker that keeps its contract.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use topicgate::internals::config::{Config, Limits};
use topicgate::internals::log::message::{FieldMapping, Format, Message};
use topicgate::internals::log::{Bounds, EntryKind, Lease, Registry, Subscription};
use topicgate::internals::metrics::Metrics;
use topicgate::internals::protocol::codes::GapReason;
use topicgate::internals::protocol::event_id::{Epoch, Sequence};
use topicgate::internals::protocol::gzip::Content;
use topicgate::internals::protocol::headers::Headers;
use topicgate::internals::protocol::seek::Start;
use topicgate::internals::protocol::source::{Field, Source};
use topicgate::internals::protocol::topic::{Filter, Topic};
use topicgate::internals::protocol::view::View;
use topicgate::internals::reader::Reader;
use topicgate::internals::reader::quota::Clients;
use topicgate::internals::stream::table::Table;
use topicgate::internals::stream::{Stream, StreamContext, StreamOptions};

use crate::client::is_end;

/// The pattern that is held warm.
pub const WARM: &str = "w/**";

pub fn filter(text: &str) -> Filter {
    Filter::parse(text, 99).unwrap()
}

pub fn topic(text: &str) -> Topic {
    Topic::parse(text, 99).unwrap()
}

/// Room for everything a test publishes, and logs that end with the first sweep after their last reader.
pub fn ample() -> Bounds {
    Bounds {
        messages: 100_000,
        bytes: 1 << 30,
        age: Duration::from_secs(9_999),
        linger: Duration::ZERO,
        rule: Default::default(),
    }
}

pub fn at_most(messages: usize) -> Bounds {
    Bounds { messages, ..ample() }
}

pub struct Replica {
    pub shared: Arc<StreamContext>,
    pub registry: Arc<Registry>,
    pub table: Arc<Table>,
    clients: Arc<Clients>,
    pub epoch: String,
    bounds: Bounds,
    fields: Arc<FieldMapping>,
    /// Whether the rule of [`WARM`] is warm now.
    is_warm: AtomicBool,
    /// Streams opened so far. Two of three are compressed, and each log for any number of readers.
    opened: AtomicUsize,
    /// What the broker has subscribed. Never locked while the registry is called, which locks it in a sweep.
    subscribed: Mutex<BTreeSet<Filter>>,
}

impl Replica {
    pub fn new(bounds: Bounds) -> Self {
        Replica::bounded(bounds, usize::MAX)
    }

    /// With at most `max_bytes` in all logs together, and a warm log.
    pub fn bounded(bounds: Bounds, max_bytes: usize) -> Self {
        let (replica, subscription) = Replica::before_warm(bounds, max_bytes);
        replica.confirm(subscription);
        replica
    }

    /// With the subscription of its warm log still to be confirmed.
    pub fn before_warm(bounds: Bounds, max_bytes: usize) -> (Self, Subscription) {
        let epoch = Epoch::random();
        let registry = Registry::new(Sequence::new(epoch.clone()), 1_000, max_bytes, mpsc::channel(1).0);
        registry.set_crowd(1);
        let hour = Duration::from_secs(3_600);
        let shared = Arc::new(StreamContext {
            registry: registry.clone(),
            metrics: Arc::new(Metrics::new()),
            heartbeat: hour,
            retry: hour,
            max_age: None,
            write_timeout: Duration::from_secs(30),
            why: Arc::default(),
        });
        let fields = Arc::new(FieldMapping {
            source: Source::Pubsub,
            id: Field::Header("id".into()),
            kind: Field::Header("type".into()),
            data: None,
            end: Field::Header("end".into()),
        });
        let subscription = registry.warm(&filter(WARM), &bounds, &fields).unwrap();
        let table = Table::new(1_000);
        let most = 1_000_000_000; // the model has one client, and is about something else
        let limits = Limits { opens_per_second: most, resume_bytes: most as u64, ..Config::default().limits };
        let replica = Replica {
            shared,
            registry,
            clients: Clients::new(&limits, table.clock()),
            table,
            epoch: epoch.to_string(),
            bounds,
            fields,
            is_warm: true.into(),
            opened: AtomicUsize::new(0),
            subscribed: Mutex::default(),
        };
        (replica, subscription)
    }

    pub fn confirm(&self, subscription: Subscription) {
        self.subscribed.lock().insert(subscription.filter().clone());
        subscription.accepted();
    }

    pub fn lease(&self, filter: &Filter) -> Lease {
        let warm = self::filter(WARM);
        let warm = Some(&warm).filter(|warm| warm.covers(filter) && self.is_warm.load(Ordering::Relaxed));
        let (lease, subscription) = self.registry.lease(filter, &self.bounds, &self.fields, warm).unwrap();
        subscription.into_iter().for_each(|subscription| self.confirm(subscription));
        lease
    }

    /// A reload says whether the rule of [`WARM`] is warm. Its subscription is confirmed.
    pub fn keep_warm(&self, is_warm: bool) {
        self.is_warm.store(is_warm, Ordering::Relaxed);
        let warm = filter(WARM);
        if is_warm {
            let subscription = self.registry.warm(&warm, &self.bounds, &self.fields);
            subscription.into_iter().for_each(|subscription| self.confirm(subscription));
        } else {
            self.registry.stop_warming(&warm);
        }
        self.registry.rules_changed();
    }

    /// `None`: its topics have ended, and it was read to their ends.
    pub fn open_leases(&self, leases: Vec<Lease>, start: &Start, format: Format) -> Option<Stream> {
        let is_plain = self.opened.fetch_add(1, Ordering::Relaxed) % 3 == 2;
        let content = if is_plain { Content::Identity } else { Content::Gzip };
        self.open_as(leases, start, format, content)
    }

    /// As [`Replica::open_leases`], with this content coding.
    pub fn open_as(
        &self,
        leases: Vec<Lease>,
        start: &Start,
        format: Format,
        content: Content,
    ) -> Option<Stream> {
        self.open_for(leases, start, format, content, None)
    }

    pub fn open_with(
        &self,
        leases: Vec<Lease>,
        start: &Start,
        format: Format,
        view: Option<View>,
    ) -> Option<Stream> {
        self.open_for(leases, start, format, Content::Identity, view)
    }

    fn open_for(
        &self,
        leases: Vec<Lease>,
        start: &Start,
        format: Format,
        content: Content,
        view: Option<View>,
    ) -> Option<Stream> {
        let reader = Reader { view: view.map(Arc::new), ..Reader::default() };
        let ticket = self.table.enter(reader).unwrap();
        let place = self.clients.enter(ticket.handle().clone(), leases.len()).unwrap();
        let options = StreamOptions {
            start,
            located: &[],
            format,
            content,
            expires: None,
            until_end: true,
            may_have_ended: true,
            without_control: false,
        };
        Stream::open(self.shared.clone(), ticket, place, leases, options)
    }

    /// A stream over `filters`, or `None` if the broker has just ended a subscription of it, or if its topics have ended.
    pub fn open(&self, filters: &[Filter], start: &Start, format: Format) -> Option<Stream> {
        self.try_open(filters, start, format).flatten()
    }

    /// The outer `None`: the broker has just ended a subscription. The inner: its topics have ended.
    pub fn try_open(&self, filters: &[Filter], start: &Start, format: Format) -> Option<Option<Stream>> {
        let leases: Vec<Lease> = filters.iter().map(|filter| self.lease(filter)).collect();
        let ready =
            leases.iter().all(|lease| lease.ready().now_or_never().is_some_and(|ready| ready.is_ok()));
        ready.then(|| self.open_leases(leases, start, format))
    }

    /// The broker delivers a message to each subscription that it matches. Returns when it was taken in.
    pub fn deliver(&self, topic: &Topic, payload: &str, publisher_id: Option<&str>) -> SystemTime {
        self.deliver_all(topic, &[(payload.to_owned(), publisher_id.map(str::to_owned))])
    }

    /// As [`Replica::deliver`], several messages, of which one subscription after the other gets all.
    pub fn deliver_all(&self, topic: &Topic, messages: &[(String, Option<String>)]) -> SystemTime {
        let mut taken = SystemTime::now();
        for filter in self.matching(topic) {
            for (payload, publisher_id) in messages {
                let mut headers = Headers::default();
                publisher_id.iter().for_each(|id| headers.insert("id", id.as_str()));
                if is_end(payload) {
                    headers.insert("end", "true");
                }
                let payload = Bytes::from(payload.clone());
                self.registry.append(&filter, topic, None, |sequence, number, time, fields| {
                    taken = time;
                    let found = fields.find(&headers, &payload);
                    EntryKind::Message(Message::new(topic.clone(), time, sequence, number, found, &payload))
                });
            }
        }
        while self.registry.wake(1) {}
        taken
    }

    /// As [`Replica::deliver`], with a type.
    pub fn deliver_typed(&self, topic: &Topic, kind: Option<&str>, payload: &str) {
        for filter in self.matching(topic) {
            let mut headers = Headers::default();
            kind.iter().for_each(|kind| headers.insert("type", *kind));
            self.registry.append(&filter, topic, None, |sequence, number, time, fields| {
                let found = fields.find(&headers, payload.as_bytes());
                EntryKind::Message(Message::new(
                    topic.clone(),
                    time,
                    sequence,
                    number,
                    found,
                    payload.as_bytes(),
                ))
            });
        }
        while self.registry.wake(1) {}
    }

    /// The broker says that it may have lost messages of each subscription that matches `topic`; of all, for `None`.
    pub fn lose(&self, topic: Option<&Topic>) {
        match topic {
            None => _ = self.registry.append_gap(None, None, GapReason::Broker),
            Some(topic) => {
                _ = self.registry.append_gap(Some(&self.matching(topic)), None, GapReason::Broker);
            }
        }
        while self.registry.wake(1) {}
    }

    /// One message of `topic` cannot be carried: a gap of that topic, for each subscription that brings it.
    pub fn lose_one(&self, topic: &Topic) {
        self.registry.append_gap(Some(&self.matching(topic)), Some(topic), GapReason::TooLarge);
        while self.registry.wake(1) {}
    }

    /// The broker ends a subscription on its own.
    pub fn refuse(&self, filter: &Filter) {
        let subscribed = self.subscribed.lock().remove(filter);
        if subscribed {
            self.registry.refuse(filter);
        }
    }

    /// Gives up logs that nobody reads.
    pub fn sweep(&self) {
        self.registry.sweep(|filter, _| self.subscribed.lock().remove(filter));
    }

    fn matching(&self, topic: &Topic) -> Vec<Filter> {
        self.subscribed.lock().iter().filter(|filter| filter.matches(topic)).cloned().collect()
    }
}
