//! What logs hold: entries, each once and encoded, shared between the logs that hold them. An entry is a message or a gap.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use super::message::{Format, Message};
use super::time::Stamp;
use crate::metrics::RuleMetrics;
use crate::protocol::codes::GapReason;
use crate::protocol::event_id::Sequence;
use crate::protocol::frame::{self, Frame};
use crate::protocol::topic::{Filter, Topic};

/// How much a log holds, as its rule says. Whichever bound is met first counts.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// Entries.
    pub messages: usize,
    /// Bytes, as held in memory. Envelopes count only among what all logs hold together: readers make them, not writers.
    pub bytes: usize,
    /// Age of the oldest entry.
    pub age: Duration,
    /// How long a log outlives its last reader.
    pub linger: Duration,
    /// Counters of the rule.
    pub rule: RuleMetrics,
}

/// One entry. Shared between logs that both hold it.
#[derive(Debug)]
pub struct Entry {
    /// Its number in the log's sequence.
    pub sequence: u64,
    pub(super) stamp: Stamp,
    /// What it is.
    pub kind: EntryKind,
    /// Counts its envelope, which may be made at any time and lives as long as the last log that holds it.
    usage: Arc<BufferUsage>,
}

/// What an entry is.
#[derive(Debug)]
pub enum EntryKind {
    /// A message.
    Message(Message),
    /// Messages are missing here.
    Gap(Gap),
}

/// A gap, as the readers of one log are told of it.
#[derive(Debug)]
pub struct Gap {
    reason: GapReason,
    /// The only topic of which something is missing, if that is known.
    topic: Option<Topic>,
    frame: Frame,
}

impl Gap {
    /// One with the event id `id`, in a log of `filter`.
    pub fn new(id: &str, filter: &Filter, reason: GapReason, topic: Option<Topic>) -> Self {
        Gap { reason, topic, frame: frame::stream_gap(Some(id), filter.as_str(), reason) }
    }
}

impl Entry {
    pub(super) fn new(sequence: u64, stamp: Stamp, kind: EntryKind, usage: &Arc<BufferUsage>) -> Arc<Self> {
        let entry = Entry { sequence, stamp, kind, usage: usage.clone() };
        let envelope = entry.message().map_or(0, Message::envelope_weight);
        usage.0.fetch_add(envelope, Ordering::Relaxed);
        Arc::new(entry)
    }

    /// When the broker took it, where it says so; else when it was taken in. As it is searched by.
    pub(super) fn time(&self) -> SystemTime {
        self.stamp.time()
    }

    pub(super) fn frame(&self, format: Format) -> &Frame {
        match &self.kind {
            EntryKind::Message(message) => {
                message.frame(format, |weight| _ = self.usage.0.fetch_add(weight, Ordering::Relaxed))
            }
            EntryKind::Gap(gap) => &gap.frame,
        }
    }

    /// The event with another id, for a reader of several sequences. `filter` is that of the log it was read from.
    pub(super) fn frame_with_id(&self, format: Format, filter: &Filter, id: &str) -> Frame {
        match &self.kind {
            EntryKind::Message(_) => self.frame(format).with_id(id),
            EntryKind::Gap(gap) => frame::stream_gap(Some(id), filter.as_str(), gap.reason),
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

    /// The one topic that it concerns. `None`: a gap in all that its log holds.
    pub(super) fn topic(&self) -> Option<&Topic> {
        match &self.kind {
            EntryKind::Message(message) => Some(message.topic()),
            EntryKind::Gap(gap) => gap.topic.as_ref(),
        }
    }

    /// The same in a log of `filter`, whose readers are told of a gap by that name. `sequence` is that of both logs.
    pub(super) fn in_log_of(self: &Arc<Self>, filter: &Filter, sequence: &Sequence) -> Arc<Self> {
        match &self.kind {
            EntryKind::Message(_) => self.clone(),
            EntryKind::Gap(gap) => {
                let id = sequence.event_id(self.sequence, None);
                let gap = Gap::new(&id, filter, gap.reason, gap.topic.clone());
                let stamp = Stamp::new(self.time(), self.stamp.taken());
                Entry::new(self.sequence, stamp, EntryKind::Gap(gap), &self.usage)
            }
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let envelope = self.message().map_or(0, Message::envelope_weight);
        self.usage.0.fetch_sub(envelope, Ordering::Relaxed);
    }
}

/// What a reader finds next in a log.
#[derive(Debug, Clone)]
pub(super) enum Item {
    /// An entry.
    Entry(Arc<Entry>),
    /// Everything up to this sequence is gone, and the reader had not read it all.
    Evicted(u64),
}

impl Item {
    /// Its place in the order of the sequence. What was evicted stands where its last entry stood: no later entry of
    /// the log can come before it. It stands before another log's entry of the same number.
    pub(super) fn place(&self) -> (u64, bool) {
        match self {
            Item::Entry(entry) => (entry.sequence, true),
            Item::Evicted(through) => (*through, false),
        }
    }
}

/// Bytes held by all logs together.
#[derive(Debug, Default)]
pub struct BufferUsage(pub(super) AtomicUsize);

impl BufferUsage {
    /// Bytes now.
    pub fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}
