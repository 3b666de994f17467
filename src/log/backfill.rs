//! Backfill of stored sources: messages that the broker still has and the log no longer does. They are requested in
//! ranges, which readers at the same position share.
//!
//! A reader whose cursor is older than the log reads ranges until it reaches the beginning of the log, and then the
//! log. Both have the broker's numbers, so nothing has to be joined. Requests are recorded here, not in the reader: a
//! reader that waits is an entry in a list and holds no message. `ingest::backfill` sends the requests to the broker.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use smallvec::{SmallVec, smallvec};
use tokio::sync::mpsc;

use super::batch_cache::SharedBatch;
use super::batches::Batches;
use super::message::FieldMapping;
use super::numbering::Numbering;
use super::variant::Variant;
use super::{BufferUsage, Entry};
use crate::protocol::event_id::Sequence;
use crate::protocol::seq::Seq;
use crate::protocol::source::Source;
use crate::protocol::topic::Filter;
use crate::reader::handle::ReaderHandle;

/// The most ranges that wait to be fetched. If the queue is full, a reader requests its range again a moment later.
pub const BACKFILL_CAPACITY: usize = 1024;

/// The most client addresses on whose behalf a range is queued. Further readers wait with them.
const ASKERS: usize = 4;

/// Ranges may take one part in this many of the bound on all logs. A range that was dropped too early is fetched again.
const SHARE: usize = 8;

/// The newest ranges, which are never dropped, because readers have just been woken for them. At least as many as are
/// fetched at once.
const NEWEST: usize = 8;

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

/// How far a fetched range goes, and what is missing in it.
#[derive(Debug, Clone, Copy)]
pub struct RangeExtent {
    /// It is complete up to this number.
    pub through: Seq,
    /// Messages up to this number are gone, if any are.
    pub gone: Option<Seq>,
    /// `gone` stands for single messages that were removed out of the middle, and not for the oldest.
    pub is_hole: bool,
    /// Single messages after `gone` are gone too. Then it serves only readers that start at its beginning.
    pub torn: bool,
}

/// A fetched range of stored messages.
#[derive(Debug)]
pub(crate) struct BackfillRange {
    after: Seq,
    until: Seq,
    /// The range is complete up to this number.
    pub(crate) through: Seq,
    /// Messages up to this number are gone, if any are.
    pub(crate) gone: Option<Seq>,
    /// As [`RangeExtent::is_hole`].
    pub(crate) is_hole: bool,
    /// Single messages after `gone` are gone too, and only `gone` stands for them.
    torn: bool,
    /// The entries by number.
    pub(crate) entries: VecDeque<Arc<Entry>>,
    /// Batches for its readers. A crowd that resumes together reads the same positions.
    batches: Mutex<Batches>,
    /// Whether it was read since the last sweep.
    was_read: AtomicBool,
    bytes: usize,
    usage: Arc<BufferUsage>,
}

impl BackfillRange {
    /// The batch that follows `position` in it; `None` if nothing does.
    pub(crate) fn shared(&self, position: Seq, variant: Variant<'_>) -> Option<SharedBatch> {
        self.batches.lock().of(&self.entries, position, self.through, variant)
    }

    /// Whether it can serve a reader at `position`. A torn range serves only readers that start at its beginning,
    /// because only they receive its gap.
    fn covers(&self, position: Seq) -> bool {
        if self.torn { self.after == position } else { (self.after..self.through).contains(&position) }
    }
}

