//! Frames: events as bytes, ready for any socket. It is a pure encoder, called once per message. It validates only what
//! the framing needs, and knows nothing of logs or connections.
//!
//! The rules of the text/event-stream format (WHATWG HTML, "Server-sent events") that matter here: CR, LF and CRLF each
//! end a line, so a payload is split on all three and an attacker's line ends stay data; a block without a `data` line
//! is not dispatched, so an empty payload is an empty `data` line; one space after the colon is taken off, so one is
//! always written. We send LF only: several clients hold an event back after a lone CR.

use super::codes::{CloseCode, GapReason};
use super::event_id::EventId;
use super::publisher::EventType;
use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Serialize;

/// The prefix of a payload that is not UTF-8. The format is UTF-8, so such a payload is sent as a data: URL (RFC 2397),
/// which a page can pass to `fetch`.
pub const BINARY_MARK: &str = "data:application/octet-stream;base64,";

/// The longest `<hex length>CRLF` of a chunk. Frames of 4 GiB and more would not fit, and no payload comes near that.
const CHUNK_HEAD: usize = 8 + 2;

/// The transfer coding of a response body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    /// None: HTTP/1.0, and HTTP/2, which has its own framing.
    Plain,
    /// Chunked (RFC 9112, section 7.1): HTTP/1.1.
    Chunked,
}

/// The end of a chunked body.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// One or more whole events. Cheap to clone. Stored as one HTTP/1.1 chunk, of which the events are a slice, so that
/// neither coding needs a copy.
#[derive(Debug, Clone)]
pub struct Frame {
    chunk: Bytes,
    /// Where in `chunk` the events begin.
    start: u8,
}

impl Frame {
    /// Frames the bytes that `write` appends. `capacity` is the expected number of bytes, ideally exact.
    pub(super) fn build(capacity: usize, write: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut buffer = Vec::with_capacity(CHUNK_HEAD + capacity + 2);
        buffer.resize(CHUNK_HEAD, b' ');
        write(&mut buffer);
        let mut head = String::with_capacity(CHUNK_HEAD);
        let _ = write!(head, "{:x}\r\n", buffer.len() - CHUNK_HEAD); // writing to a String cannot fail
        let skip = CHUNK_HEAD - head.len();
        buffer[skip..CHUNK_HEAD].copy_from_slice(head.as_bytes());
        buffer.extend_from_slice(b"\r\n");
        Frame { chunk: Bytes::from(buffer).slice(skip..), start: head.len() as u8 }
    }

    /// Several frames as one.
    pub fn concat(frames: &[Frame]) -> Self {
        let parts: Vec<&[u8]> = frames.iter().map(|frame| frame.slice(Coding::Plain)).collect();
        Frame::build(parts.iter().map(|part| part.len()).sum(), |out| {
            parts.iter().for_each(|part| out.extend_from_slice(part))
        })
    }

    /// The same event with another id. It must be of [`event`], which begins with the id.
    pub fn with_id(&self, id: &EventId) -> Frame {
        let event = self.slice(Coding::Plain);
        let rest = memchr::memchr(b'\n', event).map_or(event, |end| &event[end + 1..]);
        Frame::build(4 + id.len() + 1 + rest.len(), |out| {
            field(out, "id", id.as_bytes());
            out.extend_from_slice(rest);
        })
    }

    /// The same event without its `event:` line. `None` if it has none. It must be of [`event`], where that line is the
    /// second one.
    pub fn without_type(&self) -> Option<Frame> {
        let event = self.slice(Coding::Plain);
        let line = memchr::memchr(b'\n', event)? + 1;
        let rest = event[line..].strip_prefix(b"event: ")?;
        let rest = &rest[memchr::memchr(b'\n', rest)? + 1..];
        Some(Frame::build(line + rest.len(), |out| {
            out.extend_from_slice(&event[..line]);
            out.extend_from_slice(rest);
        }))
    }

    /// The bytes for a connection with this coding.
    pub fn bytes(&self, coding: Coding) -> Bytes {
        self.chunk.slice(self.range(coding))
    }

    /// The same bytes, borrowed.
    pub fn slice(&self, coding: Coding) -> &[u8] {
        &self.chunk[self.range(coding)]
    }

    fn range(&self, coding: Coding) -> std::ops::Range<usize> {
        match coding {
            Coding::Chunked => 0..self.chunk.len(),
            Coding::Plain => usize::from(self.start)..self.chunk.len() - 2,
        }
    }

