//! What the broker still holds of a log that the log itself no longer does: asked for in runs, which the readers who come
//! through the same place share.
//!
//! A reader that is older than its log reads runs until it stands where the log begins, and then the log: both have the
//! broker's numbers, so there is nothing to join. What it waits for is here, not in the reader: who waits holds a place in a
//! list, and no message. This asks; it does not talk to the broker.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use smallvec::{SmallVec, smallvec};
use tokio::sync::mpsc;

use super::batch_cache::{BatchCache, SharedBatch};
use super::message::{FieldMapping, Format};
use super::{BufferUsage, Entry, TopicLog};
use crate::protocol::event_id::Sequence;
use crate::protocol::frame::Coding;
use crate::protocol::source::Source;
use crate::protocol::topic::Filter;
use crate::reader::handle::ReaderHandle;

/// Runs that wait to be fetched. Who finds no room asks again a moment later.
pub const BACKFILL_CAPACITY: usize = 1024;

/// Addresses for which one run is in line at once. Others wait with them.
const ASKERS: usize = 4;

/// Which part of the bound on all logs the entries of all runs may take. They are fetched again if they went too early.
const SHARE: usize = 8;

/// The newest runs, which stay: somebody was woken for each just now. At least as many as are fetched at once.
const NEWEST: usize = 8;

/// A run that is to be fetched: what `log` has after the number `after`, up to `until`. Dropped, it is asked for again by
/// those who still wait for it.
#[derive(Debug)]
pub struct BackfillRequest {
    /// Of which log.
    pub log: Arc<TopicLog>,
    /// After this number.
    pub after: u64,
    /// Up to this one. Of values, as of this one.
    pub until: u64,
    /// For a reader at this address.
    pub address: IpAddr,
    /// Of what the history knows of it.
    id: u64,
    /// It is being fetched.
    begun: AtomicBool,
}

/// A part of a history.
#[derive(Debug)]
pub(crate) struct BackfillRange {
    after: u64,
    until: u64,
    /// Up to where it is everything.
    pub(crate) through: u64,
    /// Up to where something is gone; 0 if nothing is.
    pub(crate) gone: u64,
    /// Something behind `gone` is too, which only `gone` tells.
    torn: bool,
    /// In ascending order of number.
    pub(crate) entries: VecDeque<Arc<Entry>>,
    /// What was put together for readers. A crowd that comes back together goes through the same places.
    batches: Mutex<BatchCache>,
    /// Since the last sweep.
    was_read: AtomicBool,
    bytes: usize,
    usage: Arc<BufferUsage>,
}

impl BackfillRange {
    /// What follows `position` in it; `None` if nothing does.
    pub(crate) fn shared(&self, position: u64, format: Format, coding: Coding) -> Option<SharedBatch> {
        self.batches.lock().of(&self.entries, position, self.through, format, coding)
    }

    /// Whether it serves a reader at `position`. What is torn is for those who come from its beginning: they alone are told.
    fn covers(&self, position: u64) -> bool {
        if self.torn { self.after == position } else { (self.after..self.through).contains(&position) }
    }
}

impl Drop for BackfillRange {
    fn drop(&mut self) {
        self.usage.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The history of one log. See the module.
#[derive(Debug)]
pub(crate) struct History {
    /// It holds values: the newest message of a topic is all there is to know of it. A run of them is of one moment.
    pub(crate) of_values: bool,
    fields: Arc<FieldMapping>,
    requests: mpsc::Sender<BackfillRequest>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    ranges: VecDeque<Arc<BackfillRange>>,
    pending: Vec<PendingRange>,
    /// Of the next that is asked.
    next_id: u64,
}

#[derive(Debug)]
struct PendingRange {
    id: u64,
    after: u64,
    until: u64,
    /// By where each signal is, since a crowd may wait, and every one of it asks whenever it is woken.
    waiting: HashMap<usize, Arc<ReaderHandle>>,
    /// For whom it is in line: whoever asks for little is not to wait in the line of one who asks for much.
    askers: SmallVec<[IpAddr; 1]>,
    /// It is being fetched.
    begun: bool,
}

impl PendingRange {
    /// Whether a stream that waits for it has not ended meanwhile.
    fn is_awaited(&self) -> bool {
        // A stream that is open holds its signal too.
        self.waiting.values().any(|handle| Arc::strong_count(handle) > 1)
    }
}

impl History {
    pub(crate) fn new(fields: Arc<FieldMapping>, requests: mpsc::Sender<BackfillRequest>) -> Self {
        History {
            of_values: matches!(fields.source, Source::Kv { .. }),
            fields,
            requests,
            state: Mutex::default(),
        }
    }

    /// The run in which `position` lies. `None`: it is being fetched, and `handle` is told when it is there or must be asked
    /// for anew.
    pub(crate) fn read(
        &self,
        log: &Arc<TopicLog>,
        position: u64,
        until: u64,
        handle: &Arc<ReaderHandle>,
    ) -> Option<Arc<BackfillRange>> {
        let mut state = self.state.lock();
        // The one that goes furthest: readers who come from places of their own meet at its end, and share from there on.
        if let Some(range) = self.range_at(&state, position, until) {
            range.was_read.store(true, Ordering::Relaxed);
            return Some(range.clone());
        }
        // Up to where the next run begins: from there on it shares.
        let next = state
            .ranges
            .iter()
            .map(|range| range.after)
            .filter(|after| *after > position && !self.of_values)
            .min();
        let until = next.map_or(until, |next| next.min(until));
        // The log goes on while it is read, and up to where its history is asked for with it: that makes no other run.
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
                match self.requests.try_send(BackfillRequest::new(log, pending, address)) {
                    Ok(()) => pending.askers.push(address),
                    Err(full) => refused = Some(full),
                }
            }
        } else {
            let waiting = HashMap::from([(Arc::as_ptr(handle).addr(), handle.clone())]);
            let (id, askers) = (state.next_id, smallvec![address]);
            state.next_id += 1;
            let pending = PendingRange { id, after: position, until, waiting, askers, begun: false };
            match self.requests.try_send(BackfillRequest::new(log, &pending, address)) {
                Ok(()) => state.pending.push(pending),
                Err(full) => refused = Some(full),
            }
        }
        drop(state);
        drop(refused); // the end of an ask takes the lock
        None
    }

