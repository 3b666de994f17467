//! Backfill of stored sources: messages that the broker still has and the log no longer does. They are requested in
//! ranges, which readers at the same position share.
//!
//! A reader whose cursor is older than the log reads ranges until it reaches the beginning of the log, and then the
//! log. Both have the broker's numbers, so nothing has to be joined. Requests are recorded here, not in the reader: a
//! reader that waits is an entry in a list and holds no message. `ingest::backfill` sends the requests to the broker.
//!
//! The next range is requested early, so that the broker reads while the gateway encodes and writes: when a range
//! arrives for which a reader waits, and when a reader begins one. If many readers wait for ranges, they do without: what
//! is fetched early would be dropped before it is read.

mod ranges;

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;
use smallvec::{SmallVec, smallvec};
use tokio::sync::mpsc::{self, error::TrySendError};

use self::ranges::NEWEST;
pub use self::ranges::RangeExtent;
pub(super) use self::ranges::{BackfillRange, BackfillRanges};
use super::BufferUsage;
use super::message::FieldMapping;
use super::numbering::Numbering;
use crate::protocol::event_id::Sequence;
use crate::protocol::seq::Seq;
use crate::protocol::source::Source;
use crate::protocol::topic::Filter;
use crate::reader::handle::ReaderHandle;

/// The most ranges that wait to be fetched. If the queue is full, a reader requests its range again a moment later.
pub const BACKFILL_CAPACITY: usize = 1024;

/// The most client addresses on whose behalf a range is queued. Further readers wait with them.
const ASKERS: usize = 4;

/// Ranges are requested early only while readers wait for fewer than this many. Half of those that are never dropped.
const AHEAD: usize = NEWEST / 2;

/// A range to fetch: the messages of a log after the number `after`, up to `until`. If it is dropped, the readers that
/// still wait request it again.
#[derive(Debug)]
pub struct BackfillRequest {
    history: Arc<History>,
    /// Fetch messages after this number,
    pub after: Seq,
    /// up to this one. For key-value sources, the values as of this number.
    pub until: Seq,
    /// The address of the reader that requested it.
    pub address: IpAddr,
    /// Its id in the backfill of the log.
    id: u64,
    /// Whether it is being fetched.
    begun: AtomicBool,
}

/// The requests of all logs for ranges. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Requests {
    queue: mpsc::Sender<BackfillRequest>,
    /// How many ranges readers wait for.
    waiting: Arc<AtomicUsize>,
}

/// A range among those that readers wait for, until it is dropped.
#[derive(Debug)]
struct Counted(Arc<AtomicUsize>);

impl Requests {
    /// Requests go to `queue`.
    pub(super) fn new(queue: mpsc::Sender<BackfillRequest>) -> Self {
        Requests { queue, waiting: Arc::default() }
    }

