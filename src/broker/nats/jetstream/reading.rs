//! How far a follower is in a stream, and where messages of its filter may have gone before it could read them.
//!
//! A stream can lose messages before they are read: to its limits, to a purge. Where the follower is given all that the stream
//! holds, a number that does not come was lost. Where it is given the messages of its filter alone, most numbers that do not
//! come are of others; there the stream is asked about them if messages of the filter had to wait on the server, which says
//! with each message how many still do.

use std::time::SystemTime;

use super::found::Found;
use super::names::Names;
use super::stream::{drops_early, is_whole};
use crate::protocol::event_id::Tag;
use crate::protocol::source::Source;

/// Where a follower is.
pub(super) struct ReadPosition {
    pub(super) names: Names,
    pub(super) subject: String,
    /// The stream that is read, by the name it was found under.
    pub(super) stream: String,
    pub(super) tag: Tag,
    /// The highest number that was told.
    pub(super) told: u64,
    /// When the stream took its last message, as reading began.
    pub(super) time: SystemTime,
    /// Of what the stream held up to here, nothing is missing that was not told. At least `told`.
    pub(super) sound: u64,
    /// The number of the last message that was read, and when the stream took it.
    pub(super) read: Option<(u64, SystemTime)>,
    /// Messages of the filter may wait on the server behind `told`, rather than coming at once.
    pub(super) behind: bool,
    /// Messages of the filter that the consumer had still to deliver when it delivered the last one.
    pub(super) pending: u64,
    /// As soon as the consumer has delivered so many, that is over.
    pub(super) caught_up: Option<u64>,
    /// What is read of the stream.
    pub(super) extent: Extent,
}

/// What a follower reads of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// Messages of the filter, which are all that the stream holds.
    Whole,
    /// All messages, though the filter is narrower: the stream drops early, by this setting, and only whoever reads all of it
    /// sees what was lost.
    Beyond(&'static str),
    /// Messages of the filter, and the stream holds others.
    PartialFetch,
    /// The values of a bucket. It forgets the old ones of a key on purpose: that is no loss, since the new one comes.
    Values,
}

impl Extent {
    pub(super) fn of(found: &Found, source: &Source) -> Self {
        if matches!(source, Source::Kv { .. }) {
            return Extent::Values;
        }
        if is_whole(&found.info, &found.subject) {
            return Extent::Whole;
        }
        drops_early(&found.info).map_or(Extent::PartialFetch, Extent::Beyond)
    }
}

impl ReadPosition {
    /// At the end of a stream.
    pub(super) fn of(found: Found, source: &Source) -> Self {
        let (extent, tag) = (Extent::of(&found, source), found.info.tag());
        let Found { info, names, subject } = found;
        ReadPosition {
            names,
            subject,
            tag,
            told: info.state.last_seq,
            sound: info.state.last_seq,
            time: info.state.last_ts,
            read: None,
            behind: false,
            pending: 0,
            caught_up: None,
            extent,
            stream: info.config.name,
        }
    }

    /// The subject of what is read; `None` if that is everything.
    pub(super) fn wanted(&self) -> Option<&str> {
        (!matches!(self.extent, Extent::Beyond(_))).then_some(self.subject.as_str())
    }

    pub(super) fn fall_behind(&mut self) {
        (self.behind, self.caught_up) = (true, None);
    }

    /// The consumer says with a message how many it has still to deliver.
    pub(super) fn before(&mut self, pending: u64) {
        if pending > 0 {
            self.fall_behind(); // so some may have waited before this one, too
        }
    }

    /// The same, once the message was passed on.
    pub(super) fn after(&mut self, pending: u64, delivered: u64) {
        // If fewer are left than there were, without those that came, some of them have gone: before the next one, or before
        // this one.
        let is_all = pending == 0 && self.pending <= 1;
        if is_all || self.caught_up.is_some_and(|place| place <= delivered) {
            (self.behind, self.caught_up) = (false, None);
        }
        self.pending = pending;
    }

    /// Whether messages of the filter may have been lost between the last number and this one.
    pub(super) fn is_suspicious(&self, number: u64) -> bool {
        let may_be = match self.extent {
            Extent::Whole | Extent::Beyond(_) => true,
            Extent::PartialFetch => self.behind,
            Extent::Values => false,
        };
        may_be && number > self.sound + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(extent: Extent) -> ReadPosition {
        ReadPosition {
            names: Names::Subjects,
            subject: "orders.>".into(),
            stream: "ALL".into(),
            tag: Tag::of(&[]),
            told: 10,
            sound: 10,
            time: SystemTime::UNIX_EPOCH,
            read: None,
            behind: false,
            pending: 0,
            caught_up: None,
            extent,
        }
    }

    #[test]
    fn of_a_wider_stream_a_place_is_suspicious_where_messages_of_the_filter_waited() {
        let mut reading = reading(Extent::PartialFetch);
        let mut is_suspicious = |pending, number| {
            reading.before(pending);
            let is_so = reading.is_suspicious(number);
            (reading.told, reading.sound) = (number, number);
            reading.after(pending, 1);
            is_so
        };
        assert!(!is_suspicious(0, 20), "it came at once, and what lies between is of others");
        assert!(!is_suspicious(0, 30));
        assert!(is_suspicious(3, 40), "others wait, so some may have before it");
        assert!(is_suspicious(2, 50));
        assert!(!is_suspicious(1, 51), "nothing lies between");
        assert!(is_suspicious(0, 60));
        assert!(!is_suspicious(0, 70), "all that waited has come");
        assert!(is_suspicious(9, 80));
        assert!(is_suspicious(0, 90), "where are the other eight?");
        assert!(is_suspicious(0, 100), "they may have gone behind it");
        assert!(!is_suspicious(0, 110));
    }

    #[test]
    fn who_reads_all_suspects_every_number_that_does_not_come_and_who_reads_values_none() {
        for (extent, expected) in
            [(Extent::Whole, true), (Extent::Beyond("max_msgs"), true), (Extent::Values, false)]
        {
            let mut reading = reading(extent);
            reading.before(5);
            assert_eq!((reading.is_suspicious(12), reading.is_suspicious(11)), (expected, false));
        }
    }
}
