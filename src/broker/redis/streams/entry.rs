//! An entry of a Redis Stream: its id, its parsing from an answer, and its conversion to and from a message.

use std::fmt;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use redis::Value;
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::broker::{BrokerError, Change, Message, Stored};
use crate::protocol::event_id::{pack_entry_id, unpack_entry_id};
use crate::protocol::headers::Headers;
use crate::protocol::seq::Seq;
use crate::protocol::topic::{Filter, Topic};

/// The prefix of a value that is not UTF-8 and therefore in base64, as for such a payload.
const BINARY_MARK: &str = "data:application/octet-stream;base64,";

/// The id of an entry, `<ms>-<seq>`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EntryId {
    pub(super) ms: u64,
    pub(super) seq: u64,
}

impl EntryId {
    /// The id before every entry.
    pub(super) const ZERO: EntryId = EntryId { ms: 0, seq: 0 };

    pub(super) fn of(number: Seq) -> Self {
        let (ms, seq) = unpack_entry_id(number);
        EntryId { ms, seq }
    }

    /// The number of the id; `None` if it has none: see [`pack_entry_id`].
    pub(super) fn number(self) -> Option<Seq> {
        pack_entry_id(self.ms, self.seq)
    }

    /// The highest number that is not above this id: its own, or the last of its millisecond. `None` beyond the last
    /// time that numbers have.
    pub(super) fn number_at_most(self) -> Option<Seq> {
        self.number().or_else(|| pack_entry_id(self.ms, LAST_SEQ))
    }

    /// Whether it is the highest id of its millisecond that has a number. No server generates it: it is a position
    /// before a time.
    pub(super) fn is_last_of_its_millisecond(self) -> bool {
        self.seq == LAST_SEQ
    }

    /// The lowest id above it.
    pub(super) fn next(self) -> Self {
        match self.seq.checked_add(1) {
            Some(seq) => EntryId { seq, ..self },
            None => EntryId { ms: self.ms.saturating_add(1), seq: 0 },
        }
    }

    /// When the entry was added, according to its id.
    pub(super) fn time(self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(self.ms.min(unpack_entry_id(Seq::MAX).0))
    }

    fn read(text: &[u8]) -> Option<Self> {
        let (ms, seq) = std::str::from_utf8(text).ok()?.split_once('-')?;
        Some(EntryId { ms: ms.parse().ok()?, seq: seq.parse().ok()? })
    }

    pub(super) fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::BulkString(text) => Self::read(text),
            _ => None,
        }
    }
}

/// The highest second part of an id that has a number.
const LAST_SEQ: u64 = (1 << 20) - 1;

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

/// Names and values, in their order. A name may come twice.
pub(super) type EntryFields = Vec<(Vec<u8>, Vec<u8>)>;

/// An entry as the server sent it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) id: EntryId,
    fields: EntryFields,
}

impl Entry {
    /// The entries of one key, as `XRANGE` answers them.
    pub(super) fn list(value: Value) -> Option<Vec<Entry>> {
        let Value::Array(entries) = value else { return None };
        entries.into_iter().map(Entry::from_value).collect()
    }

    fn from_value(value: Value) -> Option<Self> {
        let Value::Array(parts) = value else { return None };
        let [id, fields] = <[Value; 2]>::try_from(parts).ok()?;
        let id = EntryId::from_value(&id)?;
        // Nil: a pending entry of a consumer group that was deleted. There are no groups here; it counts as an entry
        // without fields.
        let Value::Array(words) = fields else { return Some(Entry { id, fields: Vec::new() }) };
        let mut words = words.into_iter();
        let mut fields = Vec::with_capacity(words.len() / 2);
        while let (Some(name), Some(value)) = (words.next(), words.next()) {
            let (Value::BulkString(name), Value::BulkString(value)) = (name, value) else { return None };
            fields.push((name, value));
        }
        Some(Entry { id, fields })
    }

    /// Bytes of names and values.
    pub(super) fn size(&self) -> usize {
        self.fields.iter().map(|(name, value)| name.len() + value.len()).sum()
    }

    /// Converts the entry to a message. `payload` is the field with the payload, which is empty if the entry lacks it;
    /// without one, the payload is all fields as a JSON object. Every other text field is a header field.
    pub(super) fn into_message(
        self,
        number: Seq,
        filter: &Filter,
        topic: &Topic,
        payload: Option<&str>,
    ) -> Message {
        let mut body = match payload {
            Some(_) => Bytes::new(),
            None => Bytes::from(self.json()),
        };
        let mut headers = Headers::default();
        for (name, value) in self.fields {
            if payload.is_some_and(|field| field.as_bytes() == name) {
                body = Bytes::from(value);
            } else if let (Ok(name), Ok(value)) = (String::from_utf8(name), String::from_utf8(value)) {
                headers.insert(name, value);
            }
        }
        let time = self.id.time();
        Message {
            filter: filter.clone(),
            topic: topic.clone(),
            payload: body,
            headers,
            stored: Some(Stored { number, time, change: Change::Put }),
        }
    }

