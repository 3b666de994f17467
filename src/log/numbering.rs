//! The sequence that numbers the entries of a log, and the number up to which the log is complete. A log, the logs that it feeds,
//! and their histories share one.

use std::sync::{Arc, OnceLock};

use crate::protocol::event_id::Sequence;
use crate::protocol::seq::{AtomicOptionSeq, Seq};

/// The numbering of one or more logs.
#[derive(Debug)]
pub(crate) struct Numbering {
    sequence: OnceLock<Arc<Sequence>>,
    /// The number up to which it is complete; none while it is open.
    end: AtomicOptionSeq,
}

impl Numbering {
    /// A numbering whose sequence is set when the subscription begins. Nobody reads before.
    pub(super) fn unknown() -> Arc<Self> {
        Arc::new(Numbering { sequence: OnceLock::new(), end: AtomicOptionSeq::new(None) })
    }

    pub(super) fn by(sequence: Arc<Sequence>) -> Arc<Self> {
        Arc::new(Numbering { sequence: OnceLock::from(sequence), end: AtomicOptionSeq::new(None) })
    }

    pub(super) fn sequence(&self) -> Option<&Arc<Sequence>> {
        self.sequence.get()
    }

    /// Sets the sequence, if it is not set yet.
    pub(super) fn begin(&self, sequence: &Arc<Sequence>) {
        let _ = self.sequence.set(sequence.clone());
    }

    pub(super) fn head(&self) -> Seq {
        self.sequence().map_or(Seq::START, |sequence| sequence.head())
    }

    /// Seals the log: its subscription has ended, and it is complete only up to the head. No reader may claim to have read
    /// further.
    pub(super) fn seal(&self) {
        self.end.store(Some(self.head()));
    }

    /// The number up to which it is complete, if its subscription has ended.
    pub(super) fn sealed(&self) -> Option<Seq> {
        self.end.load()
    }

    /// The number up to which it can be read, if everything up to `head` is published.
    pub(super) fn end(&self, head: Seq) -> Seq {
        self.sealed().map_or(head, |end| head.min(end))
    }
}
