//! Parses the header fields of NATS messages.
//!
//! A server passes on any block of fields that a publisher wrote. So parsing never fails: a field that cannot be parsed
//! is dropped and marked ([`Headers::is_damaged`]), and the rest of the message is used.

use std::borrow::Cow;

use smallvec::SmallVec;

use crate::protocol::headers::Headers;

/// The version at the start of a block.
const VERSION: &[u8] = b"NATS/1.0";

/// The end of a block.
const END: &[u8] = b"\r\n\r\n";

/// A block of header fields, from `HMSG` or from a stored message.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) headers: Headers,
    /// The status of a message that the server itself sends, such as 404.
    pub(super) status: Option<u16>,
    /// The server's description of the status.
    pub(super) description: String,
}

/// Parses a block. If it has another version or no end, all fields are dropped. Otherwise fields are dropped if their
/// name is not visible ASCII, their value has a carriage return or is not UTF-8, or they have no colon.
pub(super) fn parse_headers(block: &[u8]) -> Block {
    let mut lines = lines(block);
    let first = lines.next().unwrap_or_default();
    let Some(rest) = after_version(first, block) else {
        let mut parsed = Block::default();
        parsed.headers.set_damaged();
        return parsed;
    };
    let mut parsed = Block::with_status(rest);
    for field in fields(lines) {
        match field {
            Ok((name, value)) => parsed.headers.insert(name, value),
            Err(Unreadable) => parsed.headers.set_damaged(),
        }
    }
    parsed
}

/// A field: its name and its value.
type Field<'a> = (&'a str, Cow<'a, str>);

/// Separates the fields that the server appended to a block, which are called `names`, from the publisher's. Of several
/// fields with one name, the last is the server's. A history has such a block for each message, so it is read only once.
pub(super) fn split_appended<'a, const N: usize>(
    block: &'a [u8],
    names: [&str; N],
) -> ([Option<Cow<'a, str>>; N], Headers) {
    let mut lines = lines(block);
    let first = lines.next().unwrap_or_default();
    let mut headers = Headers::default();
    let mut all: SmallVec<[Field<'a>; 8]> = SmallVec::new();
    for field in fields(lines) {
        match field {
            Ok(field) => all.push(field),
            Err(Unreadable) => headers.set_damaged(),
        }
    }
    let last = names.map(|known| all.iter().rposition(|(name, _)| name.eq_ignore_ascii_case(known)));
    let mut appended = [const { None }; N];
    for (index, (name, value)) in all.into_iter().enumerate() {
        match last.iter().position(|last| *last == Some(index)) {
            Some(known) => appended[known] = Some(value),
            None => headers.insert(name, value),
        }
    }
    if after_version(first, block).is_none() {
        headers = Headers::default();
        headers.set_damaged();
    }
    (appended, headers)
}

/// The last field called `name` in a block, whatever comes before it: for fields that the server added after the
/// publisher's.
pub(super) fn last_field<'a>(block: &'a [u8], name: &str) -> Option<&'a str> {
    let fields = lines(block).filter_map(|line| field(line).ok());
    fields.filter(|(key, _)| key.eq_ignore_ascii_case(name)).last().map(|(_, value)| value)
}

impl Block {
    fn with_status(rest: &[u8]) -> Self {
        let rest = String::from_utf8_lossy(rest);
        let (status, description) = rest.trim().split_once(' ').unwrap_or((rest.trim(), ""));
        Block {
            headers: Headers::default(),
            status: status.parse().ok(),
            description: description.trim().to_owned(),
        }
    }
}

/// The rest of the first line after the version. `None`: the block cannot be read.
fn after_version<'a>(first: &'a [u8], block: &[u8]) -> Option<&'a [u8]> {
    let rest = first.strip_prefix(VERSION)?;
    (block.ends_with(END) && rest.first().is_none_or(u8::is_ascii_whitespace)).then_some(rest)
}

/// The fields in these lines. A line that begins with white space continues the previous value.
fn fields<'a>(lines: impl Iterator<Item = &'a [u8]>) -> impl Iterator<Item = Result<Field<'a>, Unreadable>> {
    let mut lines = lines.filter(|line| !line.is_empty()).peekable();
    std::iter::from_fn(move || {
        let mut read = field(lines.next()?).map(|(name, value)| (name, Cow::Borrowed(value)));
        let mut is_continued = false;
        while let Some(more) = lines.next_if(|line| matches!(line[0], b' ' | b'\t')) {
            is_continued = true;
            read = read.and_then(|(name, mut value)| {
                value.to_mut().push_str(text(more)?);
                Ok((name, value))
            });
        }
        if is_continued && let Ok((_, value)) = &mut read {
            *value = Cow::Owned(value.trim().to_owned());
        }
        Some(read)
    })
}

/// A field that cannot be parsed.
struct Unreadable;

