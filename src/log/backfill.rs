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

use super::batch_cache::{Piece, Pieces};
use super::message::{Fields, Format};
use super::{Entry, TopicLog, Usage};
use crate::protocol::event_id::Sequence;
use crate::protocol::frame::Coding;
use crate::protocol::source::Source;
use crate::protocol::topic::Filter;
use crate::reader::handle::Signal;

/// Runs that wait to be fetched. Who finds no room asks again a moment later.
pub const ASK_CAPACITY: usize = 1024;

/// Addresses for which one run is in line at once. Others wait with them.
const ASKERS: usize = 4;

/// Which part of the bound on all logs the entries of all runs may take. They are fetched again if they went too early.
const SHARE: usize = 8;

/// The newest runs, which stay: somebody was woken for each just now. At least as many as are fetched at once.
const NEWEST: usize = 8;

/// A run that is to be fetched: what `log` has after the number `after`, up to `until`. Dropped, it is asked for again by
/// those who still wait for it.
#[derive(Debug)]
pub struct Ask {
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
pub(crate) struct Run {
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
    pieces: Mutex<Pieces>,
    /// Since the last sweep.
    was_read: AtomicBool,
    bytes: usize,
    usage: Arc<Usage>,
}

impl Run {
    /// What follows `position` in it; `None` if nothing does.
    pub(crate) fn piece(&self, position: u64, format: Format, coding: Coding) -> Option<Piece> {
        self.pieces.lock().of(&self.entries, position, self.through, format, coding)
    }

    /// Whether it serves a reader at `position`. What is torn is for those who come from its beginning: they alone are told.
    fn covers(&self, position: u64) -> bool {
        if self.torn { self.after == position } else { (self.after..self.through).contains(&position) }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.usage.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The history of one log. See the module.
#[derive(Debug)]
pub(crate) struct History {
    /// It holds values: the newest message of a topic is all there is to know of it. A run of them is of one moment.
    pub(crate) of_values: bool,
    fields: Arc<Fields>,
    asks: mpsc::Sender<Ask>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    runs: VecDeque<Arc<Run>>,
    asked: Vec<Asked>,
    /// Of the next that is asked.
    next_id: u64,
}

#[derive(Debug)]
struct Asked {
    id: u64,
    after: u64,
    until: u64,
    /// By where each signal is, since a crowd may wait, and every one of it asks whenever it is woken.
    waiting: HashMap<usize, Arc<Signal>>,
    /// For whom it is in line: whoever asks for little is not to wait in the line of one who asks for much.
    askers: SmallVec<[IpAddr; 1]>,
    /// It is being fetched.
    begun: bool,
}

impl Asked {
    /// Whether a stream that waits for it has not ended meanwhile.
    fn is_awaited(&self) -> bool {
        // A stream that is open holds its signal too.
        self.waiting.values().any(|signal| Arc::strong_count(signal) > 1)
    }
}

impl History {
    pub(crate) fn new(fields: Arc<Fields>, asks: mpsc::Sender<Ask>) -> Self {
        History {
            of_values: matches!(fields.source, Source::Kv { .. }),
            fields,
            asks,
            state: Mutex::default(),
        }
    }

    /// The run in which `position` lies. `None`: it is being fetched, and `signal` is told when it is there or must be asked
    /// for anew.
    pub(crate) fn read(
        &self,
        log: &Arc<TopicLog>,
        position: u64,
        until: u64,
        signal: &Arc<Signal>,
    ) -> Option<Arc<Run>> {
        let mut state = self.state.lock();
        // The one that goes furthest: readers who come from places of their own meet at its end, and share from there on.
        if let Some(run) = self.run_at(&state, position, until) {
            run.was_read.store(true, Ordering::Relaxed);
            return Some(run.clone());
        }
        // Up to where the next run begins: from there on it shares.
        let next =
            state.runs.iter().map(|run| run.after).filter(|after| *after > position && !self.of_values).min();
        let until = next.map_or(until, |next| next.min(until));
        // The log goes on while it is read, and up to where its history is asked for with it: that makes no other run.
        let same = |asked: &&mut Asked| asked.after == position && (!self.of_values || asked.until == until);
        let address = signal.reader.address;
        let mut refused = None;
        if let Some(asked) = state.asked.iter_mut().find(same) {
            asked.waiting.entry(Arc::as_ptr(signal).addr()).or_insert_with(|| signal.clone());
            let may_ask = !asked.begun && asked.askers.len() < ASKERS && !asked.askers.contains(&address);
            if may_ask {
                match self.asks.try_send(Ask::new(log, asked, address)) {
                    Ok(()) => asked.askers.push(address),
                    Err(full) => refused = Some(full),
                }
            }
        } else {
            let waiting = HashMap::from([(Arc::as_ptr(signal).addr(), signal.clone())]);
            let (id, askers) = (state.next_id, smallvec![address]);
            state.next_id += 1;
            let asked = Asked { id, after: position, until, waiting, askers, begun: false };
            match self.asks.try_send(Ask::new(log, &asked, address)) {
                Ok(()) => state.asked.push(asked),
                Err(full) => refused = Some(full),
            }
        }
        drop(state);
        drop(refused); // the end of an ask takes the lock
        None
    }

    fn run_at<'a>(&self, state: &'a State, position: u64, until: u64) -> Option<&'a Arc<Run>> {
        let fits = |run: &&Arc<Run>| run.covers(position) && (!self.of_values || run.until == until);
        state.runs.iter().filter(fits).max_by_key(|run| run.through)
    }

