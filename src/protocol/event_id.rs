//! Positions of readers, and the event ids that express them on the wire.
//!
//! One counter numbers everything that this process appends to any log, so a single id resumes a stream of many topics
//! exactly. The epoch names the process. Why it is needed: a client stops at 3 of `[1, 2, 3]`; the gateway restarts,
//! and its new log has `[1, 2, 3, 4]`, other messages with the same numbers. Without an epoch, the client would receive
//! 4 and miss the new 1, 2 and 3 silently. With it, the gateway sees the foreign epoch and sends a gap.
//!
//! On the wire, an id is `<epoch>-<sequence>`. If the publisher gave the message an id, it is
//! `<epoch>-<sequence>-<publisher id>`, by which a process of another epoch can find the message too.
//!
//! The broker numbers stored messages. Each JetStream stream or Redis Stream has its own [`Sequence`], with a tag
//! instead of the epoch, and every replica writes the same id for the same message. A stream that reads several
//! sequences has ids with a part for each, `<tag><number>.<tag><number>`. Clients treat ids as opaque.
//!
//! A reader of a bucket first receives the values of its keys, with their own old numbers. Among them, the number alone
//! does not say which keys it knows to be deleted, so the ids there also have the number as of which the values are:
//! `<tag>-<number>_<as of>` ([`Position`]).

mod position;

mod before_first;

use std::fmt;
use std::ops::Deref;
use std::time::{Duration, SystemTime};

use self::before_first::Emptiness;
pub use self::before_first::is_before_first;
use self::position::{AS_OF, base62, push_base62};
pub use self::position::{COMPONENTS, Position, join_components};
use super::seq::{AtomicSeq, Seq};

/// The longest event id that is parsed; no gateway writes a longer one.
pub const MAX_EVENT_ID: usize = 256;

/// Digits and letters, without letters that are easily confused.
const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// The length of an epoch and of a tag, in characters.
const EPOCH: usize = 8;
const TAG: usize = 6;

/// The name of this process in event ids: random letters and digits, no `-`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Epoch(Box<str>);

