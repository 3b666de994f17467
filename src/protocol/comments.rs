//! The gateway's own events as comments, for readers that take every event for an event of their application
//! (`control=none`). It rewrites the frames that have such events, at the cost of these readers only.

use bytes::Bytes;

use super::frame::{Coding, Frame, field};

/// The same bytes, with the gateway's own events as comments: `stream-gap` becomes the line `: stream-gap {…}`. Its id and
/// its delay stay, because they create no event. `None`: there is no such event.
pub fn without_control(bytes: &[u8], coding: Coding) -> Option<Bytes> {
    memchr::memmem::find(bytes, b"event: stream-")?;
    let mut rest = bytes;
    let mut quiet = Vec::with_capacity(bytes.len());
    match coding {
        Coding::Plain => comment_all(bytes, &mut quiet),
        Coding::Chunked => {
            while let Some((chunk, behind)) = split_chunk(rest) {
                let frame = Frame::build(chunk.len(), |out| comment_all(chunk, out));
                quiet.extend_from_slice(frame.slice(coding));
                rest = behind;
            }
        }
    }
    Some(quiet.into())
}

/// The first chunk of a chunked body, and the rest.
fn split_chunk(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let head = memchr::memchr(b'\r', body)?;
    let length = usize::from_str_radix(std::str::from_utf8(&body[..head]).ok()?, 16).ok()?;
    let begin = head + 2;
    Some((body.get(begin..begin + length)?, body.get(begin + length + 2..)?))
}

/// Appends these events, with the gateway's own events as comments.
fn comment_all(mut events: &[u8], out: &mut Vec<u8>) {
    while !events.is_empty() {
        // Every event ends with an empty line, and nothing else does: a heartbeat is sent alone.
        let end = memchr::memmem::find(events, b"\n\n").map_or(events.len(), |end| end + 2);
        let (event, rest) = events.split_at(end);
        match value_of(event, b"event: ").filter(|name| name.starts_with(b"stream-")) {
            Some(name) => comment(out, name, event),
            None => out.extend_from_slice(event),
        }
        events = rest;
    }
}

/// One of the gateway's own events as a comment.
fn comment(out: &mut Vec<u8>, name: &[u8], event: &[u8]) {
    let id = value_of(event, b"id: ");
    for (field_name, value) in [("id", id), ("retry", value_of(event, b"retry: "))] {
        if let Some(value) = value {
            field(out, field_name, value);
        }
    }
    out.extend_from_slice(b": ");
    out.extend_from_slice(name);
    out.push(b' ');
    out.extend_from_slice(value_of(event, b"data: ").unwrap_or_default());
    // Only at an empty line does a client keep the id.
    out.extend_from_slice(if id.is_some() { b"\n\n" } else { b"\n" });
}

/// The value of a field of an event that was framed here; `name` with the colon and the space.
fn value_of<'a>(event: &'a [u8], name: &'static [u8]) -> Option<&'a [u8]> {
    event.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(name))
}

#[cfg(test)]
mod tests {
    use eventsource_stream::Eventsource;
    use futures_util::{FutureExt, StreamExt};

    use super::*;
    use crate::protocol::codes::{CloseCode, GapReason};
    use crate::protocol::event_id::EventId;
    use crate::protocol::frame::{message, stream_close, stream_end, stream_gap, stream_open};
    use crate::protocol::publisher::EventType;

    fn text(frame: &Frame) -> String {
        String::from_utf8(frame.bytes(Coding::Plain).to_vec()).unwrap()
    }

    /// The same frames in either coding without control events, as text.
    fn quiet(frames: &[Frame]) -> Option<String> {
        let whole = Frame::concat(frames);
        let plain = without_control(whole.slice(Coding::Plain), Coding::Plain);
        // In a batch, each event is a chunk.
        let chunks: Vec<u8> = frames.iter().flat_map(|frame| frame.slice(Coding::Chunked).to_vec()).collect();
        let chunked = without_control(&chunks, Coding::Chunked).map(|chunks| {
            let (mut rest, mut joined) = (&chunks[..], Vec::new());
            while let Some((chunk, behind)) = split_chunk(rest) {
                joined.extend_from_slice(chunk);
                rest = behind;
            }
            assert!(rest.is_empty());
            Bytes::from(joined)
        });
        assert_eq!(plain, chunked);
        plain.map(|bytes| String::from_utf8(bytes.to_vec()).unwrap())
    }

    #[test]
    fn a_control_event_becomes_a_comment_that_keeps_its_id_and_its_delay() {
        let id = EventId::from("k-1");
        assert_eq!(
            quiet(&[stream_open(Some(&id), 2500, &["orders/eu"], true)]).unwrap(),
            "id: k-1\nretry: 2500\n: stream-open {\"topics\":[\"orders/eu\"],\"resumed\":true}\n\n"
        );
        let (price, _) = message(&id, EventType::new("price").as_ref(), b"event: stream-gap\n\ndata: x");
        assert_eq!(quiet(std::slice::from_ref(&price)), Some(text(&price)), "it only looks like one");
        let (other, _) = message(&id, None, b"1");
        assert_eq!(quiet(std::slice::from_ref(&other)), None);
        let mixed = [
            other.clone(),
            stream_end("a"),
            stream_gap(None, "b", GapReason::Slow),
            price.clone(),
            stream_gap(Some(&id), "c", GapReason::Slow),
            stream_close(700, CloseCode::Ended),
        ];
        let quiet = quiet(&mixed).unwrap();
        assert_eq!(
            quiet,
            text(&other)
                + ": stream-end {\"topic\":\"a\"}\n: stream-gap {\"topic\":\"b\",\"reason\":\"slow\"}\n"
                + &text(&price)
                + "id: k-1\n: stream-gap {\"topic\":\"c\",\"reason\":\"slow\"}\n\n"
                + "retry: 700\n: stream-close {\"code\":\"ended\",\"reconnect\":false}\n"
        );
        let kinds: Vec<String> = {
            let read =
                futures_util::stream::iter([Ok::<_, std::io::Error>(quiet.into_bytes())]).eventsource();
            read.map(|event| event.unwrap().event).collect().now_or_never().unwrap()
        };
        assert_eq!(kinds, ["message", "price"]);
    }
}
