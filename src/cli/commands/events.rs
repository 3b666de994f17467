//! Parses text/event-stream as a browser does (WHATWG HTML, "Interpreting an event stream"), in chunks that may be cut
//! anywhere. It fails only if an event is too large.

use std::mem::take;
use std::time::Duration;

use thiserror::Error;

/// The largest event or line, in bytes. A gateway sends no event larger than `limits.message` and a few fields.
const MAX_EVENT: usize = 64 * 1024 * 1024;

/// The byte order mark that may begin a stream; it is skipped.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// An item of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Item {
    /// An event.
    Event(Event),
    /// A comment, such as a heartbeat.
    Comment,
}

/// An event as a page would receive it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    /// The last event id: of this event, or of the last event before it that had one. Empty if none had.
    pub(crate) id: String,
    /// The type; `message` if the event names none.
    pub(crate) kind: String,
    /// The data lines, joined with LF.
    pub(crate) data: String,
}

/// An event is larger than a gateway sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("an event is larger than {} MiB", MAX_EVENT / 1024 / 1024)]
pub(crate) struct TooLarge;

/// The parser of one stream.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    line: Vec<u8>,
    /// The last line ended with CR: an LF that follows belongs to the same line end.
    after_cr: bool,
    /// A line has been read, so no byte order mark can follow.
    begun: bool,
    id: String,
    kind: String,
    /// The data lines so far, each with an LF.
    data: String,
    retry: Option<Duration>,
}

impl Parser {
    /// For a stream that resumes after the event `id`, which remains the last event id until an event has another.
    pub(crate) fn after(id: &str) -> Self {
        Parser { id: id.to_owned(), ..Parser::default() }
    }

    /// The reconnection delay, if the stream has sent one.
    pub(crate) fn retry(&self) -> Option<Duration> {
        self.retry
    }

    /// Parses the next bytes, and appends the completed items to `items`.
    ///
    /// # Errors
    /// [`TooLarge`]; the parser must not be used after that.
    pub(crate) fn push(&mut self, mut bytes: &[u8], items: &mut impl Extend<Item>) -> Result<(), TooLarge> {
        if self.after_cr && !bytes.is_empty() {
            self.after_cr = false;
            bytes = bytes.strip_prefix(b"\n").unwrap_or(bytes);
        }
        while let Some(end) = memchr::memchr2(b'\r', b'\n', bytes) {
            self.append(&bytes[..end])?;
            items.extend(self.line_ends());
            let rest = &bytes[end + 1..];
            bytes = match bytes[end] {
                b'\r' if rest.is_empty() => {
                    self.after_cr = true;
                    rest
                }
                b'\r' => rest.strip_prefix(b"\n").unwrap_or(rest),
                _ => rest,
            };
        }
        self.append(bytes)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), TooLarge> {
        if self.line.len() + self.data.len() + bytes.len() > MAX_EVENT {
            return Err(TooLarge);
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    fn line_ends(&mut self) -> Option<Item> {
        let line = take(&mut self.line);
        let mut line = &line[..];
        if !std::mem::replace(&mut self.begun, true) {
            line = line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line);
        }
        if line.is_empty() {
            return self.event_ends();
        }
        let line = String::from_utf8_lossy(line);
        let (name, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "" => return Some(Item::Comment),
            "data" => {
                self.data.push_str(value);
                self.data.push('\n');
            }
            "event" => value.clone_into(&mut self.kind),
            "id" if !value.contains('\0') => value.clone_into(&mut self.id),
            "retry" if value.bytes().all(|b| b.is_ascii_digit()) => {
                // A value that is not all digits, or out of range, is ignored.
                self.retry = value.parse().ok().map(Duration::from_millis).or(self.retry);
            }
            _ => {}
        }
        None
    }

    fn event_ends(&mut self) -> Option<Item> {
        let (kind, mut data) = (take(&mut self.kind), take(&mut self.data));
        // Without a data line there is no event, but the id is kept.
        data.pop()?;
        let kind = if kind.is_empty() { "message".to_owned() } else { kind };
        Some(Item::Event(Event { id: self.id.clone(), kind, data }))
    }
}

#[cfg(test)]
mod tests {
    use eventsource_stream::EventStream;
    use futures_util::{FutureExt as _, StreamExt as _, stream};
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::frame::{self, Coding};
    use crate::protocol::publisher::EventType;