    fn count(&self) -> Counted {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Counted(self.waiting.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The backfill of one log.
#[derive(Debug)]
pub(crate) struct History {
    /// The log is of a key-value source: the newest message of a topic is its state. A range of it is a snapshot.
    pub(crate) of_values: bool,
    filter: Filter,
    fields: Arc<FieldMapping>,
    numbering: Arc<Numbering>,
    requests: Requests,
    usage: Arc<BufferUsage>,
    state: Mutex<State>,
    /// Held by the reader that asks the broker whether the topic has ended.
    pub(super) asking_for_end: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    ranges: VecDeque<Arc<BackfillRange>>,
    pending: Vec<PendingRange>,
    /// The id of the next request.
    next_id: u64,
}

#[derive(Debug)]
struct PendingRange {
    id: u64,
    after: Seq,
    until: Seq,
    /// The waiting readers by the address of their handles: a crowd may wait, and each reader asks whenever it is
    /// woken.
    waiting: HashMap<usize, Arc<ReaderHandle>>,
    /// The addresses on whose behalf it is queued: a client that requests little must not wait behind one that requests
    /// much.
    askers: SmallVec<[IpAddr; 1]>,
    /// Whether it is being fetched.
    begun: bool,
    /// Whether a reader is at its beginning. Until then it was only requested early.
    is_needed: bool,
    _counted: Counted,
}

impl PendingRange {
    /// Whether an open stream still waits for it.
    fn is_awaited(&self) -> bool {
        self.open_reader().is_some()
    }

    /// An open stream that waits for it, which holds its handle too.
    fn open_reader(&self) -> Option<&Arc<ReaderHandle>> {
        self.waiting.values().find(|handle| Arc::strong_count(handle) > 1)
    }
}

impl History {
    /// The backfill of a log of `filter`. Ranges to fetch go to `requests`.
    pub(super) fn new(
        filter: Filter,
        fields: Arc<FieldMapping>,
        numbering: Arc<Numbering>,
        requests: Requests,
        usage: Arc<BufferUsage>,
    ) -> Arc<Self> {
        let of_values = matches!(fields.source, Source::Kv { .. });
        let (state, asking_for_end) = (Mutex::default(), tokio::sync::Mutex::default());
        Arc::new(History { of_values, filter, fields, numbering, requests, usage, state, asking_for_end })
    }

    /// Where the fields of its messages are.
    pub(super) fn fields(&self) -> &FieldMapping {
        &self.fields
    }

    /// The range that contains `position`. `None`: it is being fetched, and `handle` is woken when it is there or must
    /// be requested again.
    pub(crate) fn read(
        self: &Arc<Self>,
        position: Seq,
        until: Seq,
        handle: &Arc<ReaderHandle>,
    ) -> Option<Arc<BackfillRange>> {
        let mut state = self.state.lock();
        // The range that reaches furthest: readers from different positions meet at its end and share from there.
        let range = self.range_at(&state, position, until).cloned();
        let refused = match &range {
            Some(range) => {
                range.was_read.store(true, Ordering::Relaxed);
                let begins = position == range.after;
                if begins { self.read_ahead(&mut state, range.through, until, handle) } else { None }
            }
            None => self.ask(&mut state, position, until, handle, true),
        };
        drop(state);
        drop(refused); // dropping a request takes the lock
        range
    }

    /// Requests the range after `position` before its reader needs it, if there is one, nobody has requested it, and few
    /// others wait. Returns the request if the queue is full.
    fn read_ahead(
        self: &Arc<Self>,
        state: &mut State,
        position: Seq,
        until: Seq,
        handle: &Arc<ReaderHandle>,
    ) -> Option<TrySendError<BackfillRequest>> {
        let is_missing = position < until
            && self.requests.waiting.load(Ordering::Relaxed) < AHEAD
            && self.range_at(state, position, until).is_none()
            && !state.pending.iter().any(|pending| pending.after == position);
        if is_missing { self.ask(state, position, until, handle, false) } else { None }
    }

    /// Requests the range that begins at `position`; `handle` waits for it. `is_needed`: as [`PendingRange::is_needed`].
    /// Returns the request if the queue is full.
    fn ask(
        self: &Arc<Self>,
        state: &mut State,
        position: Seq,
        until: Seq,
        handle: &Arc<ReaderHandle>,
        is_needed: bool,
    ) -> Option<TrySendError<BackfillRequest>> {
        // Only up to the beginning of the next range, which it can share.
        let next = state
            .ranges
            .iter()
            .map(|range| range.after)
            .filter(|after| *after > position && !self.of_values)
            .min();
        let until = next.map_or(until, |next| next.min(until));
        // The log grows while it is read, and `until` grows with it; that does not make it another range.
        let same = |pending: &&mut PendingRange| {
            pending.after == position && (!self.of_values || pending.until == until)
        };
        let address = handle.reader.address;
        let Some(pending) = state.pending.iter_mut().find(same) else {
            let waiting = HashMap::from([(Arc::as_ptr(handle).addr(), handle.clone())]);
            let (id, askers) = (state.next_id, smallvec![address]);
            state.next_id += 1;
            let counted = self.requests.count();
            let pending = PendingRange {
                id,
                after: position,
                until,
                waiting,
                askers,
                begun: false,
                is_needed,
                _counted: counted,
            };
            let refused = self.requests.queue.try_send(self.request(&pending, address)).err();
            if refused.is_none() {
                state.pending.push(pending);
            }
            return refused;
        };
        pending.is_needed |= is_needed;
        pending.waiting.entry(Arc::as_ptr(handle).addr()).or_insert_with(|| handle.clone());
        let may_ask = !pending.begun && pending.askers.len() < ASKERS && !pending.askers.contains(&address);
        if !may_ask {
            return None;
        }
        let refused = self.requests.queue.try_send(self.request(pending, address)).err();
        if refused.is_none() {
            pending.askers.push(address);
        }
        refused
    }

    fn request(self: &Arc<Self>, pending: &PendingRange, address: IpAddr) -> BackfillRequest {
        let PendingRange { id, after, until, .. } = *pending;
        BackfillRequest { history: self.clone(), after, until, address, id, begun: AtomicBool::new(false) }
    }

    fn range_at<'a>(&self, state: &'a State, position: Seq, until: Seq) -> Option<&'a Arc<BackfillRange>> {
        // A range of a single key from the start lacks its deletion, which a reader further on may need.
        let is_whole = |range: &BackfillRange| {
            range.until == until
                && (self.filter.is_pattern() || range.after.is_start() == position.is_start())
        };
        let fits =
            |range: &&Arc<BackfillRange>| range.covers(position) && (!self.of_values || is_whole(range));
        state.ranges.iter().filter(fits).max_by_key(|range| range.through)
    }

    /// A requested range has arrived. Wakes the readers that wait for it, and the readers of other requests that it
    /// serves as well.
    fn answer(&self, id: u64, range: Arc<BackfillRange>) {
        let mut state = self.state.lock();
        let mut waiting = HashMap::new();
        if let Some(index) = state.pending.iter().position(|pending| pending.id == id) {
            waiting = state.pending.swap_remove(index).waiting;
        }
        let served = |pending: &&mut PendingRange| range.covers(pending.after);
        state.pending.iter_mut().filter(served).for_each(|pending| waiting.extend(pending.waiting.drain()));
        state.ranges.push_back(range);
        drop(state);
        waiting.values().for_each(|handle| handle.wake());
    }

    fn forget(&self, range: &Arc<BackfillRange>) {
        self.state.lock().ranges.retain(|kept| !Arc::ptr_eq(kept, range));
    }
}

impl BackfillRequest {
    /// Whether an open stream still waits for the range.
    pub fn is_awaited(&self) -> bool {
        let state = self.history.state.lock();
        state.pending.iter().any(|pending| pending.id == self.id && pending.is_awaited())
    }

