//! Whether a stream ends because its topics have ended ([`super::end`]).

use super::cursor::Cursor;
use super::cursors::{Cursors, Phase};
use super::registry::Lease;
use super::start_ids::ids_of_leases;
use crate::protocol::event_id::ParsedEventId;
use crate::protocol::seek::Start;
use crate::protocol::seq::Seq;

/// Whether a stream over `leases` may begin where every topic has ended, as far as the logs know. If so, the broker must
/// confirm the ends. All leases must be ready.
pub fn may_begin_at_ends(leases: &[Lease], start: &Start) -> bool {
    let at_end = |(lease, id): (&Lease, Option<ParsedEventId<'_>>)| match (lease.end(), id) {
        (Some(end), Some(ParsedEventId::Own { position, .. })) => position.number >= end,
        (end, _) => end.is_some(), // only its cursor will show it
    };
    matches!(start, Start::After(_)) && leases.iter().zip(ids_of_leases(leases, start)).all(at_end)
}

impl Cursors {
    /// Whether every topic has ended, and everything up to its end was read. After a live start, only ends that came since
    /// then count: the reader waits for what comes.
    pub fn have_ended(&self) -> bool {
        let has_ended =
            |cursor: &Cursor| cursor.end_read(self.place(cursor)).is_some_and(|end| end > cursor.end);
        self.ends && self.phase == Phase::Live && self.cursors.iter().all(has_ended)
    }

    /// The ends at which they begin count no more: the broker may have newer messages.
    pub fn ignore_reached_ends(&mut self) {
        for cursor in &mut self.cursors {
            // No value follows the end, as far as the log knows.
            cursor.position = cursor.position.max(cursor.values_until());
            cursor.reads_values = false;
        }
        self.set_phase(Phase::Live, |cursor| cursor.position);
    }

    /// Whether they begin where every topic has ended: there is nothing to read. Not while the broker is away: a message
    /// that opened a topic again may not have arrived, and a reader that hears of the end never comes back.
    pub(super) fn begin_at_ends(&self) -> bool {
        let has_ended = |cursor: &Cursor| {
            cursor.end_read(cursor.position).is_some() && !cursor.lease.log().numbering.has_lost_feed()
        };
        self.cursors.iter().all(has_ended)
    }
}

impl Cursor {
    /// Whether a message that ended the topic is still to be read.
    pub(super) fn must_tell_end(&self) -> bool {
        self.lease.log().end.as_ref().is_some_and(|end| end.is_after(self.position))
    }

    /// The number of the message that ended the topic, if it has ended and that message is not after `position`.
    fn end_read(&self, position: Seq) -> Option<Seq> {
        self.lease.log().end.as_ref()?.at().filter(|end| *end <= position)
    }
}