    /// The fields as a JSON object, in their order.
    fn json(&self) -> String {
        let fields = self.fields.iter().map(|(name, value)| {
            let name = String::from_utf8_lossy(name);
            let value = match std::str::from_utf8(value) {
                Ok(value) => serde_json::Value::from(value),
                Err(_) => serde_json::Value::from(format!("{BINARY_MARK}{}", STANDARD.encode(value))),
            };
            format!("{}:{value}", serde_json::Value::from(&*name))
        });
        format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
    }
}

/// Converts a message to the fields of an entry. With `field`, the payload is stored unchanged. Without it, the members
/// of a JSON object become the fields, in their order: strings as their text, anything else as its JSON text, digit for
/// digit. [`Entry::into_message`] then reads every value as a string, because fields have no type.
pub(super) fn fields(
    payload: &Bytes,
    headers: &Headers,
    field: Option<&str>,
) -> Result<EntryFields, BrokerError> {
    let unfit = |why: String| BrokerError::Unfit(why);
    let mut fields = match field {
        Some(field) => vec![(field.as_bytes().to_vec(), payload.to_vec())],
        None => {
            let Members(members) = serde_json::from_slice(payload).map_err(|_| {
                let why = "the payload is not a JSON object, whose members would become the fields of an entry of the \
                           Redis Stream; send an object such as {\"n\":1}, or configure one field for the \
                           whole payload in the topic's rule, as in payload = { field = \"data\" }";
                unfit(why.into())
            })?;
            members
        }
    };
    if fields.is_empty() {
        let why =
            "the payload is an empty JSON object, but an entry of a Redis Stream needs at least one field";
        return Err(unfit(why.into()));
    }
    for (name, value) in headers.iter() {
        if fields.iter().any(|(field, _)| field == name.as_bytes()) {
            let why = format!(
                "the payload already has the field {name:?}, from which the topic's rule takes the id, the type or the end; \
                 send it only once"
            );
            return Err(unfit(why));
        }
        fields.push((name.as_bytes().to_vec(), value.as_bytes().to_vec()));
    }
    Ok(fields)
}

/// The members of a JSON object in their order. A map would sort them, and parsing numbers would lose digits.
struct Members(EntryFields);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Members(Vec::new()))
    }
}

impl<'de> Visitor<'de> for Members {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Self, A::Error> {
        while let Some((name, value)) = map.next_entry::<String, Box<RawValue>>()? {
            let value = match value.get() {
                text if text.starts_with('"') => {
                    serde_json::from_str::<String>(text).map_err(de::Error::custom)?
                }
                other => other.to_owned(),
            };
            self.0.push((name.into_bytes(), value.into_bytes()));
        }
        Ok(self)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_id_without_a_number_has_the_last_number_of_its_millisecond() {
        let id = |ms, seq| EntryId { ms, seq };
        assert_eq!(id(7, 3).number_at_most(), id(7, 3).number());
        assert_eq!(id(7, 1 << 20).number(), None);
        assert_eq!(id(7, 1 << 20).number_at_most(), id(7, (1 << 20) - 1).number());
        assert_eq!(id(1 << 44, 0).number_at_most(), None);
        assert_eq!(EntryId::of(id(7, 3).number().unwrap()), id(7, 3));
        assert!(id(7, 3) < id(8, 0) && id(7, 3) < id(7, 4));
    }

    #[test]
    fn fields_are_json_in_their_order_and_bytes_are_marked() {
        let bulk = |text: &[u8]| Value::BulkString(text.to_vec());
        let fields = [&b"b"[..], b"1", b"a\"", b"\xff", b"b", b"2"].map(bulk).to_vec();
        let entry = Value::Array(vec![bulk(b"5-1"), Value::Array(fields)]);
        let [entry] = <[Entry; 1]>::try_from(Entry::list(Value::Array(vec![entry])).unwrap()).unwrap();
        assert_eq!(entry.json(), r#"{"b":"1","a\"":"data:application/octet-stream;base64,/w==","b":"2"}"#);
    }

    #[test]
    fn the_members_of_an_object_are_fields_in_their_order_and_digit_for_digit() {
        let payload =
            br#"{"z":"text","a":12345678901234567890123.10,"deep":{"b":[1, 2]},"no":null,"z":true}"#;
        let fields = fields(&Bytes::from_static(payload), &Headers::default(), None).unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let fields: Vec<_> = fields.iter().map(|(name, value)| (text(name), text(value))).collect();
        let expected = [
            ("z", "text"),
            ("a", "12345678901234567890123.10"),
            ("deep", r#"{"b":[1, 2]}"#),
            ("no", "null"),
            ("z", "true"),
        ];
        assert_eq!(fields, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
}
