//! One subscriber's stream: its cursors, its heartbeat, its end. It hands out bytes when it is asked to and knows
//! neither sockets nor HTTP nor brokers; what it holds for its subscriber is a few words and no message.

pub mod outcome;
pub mod table;

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use self::outcome::{OutcomeLog, StreamEnded};
use self::table::Ticket;
use crate::log::message::Format;
use crate::log::{Cursors, Lease, Opened, Read, Registry};
use crate::metrics::Metrics;
use crate::protocol::codes::CloseCode;
use crate::protocol::frame::{self, Coding, Frame};
use crate::protocol::seek::{SeekResult, Start};
use crate::reader::quota::Seat;

/// How long what is being fetched is waited for before it is asked for again, in milliseconds.
const FETCH_AGAIN: u64 = 1_000;

/// Browsers that are told less reconnect in a loop that harms both sides.
const MIN_RETRY_MS: u64 = 500;

/// What all streams have in common.
#[derive(Debug)]
pub struct StreamContext {
    /// The logs.
    pub registry: Arc<Registry>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Silence after which a comment is sent.
    pub heartbeat: Duration,
    /// Middle of the reconnection delay that clients are told.
    pub retry: Duration,
    /// Age at which a stream is asked to reconnect, within 10 %.
    pub max_age: Option<Duration>,
    /// How long a reader may take nothing.
    pub write_timeout: Duration,
    /// Writes the line that says why a stream ended.
    pub why: Arc<OutcomeLog>,
}

impl StreamContext {
    /// A reconnection delay in milliseconds, different for each stream: told the same, all would come back at once.
    pub fn jittered_retry(&self) -> u64 {
        let middle = self.retry.as_millis() as u64;
        fastrand::u64(middle / 2..=middle + middle / 2).max(MIN_RETRY_MS)
    }
}

/// How a stream is to be.
#[derive(Debug, Clone, Copy)]
pub struct StreamOptions {
    /// How messages are written.
    pub format: Format,
    /// From then on nothing more is delivered.
    pub expires: Option<SystemTime>,
}

/// See the module.
#[derive(Debug)]
pub struct Stream {
    shared: Arc<StreamContext>,
    ticket: Ticket,
    /// Boxed: only those who have something to catch up with look at it.
    seat: Box<Seat>,
    cursors: Cursors,
    format: Format,
    /// `stream-open` and the gaps before the first message, until they are handed out. Boxed: it is a
    /// word for most of a stream's life.
    opening: Option<Box<Frame>>,
    /// When a heartbeat is due, in milliseconds of the table's clock.
    heartbeat_due: u64,
    /// When the stream has lived long enough.
    aged: u64,
    /// When what its reader may ends; `u64::MAX` if it does not.
    expires: u64,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Live,
    /// Ordered to close: first what was published before the order, up to the mark of the cursors.
    Closing(CloseCode),
    StreamEnded(CloseCode),
}

impl Stream {
    /// A stream over `leases`, whose subscriptions are confirmed; `located` answers what [`crate::log::seeks_needed`] had to ask
    /// of the broker.
    pub fn open(
        shared: Arc<StreamContext>,
        ticket: Ticket,
        seat: Seat,
        leases: Vec<Lease>,
        (start, located): (&Start, &[Option<SeekResult>]),
        terms: StreamOptions,
    ) -> Self {
        let StreamOptions { format, expires } = terms;
        let Opened { cursors, id, resumed, gaps } = Cursors::open(leases, ticket.handle(), start, located);
        if matches!(start, Start::After(_)) {
            shared.metrics.resumed(resumed);
        }
        // The id says "complete from here on", which holds only once every gap is told: so the last of them carries it.
        // A client that is cut off before that comes back with the cursor it had, and is told again.
        let topics: Vec<&str> = cursors.filters().map(|filter| filter.as_str()).collect();
        let open_id = gaps.is_empty().then_some(id.as_str());
        let mut frames = vec![frame::stream_open(open_id, shared.jittered_retry(), &topics, resumed)];
        for (index, (filter, reason)) in gaps.iter().enumerate() {
            let id = (index + 1 == gaps.len()).then_some(id.as_str());
            frames.push(frame::stream_gap(id, filter.as_str(), *reason));
            shared.metrics.gaps(*reason, 1);
        }
        shared.metrics.stream_opened(ticket.handle().reader.http);
        ticket.handle().advance(0, cursors.position());
        let now = ticket.clock().now();
        let expires = expires.map_or(u64::MAX, |time| {
            let left = time.duration_since(SystemTime::now()).unwrap_or_default();
            now.saturating_add(u64::try_from(left.as_millis()).unwrap_or(u64::MAX))
        });
        let aged = shared.max_age.map_or(u64::MAX, |age| {
            let age = age.as_millis() as u64;
            now + fastrand::u64(age - age / 10..=age + age / 10)
        });
        Stream {
            opening: Some(Box::new(Frame::concat(&frames))),
            heartbeat_due: now,
            aged,
            expires,
            shared,
            ticket,
            seat: Box::new(seat),
            cursors,
            format,
            phase: Phase::Live,
        }
    }

