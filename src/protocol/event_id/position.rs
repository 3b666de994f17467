//! A position in a sequence, and how event ids have it.

use crate::protocol::seq::Seq;

/// A position in a sequence: everything up to `number` was read. Of a bucket, everything up to `as_of` was, except the
/// values after `number` that keys had at `as_of`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Everything up to this number was read.
    pub number: Seq,
    /// Only values of keys are missing up to this number; at least `number`.
    pub as_of: Seq,
}

impl Position {
    /// The position of a reader that receives the values as of `as_of`, and has those up to `number`. Once it has all
    /// of them, it is simply at a number.
    pub fn among_values(number: Seq, as_of: Seq) -> Self {
        Position { number, as_of: as_of.max(number) }
    }

    /// Whether values are missing.
    pub fn is_among_values(self) -> bool {
        self.as_of > self.number
    }

    /// Parses a position whose numbers `read` parses.
    pub(super) fn read(text: &str, read: impl Fn(&str) -> Option<u64>) -> Option<Self> {
        let read = |digits: &str| read(digits).filter(|_| !digits.is_empty()).map(Seq::new);
        let Some((number, as_of)) = text.split_once(AS_OF) else { return Some(read(text)?.into()) };
        let position = Position { number: read(number)?, as_of: read(as_of)? };
        position.is_among_values().then_some(position)
    }
}

impl From<Seq> for Position {
    fn from(number: Seq) -> Self {
        Position { number, as_of: number }
    }
}

/// The separator between the parts of an event id for several sequences. No part has a `-`, and every other id has one.
pub const COMPONENTS: char = '.';

/// The separator between the number of a position among values and the number as of which they are.
pub(super) const AS_OF: char = '_';

/// Appends a number in base 62.
pub(super) fn push_base62(text: &mut String, number: u64) {
    let mut digits = Vec::new();
    let mut rest = number;
    while rest > 0 || digits.is_empty() {
        digits.push(BASE62[(rest % 62) as usize]);
        rest /= 62;
    }
    text.extend(digits.iter().rev().map(|digit| char::from(*digit)));
}

/// Reads a number in base 62.
pub(super) fn base62(digits: &str) -> Option<u64> {
    digits.bytes().try_fold(0_u64, |number, digit| {
        let value = BASE62.iter().position(|known| *known == digit)? as u64;
        number.checked_mul(62)?.checked_add(value)
    })
}

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Joins parts of an event id for several sequences. Empty ones are left out.
pub fn join_components<'a>(components: impl IntoIterator<Item = &'a str>) -> String {
    let mut text = String::new();
    for component in components.into_iter().filter(|component| !component.is_empty()) {
        if !text.is_empty() {
            text.push(COMPONENTS);
        }
        text.push_str(component);
    }
    text
}
