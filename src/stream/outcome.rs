//! The log lines about refused requests and ended streams, each with its code.
//!
//! Each is a line at `debug`. At `info` there is at most one line per code in ten seconds, with the number of lines
//! left out since the last one. So the default log shows every reason, but a crowd that is refused, or ten thousand
//! streams that end, do not write ten thousand lines. A reader that left and a read that was answered are logged only
//! at `debug`, because that is normal.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use tracing::Level;

use crate::log::Lag;
use crate::metrics::throttle::Throttle;
use crate::protocol::codes::{CloseCode, Code};
use crate::protocol::topic::Filter;

/// Topics that a line names; for more topics it says how many more.
const NAMED_TOPICS: usize = 8;

/// The most bytes of a client's text that a line repeats.
const QUOTED: usize = 200;

/// What a line says about an ended stream.
#[derive(Debug)]
pub struct StreamEnded {
    /// The id of the stream.
    pub stream: u64,
    /// The address of its reader.
    pub address: IpAddr,
    /// Its topics.
    pub topics: String,
    /// How long it was open.
    pub age: Duration,
    /// Bytes handed to its connection.
    pub sent: u64,
    /// The messages that it had not read.
    pub lag: Lag,
}

/// What a line says about a refused request.
#[derive(Debug)]
pub struct RequestRefused<'a> {
    /// The client's address.
    pub address: IpAddr,
    /// Its method.
    pub method: &'a str,
    /// Its path, without the query, which may hold a token.
    pub path: &'a str,
    /// The topics of its query.
    pub topics: String,
    /// The detail that the client received.
    pub detail: &'a str,
}

/// Writes these lines, at most one per code in ten seconds at `info`.
#[derive(Debug)]
pub struct OutcomeLog(HashMap<Code, Throttle>);

impl Default for OutcomeLog {
    fn default() -> Self {
        let is_normal = |code: &Code| matches!(code, Code::Closed(CloseCode::Gone | CloseCode::Answered));
        let logged = Code::all().filter(|code| !is_normal(code));
        OutcomeLog(logged.map(|code| (code, Throttle::default())).collect())
    }
}

impl OutcomeLog {
    /// Logs the end of a stream. `ended` is called only if a line is written.
    pub fn ended(&self, code: CloseCode, ended: impl FnOnce() -> StreamEnded) {
        let others = self.others(code.into());
        if others.is_none() && !tracing::enabled!(Level::DEBUG) {
            return;
        }
        let StreamEnded { stream, address, topics, age, sent, lag } = ended();
        let (code, age_ms, lag_ms) = (code.as_str(), age.as_millis() as u64, lag.time.as_millis() as u64);
        let (lag_messages, sent_bytes) = (lag.messages, sent);
        match others {
            Some(others) => tracing::info!(
                code, stream, %address, topics, age_ms, sent_bytes, lag_messages, lag_ms, others, "a stream has ended"
            ),
            None => tracing::debug!(
                code, stream, %address, topics, age_ms, sent_bytes, lag_messages, lag_ms, "a stream has ended"
            ),
        }
    }

    /// Logs a refused request. `refused` is called only if a line is written.
    pub fn refused<'a>(&self, code: Code, refused: impl FnOnce() -> RequestRefused<'a>) {
        let others = self.others(code);
        if others.is_none() && !tracing::enabled!(Level::DEBUG) {
            return;
        }
        let RequestRefused { address, method, path, topics, detail } = refused();
        let (code, path, detail) = (code.as_str(), quoted(path), quoted(detail));
        match others {
            Some(others) => {
                tracing::info!(code, %address, method, path, topics, detail, others, "a request was refused");
            }
            None => tracing::debug!(code, %address, method, path, topics, detail, "a request was refused"),
        }
    }

    /// Whether a line at `info` is due, and how many lines of its code were left out before it.
    fn others(&self, code: Code) -> Option<u64> {
        self.0.get(&code).and_then(Throttle::turn)
    }
}

/// Topics and patterns, as a line names them.
pub fn named<'a>(mut topics: impl Iterator<Item = &'a Filter>) -> String {
    let mut named: Vec<&str> = topics.by_ref().take(NAMED_TOPICS).map(Filter::as_str).collect();
    let more = match topics.count() {
        0 => String::new(),
        more => format!("and {more} more"),
    };
    if !more.is_empty() {
        named.push(&more);
    }
    named.join(" ")
}

/// The part of `text` that a line repeats.
pub fn quoted(text: &str) -> &str {
    let end = (0..=QUOTED.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or_default()]
}
