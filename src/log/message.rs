//! Messages as logs hold them: parsed once at ingest, encoded once, shared by all readers.
//!
//! `fields` finds the id, the type and the payload in a broker's message; what it finds can be framed.

use std::sync::OnceLock;
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;

pub use super::fields::{Extracted, FieldMapping};
use crate::protocol::event_id::{EventId, Position, Sequence};
use crate::protocol::frame::{self, Frame};
use crate::protocol::publisher::{EventType, PublisherId};
use crate::protocol::topic::{Filter, Topic};
use crate::protocol::view::is_control;

/// The format in which a reader receives messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The payload alone.
    Raw,
    /// A CloudEvents 1.0 JSON envelope, which names the topic.
    CloudEvents,
}

/// An encoded message.
#[derive(Debug)]
pub struct Message {
    topic: Topic,
    /// When the broker stored it, or, for live sources, when the gateway received it.
    time: SystemTime,
    /// The event id, which ends with the publisher id.
    event_id: EventId,
    /// The publisher id, if the event id is only the broker's number.
    separate_id: Option<PublisherId>,
    kind: Option<EventType>,
    /// Whether it ends its topic.
    ends: bool,
    /// Whether `stream-end` follows it in its frames.
    sends_end: bool,
    payload: Bytes,
    raw: Frame,
    /// Created when the first reader needs it.
    cloud_event: OnceLock<Frame>,
}

impl Message {
    /// Encodes the message that has this number in `sequence`, or that is one of the values at this position.
    pub fn new(
        topic: Topic,
        time: SystemTime,
        sequence: &Sequence,
        position: impl Into<Position>,
        mut found: Extracted,
        payload: &[u8],
    ) -> Self {
        // If the broker numbers messages, any replica finds a message by its number, and the publisher id is only for
        // envelopes.
        let separate_id = if sequence.is_stored() { found.publisher_id.take() } else { None };
        let event_id = sequence.event_id(position, found.publisher_id.as_deref());
        Message { separate_id, ..Message::encode(topic, time, event_id, found, payload) }
    }

    /// `event_id` ends with the publisher id, if there is one.
    fn encode(topic: Topic, time: SystemTime, event_id: EventId, found: Extracted, payload: &[u8]) -> Self {
        let (raw, payload) = frame::message(&event_id, found.kind.as_ref(), payload);
        Message {
            topic,
            time,
            event_id,
            separate_id: None,
            kind: found.kind,
            ends: found.ends,
            sends_end: false,
            payload,
            raw,
            cloud_event: OnceLock::new(),
        }
    }

