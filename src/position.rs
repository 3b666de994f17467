//! Positions: where a reader is, and the event ids that say so on the wire.
//!
//! One counter numbers everything that this process appends to any log, so a single id resumes a stream of many topics
//! exactly. The epoch names the process. An example of why it must: a client stops at 3 of `[1, 2, 3]`; the gateway
//! restarts, and its new log holds `[1, 2, 3, 4]`, other messages with the same numbers. Without an epoch the client
//! would be given 4 and never know of the new 1, 2 and 3; with it, the foreign epoch is seen, and told as a gap.
//!
//! On the wire an id is `<epoch>-<sequence>`, and `<epoch>-<sequence>-<publisher id>` where the publisher gave the
//! message an id of its own, by which a process of another epoch can find the message too. Clients treat ids as opaque.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

/// The longest event id that is looked at; what is longer cannot have come from here.
pub const MAX_EVENT_ID: usize = 256;

/// The longest publisher id that is carried. With it an event id stays far below what proxies allow in a header.
const MAX_PUBLISHER_ID: usize = 128;

/// Without letters that are mistaken for others.
const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// Names this process among all that ever ran: random, letters and digits, no `-`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Epoch(Box<str>);

impl Epoch {
    /// A new one. 40 random bits: two processes that one client ever meets share an epoch once in a million million.
    pub fn random() -> Self {
        Epoch((0..8).map(|_| char::from(DIGITS[fastrand::usize(..DIGITS.len())])).collect())
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Names a history that a broker keeps, the same in every replica: of a stream, hashed from its name and when it was made, so
/// that one made anew has another. Six letters and digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag(Box<str>);

impl Tag {
    /// The tag of what `parts` tell apart.
    pub fn of(parts: &[&[u8]]) -> Self {
        let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
        for part in parts {
            hash.update(&(part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        let digest = hash.finish();
        Tag(digest.as_ref().iter().take(6).map(|byte| char::from(DIGITS[usize::from(byte % 32)])).collect())
    }
}

/// The process-wide counter. One writer (the registry, on behalf of ingest) advances it; everybody reads.
#[derive(Debug)]
pub struct Sequence {
    epoch: Epoch,
    head: AtomicU64,
}

impl Sequence {
    /// Starts at 0: the first entry is 1.
    pub fn new(epoch: Epoch) -> Self {
        Sequence { epoch, head: AtomicU64::new(0) }
    }

    /// The number of the next entry. Only the one writer asks.
    pub fn next(&self) -> u64 {
        self.head.load(Ordering::Relaxed) + 1
    }

    /// Makes the entry `next` visible, once it is in its log. Only the one writer calls this.
    pub fn publish(&self, next: u64) {
        self.head.store(next, Ordering::Release);
    }

    /// Every entry up to here is in its log. A reader of several logs reads none of them further than one head it has
    /// seen; otherwise the id of an entry in one would skip what another log appended a moment earlier.
    pub fn head(&self) -> u64 {
        self.head.load(Ordering::Acquire)
    }

    /// The event id of the entry `sequence`.
    pub fn event_id(&self, sequence: u64, publisher_id: Option<&str>) -> String {
        match publisher_id {
            Some(publisher_id) => format!("{}-{sequence}-{publisher_id}", self.epoch),
            None => format!("{}-{sequence}", self.epoch),
        }
    }

    /// Reads an event id that a client sent. What this process did not write is a foreign one or a publisher's.
    pub fn read_event_id<'a>(&self, text: &'a str) -> EventId<'a> {
        let Some((epoch, sequence, publisher_id)) = split(text) else { return EventId::Publisher(text) };
        if epoch != &*self.epoch.0 {
            return EventId::Foreign { publisher_id };
        }
        // Beyond what was ever published here: forged, or garbled on its way.
        if sequence > self.head() { EventId::Unknown } else { EventId::Own { sequence, publisher_id } }
    }
}

/// What an event id turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventId<'a> {
    /// This process wrote it.
    Own {
        /// The number of that entry.
        sequence: u64,
        /// The publisher's id of that message, if it had one; as the client says.
        publisher_id: Option<&'a str>,
    },
    /// Another process wrote it, perhaps this one before a restart.
    Foreign {
        /// The publisher's id of that message, if it had one.
        publisher_id: Option<&'a str>,
    },
    /// Not of our form: perhaps a publisher's bare id.
    Publisher(&'a str),
    /// Of this process's form, but it never wrote it.
    Unknown,
}

fn split(text: &str) -> Option<(&str, u64, Option<&str>)> {
    let (epoch, rest) = text.split_once('-')?;
    let (sequence, publisher_id) = match rest.split_once('-') {
        Some((sequence, publisher_id)) => (sequence, Some(publisher_id)),
        None => (rest, None),
    };
    let digits = !sequence.is_empty() && sequence.bytes().all(|b| b.is_ascii_digit());
    let ours = epoch.len() == 8 && epoch.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    (digits && ours).then_some(())?;
    Some((epoch, sequence.parse().ok()?, publisher_id))
}

/// Bits of a number that hold the second half of a Redis entry id.
const ENTRY_BITS: u32 = 20;

/// The number of a Redis entry id `<ms>-<seq>`. It rises as the ids do. `None` for an id that no server gives on its own: of
/// a time after the year 2527, or the millionth of a millisecond.
pub fn pack_entry_id(ms: u64, seq: u64) -> Option<u64> {
    (ms < 1 << (64 - ENTRY_BITS) && seq < 1 << ENTRY_BITS).then_some(ms << ENTRY_BITS | seq)
}

/// The entry id of a number.
pub fn unpack_entry_id(number: u64) -> (u64, u64) {
    (number >> ENTRY_BITS, number & ((1 << ENTRY_BITS) - 1))
}

/// Whether a publisher's id can be carried in an event id: short, visible ASCII. A header must be able to bring it back.
pub fn is_publisher_id(text: &str) -> bool {
    (1..=MAX_PUBLISHER_ID).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

/// Where a stream starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// Live, from now.
    Now,
    /// After the event of this id. `None` is an id that could not be read at all.
    After(Option<String>),
    /// With the first message at or after this time.
    Since(SystemTime),
    /// With the oldest message that is held.
    All,
    /// With the last so many messages over all topics of the stream.
    Last(usize),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(head: u64) -> Sequence {
        let sequence = Sequence::new(Epoch("k3x9q2m7".into()));
        sequence.publish(head);
        sequence
    }

    #[test]
    fn what_this_process_wrote_is_read_back() {
        let sequence = sequence(57);
        assert_eq!(sequence.event_id(57, None), "k3x9q2m7-57");
        let own = |sequence, publisher_id| EventId::Own { sequence, publisher_id };
        assert_eq!(sequence.read_event_id("k3x9q2m7-57"), own(57, None));
        assert_eq!(sequence.read_event_id("k3x9q2m7-0"), own(0, None));
        let id = sequence.event_id(12, Some("order-7-b"));
        assert_eq!(id, "k3x9q2m7-12-order-7-b");
        assert_eq!(sequence.read_event_id(&id), own(12, Some("order-7-b")));
    }

    #[test]
    fn what_it_did_not_write_is_never_taken_for_its_own() {
        let sequence = sequence(57);
        assert_eq!(sequence.read_event_id("k3x9q2m7-58"), EventId::Unknown);
        assert_eq!(sequence.read_event_id("aaaaaaaa-3"), EventId::Foreign { publisher_id: None });
        assert_eq!(sequence.read_event_id("aaaaaaaa-3-x-1"), EventId::Foreign { publisher_id: Some("x-1") });
        for other in [
            "order-7",
            "",
            "k3x9q2m7",
            "k3x9q2m7-",
            "k3x9q2m7--1",
            "k3x9q2m7-+5",
            "k3x9q2m7-99999999999999999999",
        ] {
            assert_eq!(sequence.read_event_id(other), EventId::Publisher(other), "{other:?}");
        }
    }

    #[test]
    fn a_publisher_id_is_one_that_a_header_can_bring_back() {
        assert!(is_publisher_id("a") && is_publisher_id(&"a".repeat(128)));
        for bad in ["", "a b", "a\n", "a\0", "é", &"a".repeat(129)] {
            assert!(!is_publisher_id(bad), "{bad:?}");
        }
    }

    #[test]
    fn epochs_differ_and_have_the_form_that_is_read_back() {
        let (a, b) = (Epoch::random(), Epoch::random());
        assert_ne!(a, b);
        let id = format!("{a}-0");
        assert_eq!(Sequence::new(a).read_event_id(&id), EventId::Own { sequence: 0, publisher_id: None });
    }
}