    /// The next bytes: whole events, or a heartbeat. `None` once the stream has ended.
    pub fn poll_next(&mut self, cx: &mut Context<'_>, coding: Coding) -> Poll<Option<Bytes>> {
        self.ticket.handle().register(cx.waker());
        // Before anything is read, each time: a long replay goes on for as long as its reader takes. The clock is asked only
        // for those who have an end.
        if self.expires != u64::MAX
            && !matches!(self.phase, Phase::StreamEnded(_))
            && self.now() >= self.expires
        {
            return Poll::Ready(Some(self.say_goodbye(CloseCode::Expired, coding)));
        }
        if self.ticket.handle().is_revoked() && !matches!(self.phase, Phase::StreamEnded(_)) {
            return Poll::Ready(Some(self.say_goodbye(CloseCode::Revoked, coding)));
        }
        // Before it is read too: who never catches up grows old as well.
        if self.aged != u64::MAX && self.phase == Phase::Live && self.now() >= self.aged {
            self.ticket.handle().close(CloseCode::MaxAge);
        }
        if let Some(opening) = self.opening.take() {
            return Poll::Ready(Some(self.hand_out(opening.bytes(coding))));
        }
        if self.phase == Phase::Live
            && let Some(code) = self.ticket.handle().closing()
        {
            self.phase = Phase::Closing(code);
            self.cursors.mark();
        }
        match self.phase {
            Phase::Live => {}
            Phase::Closing(code) if self.cursors.has_reached_mark() => {
                return Poll::Ready(Some(self.say_goodbye(code, coding)));
            }
            Phase::Closing(_) => {}
            Phase::StreamEnded(_) => return Poll::Ready(None),
        }
        // While it waits for its turn it holds nothing but its place, and entries do not wake it.
        let turn = self.turn();
        let mut again = turn;
        if turn.is_none() {
            self.ticket.handle().await_entries();
            match self.cursors.read(self.format, coding, self.ticket.handle()) {
                Read::Batch(batch) => {
                    self.shared.metrics.events_sent.inc_by(batch.entries as u64);
                    batch.gaps.iter().for_each(|reason| self.shared.metrics.gaps(*reason, 1));
                    if self.cursors.replaying {
                        self.seat.replayed(batch.bytes.len());
                        self.shared.metrics.bytes_replayed.inc_by(batch.bytes.len() as u64);
                    } else if let Some(oldest) = batch.oldest {
                        self.shared.metrics.delivered(oldest);
                    }
                    return Poll::Ready(Some(self.hand_out(batch.bytes)));
                }
                Read::Nothing => self.cursors.end_replay(),
                Read::Fetching => {
                    // What is published now comes behind what it waits for. A crowd that is woken for each message, to wait
                    // on, would starve everyone.
                    if !self.cursors.is_mixed() {
                        self.ticket.handle().ignore_entries();
                    }
                    again = Some(self.now() + FETCH_AGAIN);
                }
            }
        }
        // Whoever is still waiting for its turn, or for the broker, comes back for the rest: it has no id of what it was not
        // sent.
        if let Phase::Closing(code) = self.phase {
            return Poll::Ready(Some(self.say_goodbye(code, coding)));
        }
        if self.ticket.clock().now() >= self.heartbeat_due {
            return Poll::Ready(Some(self.hand_out(frame::heartbeat(coding))));
        }
        if turn.is_some() {
            self.shared.metrics.replay_waits.inc();
        }
        let due = self.heartbeat_due.min(self.aged).min(self.expires);
        self.ticket.handle().wake_at(due.min(again.unwrap_or(u64::MAX)));
        Poll::Pending
    }

    /// Asks to be woken at `due` by the clock alone: for a way out that cannot take bytes now.
    pub fn wake_at(&self, cx: &mut Context<'_>, due: u64) {
        self.ticket.handle().register(cx.waker());
        self.ticket.handle().wake_at(due);
    }

    /// Milliseconds of the clock that [`Stream::wake_at`] means.
    pub fn now(&self) -> u64 {
        self.ticket.clock().now()
    }

    /// How long its reader may take nothing before the way out gives it up.
    pub fn write_timeout(&self) -> Duration {
        self.shared.write_timeout
    }

    /// The reader took nothing for too long; nothing more can be said to it.
    pub fn give_up(&mut self) {
        self.phase = Phase::StreamEnded(CloseCode::Slow);
    }

    /// When it may read on, if that is not now: only what it missed has to wait.
    fn turn(&mut self) -> Option<u64> {
        if self.cursors.is_replaying() { self.seat.replay_due() } else { None }
    }

    fn hand_out(&mut self, bytes: Bytes) -> Bytes {
        self.shared.metrics.bytes_sent.inc_by(bytes.len() as u64);
        self.ticket.handle().advance(bytes.len(), self.cursors.position());
        self.heartbeat_due = self.ticket.clock().now() + self.shared.heartbeat.as_millis() as u64;
        bytes
    }

    fn say_goodbye(&mut self, code: CloseCode, coding: Coding) -> Bytes {
        self.phase = Phase::StreamEnded(code);
        self.opening = None; // nothing follows a goodbye
        // Without an id: the client keeps that of its last event, which is as good here and better elsewhere, since it may
        // end with a publisher's id.
        let goodbye = frame::stream_close(self.shared.jittered_retry(), code.as_str());
        self.hand_out(goodbye.bytes(coding))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let code = match self.phase {
            Phase::StreamEnded(code) => code,
            Phase::Live | Phase::Closing(_) => CloseCode::Gone,
        };
        let handle = self.ticket.handle();
        self.shared.metrics.stream_closed(handle.reader.http, code);
        self.shared.why.ended(code, || StreamEnded {
            stream: handle.id,
            address: handle.reader.address,
            topics: outcome::named(self.cursors.filters()),
            age: Duration::from_millis(self.now().saturating_sub(handle.opened)),
            sent: handle.sent(),
            lag: self.cursors.lag(),
        });
    }
}