    /// Encodes the deletion of a key as one of our own events, whose type publishers cannot use.
    pub fn deletion(
        topic: Topic,
        time: SystemTime,
        sequence: &Sequence,
        position: impl Into<Position>,
        operation: &'static str,
    ) -> Self {
        #[derive(Serialize)]
        struct Deletion<'a> {
            topic: &'a str,
            operation: &'static str,
        }
        let deletion = Deletion { topic: topic.as_str(), operation };
        // Two strings always serialize.
        let data = serde_json::to_vec(&deletion).unwrap_or_default();
        let found = Extracted { kind: Some(EventType::stream_delete()), ..Extracted::default() };
        Message::new(topic, time, sequence, position, found, &data)
    }

    /// The event id, which ends with the publisher id.
    pub(super) fn event_id(&self) -> &EventId {
        &self.event_id
    }

    /// The same message for another kind of log. In the log of a pattern, `stream-end` follows a message that ends its
    /// topic, because the streams of its readers go on. `None`: it needs no change.
    pub(super) fn for_log_of(&self, filter: &Filter) -> Option<Message> {
        if !self.ends {
            return None;
        }
        let sends_end = filter.is_pattern();
        if self.sends_end == sends_end {
            return None;
        }
        let (raw, payload) = frame::message(&self.event_id, self.kind.as_ref(), &self.payload);
        Some(Message {
            topic: self.topic.clone(),
            time: self.time,
            event_id: self.event_id.clone(),
            separate_id: self.separate_id.clone(),
            kind: self.kind.clone(),
            ends: true,
            sends_end,
            payload,
            raw: if sends_end { self.with_end(raw) } else { raw },
            cloud_event: OnceLock::new(),
        })
    }

    fn with_end(&self, frame: Frame) -> Frame {
        Frame::concat(&[frame, frame::stream_end(self.topic.as_str())])
    }

    /// Whether it ends its topic.
    pub fn ends(&self) -> bool {
        self.ends
    }

    /// The topic of the message.
    pub fn topic(&self) -> &Topic {
        &self.topic
    }

    /// The type of the event.
    pub fn kind(&self) -> Option<&str> {
        self.kind.as_deref()
    }

    /// Whether it is one of our own events, as the deletion of a key is.
    pub fn is_control(&self) -> bool {
        self.kind().is_some_and(is_control)
    }

    /// The publisher id with which its event id ends.
    pub fn publisher_id(&self) -> Option<&str> {
        self.event_id.publisher_id()
    }

    /// The event in that format. If an envelope is created for it, once in a message's life, `count` receives its
    /// bytes.
    pub fn frame(&self, format: Format, count: impl FnOnce(usize)) -> &Frame {
        match format {
            Format::Raw => &self.raw,
            Format::CloudEvents => self.cloud_event.get_or_init(|| {
                let frame = self.encode_cloud_event();
                let frame = if self.sends_end { self.with_end(frame) } else { frame };
                count(frame.weight());
                frame
            }),
        }
    }

    /// The bytes of its envelope, if one was created.
    pub fn envelope_weight(&self) -> usize {
        self.cloud_event.get().map_or(0, Frame::weight)
    }

    /// Its approximate memory in bytes, which counts against the buffer bounds. It never changes; an envelope is
    /// counted separately when it is created.
    pub fn weight(&self) -> usize {
        let own_payload = if self.raw.contains(&self.payload) { 0 } else { self.payload.len() };
        let separate_id = self.separate_id.as_ref().map_or(0, |id| id.len());
        size_of::<Self>() + self.event_id.len() + separate_id + self.raw.weight() + own_payload
    }

    /// Appends the message as a JSON object with the event id `id`. `data` is the text that a stream's event would
    /// have; a payload that is not UTF-8 is in `data_base64`.
    pub(super) fn write_row(&self, format: Format, id: &str, out: &mut Vec<u8>) {
        #[derive(Serialize)]
        struct Row<'a> {
            id: &'a str,
            topic: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            r#type: Option<&'a str>,
            time: String,
            #[serde(skip_serializing_if = "Option::is_none")]
            data: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            data_base64: Option<String>,
            #[serde(skip_serializing_if = "std::ops::Not::not")]
            ended: bool,
        }
        let envelope;
        let data = match format {
            Format::Raw => &self.payload[..],
            Format::CloudEvents => {
                envelope = self.cloud_event_json();
                &envelope
            }
        };
        let text = std::str::from_utf8(data).ok();
        let row = Row {
            id,
            topic: self.topic.as_str(),
            r#type: self.kind.as_deref(),
            time: humantime::format_rfc3339_millis(self.time).to_string(),
            data: text,
            data_base64: text.is_none().then(|| STANDARD.encode(data)),
            ended: self.ends,
        };
        // Strings always serialize, and writing to a Vec cannot fail.
        let _ = serde_json::to_writer(out, &row);
    }

    fn encode_cloud_event(&self) -> Frame {
        frame::event(&self.event_id, self.kind.as_ref(), &self.cloud_event_json())
    }

    /// The CloudEvents 1.0 JSON format: JSON payloads as they are, text as a string, anything else in `data_base64`.
    fn cloud_event_json(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Envelope<'a> {
            specversion: &'static str,
            id: &'a str,
            source: String,
            subject: &'a str,
            r#type: &'a str,
            time: String,
            #[serde(skip_serializing_if = "Option::is_none")]
            datacontenttype: Option<&'static str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            data: Option<Data<'a>>,
            #[serde(skip_serializing_if = "Option::is_none")]
            data_base64: Option<String>,
        }
        #[derive(Serialize)]
        #[serde(untagged)]
        enum Data<'a> {
            Json(&'a RawValue),
            Text(&'a str),
        }
        let (datacontenttype, data, data_base64) = match std::str::from_utf8(&self.payload) {
            Ok(text) => match serde_json::from_str::<&RawValue>(text) {
                Ok(json) => (Some("application/json"), Some(Data::Json(json)), None),
                Err(_) => (Some("text/plain"), Some(Data::Text(text)), None),
            },
            Err(_) => (None, None, Some(STANDARD.encode(&self.payload))),
        };
        let envelope = Envelope {
            specversion: "1.0",
            id: self.separate_id.as_deref().or(self.publisher_id()).unwrap_or(self.event_id.of_message()),
            source: format!(
                "/topics/{}",
                percent_encoding::utf8_percent_encode(self.topic.as_str(), URI_UNSAFE)
            ),
            subject: self.topic.as_str(),
            r#type: self.kind.as_deref().unwrap_or("message"),
            time: humantime::format_rfc3339_millis(self.time).to_string(),
            datacontenttype,
            data,
            data_base64,
        };
        // Strings and verified JSON always serialize; the empty object is never used.
        serde_json::to_vec(&envelope).unwrap_or_else(|_| b"{}".to_vec())
    }
}

