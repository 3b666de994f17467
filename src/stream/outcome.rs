//! The lines of the log that say why a request was refused and why a stream ended, each by its one code.
//!
//! Each is a line at `debug`. Of each code, one in ten seconds is a line at `info`, with the number of those before it that
//! were not: whoever looks into the log as it is by default finds every reason, and neither a crowd that is turned away
//! nor the end of ten thousand streams is ten thousand lines. That a reader left is `debug` alone, as it is what readers do.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use tracing::Level;

use crate::log::Lag;
use crate::metrics::throttle::Throttle;
use crate::protocol::codes::{CloseCode, Code};
use crate::protocol::topic::Filter;

/// Topics that a line names; of a stream with more it says how many more.
const NAMED_TOPICS: usize = 8;

/// Bytes of what a client sent that a line repeats.
const QUOTED: usize = 200;

/// A stream that has ended.
#[derive(Debug)]
pub struct StreamEnded {
    /// Its id.
    pub stream: u64,
    /// Where its reader came from.
    pub address: IpAddr,
    /// What it carried.
    pub topics: String,
    /// How long it was open.
    pub age: Duration,
    /// Bytes handed to its connection.
    pub sent: u64,
    /// What it had not read.
    pub lag: Lag,
}

/// A request that was refused, or told to come back.
#[derive(Debug)]
pub struct RequestRefused<'a> {
    /// Where it came from.
    pub address: IpAddr,
    /// Its method.
    pub method: &'a str,
    /// Its path, without the query, which may hold a token.
    pub path: &'a str,
    /// The topics of its query.
    pub topics: String,
    /// What its sender was told.
    pub detail: &'a str,
}

/// See the module.
#[derive(Debug)]
pub struct OutcomeLog(HashMap<Code, Throttle>);

impl Default for OutcomeLog {
    fn default() -> Self {
        let told = Code::all().filter(|code| *code != Code::Closed(CloseCode::Gone));
        OutcomeLog(told.map(|code| (code, Throttle::default())).collect())
    }
}

impl OutcomeLog {
    /// A stream has ended. `ended` is asked only if there is a line to write.
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

    /// A request was refused, or told to come back. `refused` is asked only if there is a line to write.
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

    /// Of how many others of its code a line at `info` speaks, if it is time for one.
    fn others(&self, code: Code) -> Option<u64> {
        self.0.get(&code).and_then(Throttle::turn)
    }
}

/// Topics and patterns as a line names them.
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

/// As much of it as a line repeats.
pub fn quoted(text: &str) -> &str {
    let end = (0..=QUOTED.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or_default()]
}