fn lines(block: &[u8]) -> impl Iterator<Item = &[u8]> {
    block.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line))
}

fn field(line: &[u8]) -> Result<(&str, &str), Unreadable> {
    let (name, value) = text(line)?.split_once(':').ok_or(Unreadable)?;
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Unreadable);
    }
    Ok((name, value.trim()))
}

fn text(bytes: &[u8]) -> Result<&str, Unreadable> {
    std::str::from_utf8(bytes).ok().filter(|text| !text.contains('\r')).ok_or(Unreadable)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fields(block: &[u8]) -> (Vec<(String, String)>, bool) {
        let headers = parse_headers(block).headers;
        let fields = headers.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        (fields, headers.is_damaged())
    }

    #[test]
    fn only_the_fields_that_cannot_be_read_are_left_out() {
        let field = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let good = field("A", "1");
        for (line, others, is_damaged) in [
            ("X: caf\u{e9}\r\n".as_bytes(), vec![field("X", "caf\u{e9}")], false),
            (b"X: caf\xe9\r\n", vec![], true),
            (b"X: a\rb\r\n", vec![], true),
            (b"X y: a\r\n", vec![], true),
            (b"X\xc3\xa9: a\r\n", vec![], true),
            (b": a\r\n", vec![], true),
            (b"no colon\r\n", vec![], true),
            (b"X:\r\n", vec![field("X", "")], false),
            (b"X: a:b \r\n", vec![field("X", "a:b")], false),
            (b"X: a\r\n b\r\n", vec![field("X", "a b")], false),
            (b"X: a\r\n \xe9\r\n", vec![], true),
            (b"X: a\nY: b\r\n", vec![field("X", "a"), field("Y", "b")], false),
            (b"X: a\r\nX: b\r\n", vec![field("X", "a"), field("X", "b")], false),
        ] {
            let block = [b"NATS/1.0\r\n", line, b"A: 1\r\n\r\n"].concat();
            let expected: Vec<_> = others.into_iter().chain([good.clone()]).collect();
            assert_eq!(fields(&block), (expected, is_damaged), "{}", line.escape_ascii());
        }
    }

    #[test]
    fn a_header_block_of_another_version_has_no_fields() {
        for block in [
            &b"NATS/2.0\r\nA: 1\r\n\r\n"[..],
            b"NATS/1.01\r\nA: 1\r\n\r\n",
            b"NATS/1.0\r\nA: 1\r\n",
            b"",
            b"\xff",
        ] {
            assert_eq!(fields(block), (vec![], true), "{}", block.escape_ascii());
        }
    }

    #[test]
    fn a_status_is_read_with_its_description() {
        let parsed = parse_headers(b"NATS/1.0 404 No Messages\r\n\r\n");
        assert_eq!((parsed.status, parsed.description.as_str()), (Some(404), "No Messages"));
        assert_eq!(parse_headers(b"NATS/1.0 503\r\n\r\n").status, Some(503));
        assert_eq!(parse_headers(b"NATS/1.0\r\n\r\n").status, None);
    }

    #[test]
    fn a_field_that_the_server_appended_is_found_after_unreadable_fields() {
        let block = b"garbage\r\nNats-Sequence: 1\r\n\xff: \r\nNats-Sequence: 7\r\n\r\n";
        assert_eq!(last_field(block, "Nats-Sequence"), Some("7"));
        assert_eq!(last_field(block, "Nats-Subject"), None);
    }

    #[test]
    fn the_fields_of_the_server_are_separated_from_those_that_a_publisher_wrote() {
        let names = ["Nats-Sequence", "Nats-Subject"];
        let split = |block: &'static [u8]| {
            let ([number, subject], headers) = split_appended(block, names);
            let others: Vec<_> = headers.iter().map(|(name, value)| format!("{name}={value}")).collect();
            (number, subject, others.join(" "), headers.is_damaged())
        };
        let block = b"NATS/1.0\r\nnats-sequence: 5\r\nA: 1\r\n 2\r\nB: \xff\r\nNats-Sequence: 7\r\nNats-Subject: x\r\n\r\n";
        assert_eq!(split(block), (Some("7".into()), Some("x".into()), "nats-sequence=5 A=1 2".into(), true));
        let other_version = b"NATS/2.0\r\nA: 1\r\nNats-Sequence: 7\r\n\r\n";
        assert_eq!(split(other_version), (Some("7".into()), None, String::new(), true));
        assert_eq!(split(b""), (None, None, String::new(), true));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(block in prop::collection::vec(any::<u8>(), 0..200)) {
            let block = [b"NATS/1.0\r\n", &block[..], END].concat();
            for (name, value) in parse_headers(&block).headers.iter() {
                prop_assert!(!name.is_empty() && !value.contains(['\r', '\n']));
            }
        }
    }
}