impl Epoch {
    /// A new epoch of 40 random bits: two processes share one with a probability of one in a million million.
    pub fn random() -> Self {
        Epoch((0..EPOCH).map(|_| char::from(DIGITS[fastrand::usize(..DIGITS.len())])).collect())
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a stored source in event ids, the same in every replica. For a JetStream stream it is a hash of its name
/// and creation time, so that a recreated stream has another tag. Six letters and digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag(Box<str>);

impl Tag {
    /// The tag of the source that `parts` identify.
    pub fn of(parts: &[&[u8]]) -> Self {
        let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
        for part in parts {
            hash.update(&(part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        let digest = hash.finish();
        Tag(digest.as_ref().iter().take(TAG).map(|byte| char::from(DIGITS[usize::from(byte % 32)])).collect())
    }
}

/// The form of a sequence's event ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// `<epoch>-<sequence>[-<publisher id>]`.
    Process,
    /// `<tag>-<sequence>`.
    Tagged,
    /// The entry id of a Redis Stream, `<ms>-<seq>`.
    EntryId,
}

/// An order of messages, and the form of its event ids. Messages of live sources are numbered here, in one sequence for
/// the whole process. Every stored source has its own sequence, numbered by the broker.
///
/// One writer (the registry, on behalf of ingest) advances it; readers only read it.
#[derive(Debug)]
pub struct Sequence {
    /// The epoch of this process, or the tag of a stored source.
    name: Box<str>,
    form: Form,
    head: AtomicSeq,
    /// Numbers up to this one may have been given twice, because the broker lost messages and numbered new ones the
    /// same. `None` if it has not.
    given_before: Option<Seq>,
    /// Of a Redis Stream that had no entry yet when this began.
    emptiness: Option<Emptiness>,
}

impl Sequence {
    /// The sequence of this process. Its first entry has the number 1.
    pub fn new(epoch: Epoch) -> Self {
        Sequence::of(epoch.0, Form::Process, Seq::START)
    }

    /// The sequence of a stored source that is followed from after `head`.
    pub fn stored(tag: Tag, head: Seq) -> Self {
        Sequence::of(tag.0, Form::Tagged, head)
    }

    /// The sequence of a Redis Stream, whose numbers are packed entry ids. `time` is the time of its last entry. If it
    /// has none yet, it is the time at which it was empty.
    pub fn of_entry_ids(tag: Tag, head: Seq, time: SystemTime) -> Self {
        let emptiness = if head.is_start() { Emptiness::at(time) } else { None };
        Sequence { emptiness, ..Sequence::of(tag.0, Form::EntryId, head) }
    }

    fn of(name: Box<str>, form: Form, head: Seq) -> Self {
        Sequence { name, form, head: AtomicSeq::new(head), given_before: None, emptiness: None }
    }

    /// Marks that this sequence replaces `ended`. If both have the same name, the broker has lost messages and gives
    /// their numbers again, so an id with such a number may mean either message.
    pub fn in_place_of(self, ended: &Sequence) -> Self {
        let is_same = self.form == Form::Tagged && ended.form == self.form && ended.name == self.name;
        let given_before =
            is_same.then(|| ended.given_before.map_or(ended.head(), |before| before.max(ended.head())));
        Sequence { given_before, ..self }
    }

    /// Whether one of its numbers may be the number of a message that the broker has lost.
    fn is_ambiguous(&self, position: Position) -> bool {
        let is_lost =
            |number: Seq| !number.is_start() && self.given_before.is_some_and(|before| number <= before);
        is_lost(position.number) || is_lost(position.as_of)
    }

    /// Whether an id may stand for an entry that the broker has lost although it has older ones: after a failover,
    /// entries of the replaced server may lie between its own.
    pub fn is_shuffled(&self) -> bool {
        self.form == Form::EntryId
    }

    /// Whether the broker stores and numbers the messages.
    pub fn is_stored(&self) -> bool {
        self.form != Form::Process
    }

    /// `time` with the resolution of this sequence's entry times: an entry with an equal time is not older.
    pub fn as_told(&self, time: SystemTime) -> SystemTime {
        if self.form != Form::EntryId {
            return time;
        }
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        time - Duration::from_nanos(u64::from(since.subsec_nanos() % 1_000_000))
    }

    /// The number of the next entry of this process. Only the writer calls this.
    pub fn next(&self) -> Seq {
        self.head.load().next()
    }

    /// Makes the entry `next` visible, once it is in its log. Only the writer calls this.
    pub fn publish(&self, next: Seq) {
        self.head.store(next);
    }

    /// Every entry up to this number is in its log. A reader of several logs reads none of them beyond one head;
    /// otherwise an id in one log would skip what another log received a moment earlier.
    pub fn head(&self) -> Seq {
        self.head.load()
    }

    /// The event id of an entry or a position. A stored message is found by its number alone.
    pub fn event_id(&self, position: impl Into<Position>, publisher_id: Option<&str>) -> EventId {
        let position = position.into();
        let Position { number, as_of } = position;
        match (self.form, publisher_id) {
            (Form::Tagged, _) if position.is_among_values() => {
                EventId::of(format!("{}-{number}{AS_OF}{as_of}", self.name))
            }
            (Form::Process, Some(publisher_id)) => {
                EventId::of(format!("{}-{number}-{publisher_id}", self.name))
            }
            (Form::Process | Form::Tagged, _) => EventId::of(format!("{}-{number}", self.name)),
            (Form::EntryId, _) => entry_event_id(self.stated(number)),
        }
    }

    /// The number that ids state for the position `number`.
    fn stated(&self, number: Seq) -> Seq {
        self.emptiness.and_then(|emptiness| emptiness.stated(number)).unwrap_or(number)
    }

    /// The position for the number that an id states: the inverse of [`Sequence::stated`].
    fn placed(&self, stated: Seq) -> Seq {
        match self.form {
            Form::EntryId => before_first::placed(stated, self.emptiness, self.head()),
            Form::Process | Form::Tagged => stated,
        }
    }

    /// Parses an event id from a client. An id that this sequence did not write is foreign or a publisher id. For a
    /// stored source, only the broker knows whether the number exists yet.
    pub fn read_event_id<'a>(&self, text: &'a str) -> ParsedEventId<'a> {
        match self.form {
            Form::Process => self.read_process_id(text),
            Form::Tagged => match text.split_once('-') {
                Some((tag, numbers)) if tag.len() == TAG && is_name(tag) => {
                    match Position::read(numbers, digits) {
                        Some(position) if tag == &*self.name && !self.is_ambiguous(position) => {
                            ParsedEventId::Own { position, publisher_id: None }
                        }
                        Some(_) => ParsedEventId::Foreign { publisher_id: None },
                        None => ParsedEventId::Unknown,
                    }
                }
                _ => ParsedEventId::Unknown,
            },
            Form::EntryId => {
                let read = || {
                    let (ms, seq) = text.split_once('-')?;
                    pack_entry_id(digits(ms)?, digits(seq)?)
                };
                read().map_or(ParsedEventId::Unknown, |number| ParsedEventId::Own {
                    position: self.placed(number).into(),
                    publisher_id: None,
                })
            }
        }
    }

    fn read_process_id<'a>(&self, text: &'a str) -> ParsedEventId<'a> {
        let Some((epoch, number, publisher_id)) = split(text) else { return ParsedEventId::Publisher(text) };
        if epoch != &*self.name {
            return ParsedEventId::Foreign { publisher_id };
        }
        // Beyond anything published here: forged or damaged.
        if number > self.head() {
            ParsedEventId::Unknown
        } else {
            ParsedEventId::Own { position: number.into(), publisher_id }
        }
    }

