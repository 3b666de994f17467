//! The state of a reader with an interval (`every=`): when it reads again, and the messages that it has gathered meanwhile.
//! `rounds` does the reading.

use super::newest::Newest;
use crate::protocol::seq::Seq;
use crate::protocol::view::Interval;
use crate::reader::clock::{Clock, Millis};

/// The state of a reader with an interval.
#[derive(Debug)]
pub(super) struct Paced {
    pub(super) interval: Interval,
    pub(super) clock: Clock,
    /// When it reads again. `None`: as soon as there is something to read.
    pub(super) due: Option<Millis>,
    /// One for each cursor.
    pub(super) cursors: Vec<PacedCursor>,
}

/// The part of this state for one cursor.
#[derive(Debug, Default)]
pub(super) struct PacedCursor {
    /// Stored messages up to the position of the cursor that were not sent yet.
    pub(super) backlog: Newest,
    /// Messages up to here are gone from the broker, which was not sent as a gap yet.
    pub(super) gone: Option<Seq>,
    /// Messages of the backlog that were left out because a newer one followed, and not counted yet.
    pub(super) conflated: usize,
    /// The end of the round, if only a part of it was read.
    pub(super) until: Option<Seq>,
}

impl PacedCursor {
    pub(super) fn has_backlog(&self) -> bool {
        self.backlog.len() > 0 || self.gone.is_some()
    }

    /// Where its backlog begins.
    pub(super) fn first(&self) -> Option<Seq> {
        let first = self.backlog.after(Seq::START).next().map(|entry| entry.sequence);
        first.into_iter().chain(self.gone).min()
    }
}
