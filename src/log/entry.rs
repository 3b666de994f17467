//! Entries: an entry is a message or a gap, encoded once and shared between all logs that hold it. Here are also the
//! bounds of a log, and the bytes that all logs take.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use super::compressors::Compressors;
use super::message::{Format, Message};
use super::time::Stamp;
use crate::metrics::RuleMetrics;
use crate::protocol::codes::GapReason;
use crate::protocol::event_id::{EventId, Sequence};
use crate::protocol::frame::{self, Frame};
use crate::protocol::seq::Seq;
use crate::protocol::topic::{Filter, Topic};
use crate::protocol::view::View;

/// The bounds of a log, from its rule. The first bound that is reached counts.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// The most entries.
    pub messages: usize,
    /// The most bytes, as held in memory. Envelopes count only against the bound of all logs, because readers create
    /// them, not the writer.
    pub bytes: usize,
    /// The age of the oldest entry.
    pub age: Duration,
    /// How long the log is kept after its last reader.
    pub linger: Duration,
    /// The counters of the rule.
    pub rule: Arc<RuleMetrics>,
}

/// An entry. It is shared between all logs that hold it.
#[derive(Debug)]
pub struct Entry {
    /// Its number in the sequence of the log.
    pub sequence: Seq,
    pub(super) stamp: Stamp,
    /// A message or a gap.
    pub kind: EntryKind,
    /// Counts its envelope, which may be created at any time and lives until the last log drops the entry.
    usage: Arc<BufferUsage>,
}

/// The number and time that the broker gave a stored message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredPosition {
    /// Its number.
    pub number: Seq,
    /// When the broker stored it.
    pub time: SystemTime,
}

/// The kind of an entry.
#[derive(Debug)]
pub enum EntryKind {
    /// A message.
    Message(Message),
    /// Messages are missing here.
    Gap(Gap),
}

/// A gap, as the readers of one log receive it.
#[derive(Debug)]
pub struct Gap {
    reason: GapReason,
    /// The only topic that misses messages, if that is known.
    topic: Option<Topic>,
    frame: Frame,
}

impl Gap {
    /// A gap with the event id `id`, in a log of `filter`.
    pub fn new(id: &EventId, filter: &Filter, reason: GapReason, topic: Option<Topic>) -> Self {
        Gap { reason, topic, frame: frame::stream_gap(Some(id), filter.as_str(), reason) }
    }

    /// The event with another id, for a reader of several sequences. `filter` is the filter of its log.
    pub(super) fn frame_with_id(&self, filter: &Filter, id: &EventId) -> Frame {
        frame::stream_gap(Some(id), filter.as_str(), self.reason)
    }
}

impl Entry {
    pub(super) fn new(sequence: Seq, stamp: Stamp, kind: EntryKind, usage: &Arc<BufferUsage>) -> Arc<Self> {
        let entry = Entry { sequence, stamp, kind, usage: usage.clone() };
        let envelope = entry.message().map_or(0, Message::envelope_weight);
        usage.add(envelope);
        Arc::new(entry)
    }

    /// When the broker stored it, or, for live sources, when the gateway received it. `since` searches by this time.
    pub(super) fn time(&self) -> SystemTime {
        self.stamp.time()
    }

    pub(super) fn frame(&self, format: Format) -> &Frame {
        match &self.kind {
            EntryKind::Message(message) => message.frame(format, |weight| self.usage.add(weight)),
            EntryKind::Gap(gap) => &gap.frame,
        }
    }

    pub(super) fn weight(&self) -> usize {
        size_of::<Self>()
            + match &self.kind {
                EntryKind::Message(message) => message.weight(),
                EntryKind::Gap(gap) => gap.frame.weight(),
            }
    }

    pub(super) fn message(&self) -> Option<&Message> {
        match &self.kind {
            EntryKind::Message(message) => Some(message),
            EntryKind::Gap(_) => None,
        }
    }

    /// The reason, if it is a gap.
    pub(super) fn gap(&self) -> Option<GapReason> {
        match &self.kind {
            EntryKind::Message(_) => None,
            EntryKind::Gap(gap) => Some(gap.reason),
        }
    }

    /// Whether a reader with that view receives it. Every view admits gaps and the ends of topics.
    pub(super) fn is_in(&self, view: &View) -> bool {
        self.message().is_none_or(|message| view.admits(message.kind()) || message.ends())
    }

    /// The topic that it concerns. `None`: a gap in all topics of its log.
    pub(super) fn topic(&self) -> Option<&Topic> {
        match &self.kind {
            EntryKind::Message(message) => Some(message.topic()),
            EntryKind::Gap(gap) => gap.topic.as_ref(),
        }
    }

    /// The same entry for a log of `filter`: a gap names that filter, and in the log of a pattern the end of a topic is an
    /// event. `sequence` is the sequence of both logs.
    pub(super) fn in_log_of(self: &Arc<Self>, filter: &Filter, sequence: &Sequence) -> Arc<Self> {
        let kind = match &self.kind {
            EntryKind::Message(message) => message.for_log_of(filter).map(EntryKind::Message),
            EntryKind::Gap(gap) => {
                let id = sequence.event_id(self.sequence, None);
                Some(EntryKind::Gap(Gap::new(&id, filter, gap.reason, gap.topic.clone())))
            }
        };
        let Some(kind) = kind else { return self.clone() };
        Entry::new(self.sequence, Stamp::new(self.time(), self.stamp.taken()), kind, &self.usage)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let envelope = self.message().map_or(0, Message::envelope_weight);
        self.usage.sub(envelope);
    }
}

/// The next item of a log for a reader.
#[derive(Debug, Clone)]
pub(super) enum Item {
    /// An entry.
    Entry(Arc<Entry>),
    /// Entries up to this sequence were evicted before the reader had read them all.
    Evicted(Seq),
}

impl Item {
    /// Whether messages are missing here.
    pub(super) fn is_gap(&self) -> bool {
        match self {
            Item::Entry(entry) => entry.gap().is_some(),
            Item::Evicted(_) => true,
        }
    }

    /// Its position in the order of the sequence. An eviction has the position of the last evicted entry: no later
    /// entry of the log can come before it. It comes before another log's entry with the same number.
    pub(super) fn position(&self) -> ItemPosition {
        match self {
            Item::Entry(entry) => ItemPosition { number: entry.sequence, is_entry: true },
            Item::Evicted(through) => ItemPosition { number: *through, is_entry: false },
        }
    }
}

/// The position of an item among those of all logs of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ItemPosition {
    pub(super) number: Seq,
    /// An eviction comes before an entry.
    is_entry: bool,
}

/// The bytes that all logs hold together, and the compressors among them.
#[derive(Debug, Default)]
pub struct BufferUsage {
    bytes: AtomicUsize,
    pub(super) compressors: Compressors,
}

impl BufferUsage {
    /// The current bytes.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn sub(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}