    /// A position as a part of an event id for several sequences.
    pub fn component(&self, position: impl Into<Position>) -> String {
        let position = position.into();
        let mut text = String::from(&*self.name);
        push_base62(&mut text, self.stated(position.number).get());
        if position.is_among_values() {
            text.push(AS_OF);
            push_base62(&mut text, position.as_of.get());
        }
        text
    }

    /// Whether such a part has the name of this sequence.
    pub fn has_written(&self, part: &str) -> bool {
        part.starts_with(&*self.name)
    }

    /// Whether such a part may be a position in a sequence that this one has replaced: of another process, or of a
    /// JetStream stream that was created again. The name of a Redis Stream never changes.
    pub fn may_have_replaced(&self, part: &str) -> bool {
        let is_entry_id = part.get(TAG..).and_then(base62).is_some_and(|number| number >= FIRST_ENTRY_ID);
        self.has_written(part) || self.form != Form::EntryId && !is_entry_id
    }

    /// Parses such a part; `None` if it is not of this sequence.
    pub fn read_component(&self, text: &str) -> Option<Position> {
        let mut position = Position::read(text.strip_prefix(&*self.name)?, base62)?;
        if !position.is_among_values() {
            position = self.placed(position.number).into();
        }
        let is_given =
            if self.is_stored() { !self.is_ambiguous(position) } else { position.as_of <= self.head() };
        is_given.then_some(position)
    }
}

/// The event id of a Redis Stream entry, the same in every replica: the entry's own id, which `number` packs.
pub fn entry_event_id(number: Seq) -> EventId {
    let (ms, seq) = unpack_entry_id(number);
    EventId::of(format!("{ms}-{seq}"))
}

/// The event id of a message in the stored stream with this tag.
pub fn tagged_event_id(tag: &Tag, number: Seq) -> EventId {
    EventId::of(format!("{}-{number}", tag.0))
}

