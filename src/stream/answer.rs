//! One answer instead of a stream: the messages and gaps that a stream would send now, and the cursor that continues
//! after them. It reads the same cursors under the same rules: pace, permission, drain. It can wait until there is
//! something to answer. It knows no HTTP.

use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;

use super::{FETCH_AGAIN, Opening, Phase, Stream};
use crate::log::{Read, Rows};
use crate::protocol::codes::{CloseCode, GapReason};
use crate::protocol::event_id::EventId;
use crate::protocol::topic::Filter;
use crate::reader::clock::Millis;

/// The most messages in one answer.
pub const MOST_MESSAGES: usize = 1000;

/// The longest time that a read may wait for something.
pub const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// How long reading existing messages may take: they may have to come from the broker, or wait for their pace.
const PATIENCE: Duration = Duration::from_secs(8);

/// The result of a read.
#[derive(Debug)]
pub struct Answer {
    /// The messages: elements of a JSON array, separated by commas.
    pub messages: Vec<u8>,
    /// The gaps before them.
    pub gaps: Vec<(Filter, GapReason)>,
    /// The event id from which a stream or another read continues.
    pub cursor: EventId,
    /// Whether there may be more to read now.
    pub more: bool,
    /// The topics that are stale.
    pub stale: Vec<Filter>,
    /// Whether every topic has ended, so that this is the last answer.
    pub ended: bool,
}

/// The state of one read.
struct Reading {
    opening: Box<Opening>,
    rows: Rows,
    /// Until when it waits for a first message.
    wait: Millis,
    /// Until when it waits for existing messages.
    patience: Millis,
    more: bool,
    /// Whether a feed became stale or live meanwhile.
    feeds_changed: bool,
}

impl Stream {
    /// Reads up to `limit` messages, and ends. If there is nothing, waits for up to `wait`.
    ///
    /// # Errors
    /// The code with which a stream would end now: the permission has ended, or stored messages cannot be fetched.
    pub async fn answer(mut self, limit: usize, wait: Duration) -> Result<Answer, CloseCode> {
        // A stream that was polled has sent this already, and is no read.
        let Some(opening) = self.opening.take() else { return Err(CloseCode::Gone) };
        let now = self.now();
        let rows = Rows::new(self.format, limit);
        let (wait, patience) = (now.after(wait), now.after(wait.max(PATIENCE)));
        let news = self.feed_news().1;
        let _ = self.cursors.take_stale(&news);
        let mut reading = Reading { opening, rows, wait, patience, more: false, feeds_changed: false };
        let read = poll_fn(|cx| self.poll_read(cx, &mut reading)).await;
        self.phase = Phase::StreamEnded(read.err().unwrap_or(CloseCode::Answered));
        read.map(|()| self.answer_of(reading))
    }

    fn answer_of(&mut self, reading: Reading) -> Answer {
        let Reading { opening, rows, more, .. } = reading;
        let Opening { id, mut gaps, .. } = *opening;
        let (messages, read_gaps, last_id) = rows.into_parts();
        gaps.extend(read_gaps);
        self.shared.metrics.sent_bytes.inc_by(messages.len() as u64);
        self.ticket.handle().advance(messages.len(), self.cursors.position());
        let cursor = self.cursors.take_unsent_id().or(last_id).unwrap_or(id);
        let stale = self.cursors.stale().cloned().collect();
        let ended = !more && self.cursors.have_ended();
        Answer { messages, gaps, cursor, more, stale, ended }
    }

    /// Reads until there is something to answer, or the time is over.
    fn poll_read(&mut self, cx: &mut Context<'_>, reading: &mut Reading) -> Poll<Result<(), CloseCode>> {
        self.ticket.handle().register(cx.waker());
        if let Some(code) = self.right_ended() {
            return Poll::Ready(Err(code));
        }
        // A drain, an operator or the maximum age ends the wait, but messages that exist are still read.
        let is_closing = self.is_over(self.aged) || self.ticket.handle().closing().is_some();
        let news = self.feed_news().1;
        reading.feeds_changed |= news.has_stale() || news.has_live();
        let (mut due, mut is_fetching) = (None, false);
        let caught_up = loop {
            if reading.rows.is_full() {
                let is_all = !self.cursors.has_more();
                if is_all {
                    // Otherwise the ends from before the opening would not count yet.
                    self.cursors.end_replay();
                }
                break is_all;
            }
            due = self.turn();
            if due.is_some() {
                break false;
            }
            let before = reading.rows.len();
            match self.read(|cursors, handle| cursors.read_rows(&mut reading.rows, handle)) {
                Read::Batch(batch) => self.count(&batch, reading.rows.len() - before),
                Read::Nothing => break true,
                Read::Fetching => {
                    (due, is_fetching) = (Some(self.now().after(FETCH_AGAIN)), true);
                    break false;
                }
            }
        };
        reading.more = !caught_up;
        let has_gaps = !reading.opening.gaps.is_empty();
        if is_closing
            || !(reading.rows.is_empty() || is_fetching && self.cursors.wants_what_is_there())
            || caught_up && (has_gaps || reading.feeds_changed || self.cursors.have_ended())
        {
            return Poll::Ready(Ok(()));
        }
        let until = if caught_up { reading.wait } else { reading.patience };
        if self.now() >= until {
            let is_away = is_fetching && !has_gaps && reading.rows.is_empty();
            return Poll::Ready(if is_away { Err(CloseCode::Unavailable) } else { Ok(()) });
        }
        let others = [self.aged, self.expires, due].into_iter().flatten();
        self.ticket.handle().wake_at(others.fold(until, Millis::min));
        Poll::Pending
    }
}
