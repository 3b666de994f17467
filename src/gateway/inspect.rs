//! The gateway as operators see it: lists topics and streams with their state, and ends streams. It serves the admin
//! listener, so the access rules do not apply here.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::Gateway;
use super::samples::{History, Sample, unix_ms};
use crate::ingest::status::Upstream;
use crate::log::message::Format;
use crate::log::{LogState, ReaderProgress};
use crate::metrics::Limit;
use crate::protocol::codes::{CloseCode, HttpVersion};
use crate::protocol::gzip::Content;
use crate::protocol::seek::Start;
use crate::protocol::topic::Filter;
use crate::reader::handle::ReaderHandle;
use crate::reader::{Principal, Reader};
use crate::stream::{Stream, StreamOptions};

/// Console streams that follow the gateway's state, and as many that show messages.
pub const CONSOLE_STREAMS: usize = 64;

/// A selection of streams: those that match every field that is set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The stream with this id.
    pub id: Option<u64>,
    /// One of its topics or patterns overlaps with this one.
    pub topic: Option<Filter>,
    /// Its client's address is in this network.
    pub address: Option<IpNet>,
    /// Its caller has this subject.
    pub subject: Option<String>,
}

/// The state of a stream.
#[derive(Debug, Clone)]
pub struct StreamState {
    /// Its id, as in the log.
    pub id: u64,
    /// The client that reads it.
    pub reader: Reader,
    /// How long it has been open.
    pub age: Duration,
    /// Bytes handed to its connection.
    pub sent: u64,
    /// Its topics, and the messages that it has not read yet.
    pub reading: ReaderProgress,
    /// The code with which it is about to end, if it is.
    pub closing: Option<CloseCode>,
}

impl Gateway {
    /// The states of up to `limit` topics whose names begin with `prefix`, after the topic `after`.
    pub fn topics(&self, prefix: &str, after: &str, limit: usize) -> Vec<LogState> {
        self.registry.log_states(prefix, after, limit)
    }

    /// The states of the first `limit` selected streams with an id greater than `after`, and whether there are more.
    pub fn streams(&self, wanted: &Wanted, after: u64, limit: usize) -> (Vec<StreamState>, bool) {
        let (found, more) = self.find(wanted, limit, |handle| handle.id > after);
        let mut reader_progress = self.registry.reader_progress(&found);
        let now = self.table.clock().now();
        let state = |handle: &Arc<ReaderHandle>| StreamState {
            id: handle.id,
            reader: handle.reader.clone(),
            age: now.since(handle.opened),
            sent: handle.sent(),
            reading: reader_progress.remove(&handle.id).unwrap_or_default(),
            closing: handle.closing(),
        };
        (found.iter().map(state).collect(), more)
    }

    /// How many streams read topics of `filter`.
    pub fn readers(&self, filter: &Filter) -> usize {
        self.registry.readers_of(filter).len()
    }

    /// Ends up to `limit` of the selected streams with `stream-close`, after which their readers reconnect. Returns how
    /// many it ended, and whether there are more.
    pub fn end(&self, wanted: &Wanted, limit: usize) -> (usize, bool) {
        let (found, more) = self.find(wanted, limit, |handle| handle.closing().is_none());
        found.iter().for_each(|handle| handle.close(CloseCode::Closed));
        (found.len(), more)
    }

    /// A stream for the console: the last messages of a topic or pattern that is held, and then the new ones. `None` if
    /// the topic is not held: the console subscribes to nothing and fetches nothing from the broker.
    ///
    /// # Errors
    /// The code of the temporary refusal.
    pub fn watch(
        &self,
        filter: &Filter,
        last: usize,
        address: IpAddr,
        http: HttpVersion,
    ) -> Result<Option<Stream>, CloseCode> {
        if self.is_draining() {
            return Err(CloseCode::Draining);
        }
        let Some(lease) = self.registry.hold(filter) else { return Ok(None) };
        let onlookers = self.table.find(|handle| matches!(handle.reader.principal, Principal::Operator));
        if onlookers.len() >= CONSOLE_STREAMS {
            self.metrics().hit(Limit::ConsoleStreams);
            return Err(CloseCode::Overloaded);
        }
        let reader = Reader { address, principal: Principal::Operator, http, view: None };
        let ticket = self.table.enter(reader).ok_or(CloseCode::Overloaded)?;
        let seat = self.clients.enter(ticket.handle().clone(), 1)?;
        let (start, format) = (&Start::Last(last), Format::CloudEvents);
        let options = StreamOptions {
            start,
            located: &[],
            format,
            content: Content::Identity,
            expires: None,
            until_end: false,
            may_have_ended: true,
            without_control: false,
        };
        let context = self.current().streams.clone();
        Ok(Stream::open(context, ticket, seat, vec![lease], options))
    }

    /// The state of the broker, with the reason if all or part of it is down.
    pub fn upstream(&self) -> Upstream {
        self.upstream.borrow().all().clone()
    }

    /// A sample of the current state.
    pub fn sample(&self) -> Sample {
        let metrics = self.metrics();
        let expected = [CloseCode::Gone, CloseCode::Answered, CloseCode::Ended].map(CloseCode::as_str);
        let turned_away = metrics.streams_closed.counts().filter(|(code, _)| !expected.contains(code));
        Sample {
            time: unix_ms(),
            streams: self.table.len(),
            received: metrics.messages_received.get(),
            sent: metrics.events_sent.get(),
            sent_bytes: metrics.sent_bytes.get(),
            gaps: metrics.gaps.counts().map(|(_, count)| count).sum(),
            refused: metrics.requests_refused().chain(turned_away).map(|(_, count)| count).sum(),
        }
    }

    /// The samples of the last minutes.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Up to `limit` of the selected streams for which `also` is true, in the order of their ids, and whether there are
    /// more.
    fn find(
        &self,
        wanted: &Wanted,
        limit: usize,
        also: impl Fn(&ReaderHandle) -> bool,
    ) -> (Vec<Arc<ReaderHandle>>, bool) {
        let of_topic = wanted.topic.as_ref().map(|topic| self.registry.readers_of(topic));
        let mut found = self.table.find(|handle| {
            also(handle)
                && wanted.id.is_none_or(|id| id == handle.id)
                && wanted.address.is_none_or(|network| network.contains(&handle.reader.address))
                && wanted
                    .subject
                    .as_deref()
                    .is_none_or(|it| handle.reader.subject().map(|subject| &**subject) == Some(it))
                && of_topic.as_ref().is_none_or(|ids| ids.binary_search(&handle.id).is_ok())
        });
        let more = found.len() > limit;
        if more {
            found.select_nth_unstable_by_key(limit, |handle| handle.id);
            found.truncate(limit);
        }
        found.sort_unstable_by_key(|handle| handle.id);
        (found, more)
    }
}
