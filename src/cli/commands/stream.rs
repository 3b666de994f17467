//! A stream that is being read: the body of an answer, and what was taken out of it and not yet asked for.

use std::collections::VecDeque;
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use super::events::{Item, Parser};

/// See the module.
#[derive(Debug)]
pub(crate) struct EventStream {
    body: Incoming,
    parser: Parser,
    ready: VecDeque<Item>,
}

impl EventStream {
    /// Of an answer to a request for what follows the event `id`; empty: for no more than what is to come.
    pub(crate) fn new(body: Incoming, id: &str) -> Self {
        EventStream { body, parser: Parser::after(id), ready: VecDeque::new() }
    }

    /// The next item; `None` at the end, if the stream came to one. May be dropped before it is ready, without loss.
    ///
    /// # Errors
    /// The connection broke, or what came cannot be an event stream; why, in one line.
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

    /// How long to wait before coming back, if the stream has said so.
    pub(crate) fn retry(&self) -> Option<Duration> {
        self.parser.retry()
    }
}