    /// Whether `bytes` are a slice of this frame.
    pub fn contains(&self, bytes: &Bytes) -> bool {
        self.chunk.as_ptr_range().contains(&bytes.as_ptr())
    }

    /// The memory of this frame, in bytes.
    pub fn weight(&self) -> usize {
        self.chunk.len()
    }
}

/// The lines of a payload, which end with CRLF, CR or LF. There is always at least one.
fn lines(payload: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(payload);
    std::iter::from_fn(move || {
        let text = rest?;
        let Some(end) = memchr::memchr2(b'\r', b'\n', text) else {
            rest = None;
            return Some(text);
        };
        let crlf = text[end..].starts_with(b"\r\n");
        rest = Some(&text[end + if crlf { 2 } else { 1 }..]);
        Some(&text[..end])
    })
}

/// Encodes a message as one event, and returns it with the payload. If the event contains the payload unchanged, the
/// returned bytes are a slice of the event and take no memory of their own. Otherwise they are a copy: the library's
/// bytes may be a slice of a much larger read buffer, which the log would keep alive.
pub fn message(id: &EventId, kind: Option<&EventType>, payload: &[u8]) -> (Frame, Bytes) {
    if std::str::from_utf8(payload).is_err() {
        let text = format!("{BINARY_MARK}{}", STANDARD.encode(payload));
        return (event(id, kind, text.as_bytes()), Bytes::copy_from_slice(payload));
    }
    let frame = event(id, kind, payload);
    if memchr::memchr2(b'\r', b'\n', payload).is_some() {
        return (frame, Bytes::copy_from_slice(payload));
    }
    let end = frame.chunk.len() - 2 - 2; // the blank line's LF and the data line's, the chunk's CRLF
    let shared = frame.chunk.slice(end - payload.len()..end);
    (frame, shared)
}

/// Encodes one event with this data.
pub fn event(id: &EventId, kind: Option<&EventType>, data: &[u8]) -> Frame {
    let line_total: usize = lines(data).map(|line| line.len() + 7).sum();
    let capacity = 4 + id.len() + 1 + kind.map_or(0, |kind| 8 + kind.len()) + line_total + 1;
    Frame::build(capacity, |out| {
        field(out, "id", id.as_bytes());
        if let Some(kind) = kind {
            field(out, "event", kind.as_bytes());
        }
        for line in lines(data) {
            field(out, "data", line);
        }
        out.push(b'\n');
    })
}

pub(super) fn field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// `stream-open`. It also carries the reconnection delay, because several clients turn a block with only a `retry` into
/// an event.
///
/// Without an id, the client keeps its cursor: for a stream whose gaps are still to be sent.
pub fn stream_open(id: Option<&EventId>, retry_ms: u64, topics: &[&str], resumed: bool) -> Frame {
    #[derive(Serialize)]
    struct Open<'a> {
        topics: &'a [&'a str],
        resumed: bool,
    }
    control(id, "stream-open", Some(retry_ms), &Open { topics, resumed })
}

/// `stream-gap`: messages of `topic` are missing at this place. Without an id the client keeps its cursor.
pub fn stream_gap(id: Option<&EventId>, topic: &str, reason: GapReason) -> Frame {
    #[derive(Serialize)]
    struct Gap<'a> {
        topic: &'a str,
        reason: &'static str,
    }
    control(id, "stream-gap", None, &Gap { topic, reason: reason.as_str() })
}

/// `stream-stale`: nothing of these topics arrives now, because the broker or their part of it is away. It has no id,
/// because it says nothing of a position.
pub fn stream_stale(topics: &[&str]) -> Frame {
    feed(topics, "stream-stale")
}

/// `stream-live`: messages of these topics arrive again.
pub fn stream_live(topics: &[&str]) -> Frame {
    feed(topics, "stream-live")
}

fn feed(topics: &[&str], name: &str) -> Frame {
    #[derive(Serialize)]
    struct Feed<'a> {
        topics: &'a [&'a str],
    }
    control(None, name, None, &Feed { topics })
}

/// `stream-end`: the message before it has ended this topic, and the stream goes on with other topics. It has no id,
/// because the message has one.
pub fn stream_end(topic: &str) -> Frame {
    #[derive(Serialize)]
    struct End<'a> {
        topic: &'a str,
    }
    control(None, "stream-end", None, &End { topic })
}