/// The most sequences that one stream may read: this many positions fit into [`MAX_EVENT_ID`], however large their
/// numbers. Each takes a tag of 6 (one of them an epoch of 8), 11 digits and a dot.
pub const MAX_SEQUENCES: usize = 14;

/// Numbers of Redis entry ids from 2004 on are higher, and those of messages in a JetStream stream never are.
const FIRST_ENTRY_ID: u64 = 1 << 60;

/// The text of an event id that a gateway writes: short visible ASCII, so that a frame and a header can carry it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventId(Box<str>);

impl EventId {
    fn of(text: String) -> Self {
        EventId(text.into())
    }

    /// The id of a position in several sequences. Each of `components` is from [`Sequence::component`], or several of
    /// them, joined like here; empty ones are left out.
    pub fn of_components<'a>(components: impl IntoIterator<Item = &'a str>) -> Self {
        let text = join_components(components);
        if text.len() <= MAX_EVENT_ID {
            return EventId::of(text);
        }
        // Without the second numbers it fits. A reader among values that is cut here receives them again, after a gap.
        let parts = text.split(COMPONENTS).map(|part| part.split(AS_OF).next().unwrap_or_default());
        EventId::of(join_components(parts))
    }

    /// The id of a message, whoever received it: without the number as of which its reader receives values.
    pub fn of_message(&self) -> &str {
        self.0.split(AS_OF).next().unwrap_or_default()
    }

    /// The publisher id with which it ends, if it has one.
    pub fn publisher_id(&self) -> Option<&str> {
        self.0.splitn(3, '-').nth(2)
    }
}

impl Deref for EventId {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl From<EventId> for String {
    fn from(id: EventId) -> Self {
        id.0.into()
    }
}

#[cfg(test)]
impl From<&str> for EventId {
    fn from(text: &str) -> Self {
        EventId(text.into())
    }
}

/// An event id that a client sent, as one sequence reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParsedEventId<'a> {
    /// This process wrote it.
    Own {
        /// The number of that entry, or the position among values.
        position: Position,
        /// The publisher id of that message, if the client's id has one.
        publisher_id: Option<&'a str>,
    },
    /// Another process wrote it, such as this gateway before a restart.
    Foreign {
        /// The publisher id of that message, if it had one.
        publisher_id: Option<&'a str>,
    },
    /// Not of our form: perhaps a bare publisher id.
    Publisher(&'a str),
    /// It has this process's form, but this process never wrote it.
    Unknown,
    /// It is of a stream that did not read this sequence.
    Absent,
}

fn split(text: &str) -> Option<(&str, Seq, Option<&str>)> {
    let (epoch, rest) = text.split_once('-')?;
    let (number, publisher_id) = match rest.split_once('-') {
        Some((number, publisher_id)) => (number, Some(publisher_id)),
        None => (rest, None),
    };
    (epoch.len() == EPOCH && is_name(epoch)).then_some(())?;
    Some((epoch, Seq::new(digits(number)?), publisher_id))
}

fn is_name(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
}

/// Parses a number of digits only: `parse` would also accept a sign.
fn digits(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

/// The bits of a number that hold the second half of a Redis entry id.
const ENTRY_BITS: u32 = 20;

/// The number of a Redis entry id `<ms>-<seq>`. Numbers have the order of the ids. `None` for an id that no server
/// generates: a time after the year 2527, or more than a million entries in a millisecond.
pub fn pack_entry_id(ms: u64, seq: u64) -> Option<Seq> {
    (ms < 1 << (64 - ENTRY_BITS) && seq < 1 << ENTRY_BITS).then_some(Seq::new(ms << ENTRY_BITS | seq))
}

/// The entry id of a number.
pub fn unpack_entry_id(number: Seq) -> (u64, u64) {
    let number = number.get();
    (number >> ENTRY_BITS, number & ((1 << ENTRY_BITS) - 1))
}

#[cfg(test)]
mod tests;