impl Drop for BackfillRange {
    fn drop(&mut self) {
        self.usage.sub(self.bytes);
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
    requests: mpsc::Sender<BackfillRequest>,
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
}

impl PendingRange {
    /// Whether an open stream still waits for it.
    fn is_awaited(&self) -> bool {
        // An open stream holds its handle too.
        self.waiting.values().any(|handle| Arc::strong_count(handle) > 1)
    }
}

impl History {
    /// The backfill of a log of `filter`. Ranges to fetch go to `requests`.
    pub(super) fn new(
        filter: Filter,
        fields: Arc<FieldMapping>,
        numbering: Arc<Numbering>,
        requests: mpsc::Sender<BackfillRequest>,
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
        if let Some(range) = self.range_at(&state, position, until) {
            range.was_read.store(true, Ordering::Relaxed);
            return Some(range.clone());
        }
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
        let mut refused = None;
        if let Some(pending) = state.pending.iter_mut().find(same) {
            pending.waiting.entry(Arc::as_ptr(handle).addr()).or_insert_with(|| handle.clone());
            let may_ask =
                !pending.begun && pending.askers.len() < ASKERS && !pending.askers.contains(&address);
            if may_ask {
                match self.requests.try_send(self.request(pending, address)) {
                    Ok(()) => pending.askers.push(address),
                    Err(full) => refused = Some(full),
                }
            }
        } else {
            let waiting = HashMap::from([(Arc::as_ptr(handle).addr(), handle.clone())]);
            let (id, askers) = (state.next_id, smallvec![address]);
            state.next_id += 1;
            let pending = PendingRange { id, after: position, until, waiting, askers, begun: false };
            match self.requests.try_send(self.request(&pending, address)) {
                Ok(()) => state.pending.push(pending),
                Err(full) => refused = Some(full),
            }
        }
        drop(state);
        drop(refused); // dropping a request takes the lock
        None
    }

    fn request(self: &Arc<Self>, pending: &PendingRange, address: IpAddr) -> BackfillRequest {
        let PendingRange { id, after, until, .. } = *pending;
        BackfillRequest { history: self.clone(), after, until, address, id, begun: AtomicBool::new(false) }
    }

    fn range_at<'a>(&self, state: &'a State, position: Seq, until: Seq) -> Option<&'a Arc<BackfillRange>> {
        let fits =
            |range: &&Arc<BackfillRange>| range.covers(position) && (!self.of_values || range.until == until);
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

/// The ranges of all logs, and their bound.
#[derive(Debug, Default)]
pub(crate) struct BackfillRanges(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    /// Oldest first.
    ranges: VecDeque<(Weak<History>, Arc<BackfillRange>)>,
    bytes: usize,
}

impl BackfillRanges {
    /// Delivers a range to the readers that wait for it, and keeps it for others as long as there is room.
    pub(crate) fn keep(
        &self,
        request: &BackfillRequest,
        extent: RangeExtent,
        entries: Vec<Arc<Entry>>,
        max_bytes: usize,
    ) {
        let RangeExtent { through, gone, is_hole, torn } = extent;
        let usage = request.history.usage.clone();
        let bytes = entries.iter().map(|entry| entry.weight()).sum();
        usage.add(bytes);
        let range = Arc::new(BackfillRange {
            after: request.after,
            until: request.until,
            through,
            gone,
            is_hole,
            torn,
            entries: entries.into(),
            batches: Mutex::new(Batches::new(usage.clone())),
            was_read: AtomicBool::new(true), // its readers are about to read it
            bytes,
            usage,
        });
        request.history.answer(request.id, range.clone());
        let given_up = {
            let mut kept = self.0.lock();
            kept.ranges.push_back((Arc::downgrade(&request.history), range));
            kept.bytes += bytes;
            let mut given_up = Vec::new();
            while kept.bytes > max_bytes / SHARE && kept.ranges.len() > NEWEST {
                let Some(oldest) = kept.ranges.pop_front() else { break };
                kept.bytes -= oldest.1.bytes;
                given_up.push(oldest);
            }
            given_up
        };
        given_up.iter().for_each(forget);
    }

    /// Drops the ranges that nobody has read since the last sweep.
    pub(crate) fn sweep(&self) {
        let mut kept = self.0.lock();
        let ranges = std::mem::take(&mut kept.ranges).into_iter();
        let (read, given_up): (VecDeque<_>, VecDeque<_>) =
            ranges.partition(|(_, range)| range.was_read.swap(false, Ordering::Relaxed));
        kept.bytes = read.iter().map(|(_, range)| range.bytes).sum();
        kept.ranges = read;
        drop(kept);
        given_up.iter().for_each(forget);
    }
}

fn forget((history, range): &(Weak<History>, Arc<BackfillRange>)) {
    if let Some(history) = history.upgrade() {
        history.forget(range);
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