/// `stream-close`: the server ends the stream on purpose. It has no id, so the client keeps its cursor.
pub fn stream_close(retry_ms: u64, code: CloseCode) -> Frame {
    #[derive(Serialize)]
    struct Close {
        code: &'static str,
        reconnect: bool,
    }
    let close = Close { code: code.as_str(), reconnect: code != CloseCode::Ended };
    control(None, "stream-close", Some(retry_ms), &close)
}

fn control(id: Option<&EventId>, name: &str, retry_ms: Option<u64>, data: &impl Serialize) -> Frame {
    // The structs above have only strings and booleans, which always serialize; "{}" is never reached.
    let data = serde_json::to_string(data).unwrap_or_else(|_| "{}".into());
    Frame::build(data.len() + 128, |out| {
        field(out, "event", name.as_bytes());
        if let Some(id) = id {
            field(out, "id", id.as_bytes());
        }
        if let Some(retry) = retry_ms {
            field(out, "retry", retry.to_string().as_bytes());
        }
        field(out, "data", data.as_bytes());
        out.push(b'\n');
    })
}

/// An id without data, which a browser takes as its cursor without an event: for a reader whose view left out the last
/// messages.
pub fn position(id: &EventId) -> Frame {
    Frame::build(4 + id.len() + 2, |out| {
        field(out, "id", id.as_bytes());
        out.push(b'\n');
    })
}

/// A comment line that breaks the silence. It has a single LF: after a blank line, several clients would create an
/// empty event.
pub fn heartbeat(coding: Coding) -> Bytes {
    match coding {
        Coding::Plain => Bytes::from_static(b":\n"),
        Coding::Chunked => Bytes::from_static(b"2\r\n:\n\r\n"),
    }
}

#[cfg(test)]
mod tests {
    use eventsource_stream::Eventsource;
    use futures_util::{FutureExt, StreamExt};
    use proptest::prelude::*;

    use super::*;

    fn text(frame: &Frame) -> String {
        String::from_utf8(frame.bytes(Coding::Plain).to_vec()).unwrap()
    }

    /// The events that an independent parser reads.
    fn parse(bytes: &[u8]) -> Vec<eventsource_stream::Event> {
        let stream = futures_util::stream::iter([Ok::<_, std::io::Error>(bytes.to_vec())]).eventsource();
        stream.map(|event| event.unwrap()).collect().now_or_never().unwrap()
    }

    fn normalized(payload: &str) -> String {
        payload.replace("\r\n", "\n").replace('\r', "\n")
    }

    #[test]
    fn a_payload_is_split_on_every_line_end_and_nothing_else() {
        for (payload, expected) in [
            ("", "id: 1\ndata: \n\n"),
            ("a", "id: 1\ndata: a\n\n"),
            (" a", "id: 1\ndata:  a\n\n"),
            ("a\r\nb", "id: 1\ndata: a\ndata: b\n\n"),
            ("a\rb", "id: 1\ndata: a\ndata: b\n\n"),
            ("a\n", "id: 1\ndata: a\ndata: \n\n"),
            ("\r\n\r", "id: 1\ndata: \ndata: \ndata: \n\n"),
            ("a\u{2028}b\u{85}c", "id: 1\ndata: a\u{2028}b\u{85}c\n\n"),
        ] {
            assert_eq!(text(&message(&"1".into(), None, payload.as_bytes()).0), expected, "{payload:?}");
        }
    }

    #[test]
    fn a_forged_event_stays_data() {
        let payload = "x\rid: 999\revent: evil\r\rdata: forged\n\n:\n";
        let (frame, _) = message(&"7".into(), None, payload.as_bytes());
        let events = parse(&frame.bytes(Coding::Plain));
        assert_eq!(events.len(), 1);
        assert_eq!((events[0].id.as_str(), events[0].event.as_str()), ("7", "message"));
        assert_eq!(events[0].data, normalized(payload));
    }

    #[test]
    fn a_payload_that_is_not_utf8_is_sent_as_a_base64_data_url() {
        let (frame, payload) = message(&"1".into(), EventType::new("blob").as_ref(), b"\xff\xfe\0A");
        assert_eq!(
            text(&frame),
            "id: 1\nevent: blob\ndata: data:application/octet-stream;base64,//4AQQ==\n\n"
        );
        assert_eq!(&payload[..], b"\xff\xfe\0A");
    }