/// Characters to encode in the path of a URI reference (RFC 3986), in addition to those that the topic grammar refuses.
const URI_UNSAFE: &percent_encoding::AsciiSet = &percent_encoding::CONTROLS
    .add(b'"')
    .add(b'#')
    .add(b'<')
    .add(b'`')
    .add(b'{')
    .add(b'}')
    .add(b'^')
    .add(b'|');

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::protocol::frame::Coding;

    #[test]
    fn a_payload_that_is_stored_beside_its_frame_counts_in_the_weight() {
        let weight = |payload: Vec<u8>| {
            let topic = Topic::parse("a", 9).unwrap();
            let payload = Bytes::from(payload);
            Message::encode(topic, SystemTime::UNIX_EPOCH, "1".into(), Extracted::default(), &payload)
                .weight()
        };
        assert!((9_000..10_000).contains(&weight(vec![b'x'; 9_000])));
        let mut lines = vec![b'x'; 9_000];
        lines[0] = b'\n';
        assert!((18_000..19_000).contains(&weight(lines)));
        assert!((21_000..22_000).contains(&weight(vec![0xff; 9_000])), "base64 and the bytes");
    }

    fn cloud_event(payload: &'static [u8], publisher_id: Option<&str>) -> (String, serde_json::Value) {
        let found = Extracted {
            publisher_id: publisher_id.and_then(PublisherId::new),
            kind: EventType::new("k"),
            ..Extracted::default()
        };
        let id = format!("e-1{}", publisher_id.map(|id| format!("-{id}")).unwrap_or_default());
        let topic = Topic::parse("a/{b}", 99).unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_500);
        let message = Message::encode(topic, time, id.as_str().into(), found, payload);
        let bytes = message.frame(Format::CloudEvents, |_| {}).bytes(Coding::Plain);
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let data = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect::<Vec<_>>().join("\n");
        (text.clone(), serde_json::from_str(&data).unwrap())
    }

    #[test]
    fn an_envelope_carries_json_text_and_bytes_exactly() {
        let (text, envelope) = cloud_event(b"{\"a\":\n1}", Some("p-9"));
        assert!(text.starts_with("id: e-1-p-9\nevent: k\ndata: {"));
        assert_eq!(
            envelope,
            serde_json::json!({"specversion":"1.0","id":"p-9","source":"/topics/a/%7Bb%7D","subject":"a/{b}","type":"k",
                "time":"1970-01-01T00:00:01.500Z","datacontenttype":"application/json","data":{"a":1}})
        );
        assert_eq!(cloud_event(b"a\r\nb\rc", None).1["data"], "a\r\nb\rc");
        assert_eq!(cloud_event(b"a\r\nb", None).1["id"], "e-1");
        let (_, binary) = cloud_event(b"\xff\0", None);
        assert_eq!((&binary["data_base64"], binary.get("data")), (&"/wA=".into(), None));
        assert_eq!(cloud_event(b"", None).1["data"], "");
    }
}
