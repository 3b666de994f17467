//! An event stream as a client reads it: a response body, and the parsed items that have not been taken yet.

use std::collections::VecDeque;
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use super::events::{Item, Parser};

/// The stream of one response.
#[derive(Debug)]
pub(crate) struct EventStream {
    body: Incoming,
    parser: Parser,
    ready: VecDeque<Item>,
}

impl EventStream {
    /// The stream of a request that resumed after the event `id`, which is empty for a live start.
    pub(crate) fn new(body: Incoming, id: &str) -> Self {
        EventStream { body, parser: Parser::after(id), ready: VecDeque::new() }
    }

    /// The next item; `None` if the stream has ended properly. Cancel-safe.
    ///
    /// # Errors
    /// The connection broke, or the bytes are not an event stream; the reason in one line.
    pub(crate) async fn next(&mut self) -> Result<Option<Item>, String> {
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Ok(Some(item));
            }
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            let frame = frame.map_err(|error| match std::error::Error::source(&error) {
                Some(source) => format!("{error}: {source}"),
                None => error.to_string(),
            })?;
            if let Some(bytes) = frame.data_ref() {
                self.parser.push(bytes, &mut self.ready).map_err(|error| error.to_string())?;
            }
        }
    }

    /// The reconnection delay, if the stream has sent one.
    pub(crate) fn retry(&self) -> Option<Duration> {
        self.parser.retry()
    }
}