    #[test]
    fn an_event_without_its_type_is_otherwise_the_same() {
        let (typed, _) = message(&"7".into(), EventType::new("price").as_ref(), b"event: x\ny");
        assert_eq!(text(&typed.without_type().unwrap()), "id: 7\ndata: event: x\ndata: y\n\n");
        assert!(message(&"7".into(), None, b"event: x").0.without_type().is_none());
        assert_eq!(text(&position(&"k-7".into())), "id: k-7\n\n");
    }

    #[test]
    fn a_payload_of_one_line_takes_no_memory_of_its_own() {
        let (frame, payload) = message(&"1".into(), None, b"one line");
        let (chunk, slice) = (frame.chunk.as_ptr_range(), payload.as_ptr_range());
        assert!(chunk.start <= slice.start && slice.end <= chunk.end);
        assert_eq!(&payload[..], b"one line");
    }

    #[test]
    fn a_stored_payload_does_not_keep_its_read_buffer_alive() {
        let read = Bytes::from(vec![b'\n'; 8192]);
        for payload in [read.slice(..10), Bytes::from(vec![0xff; 8192]).slice(..10)] {
            let (_, kept) = message(&"1".into(), None, &payload);
            assert_eq!(kept, payload);
            assert_ne!(kept.as_ptr(), payload.as_ptr());
        }
    }

    #[test]
    fn control_events_read_as_the_protocol_says() {
        assert_eq!(
            text(&stream_open(Some(&"k-1".into()), 2500, &["orders/eu"], true)),
            "event: stream-open\nid: k-1\nretry: 2500\ndata: {\"topics\":[\"orders/eu\"],\"resumed\":true}\n\n"
        );
        assert_eq!(
            text(&stream_gap(Some(&"k-1".into()), "a\"b", GapReason::Evicted)),
            "event: stream-gap\nid: k-1\ndata: {\"topic\":\"a\\\"b\",\"reason\":\"evicted\"}\n\n"
        );
        assert_eq!(
            text(&stream_close(700, CloseCode::Draining)),
            "event: stream-close\nretry: 700\ndata: {\"code\":\"draining\",\"reconnect\":true}\n\n"
        );
        assert_eq!(
            text(&stream_close(700, CloseCode::Ended)),
            "event: stream-close\nretry: 700\ndata: {\"code\":\"ended\",\"reconnect\":false}\n\n"
        );
        assert_eq!(text(&stream_end("jobs/7")), "event: stream-end\ndata: {\"topic\":\"jobs/7\"}\n\n");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn any_payload_comes_out_of_an_independent_parser_as_it_went_in(
            payload in proptest::collection::vec(
                prop_oneof![
                    Just("\r".to_owned()), Just("\n".to_owned()), Just("\r\n".to_owned()), Just("\0".to_owned()),
                    Just("id: 9".to_owned()), Just("data:".to_owned()), Just(":".to_owned()), Just(" ".to_owned()),
                    Just("\u{feff}".to_owned()), Just("event: x".to_owned()), ".{0,12}",
                ], 0..12).prop_map(|parts| parts.concat()),
            kind in proptest::option::of("[a-z]{1,9}"),
        ) {
            let (frame, kept) = message(&"id-1".into(), kind.as_deref().and_then(EventType::new).as_ref(), payload.as_bytes());
            prop_assert_eq!(&kept[..], payload.as_bytes());
            let twice = Frame::concat(&[frame.clone(), frame.clone()]);
            let events = parse(&twice.bytes(Coding::Plain));
            prop_assert_eq!(events.len(), 2);
            for event in &events {
                prop_assert_eq!(&event.data, &normalized(&payload));
                prop_assert_eq!(&event.id, "id-1");
                prop_assert_eq!(&event.event, kind.as_deref().unwrap_or("message"));
            }
            // The chunk starts with its own length.
            let chunk = frame.bytes(Coding::Chunked);
            let head = chunk.windows(2).position(|pair| pair == b"\r\n").unwrap();
            let length = usize::from_str_radix(std::str::from_utf8(&chunk[..head]).unwrap(), 16).unwrap();
            prop_assert_eq!(&chunk[head + 2..head + 2 + length], &frame.bytes(Coding::Plain)[..]);
            prop_assert_eq!(&chunk[head + 2 + length..], b"\r\n");
        }
    }
}
