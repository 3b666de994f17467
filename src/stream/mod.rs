//! One reader's stream: its cursors, its heartbeat, its end. It produces bytes when polled, and knows no sockets, no
//! HTTP and no brokers. Its state is a few machine words and no message.

mod answer;
mod body;
mod context;
pub mod outcome;
pub mod table;

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;

pub use self::answer::{Answer, LONGEST_WAIT, MOST_MESSAGES};
pub use self::context::{StreamContext, StreamOptions};
use self::outcome::StreamEnded;
use self::table::Ticket;
use crate::log::message::Format;
use crate::log::{Batch, Cursors, FeedNews, Lease, Opened, Read};
use crate::metrics::{Limit, ResumeOutcome};
use crate::protocol::codes::{CloseCode, GapReason};
use crate::protocol::comments;
use crate::protocol::event_id::EventId;
use crate::protocol::frame::{self, Coding, Frame};
use crate::protocol::gzip::{Content, Total};
use crate::protocol::seek::Start;
use crate::protocol::topic::Filter;
use crate::reader::clock::Millis;
use crate::reader::handle::ReaderHandle;
use crate::reader::quota::Seat;

/// How long a stream waits for a backfill before it requests it again.
const FETCH_AGAIN: Duration = Duration::from_secs(1);

/// How many batches are read at once while the reader's view leaves out all of their messages.
const EMPTY_BATCHES: usize = 16;

/// A stream that is open.
#[derive(Debug)]
pub struct Stream {
    shared: Arc<StreamContext>,
    ticket: Ticket,
    /// Boxed, because only a stream that replays uses it.
    seat: Box<Seat>,
    cursors: Cursors,
    format: Format,
    /// In a gzip body: the checksum of everything that was sent.
    total: Total,
    /// The events before the first message, until they are sent. Boxed, because it is empty for most of a stream's life.
    opening: Option<Box<Opening>>,
    /// When the next heartbeat is due.
    heartbeat_due: Millis,
    /// When the stream reaches its maximum age.
    aged: Option<Millis>,
    /// When the reader's permission expires.
    expires: Option<Millis>,
    /// The value of [`crate::log::Registry::feed_changes`] that its reader has received.
    feed_changes: u32,
    /// Whether the gateway's own events are comments.
    without_control: bool,
    phase: Phase,
}

/// How a stream begins.
#[derive(Debug)]
struct Opening {
    /// The event id from which it is complete, once the gaps have been sent.
    id: EventId,
    /// Whether it continues exactly where the client asked.
    resumed: bool,
    /// The gaps before the first message.
    gaps: Vec<(Filter, GapReason)>,
}

impl Opening {
    /// `stream-open` and the gaps. The id says "complete from here on", which is true only after every gap has been
    /// sent, so the last gap carries it. A client that is cut off before that resumes with its old cursor and receives
    /// the gaps again.
    fn frame(&self, retry: u64, topics: &[&str]) -> Frame {
        let Opening { id, resumed, gaps } = self;
        let open_id = gaps.is_empty().then_some(id);
        let mut frames = vec![frame::stream_open(open_id, retry, topics, *resumed)];
        for (index, (filter, reason)) in gaps.iter().enumerate() {
            let id = (index + 1 == gaps.len()).then_some(id);
            frames.push(frame::stream_gap(id, filter.as_str(), *reason));
        }
        Frame::concat(&frames)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Live,
    /// Closing: messages published before the order are still sent, up to the end of the cursors.
    Closing(CloseCode),
    StreamEnded(CloseCode),
}

impl Stream {
    /// Opens a stream over `leases`, whose subscriptions are confirmed. `None`: all its topics have ended, and the client
    /// has received their ends.
    pub fn open(
        shared: Arc<StreamContext>,
        ticket: Ticket,
        seat: Seat,
        leases: Vec<Lease>,
        options: StreamOptions<'_>,
    ) -> Option<Self> {
        let StreamOptions {
            start,
            located,
            format,
            content,
            expires,
            until_end,
            may_have_ended,
            without_control,
        } = options;
        let Opened { mut cursors, id, resumed, ended, gaps } =
            Cursors::open(leases, ticket.handle(), start, located);
        if ended && !may_have_ended {
            cursors.ignore_reached_ends();
        }
        let ended = ended && may_have_ended;
        cursors.ends = until_end;
        if content == Content::Gzip {
            cursors.set_gzip();
        }
        if let Some(every) = ticket.handle().every() {
            cursors.pace(every, ticket.clock());
        }
        if matches!(start, Start::After(_)) {
            shared.metrics.resumes.inc(match (ended, resumed) {
                (true, _) => ResumeOutcome::Ended,
                (false, true) => ResumeOutcome::Exact,
                (false, false) => ResumeOutcome::Gap,
            });
        }
        if ended {
            return None;
        }
        gaps.iter().for_each(|(_, reason)| shared.metrics.gaps(*reason, 1));
        shared.metrics.stream_opened(ticket.handle().reader.http);
        ticket.handle().advance(0, cursors.position());
        let now = ticket.clock().now();
        let left = |time: SystemTime| time.duration_since(SystemTime::now()).unwrap_or_default();
        let expires = expires.map(|time| now.after(left(time)));
        let aged = shared.max_age.map(|age| now.after(age.mul_f64(fastrand::f64() * 0.2 + 0.9)));
        Some(Stream {
            opening: Some(Box::new(Opening { id, resumed, gaps })),
            heartbeat_due: now,
            aged,
            expires,
            shared,
            ticket,
            seat: Box::new(seat),
            cursors,
            format,
            feed_changes: 0,
            without_control,
            total: Total::default(),
            phase: Phase::Live,
        })
    }