    /// Whether the range should be fetched now: a reader waits for it, and it is neither there nor being fetched for
    /// another request. If so, it is marked as being fetched.
    pub fn begin(&self) -> bool {
        let mut state = self.history.state.lock();
        let is_there = self.history.range_at(&state, self.after, self.until).is_some();
        let Some(pending) = state.pending.iter_mut().find(|pending| pending.id == self.id) else {
            return false;
        };
        if pending.begun || !pending.is_awaited() {
            return false;
        }
        pending.begun = true;
        self.begun.store(true, Ordering::Relaxed);
        // It was fetched for others meanwhile. Dropping this request makes its readers look there.
        !is_there
    }

    /// The broker has answered up to `through`. If a reader is at the beginning of the range, requests the range after it.
    pub fn read_ahead(&self, through: Seq) {
        let mut state = self.history.state.lock();
        let pending = state.pending.iter().find(|pending| pending.id == self.id && pending.is_needed);
        let handle = pending.and_then(|pending| pending.open_reader().cloned());
        let refused =
            handle.and_then(|handle| self.history.read_ahead(&mut state, through, self.until, &handle));
        drop(state);
        drop(refused); // dropping a request takes the lock
    }

    /// Gives up the request. Its readers look again.
    pub fn give_up(self) {
        self.begun.store(true, Ordering::Relaxed);
    }

    /// The filter of the log.
    pub fn filter(&self) -> &Filter {
        &self.history.filter
    }

