//! Extracts the fields of a rule from a broker's message: its id, its type, its payload, and whether it ends its topic,
//! from header fields or by JSON pointers. This happens once per message, in the same way for messages that are fetched
//! from the broker later.
//!
//! Values that cannot be carried are left out and reported to the caller, so that neither a header nor a payload can
//! break the framing.

use serde_json::value::RawValue;

use super::json;
use crate::protocol::headers::Headers;
use crate::protocol::publisher::{self, EventType, PublisherId};
use crate::protocol::source::{Field, Source};

/// The source of a rule's messages, and where in a message the rule's fields are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldMapping {
    /// The source of the messages.
    pub source: Source,
    /// Where the publisher id is.
    pub id: Field,
    /// Where the event type is.
    pub kind: Field,
    /// The JSON pointer to the payload, if the broker's payload is an envelope around it.
    pub data: Option<String>,
    /// Where a message says that it ends its topic.
    pub end: Field,
}

/// The fields that a [`FieldMapping`] found in one message.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Extracted {
    /// The publisher's id.
    pub publisher_id: Option<PublisherId>,
    /// The event type.
    pub kind: Option<EventType>,
    /// The payload out of its envelope. `None`: the broker's payload is the payload.
    pub data: Option<String>,
    /// Whether the message ends its topic.
    pub ends: bool,
    /// Whether an id was present but not valid.
    pub bad_id: bool,
    /// Whether a type was present but not valid.
    pub bad_kind: bool,
    /// Whether the rule has an envelope, but this message has nothing at that place.
    pub bad_data: bool,
}

impl FieldMapping {
    /// Finds the fields of a message.
    pub fn find(&self, headers: &Headers, payload: &[u8]) -> Extracted {
        let places = [self.id.pointer(), self.kind.pointer(), self.data.as_deref(), self.end.pointer()];
        // The payload is read at most once, and only if the rule needs it.
        let [id, kind, data, end] = match std::str::from_utf8(payload) {
            Ok(text) if places.iter().any(Option::is_some) => json::values(text, places),
            _ => [None; 4],
        };
        let word = |field: &Field, found: Option<&RawValue>| match field {
            Field::Nowhere => None,
            Field::Header(name) => headers.get(name).map(str::to_owned),
            // Strings and numbers; an invalid string is as good as an empty one.
            Field::Pointer(_) => found
                .filter(|value| !value.get().starts_with(['{', '[', 't', 'f', 'n']))
                .map(|value| json::text(value).unwrap_or_default()),
        };
        let (id, kind) = (word(&self.id, id), word(&self.kind, kind));
        let (has_id, has_kind) = (id.is_some(), kind.is_some());
        let (publisher_id, kind) = (id.and_then(PublisherId::new), kind.and_then(EventType::new));
        let data = data.and_then(json::text);
        Extracted {
            bad_id: has_id && publisher_id.is_none(),
            bad_kind: has_kind && kind.is_none(),
            bad_data: self.data.is_some() && data.is_none(),
            ends: self.says_end(headers, end),
            publisher_id,
            kind,
            data,
        }
    }

    /// Whether a message ends its topic.
    pub fn end_of(&self, headers: &Headers, payload: &[u8]) -> bool {
        let value = match (self.end.pointer(), std::str::from_utf8(payload)) {
            (Some(pointer), Ok(text)) => json::values(text, [Some(pointer)])[0],
            _ => None,
        };
        self.says_end(headers, value)
    }

