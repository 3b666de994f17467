//! One reader's stream: its cursors, its heartbeat, its end. It produces bytes when polled, and knows no sockets, no
//! HTTP and no brokers. Its state is a few machine words and no message.

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
use crate::metrics::{Limit, Metrics, ResumeOutcome};
use crate::protocol::codes::CloseCode;
use crate::protocol::frame::{self, Coding, Frame};
use crate::protocol::seek::{SeekResult, Start};
use crate::reader::quota::Seat;

/// How long a stream waits for a backfill before it requests it again, in milliseconds.
const FETCH_AGAIN: u64 = 1_000;

/// The shortest reconnection delay: with less, browsers reconnect in a loop that harms both sides.
const MIN_RETRY_MS: u64 = 500;

/// The settings and services that all streams share.
#[derive(Debug)]
pub struct StreamContext {
    /// The logs.
    pub registry: Arc<Registry>,
    /// The metrics of the gateway.
    pub metrics: Arc<Metrics>,
    /// The silence after which a heartbeat is sent.
    pub heartbeat: Duration,
    /// The mean reconnection delay that clients receive.
    pub retry: Duration,
    /// The age at which a stream ends so that its reader reconnects, within 10 %.
    pub max_age: Option<Duration>,
    /// How long a reader may take no bytes.
    pub write_timeout: Duration,
    /// Writes the log lines about ended streams.
    pub why: Arc<OutcomeLog>,
}

impl StreamContext {
    /// A reconnection delay in milliseconds, different for each stream: with the same delay, all would reconnect at
    /// once.
    pub fn jittered_retry(&self) -> u64 {
        let middle = self.retry.as_millis() as u64;
        fastrand::u64(middle / 2..=middle + middle / 2).max(MIN_RETRY_MS)
    }
}

/// The options of one stream.
#[derive(Debug, Clone, Copy)]
pub struct StreamOptions {
    /// The format of its messages.
    pub format: Format,
    /// When the reader's permission expires: nothing is delivered from then on.
    pub expires: Option<SystemTime>,
}

/// A stream that is open.
#[derive(Debug)]
pub struct Stream {
    shared: Arc<StreamContext>,
    ticket: Ticket,
    /// Boxed, because only a stream that replays uses it.
    seat: Box<Seat>,
    cursors: Cursors,
    format: Format,
    /// `stream-open` and the gaps before the first message, until they are sent. Boxed, because it is empty for most of
    /// a stream's life.
    opening: Option<Box<Frame>>,
    /// When the next heartbeat is due, in milliseconds of the table's clock.
    heartbeat_due: u64,
    /// When the stream reaches its maximum age.
    aged: u64,
    /// When the reader's permission expires; `u64::MAX` if it does not.
    expires: u64,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Live,
    /// Closing: messages published before the order are still sent, up to the mark of the cursors.
    Closing(CloseCode),
    StreamEnded(CloseCode),
}

impl Stream {
    /// Opens a stream over `leases`, whose subscriptions are confirmed. `located` has the broker's answers to
    /// [`crate::log::seeks_needed`].
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
            let outcome = if resumed { ResumeOutcome::Exact } else { ResumeOutcome::Gap };
            shared.metrics.resumes.inc(outcome);
        }
        // The id says "complete from here on", which is true only after every gap has been sent, so the last gap
        // carries it. A client that is cut off before that resumes with its old cursor and receives the gaps again.
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

    /// Returns the next bytes: whole events, or a heartbeat. `None` once the stream has ended.
    pub fn poll_next(&mut self, cx: &mut Context<'_>, coding: Coding) -> Poll<Option<Bytes>> {
        self.ticket.handle().register(cx.waker());
        // Checked before every read, because a long replay goes on for as long as the reader takes. The clock is read
        // only if the permission expires.
        if self.expires != u64::MAX
            && !matches!(self.phase, Phase::StreamEnded(_))
            && self.now() >= self.expires
        {
            return Poll::Ready(Some(self.say_goodbye(CloseCode::Expired, coding)));
        }
        if self.ticket.handle().is_revoked() && !matches!(self.phase, Phase::StreamEnded(_)) {
            return Poll::Ready(Some(self.say_goodbye(CloseCode::Revoked, coding)));
        }
        // Checked before reading too: a stream that never catches up also ages.
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
        // While it waits for its pace, it holds only its position, and entries do not wake it.
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
                        self.shared.metrics.replayed_bytes.inc_by(batch.bytes.len() as u64);
                    } else if let Some(oldest) = batch.oldest {
                        self.shared.metrics.delivered(oldest);
                    }
                    return Poll::Ready(Some(self.hand_out(batch.bytes)));
                }
                Read::Nothing => self.cursors.end_replay(),
                Read::Fetching => {
                    // New messages come after those it waits for. Waking a crowd for each message, only to wait again,
                    // would starve everyone.
                    if !self.cursors.is_mixed() {
                        self.ticket.handle().ignore_entries();
                    }
                    again = Some(self.now() + FETCH_AGAIN);
                }
            }
        }
        // A stream that still waits for its pace or for the broker ends here; its reader resumes for the rest, because
        // it has no id of what it was not sent.
        if let Phase::Closing(code) = self.phase {
            return Poll::Ready(Some(self.say_goodbye(code, coding)));
        }
        if self.ticket.clock().now() >= self.heartbeat_due {
            return Poll::Ready(Some(self.hand_out(frame::heartbeat(coding))));
        }
        if turn.is_some() {
            self.shared.metrics.hit(Limit::ResumeBytes);
        }
        let due = self.heartbeat_due.min(self.aged).min(self.expires);
        self.ticket.handle().wake_at(due.min(again.unwrap_or(u64::MAX)));
        Poll::Pending
    }

    /// Asks to be woken at `due` by the clock only: for a connection that cannot take bytes now.
    pub fn wake_at(&self, cx: &mut Context<'_>, due: u64) {
        self.ticket.handle().register(cx.waker());
        self.ticket.handle().wake_at(due);
    }

    /// The current time in milliseconds, on the clock of [`Stream::wake_at`].
    pub fn now(&self) -> u64 {
        self.ticket.clock().now()
    }

    /// How long its reader may take no bytes before the connection ends the stream.
    pub fn write_timeout(&self) -> Duration {
        self.shared.write_timeout
    }

    /// Ends the stream because the reader took no bytes for too long. Nothing more can be sent.
    pub fn give_up(&mut self) {
        self.phase = Phase::StreamEnded(CloseCode::Slow);
    }

    /// When it may read on, if not now. Only replay is paced.
    fn turn(&mut self) -> Option<u64> {
        if self.cursors.is_replaying() { self.seat.replay_due() } else { None }
    }

    fn hand_out(&mut self, bytes: Bytes) -> Bytes {
        self.shared.metrics.sent_bytes.inc_by(bytes.len() as u64);
        self.ticket.handle().advance(bytes.len(), self.cursors.position());
        self.heartbeat_due = self.ticket.clock().now() + self.shared.heartbeat.as_millis() as u64;
        bytes
    }

    fn say_goodbye(&mut self, code: CloseCode, coding: Coding) -> Bytes {
        self.phase = Phase::StreamEnded(code);
        self.opening = None; // nothing follows `stream-close`
        // Without an id: the client keeps the id of its last event. That is as good here, and better on another
        // replica, because it may end with a publisher id.
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