    /// What was asked for is there. Wakes those who wait for it, and those whom it serves too though they asked for a part of it.
    fn answer(&self, id: u64, run: Arc<Run>) {
        let mut state = self.state.lock();
        let mut waiting = HashMap::new();
        if let Some(index) = state.asked.iter().position(|asked| asked.id == id) {
            waiting = state.asked.swap_remove(index).waiting;
        }
        let served = |asked: &&mut Asked| run.covers(asked.after);
        state.asked.iter_mut().filter(served).for_each(|asked| waiting.extend(asked.waiting.drain()));
        state.runs.push_back(run);
        drop(state);
        waiting.values().for_each(|signal| signal.wake());
    }

    fn forget(&self, run: &Arc<Run>) {
        self.state.lock().runs.retain(|kept| !Arc::ptr_eq(kept, run));
    }
}

/// The runs of all logs, and the bound on them.
#[derive(Debug, Default)]
pub(crate) struct Runs(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    /// Oldest first.
    runs: VecDeque<(Weak<TopicLog>, Arc<Run>)>,
    bytes: usize,
}

impl Runs {
    /// Hands a run to those who wait for it, and keeps it for others as long as there is room.
    pub(crate) fn keep(
        &self,
        ask: &Ask,
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
        let run = Arc::new(Run {
            after: ask.after,
            until: ask.until,
            through,
            gone,
            torn,
            entries: entries.into(),
            pieces: Mutex::new(Pieces::new(usage.clone())),
            was_read: AtomicBool::new(true), // it is about to be
            bytes,
            usage,
        });
        history.answer(ask.id, run.clone());
        let given_up = {
            let mut kept = self.0.lock();
            kept.runs.push_back((Arc::downgrade(&ask.log), run));
            kept.bytes += bytes;
            let mut given_up = Vec::new();
            while kept.bytes > max_bytes / SHARE && kept.runs.len() > NEWEST {
                let Some(oldest) = kept.runs.pop_front() else { break };
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
        let runs = std::mem::take(&mut kept.runs).into_iter();
        let (read, given_up): (VecDeque<_>, VecDeque<_>) =
            runs.partition(|(_, run)| run.was_read.swap(false, Ordering::Relaxed));
        kept.bytes = read.iter().map(|(_, run)| run.bytes).sum();
        kept.runs = read;
        drop(kept);
        given_up.iter().for_each(forget);
    }
}

fn forget((log, run): &(Weak<TopicLog>, Arc<Run>)) {
    if let Some(history) = log.upgrade().as_ref().and_then(|log| log.history.as_ref()) {
        history.forget(run);
    }
}

impl Ask {
    fn new(log: &Arc<TopicLog>, asked: &Asked, address: IpAddr) -> Self {
        let Asked { id, after, until, .. } = *asked;
        Ask { log: log.clone(), after, until, address, id, begun: AtomicBool::new(false) }
    }

    /// Whether a stream still waits for it.
    pub fn is_awaited(&self) -> bool {
        self.log.history.as_ref().is_some_and(|history| {
            let state = history.state.lock();
            state.asked.iter().any(|asked| asked.id == self.id && asked.is_awaited())
        })
    }

    /// Whether it is to be fetched now: somebody waits for it, and it is neither there nor being fetched for another. If so,
    /// it counts as being fetched.
    pub fn begin(&self) -> bool {
        let Some(history) = &self.log.history else { return false };
        let mut state = history.state.lock();
        let is_there = history.run_at(&state, self.after, self.until).is_some();
        let Some(asked) = state.asked.iter_mut().find(|asked| asked.id == self.id) else { return false };
        if asked.begun || !asked.is_awaited() {
            return false;
        }
        asked.begun = true;
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
    pub fn reading(&self) -> Option<(Arc<Sequence>, Arc<Fields>)> {
        let history = self.log.history.as_ref().filter(|_| self.log.sealed().is_none())?;
        Some((self.log.sequence()?.clone(), history.fields.clone()))
    }
}

impl Drop for Ask {
    /// Those who wait look again, if it was begun and not answered. If it was not, and is in line for no other address, they ask
    /// for it again a moment later: at once, they would take a place in line from each other over and over.
    fn drop(&mut self) {
        let Some(history) = &self.log.history else { return };
        let mut state = history.state.lock();
        let Some(index) = state.asked.iter().position(|asked| asked.id == self.id) else { return };
        let asked = &mut state.asked[index];
        if *self.begun.get_mut() {
            let waiting = state.asked.swap_remove(index).waiting;
            drop(state);
            waiting.values().for_each(|signal| signal.wake());
            return;
        }
        asked.askers.retain(|address| *address != self.address);
        if asked.askers.is_empty() && !asked.begun {
            state.asked.swap_remove(index);
        }
    }
}
