//! The read position of a follower in a stream, and the detection of messages that were dropped before it could read
//! them.
//!
//! A stream can lose messages before they are read, to its limits or a purge. If the follower reads the whole stream, a
//! missing number is a loss. If it reads only its filter, most missing numbers belong to other topics. Then it asks the
//! stream about them only if messages of the filter had to wait on the server: the server sends with each message how
//! many still wait, and those that waited for a request show when the next one is answered.

use std::time::SystemTime;

use super::found::Found;
use super::names::Names;
use super::stream::{drops_early, is_whole};
use crate::protocol::event_id::Tag;
use crate::protocol::seq::Seq;
use crate::protocol::source::Source;

/// The read position of a follower.
pub(super) struct ReadPosition {
    pub(super) names: Names,
    pub(super) subject: String,
    /// The name of the stream.
    pub(super) stream: String,
    pub(super) tag: Tag,
    /// The highest number that was sent as an event.
    pub(super) last_emitted: Seq,
    /// When the stream stored its last message before reading began.
    pub(super) time: SystemTime,
    /// Up to this number, every loss has been reported. At least `last_emitted`.
    pub(super) verified_through: Seq,
    /// The message that was read last.
    pub(super) read: Option<LastRead>,
    /// Whether messages of the filter after `last_emitted` may have to wait on the server.
    pub(super) behind: bool,
    /// Messages of the filter that still waited when the consumer delivered the last one.
    pub(super) pending: u64,
    /// Once the consumer has delivered this many messages, `behind` ends.
    pub(super) caught_up: Option<u64>,
    /// The part of the stream that is read.
    pub(super) extent: Extent,
}

/// The message that was read last.
#[derive(Debug, Clone, Copy)]
pub(super) struct LastRead {
    pub(super) number: Seq,
    /// When the stream stored it.
    pub(super) time: SystemTime,
}

/// The part of a stream that a follower reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// The filter, which covers the whole stream.
    Whole,
    /// The whole stream, though the filter is narrower: the stream drops messages early, by this setting, and only a
    /// reader of the whole stream sees the losses.
    Beyond(&'static str),
    /// The filter; the stream also has other messages.
    PartialFetch,
    /// The values of a bucket. It drops old values of a key on purpose, which is not a loss, because the new value
    /// follows.
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
    /// The position at the end of a stream.
    pub(super) fn of(found: Found, source: &Source) -> Self {
        let (extent, tag) = (Extent::of(&found, source), found.info.tag());
        let Found { info, names, subject } = found;
        ReadPosition {
            names,
            subject,
            tag,
            last_emitted: info.state.last_seq,
            verified_through: info.state.last_seq,
            time: info.state.last_ts,
            read: None,
            behind: false,
            pending: 0,
            caught_up: None,
            extent,
            stream: info.config.name.clone(),
        }
    }

    /// The subject to read; `None` for the whole stream.
    pub(super) fn wanted(&self) -> Option<&str> {
        (!matches!(self.extent, Extent::Beyond(_))).then_some(self.subject.as_str())
    }

    pub(super) fn fall_behind(&mut self) {
        (self.behind, self.caught_up) = (true, None);
    }

    /// Called before a message is passed on; `pending` is the number of messages that still wait, and `may_have_waited` says
    /// whether this one may have.
    pub(super) fn before(&mut self, pending: u64, may_have_waited: bool) {
        if pending > 0 || may_have_waited {
            self.fall_behind(); // some may have waited before this one, too
        }
    }

    /// Called after the message was passed on.
    pub(super) fn after(&mut self, pending: u64, delivered: u64) {
        // If fewer messages wait than before, minus those that arrived, some were dropped: before the next one, or
        // before this one.
        let is_all = pending == 0 && self.pending <= 1;
        if is_all || self.caught_up.is_some_and(|all| all <= delivered) {
            (self.behind, self.caught_up) = (false, None);
        }
        self.pending = pending;
    }

    /// Whether messages of the filter may have been lost between the last number and this one.
    pub(super) fn is_suspicious(&self, number: Seq) -> bool {
        let may_be = match self.extent {
            Extent::Whole | Extent::Beyond(_) => true,
            Extent::PartialFetch => self.behind,
            Extent::Values => false,
        };
        may_be && number > self.verified_through.next()
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
            last_emitted: Seq::new(10),
            verified_through: Seq::new(10),
            time: SystemTime::UNIX_EPOCH,
            read: None,
            behind: false,
            pending: 0,
            caught_up: None,
            extent,
        }
    }

    #[test]
    fn in_a_wider_stream_a_missing_number_is_suspicious_if_messages_of_the_filter_waited() {
        let mut reading = reading(Extent::PartialFetch);
        let mut is_suspicious = |pending, number| {
            let number = Seq::new(number);
            reading.before(pending, false);
            let is_so = reading.is_suspicious(number);
            (reading.last_emitted, reading.verified_through) = (number, number);
            reading.after(pending, 1);
            is_so
        };
        assert!(
            !is_suspicious(0, 20),
            "it arrived at once, and the numbers in between belong to other topics"
        );
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
    fn a_follower_of_a_whole_stream_suspects_every_missing_number_and_one_of_values_none() {
        for (extent, expected) in
            [(Extent::Whole, true), (Extent::Beyond("max_msgs"), true), (Extent::Values, false)]
        {
            let mut reading = reading(extent);
            reading.before(5, false);
            assert_eq!(
                (reading.is_suspicious(Seq::new(12)), reading.is_suspicious(Seq::new(11))),
                (expected, false)
            );
        }
    }
}
