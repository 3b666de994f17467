//! The NATS client protocol: an incremental parser of the server's bytes, and the encoding of the client's.
//!
//! It knows no sockets and no topics. For any input, parsing ends with an operation, with "more is needed", or with
//! [`Malformed`]; nothing is allocated for a size before the size has been checked against its bound.

use bytes::{Buf, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::protocol::headers::Headers;

/// The size of the read buffer.
const READ_BUFFER: usize = 64 * 1024;

/// The longest line before a payload. A server accepts 4 KiB by default, but its own `INFO` names every server of a
/// cluster.
const MAX_LINE: usize = 64 * 1024;

/// The largest message with its header fields. Larger ones are skipped.
const MAX_MESSAGE: usize = 64 * 1024 * 1024;

pub(super) const PING: &[u8] = b"PING\r\n";
pub(super) const PONG: &[u8] = b"PONG\r\n";

/// An operation of the server.
#[derive(Debug)]
pub(super) enum Operation {
    Info(Box<Info>),
    Message(Delivered),
    /// A message that was skipped because it is too large.
    TooLarge {
        sid: u64,
        bytes: usize,
    },
    Ping,
    Pong,
    Ok,
    /// The server's error text.
    Error(String),
}

/// A message of one subscription.
#[derive(Debug)]
pub(super) struct Delivered {
    pub(super) sid: u64,
    pub(super) subject: Bytes,
    /// The subject for an answer.
    pub(super) reply: Option<Bytes>,
    /// The block of header fields, as the publisher wrote it.
    pub(super) headers: Option<Bytes>,
    pub(super) payload: Bytes,
}

/// The `INFO` of a server.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Info {
    pub(super) version: String,
    pub(super) max_payload: usize,
    pub(super) headers: bool,
    pub(super) tls_required: bool,
    /// The nonce to sign with a key.
    pub(super) nonce: String,
    /// The name of its cluster, if it is in one.
    pub(super) cluster: Option<String>,
    /// The addresses of its cluster for clients, as host and port.
    pub(super) connect_urls: Vec<String>,
}

/// The `CONNECT` of a client. Empty fields are omitted.
#[derive(Debug, Default, Serialize)]
pub(super) struct Connect {
    pub(super) verbose: bool,
    pub(super) pedantic: bool,
    pub(super) echo: bool,
    pub(super) headers: bool,
    pub(super) no_responders: bool,
    pub(super) tls_required: bool,
    /// 1: the server may send `INFO` again whenever it changes.
    pub(super) protocol: u8,
    pub(super) name: &'static str,
    pub(super) lang: &'static str,
    pub(super) version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pass: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) auth_token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) nkey: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) jwt: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sig: Option<String>,
}

/// The server violated the protocol.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the server does not speak the NATS protocol: {0}")]
pub(super) struct Malformed(String);

/// The parser: reads operations from bytes as they arrive.
#[derive(Debug, Default)]
pub(super) struct Reader {
    buffer: BytesMut,
    /// The remaining bytes of a message that is being skipped.
    skip: usize,
}

impl Reader {
    /// The buffer for the next bytes, with some free space.
    pub(super) fn space(&mut self) -> &mut BytesMut {
        if self.buffer.capacity() - self.buffer.len() < READ_BUFFER / 8 {
            self.buffer.reserve(READ_BUFFER);
        }
        &mut self.buffer
    }

    /// Whether all bytes have been parsed.
    pub(super) fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// The next operation, or `None` if more bytes are needed.
    pub(super) fn next(&mut self) -> Result<Option<Operation>, Malformed> {
        let skipped = self.skip.min(self.buffer.len());
        self.buffer.advance(skipped);
        self.skip -= skipped;
        let searched = self.buffer.len().min(MAX_LINE);
        let Some(end) = memchr::memchr(b'\n', &self.buffer[..searched]) else {
            return if searched < MAX_LINE { Ok(None) } else { Err(Malformed("a line has no end".into())) };
        };
        let line = self.buffer[..end].strip_suffix(b"\r").unwrap_or(&self.buffer[..end]);
        let (verb, rest) = split_word(line);
        let operation = match verb {
            b"MSG" => return self.message(end + 1, false),
            b"HMSG" => return self.message(end + 1, true),
            b"PING" => Operation::Ping,
            b"PONG" => Operation::Pong,
            b"+OK" => Operation::Ok,
            b"-ERR" => Operation::Error(words(rest)),
            b"INFO" => Operation::Info(serde_json::from_slice(rest).map_err(|error| malformed(line, error))?),
            _ => return Err(malformed(line, "it is not an operation")),
        };
        self.buffer.advance(end + 1);
        Ok(Some(operation))
    }

    /// Parses a message whose line has `length` bytes.
    fn message(&mut self, length: usize, has_headers: bool) -> Result<Option<Operation>, Malformed> {
        let head = Head::read(&self.buffer[..length], has_headers)?;
        let Head { sid, fields, total, .. } = head;
        if total > MAX_MESSAGE {
            self.buffer.advance(length);
            self.skip = total.saturating_add(2);
            return Ok(Some(Operation::TooLarge { sid, bytes: total }));
        }
        let missing = (length + total + 2).saturating_sub(self.buffer.len());
        if missing > 0 {
            // For a message that is larger than the buffer, the whole size is reserved at once.
            self.buffer.reserve(missing);
            return Ok(None);
        }
        let (subject, reply) = (head.subject.0..head.subject.1, head.reply);
        let line = self.buffer.split_to(length).freeze();
        let headers = has_headers.then(|| self.buffer.split_to(fields).freeze());
        let payload = self.buffer.split_to(total - fields).freeze();
        if !self.buffer.starts_with(b"\r\n") {
            return Err(malformed(&line, "the payload does not have the announced length"));
        }
        self.buffer.advance(2);
        if total > READ_BUFFER {
            // Otherwise the memory of a large message would stay as long as the connection.
            self.buffer = BytesMut::from(&self.buffer[..]);
        }
        let (subject, reply) = (line.slice(subject), reply.map(|(begin, end)| line.slice(begin..end)));
        Ok(Some(Operation::Message(Delivered { sid, subject, reply, headers, payload })))
    }
}