    /// The sequence of the messages, and where their fields are. `None` if the log is no longer subscribed.
    pub fn reading(&self) -> Option<(Arc<Sequence>, Arc<FieldMapping>)> {
        let History { numbering, fields, .. } = &*self.history;
        if numbering.sealed().is_some() {
            return None;
        }
        Some((numbering.sequence()?.clone(), fields.clone()))
    }
}

impl Drop for BackfillRequest {
    /// If the fetch has begun and was not answered, its readers look again. If it has not begun and no other address
    /// has it queued, they request it again a moment later: at once, they would displace each other in the queue over
    /// and over.
    fn drop(&mut self) {
        let mut state = self.history.state.lock();
        let Some(index) = state.pending.iter().position(|pending| pending.id == self.id) else { return };
        let pending = &mut state.pending[index];
        if *self.begun.get_mut() {
            let waiting = state.pending.swap_remove(index).waiting;
            drop(state);
            waiting.values().for_each(|handle| handle.wake());
            return;
        }
        pending.askers.retain(|address| *address != self.address);
        if pending.askers.is_empty() && !pending.begun {
            state.pending.swap_remove(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::source::Field;

    #[test]
    fn the_next_range_is_requested_once_when_a_reader_begins_one_unless_many_readers_wait() {
        let nowhere = || Field::Nowhere;
        let source = Source::JetStream { stream: None };
        let fields = FieldMapping { source, id: nowhere(), kind: nowhere(), data: None, end: nowhere() };
        let (queue, mut asked) = mpsc::channel(64);
        let (requests, ranges) = (Requests::new(queue), BackfillRanges::default());
        let filter = Filter::parse("jobs/1", 99).unwrap();
        let history =
            History::new(filter, fields.into(), Numbering::unknown(), requests.clone(), Arc::default());
        let reader = Arc::new(ReaderHandle::default());
        let until = Seq::new(40);
        let arrives = |request: BackfillRequest, through| {
            ranges.keep(
                &request,
                RangeExtent { through: Seq::new(through), gone: None, is_hole: false, torn: false },
                vec![],
                1,
            );
        };
        let mut next = || asked.try_recv().ok();

        assert!(history.read(Seq::START, until, &reader).is_none());
        arrives(next().unwrap(), 10);
        assert!(history.read(Seq::START, until, &reader).is_some());
        let ahead = next().unwrap();
        assert_eq!((ahead.after, ahead.until), (Seq::new(10), until));
        assert!(history.read(Seq::START, until, &Arc::default()).is_some());
        assert!(history.read(Seq::new(5), until, &reader).is_some());
        assert!(next().is_none(), "it was requested already");
        ahead.read_ahead(Seq::new(20));
        assert!(next().is_none(), "no reader has come to its beginning");
        assert!(history.read(Seq::new(10), until, &reader).is_none());
        ahead.read_ahead(Seq::new(20));
        let further = next().unwrap();
        assert_eq!((further.after, further.until), (Seq::new(20), until));
        arrives(ahead, 20);
        assert!(history.read(Seq::new(10), until, &reader).is_some());
        assert!(next().is_none(), "it was requested already");
        arrives(further, 40);
        assert!(history.read(Seq::new(20), until, &reader).is_some());
        assert!(next().is_none(), "that was the last one");

        let others: Vec<_> = (0..AHEAD as u64).map(|n| (Seq::new(100 + n), Arc::default())).collect();
        others.iter().for_each(|(after, other)| assert!(history.read(*after, Seq::MAX, other).is_none()));
        let theirs: Vec<_> = others.iter().map(|_| next().unwrap()).collect();
        assert!(history.read(Seq::new(50), Seq::new(60), &reader).is_none());
        arrives(next().unwrap(), 55);
        assert!(history.read(Seq::new(50), Seq::new(60), &reader).is_some());
        assert!(next().is_none(), "others wait");
        drop(theirs);
        assert!(history.read(Seq::new(50), Seq::new(60), &reader).is_some());
        assert_eq!(next().unwrap().after, Seq::new(55));
    }
}