    /// The events of these chunks, without comments.
    fn events(pieces: &[&[u8]]) -> Vec<Event> {
        let (mut parser, mut items) = (Parser::default(), vec![]);
        pieces.iter().for_each(|piece| parser.push(piece, &mut items).unwrap());
        let event = |item| match item {
            Item::Event(event) => Some(event),
            Item::Comment => None,
        };
        items.into_iter().filter_map(event).collect()
    }

    fn event(id: &str, kind: &str, data: &str) -> Event {
        Event { id: id.into(), kind: kind.into(), data: data.into() }
    }

    /// What an independent parser makes of the same text.
    fn oracle(text: &str) -> Vec<Event> {
        let pieces = stream::iter([Ok::<_, std::convert::Infallible>(text.as_bytes().to_vec())]);
        let read = |read: Result<eventsource_stream::Event, _>| read.ok();
        let read = EventStream::new(pieces).filter_map(|event| async { read(event) }).collect::<Vec<_>>();
        let read = read.now_or_never().unwrap();
        read.into_iter().map(|read| event(&read.id, &read.event, &read.data)).collect()
    }

    /// Text in which characters with a meaning are frequent.
    fn text() -> impl Strategy<Value = String> {
        let part = prop_oneof![
            3 => prop::sample::select(vec!["\n", "\n\n", "\r", "\r\n", ":", " ", "\0", "7", "é", "a: b"]),
            2 => prop::sample::select(vec!["data", "data:", "data: x", "event: e", "id: 1", "id", "retry: 5", ":"]),
        ];
        prop::collection::vec(part, 0..40).prop_map(|parts| parts.concat() + "\n\n")
    }

    proptest! {
        #[test]
        fn the_parser_agrees_with_another_parser(text in text()) {
            prop_assert_eq!(events(&[text.as_bytes()]), oracle(&text));
        }

        #[test]
        fn the_parser_reads_the_same_events_wherever_the_bytes_are_cut(bytes in prop::collection::vec(any::<u8>(), 0..200), text in text(),
                                                 at in 0..400_usize) {
            let bytes = [text.as_bytes(), &bytes, text.as_bytes()].concat();
            let whole = events(&[&bytes]);
            let each: Vec<&[u8]> = bytes.chunks(1).collect();
            prop_assert_eq!(&whole, &events(&each));
            let (before, after) = bytes.split_at(at.min(bytes.len()));
            prop_assert_eq!(&whole, &events(&[before, after]));
        }

        #[test]
        fn the_parser_reads_back_the_events_that_a_gateway_frames(payload in any::<String>(), kind in "[a-z]{1,9}") {
            let (frame, _) = frame::message(&"k3x9q2m7-57".into(), EventType::new(kind.as_str()).as_ref(), payload.as_bytes());
            let data = payload.replace("\r\n", "\n").replace('\r', "\n");
            prop_assert_eq!(events(&[frame.slice(Coding::Plain)]), [event("k3x9q2m7-57", &kind, &data)]);
        }
    }

    #[test]
    fn byte_order_marks_bad_bytes_and_line_ends_are_read_as_a_browser_reads_them() {
        for (pieces, data) in [
            (&[&b"\xef\xbb"[..], b"\xbfdata: a\n\n"][..], "a"),
            (&[b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n:\n\ndata:b\n\n"], "b"),
            (&[b"data: a\xff\n\n"], "a\u{fffd}"),
            (&[b"data:  a\r", b"\ndata\r\r"], " a\n"),
            (&[b"data: a\n\n", b"data: half an event\n"], "a"),
        ] {
            assert_eq!(events(pieces), [event("", "message", data)], "{pieces:?}");
        }
        assert_eq!(
            events(&[b"id: 1\n\ndata: a\n\nid\ndata: b\n\n"]),
            [event("1", "message", "a"), event("", "message", "b")]
        );
    }

    #[test]
    fn the_last_retry_field_that_is_a_number_sets_the_delay() {
        let mut parser = Parser::default();
        parser
            .push(b"retry: 1500\nretry: 2s\nretry:\nretry: 99999999999999999999999\n", &mut vec![])
            .unwrap();
        assert_eq!(parser.retry(), Some(Duration::from_millis(1500)));
    }

    #[test]
    fn an_event_without_end_is_refused_and_not_kept() {
        let (mut parser, mut items) = (Parser::default(), vec![]);
        let line = [&b"data: "[..], &[b'x'; 1024 * 1024], b"\n"].concat();
        let end = (0..100).find(|_| parser.push(&line, &mut items).is_err());
        assert_eq!((end, items), (Some(63), vec![]));
    }
}