    /// Returns the next bytes: whole events, or a heartbeat. `None` once the stream has ended.
    pub fn poll_next(&mut self, cx: &mut Context<'_>, coding: Coding) -> Poll<Option<Bytes>> {
        self.ticket.handle().register(cx.waker());
        // Checked before every read, because a long replay goes on for as long as the reader takes.
        if let Some(code) = self.right_ended() {
            return Poll::Ready(Some(self.say_goodbye(code, coding)));
        }
        // Checked before reading too: a stream that never catches up also ages.
        if self.phase == Phase::Live && self.is_over(self.aged) {
            self.ticket.handle().close(CloseCode::MaxAge);
        }
        if let Some(opening) = self.opening.take() {
            let topics: Vec<&str> = self.cursors.filters().map(|filter| filter.as_str()).collect();
            let opening = opening.frame(self.shared.jittered_retry(), &topics);
            return Poll::Ready(Some(self.begin(&opening, coding)));
        }
        if self.phase == Phase::Live
            && let Some(code) = self.ticket.handle().closing()
        {
            self.phase = Phase::Closing(code);
            self.cursors.close();
        }
        match self.phase {
            Phase::Live => {}
            Phase::Closing(code) if self.cursors.is_closed() => {
                return Poll::Ready(Some(self.say_goodbye(code, coding)));
            }
            Phase::Closing(_) => {}
            Phase::StreamEnded(_) => return Poll::Ready(None),
        }
        let (changes, news) = self.feed_news();
        if news.has_stale() {
            let stale = frame::stream_stale(&self.cursors.take_stale(&news));
            return Poll::Ready(Some(self.say(&stale, coding)));
        }
        // While it waits for its pace, it holds only its position, and entries do not wake it.
        let turn = self.turn();
        let mut again = turn;
        // A reader with an interval gets at once that a topic is live again, or that all have ended.
        let is_paused = self.is_paused() && !news.has_live() && !self.cursors.have_ended();
        if turn.is_none() && !is_paused {
            match self.read_events(coding) {
                Read::Batch(batch) if batch.bytes.is_empty() => {
                    if !self.is_paused() {
                        // There is more. Other streams have their turn first.
                        self.ticket.handle().wake();
                        return Poll::Pending;
                    }
                }
                Read::Batch(batch) => return Poll::Ready(Some(self.deliver(batch, coding))),
                Read::Nothing => {
                    self.feed_changes = changes;
                    // After the gap.
                    if news.has_live() {
                        let live = frame::stream_live(&self.cursors.take_live(&news));
                        return Poll::Ready(Some(self.say(&live, coding)));
                    }
                    if self.phase == Phase::Live && self.cursors.have_ended() {
                        return Poll::Ready(Some(self.say_goodbye(CloseCode::Ended, coding)));
                    }
                }
                Read::Fetching => again = Some(self.now().after(FETCH_AGAIN)),
            }
        }
        // A stream that still waits for its pace or for the broker ends here; its reader resumes for the rest, because
        // it has no id of what it was not sent.
        if let Phase::Closing(code) = self.phase {
            return Poll::Ready(Some(self.say_goodbye(code, coding)));
        }
        if self.now() >= self.heartbeat_due {
            let heartbeat = match self.cursors.take_unsent_id() {
                Some(id) => self.say(&frame::position(&id), coding),
                None => self.heartbeat(coding),
            };
            return Poll::Ready(Some(heartbeat));
        }
        if turn.is_some() {
            self.shared.metrics.hit(Limit::ResumeBytes);
        }
        let others = [self.aged, self.expires, again, self.cursors.due()].into_iter().flatten();
        self.ticket.handle().wake_at(others.fold(self.heartbeat_due, Millis::min));
        Poll::Pending
    }