/// `MSG subject sid [reply] total`, or `HMSG subject sid [reply] fields total`.
struct Head {
    /// The position of the subject in the line.
    subject: (usize, usize),
    /// The position of the subject for answers.
    reply: Option<(usize, usize)>,
    sid: u64,
    /// Bytes of header fields.
    fields: usize,
    /// All bytes.
    total: usize,
}

impl Head {
    fn read(line: &[u8], has_headers: bool) -> Result<Self, Malformed> {
        let mut words = [(0, 0); 6];
        let mut count = 0;
        let mut at = 0;
        let is_space = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
        while let Some(begin) = line[at..].iter().position(|byte| !is_space(byte)).map(|found| at + found) {
            at = line[begin..].iter().position(is_space).map_or(line.len(), |found| begin + found);
            let word = words.get_mut(count).ok_or_else(|| malformed(line, "it has too many words"))?;
            (*word, count) = ((begin, at), count + 1);
        }
        let sizes = 1 + usize::from(has_headers);
        if !(3 + sizes..=4 + sizes).contains(&count) {
            return Err(malformed(line, "it has a wrong number of words"));
        }
        let number = |(begin, end): (usize, usize)| {
            let text = std::str::from_utf8(&line[begin..end]).ok();
            let digits = text.filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
            digits
                .and_then(|digits| digits.parse::<u64>().ok())
                .ok_or_else(|| malformed(line, "a number is not valid"))
        };
        let size =
            |index: usize| usize::try_from(number(words[index])?).map_err(|error| malformed(line, error));
        let total = size(count - 1)?;
        let fields = if has_headers { size(count - 2)? } else { 0 };
        if fields > total {
            return Err(malformed(line, "its header fields are longer than the whole message"));
        }
        let reply = (count == 4 + sizes).then_some(words[3]);
        Ok(Head { subject: words[1], reply, sid: number(words[2])?, fields, total })
    }
}

/// The first word of a line, and what follows it.
fn split_word(line: &[u8]) -> (&[u8], &[u8]) {
    match line.iter().position(|byte| matches!(byte, b' ' | b'\t')) {
        Some(at) => (&line[..at], line[at + 1..].trim_ascii()),
        None => (line, b""),
    }
}

/// The text of an error, without the server's quotes.
fn words(text: &[u8]) -> String {
    let text = text.strip_prefix(b"'").and_then(|text| text.strip_suffix(b"'")).unwrap_or(text);
    String::from_utf8_lossy(text).into_owned()
}

fn malformed(line: &[u8], why: impl std::fmt::Display) -> Malformed {
    let shown = &line[..line.len().min(80)];
    Malformed(format!("\"{}\": {why}", shown.escape_ascii()))
}

/// Writes `CONNECT`.
pub(super) fn write_connect(out: &mut BytesMut, connect: &Connect) {
    out.extend_from_slice(b"CONNECT ");
    // Strings and booleans always serialize.
    out.extend_from_slice(&serde_json::to_vec(connect).unwrap_or_default());
    out.extend_from_slice(b"\r\n");
}

/// Writes `SUB`.
pub(super) fn write_subscribe(out: &mut BytesMut, subject: &str, sid: u64) {
    out.extend_from_slice(format!("SUB {subject} {sid}\r\n").as_bytes());
}

/// Writes `UNSUB`.
pub(super) fn write_unsubscribe(out: &mut BytesMut, sid: u64) {
    out.extend_from_slice(format!("UNSUB {sid}\r\n").as_bytes());
}

/// Writes `PUB`, or `HPUB` if there are header fields.
pub(super) fn write_publish(out: &mut BytesMut, subject: &str, fields: &[u8], payload: &[u8]) {
    write_request(out, subject, "", fields, payload);
}

/// As [`write_publish`], with a subject for answers.
pub(super) fn write_request(out: &mut BytesMut, subject: &str, reply: &str, fields: &[u8], payload: &[u8]) {
    let total = fields.len() + payload.len();
    let space = if reply.is_empty() { "" } else { " " };
    let line = match fields.len() {
        0 => format!("PUB {subject}{space}{reply} {total}\r\n"),
        length => format!("HPUB {subject}{space}{reply} {length} {total}\r\n"),
    };
    for part in [line.as_bytes(), fields, payload, b"\r\n"] {
        out.extend_from_slice(part);
    }
}

/// Encodes header fields as a block, empty if there are none. An error says which field cannot be encoded, and why.
pub(super) fn header_block(headers: &Headers) -> Result<Vec<u8>, String> {
    if headers.is_empty() {
        return Ok(Vec::new());
    }
    let mut block = b"NATS/1.0\r\n".to_vec();
    for (name, value) in headers.iter() {
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':') {
            return Err(format!("the header field {name:?} has a name that NATS does not allow"));
        }
        if value.contains(['\r', '\n']) {
            return Err(format!("the header field {name:?} has a line end in its value"));
        }
        block.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    block.extend_from_slice(b"\r\n");
    Ok(block)
}

#[cfg(test)]
mod tests;