    /// The same, with the value at the pointer.
    fn says_end(&self, headers: &Headers, value: Option<&RawValue>) -> bool {
        match &self.end {
            Field::Nowhere => false,
            Field::Header(name) => headers.get(name).is_some_and(publisher::is_true),
            Field::Pointer(_) => value.and_then(json::text).is_some_and(|value| publisher::is_true(&value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(id: Field, kind: Field) -> FieldMapping {
        FieldMapping { source: Source::Pubsub, id, kind, data: None, end: Field::Nowhere }
    }

    fn headers(all: &[(&str, &str)]) -> Headers {
        let mut headers = Headers::default();
        all.iter().for_each(|(name, value)| headers.insert(*name, *value));
        headers
    }

    #[test]
    fn id_and_type_come_from_headers_or_from_the_payload() {
        let by_header = fields(Field::Header("Nats-Msg-Id".into()), Field::Header("Event-Type".into()));
        let found = by_header.find(&headers(&[("nats-msg-id", "7"), ("Event-Type", "price")]), b"");
        assert_eq!((found.publisher_id.as_deref(), found.kind.as_deref()), (Some("7"), Some("price")));
        let by_pointer = fields(Field::Pointer("/meta/id".into()), Field::Pointer("/type".into()));
        let found = by_pointer.find(&Headers::default(), br#"{"meta":{"id":42},"type":"price"}"#);
        assert_eq!((found.publisher_id.as_deref(), found.kind.as_deref()), (Some("42"), Some("price")));
        assert_eq!(by_pointer.find(&Headers::default(), b"not json"), Extracted::default());
        assert_eq!(by_pointer.find(&Headers::default(), br#"{"type":["a"]}"#), Extracted::default());
    }

    #[test]
    fn fields_that_cannot_be_carried_are_dropped_and_reported() {
        let by_header = fields(Field::Header("id".into()), Field::Header("type".into()));
        let bad = Extracted { bad_id: true, bad_kind: true, ..Extracted::default() };
        for (id, kind) in [("1\r2", "message\nevent: admin"), ("1\0", "a\0"), ("a b", "stream-close")] {
            assert_eq!(by_header.find(&headers(&[("id", id), ("type", kind)]), b""), bad);
        }
        let by_pointer = fields(Field::Pointer("/id".into()), Field::Pointer("/type".into()));
        let payload = br#"{"id":"\ud800","type":"\ud800"}"#;
        assert_eq!(by_pointer.find(&Headers::default(), payload), bad);
    }

    #[test]
    fn a_message_ends_its_topic_if_the_value_of_the_end_field_is_true() {
        let by_header = FieldMapping {
            end: Field::Header("Topicgate-End".into()),
            ..fields(Field::Nowhere, Field::Nowhere)
        };
        let by_pointer =
            FieldMapping { end: Field::Pointer("/done".into()), ..fields(Field::Nowhere, Field::Nowhere) };
        for (value, ends) in [
            ("true", true),
            ("1", true),
            (r#""stop""#, true),
            ("{}", true),
            ("[]", true),
            ("-0.5", true),
            ("false", false),
            ("null", false),
            ("0", false),
            ("-0.0", false),
            ("0e9", false),
            (r#""""#, false),
            (r#"" No ""#, false),
            (r#""OFF""#, false),
            (r#""None""#, false),
            (r#""False""#, false),
            (r#""\ud800""#, false),
        ] {
            let payload = format!(r#"{{"done":{value}}}"#);
            let found = by_pointer.find(&Headers::default(), payload.as_bytes());
            assert_eq!(found.ends, ends, "{payload}");
            assert_eq!(by_pointer.end_of(&Headers::default(), payload.as_bytes()), ends, "{payload}");
            let header = headers(&[("topicgate-end", value.trim_matches('"'))]);
            let (found, text) = (by_header.find(&header, b""), value.trim_matches('"'));
            // In the payload's text, half a surrogate pair is text like any other.
            assert_eq!(found.ends, ends || text.contains("ud800"), "{text}");
            assert_eq!(by_header.end_of(&header, b""), found.ends);
        }
        for nothing in ["", "{", "[1]", r#"{"other":1}"#, "text"] {
            assert!(!by_pointer.find(&Headers::default(), nothing.as_bytes()).ends);
        }
        assert!(!by_header.find(&Headers::default(), br#"{"Topicgate-End":true}"#).ends);
    }

    #[test]
    fn a_payload_is_taken_out_of_its_envelope_or_reported() {
        let pointer = |pointer: &str| Field::Pointer(pointer.into());
        let laravel =
            FieldMapping { data: Some("/data".into()), ..fields(pointer("/data/id"), pointer("/event")) };
        let payload = br#"{"event":"OrderShipped","data":{"id": 7, "eur": 1.50},"socket":null}"#;
        let found = laravel.find(&Headers::default(), payload);
        assert_eq!(found.data.as_deref(), Some(r#"{"id":7,"eur":1.50}"#));
        assert_eq!((found.publisher_id.as_deref(), found.kind.as_deref()), (Some("7"), Some("OrderShipped")));
        assert!(!found.bad_data);
        for bad in [&b"\xff"[..], b"", b"text", b"{}", br#"{"data":"\ud800"}"#, br#"{"data":1"#] {
            let found = laravel.find(&Headers::default(), bad);
            assert_eq!((found.data, found.bad_data), (None, true), "{}", String::from_utf8_lossy(bad));
        }
    }
}
