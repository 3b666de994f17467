//! Positions in a Redis Stream before its first entry.
//!
//! A key that is empty or does not exist says nothing about its past: it may have had entries, and may have been deleted.
//! So the position there is not `0-0`, which every such key has, but states when the key was seen empty, by the server's
//! clock. Only a gateway that has followed the key since then knows that nothing was added and deleted in between.
//!
//! The id is `<ms>-<seq>` like that of an entry, with one of the highest numbers for `seq`, which no server reaches.

use std::time::{Duration, SystemTime};

use super::{ENTRY_BITS, pack_entry_id, unpack_entry_id};
use crate::protocol::seq::Seq;

/// How many positions a key can have before its first entry. Each gap there takes one.
const POSITIONS: u64 = 1 << 10;

/// The `seq` of the first of these positions. The highest `seq` is the position before a time, which is not one of them.
const FIRST: u64 = (1 << ENTRY_BITS) - 1 - POSITIONS;

/// A key had no entry at this time, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Emptiness(u64);

impl Emptiness {
    /// `None` if the time is not known, which 1970 stands for.
    pub(super) fn at(time: SystemTime) -> Option<Self> {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        u64::try_from(since.as_millis()).ok().filter(|ms| *ms > 0).map(Emptiness)
    }

    /// The number that ids state for the position `number` of the key; `None` if that is `number` itself.
    pub(super) fn stated(self, number: Seq) -> Option<Seq> {
        let position = Some(number.get()).filter(|position| *position < POSITIONS)?;
        pack_entry_id(self.0, FIRST + position)
    }
}

/// When the key was empty according to an id that states this number, and the position in it; `None` if it is none before
/// a first entry. The id `0-0` does not say when.
fn parse(stated: Seq) -> Option<(Emptiness, Seq)> {
    let (ms, seq) = unpack_entry_id(stated);
    let position = seq.checked_sub(FIRST).filter(|position| *position < POSITIONS);
    position.map(|position| (Emptiness(ms), Seq::new(position)))
}

/// Whether an id that states this number is a position before the first entry of a key.
pub fn is_before_first(stated: Seq) -> bool {
    parse(stated).is_some()
}

/// The position for the number that an id states, in a key that is followed up to `head`, and was empty when that began if
/// `followed` says so. A position from before that stays as it is: nobody knows what has happened to the key since.
pub(super) fn placed(stated: Seq, followed: Option<Emptiness>, head: Seq) -> Seq {
    let stated = if stated.is_start() { Seq::new(FIRST) } else { stated };
    let Some((empty, position)) = parse(stated) else { return stated };
    match followed {
        Some(followed) if empty == followed => position,
        // Empty after entries that were read: they have been deleted, which is yet to be noticed.
        Some(followed) if empty > followed && (head.is_start() || stated <= head) => Seq::START,
        _ => stated,
    }
}