    fn range_at<'a>(&self, state: &'a State, position: u64, until: u64) -> Option<&'a Arc<BackfillRange>> {
        let fits =
            |range: &&Arc<BackfillRange>| range.covers(position) && (!self.of_values || range.until == until);
        state.ranges.iter().filter(fits).max_by_key(|range| range.through)
    }

    /// What was asked for is there. Wakes those who wait for it, and those whom it serves too though they asked for a part of it.
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

/// The runs of all logs, and the bound on them.
#[derive(Debug, Default)]
pub(crate) struct BackfillRanges(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    /// Oldest first.
    ranges: VecDeque<(Weak<TopicLog>, Arc<BackfillRange>)>,
    bytes: usize,
}

impl BackfillRanges {
    /// Hands a run to those who wait for it, and keeps it for others as long as there is room.
    pub(crate) fn keep(
        &self,
        ask: &BackfillRequest,
        through: u64,
        gone: u64,
        torn: bool,
        entries: Vec<Arc<Entry>>,
        max_bytes: usize,
    ) {
        let Some(history) = &ask.log.history else { return };
        let usage = ask.log.usage.clone();
        let bytes = entries.iter().map(|entry| entry.weight()).sum();
        usage.0.fetch_add(bytes, Ordering::Relaxed);
        let range = Arc::new(BackfillRange {
            after: ask.after,
            until: ask.until,
            through,
            gone,
            torn,
            entries: entries.into(),
            batches: Mutex::new(BatchCache::new(usage.clone())),
            was_read: AtomicBool::new(true), // it is about to be
            bytes,
            usage,
        });
        history.answer(ask.id, range.clone());
        let given_up = {
            let mut kept = self.0.lock();
            kept.ranges.push_back((Arc::downgrade(&ask.log), range));
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

    /// Gives those up that nobody has read since the last time.
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

fn forget((log, range): &(Weak<TopicLog>, Arc<BackfillRange>)) {
    if let Some(history) = log.upgrade().as_ref().and_then(|log| log.history.as_ref()) {
        history.forget(range);
    }
}

impl BackfillRequest {
    fn new(log: &Arc<TopicLog>, pending: &PendingRange, address: IpAddr) -> Self {
        let PendingRange { id, after, until, .. } = *pending;
        BackfillRequest { log: log.clone(), after, until, address, id, begun: AtomicBool::new(false) }
    }

    /// Whether a stream still waits for it.
    pub fn is_awaited(&self) -> bool {
        self.log.history.as_ref().is_some_and(|history| {
            let state = history.state.lock();
            state.pending.iter().any(|pending| pending.id == self.id && pending.is_awaited())
        })
    }

    /// Whether it is to be fetched now: somebody waits for it, and it is neither there nor being fetched for another. If so,
    /// it counts as being fetched.
    pub fn begin(&self) -> bool {
        let Some(history) = &self.log.history else { return false };
        let mut state = history.state.lock();
        let is_there = history.range_at(&state, self.after, self.until).is_some();
        let Some(pending) = state.pending.iter_mut().find(|pending| pending.id == self.id) else {
            return false;
        };
        if pending.begun || !pending.is_awaited() {
            return false;
        }
        pending.begun = true;
        self.begun.store(true, Ordering::Relaxed);
        // Fetched for others meanwhile. Dropped, this one has those who wait for it look there.
        !is_there
    }

    /// It is not fetched, or cannot be. Those who wait look again.
    pub fn give_up(self) {
        self.begun.store(true, Ordering::Relaxed);
    }

    /// The filter whose history it is.
    pub fn filter(&self) -> &Filter {
        &self.log.filter
    }

    /// How what is fetched is numbered, and where its fields are. `None`: nothing follows it any more.
    pub fn reading(&self) -> Option<(Arc<Sequence>, Arc<FieldMapping>)> {
        let history = self.log.history.as_ref().filter(|_| self.log.sealed().is_none())?;
        Some((self.log.sequence()?.clone(), history.fields.clone()))
    }
}

impl Drop for BackfillRequest {
    /// Those who wait look again, if it was begun and not answered. If it was not, and is in line for no other address, they ask
    /// for it again a moment later: at once, they would take a place in line from each other over and over.
    fn drop(&mut self) {
        let Some(history) = &self.log.history else { return };
        let mut state = history.state.lock();
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