    /// Why nothing more may be delivered to the reader, if that is so.
    fn right_ended(&self) -> Option<CloseCode> {
        if matches!(self.phase, Phase::StreamEnded(_)) {
            None
        } else if self.is_over(self.expires) {
            Some(CloseCode::Expired)
        } else {
            self.ticket.handle().is_revoked().then_some(CloseCode::Revoked)
        }
    }

    /// Whether that time has come. The clock is read only if there is one.
    fn is_over(&self, time: Option<Millis>) -> bool {
        time.is_some_and(|time| self.now() >= time)
    }

    /// Whether its reader has an interval and waits for its tick.
    fn is_paused(&self) -> bool {
        self.phase == Phase::Live && self.cursors.is_paused()
    }

    /// Reads the next events. If all of them are left out, it reads on, but not for ever.
    fn read_events(&mut self, coding: Coding) -> Read {
        let format = self.format;
        let mut read = Read::Nothing;
        for _ in 0..EMPTY_BATCHES {
            read = self.read(|cursors, handle| cursors.read(format, coding, handle));
            let Read::Batch(batch) = &read else { break };
            if !batch.bytes.is_empty() {
                break;
            }
            self.count(batch, 0);
            self.ticket.handle().advance(0, self.cursors.position());
            if self.is_paused() {
                break;
            }
        }
        read
    }

    /// Reads the next events of its logs.
    fn read(&mut self, read: impl FnOnce(&mut Cursors, &Arc<ReaderHandle>) -> Read) -> Read {
        let handle = self.ticket.handle();
        handle.await_entries();
        let read = read(&mut self.cursors, handle);
        match &read {
            Read::Batch(_) => {}
            Read::Nothing => self.cursors.end_replay(),
            // New messages come after those that it waits for. Waking a crowd for each message, only to wait again, would
            // starve everyone.
            Read::Fetching if !self.cursors.is_mixed() => handle.ignore_entries(),
            Read::Fetching => {}
        }
        read
    }

    fn deliver(&mut self, batch: Batch, coding: Coding) -> Bytes {
        let bytes = self.encode(batch.bytes.clone(), batch.checksum, coding);
        self.count(&batch, bytes.len());
        self.hand_out(bytes, coding)
    }

    /// Counts what was read, and its bytes against the pace of its replay.
    fn count(&mut self, batch: &Batch, bytes: usize) {
        self.shared.metrics.events_sent.inc_by(batch.entries as u64);
        self.shared.metrics.filtered_messages.inc_by(batch.filtered as u64);
        self.shared.metrics.conflated_messages.inc_by(batch.conflated as u64);
        batch.gaps.iter().for_each(|reason| self.shared.metrics.gaps(*reason, 1));
        if self.cursors.is_replaying() {
            self.seat.replayed(bytes);
            self.shared.metrics.replayed_bytes.inc_by(bytes as u64);
        } else if let Some(oldest) = batch.oldest {
            self.shared.metrics.delivered(oldest);
        }
    }

    /// Asks to be woken at `due` by the clock only: for a connection that cannot take bytes now.
    pub fn wake_at(&self, cx: &mut Context<'_>, due: Millis) {
        self.ticket.handle().register(cx.waker());
        self.ticket.handle().wake_at(due);
    }

    /// The current time, on the clock of [`Stream::wake_at`].
    pub fn now(&self) -> Millis {
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

    /// The changes of its feeds that its reader must receive. Usually nothing has changed, which is one load.
    fn feed_news(&self) -> (u32, FeedNews) {
        let changes = self.shared.registry.feed_changes();
        let is_new = changes != self.feed_changes;
        (changes, if is_new { self.cursors.feed_news() } else { FeedNews::default() })
    }

    /// When it may read on, if not now. Only replay is paced.
    fn turn(&mut self) -> Option<Millis> {
        if self.cursors.goes_on_replaying() { self.seat.replay_due() } else { None }
    }

    fn hand_out(&mut self, bytes: Bytes, coding: Coding) -> Bytes {
        let quiet = if self.without_control { comments::without_control(&bytes, coding) } else { None };
        let bytes = quiet.unwrap_or(bytes);
        self.shared.metrics.sent_bytes.inc_by(bytes.len() as u64);
        self.ticket.handle().advance(bytes.len(), self.cursors.position());
        self.heartbeat_due = self.now().after(self.shared.heartbeat);
        bytes
    }

    fn say_goodbye(&mut self, code: CloseCode, coding: Coding) -> Bytes {
        self.phase = Phase::StreamEnded(code);
        let begun = self.opening.take().is_none(); // nothing follows `stream-close`
        // Without an id: the client keeps the id of its last event. That is as good here, and better on another
        // replica, because it may end with a publisher id.
        let goodbye = frame::stream_close(self.shared.jittered_retry(), code);
        self.end(goodbye, begun, coding)
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
            age: self.now().since(handle.opened),
            sent: handle.sent(),
            lag: self.cursors.lag(),
        });
    }
}
