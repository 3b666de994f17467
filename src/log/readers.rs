//! The readers of a log, and how they are woken: in groups, so that a crowd on one topic does not delay another.
//!
//! Readers with an interval are apart. Most of the time they wait for a tick, so they are visited only if one of them
//! has said that it waits for an entry.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use slab::Slab;

use crate::protocol::codes::CloseCode;
use crate::reader::handle::ReaderHandle;

/// How many readers are visited for each reader that may be woken at once.
const VISITS: usize = 16;

/// The readers of one log.
#[derive(Debug, Default)]
pub(super) struct Readers {
    state: Mutex<State>,
    /// A reader with an interval waits for an entry.
    paced_waits: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    handles: Slab<Arc<ReaderHandle>>,
    /// Those of readers with an interval.
    paced: Slab<Arc<ReaderHandle>>,
    /// While readers are being woken in groups: the next one.
    waking: Option<Next>,
    /// More was appended since the first was woken, so all must be woken once more.
    again: bool,
    /// Nothing will be appended any more. A reader that joins now is closed like the others.
    ended: Option<CloseCode>,
}

/// The next reader to wake.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Next {
    is_paced: bool,
    key: usize,
}

/// The key of a reader in the log, and whether it has an interval, in one word.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReaderKey(u32);

impl ReaderKey {
    fn new(key: usize, is_paced: bool) -> Self {
        // Keys are given again, and there are never as many readers at once.
        ReaderKey((key as u32) << 1 | u32::from(is_paced))
    }

    /// Whether the reader has an interval.
    pub(super) fn is_paced(self) -> bool {
        self.0 & 1 == 1
    }
}

impl State {
    fn all(&self) -> impl Iterator<Item = &Arc<ReaderHandle>> {
        self.handles.iter().chain(&self.paced).map(|(_, handle)| handle)
    }

    fn part(&mut self, is_paced: bool) -> &mut Slab<Arc<ReaderHandle>> {
        if is_paced { &mut self.paced } else { &mut self.handles }
    }
}

impl Readers {
    /// Their handles.
    pub(super) fn handles(&self) -> Vec<Arc<ReaderHandle>> {
        self.state.lock().all().cloned().collect()
    }

    /// Calls `work` with the handle of each of them.
    pub(super) fn for_each(&self, mut work: impl FnMut(&ReaderHandle)) {
        self.state.lock().all().for_each(|handle| work(handle));
    }

    /// Closes their streams; the readers then reconnect.
    pub(super) fn close(&self, code: CloseCode) {
        let mut state = self.state.lock();
        state.ended = Some(code);
        state.all().for_each(|handle| handle.close(code));
    }

    /// Adds one, and returns its key.
    pub(super) fn join(&self, handle: Arc<ReaderHandle>) -> ReaderKey {
        let mut state = self.state.lock();
        state.ended.into_iter().for_each(|code| handle.close(code));
        let is_paced = handle.every().is_some();
        ReaderKey::new(state.part(is_paced).insert(handle), is_paced)
    }

    pub(super) fn leave(&self, key: ReaderKey) {
        let mut state = self.state.lock();
        let handles = state.part(key.is_paced());
        handles.try_remove((key.0 >> 1) as usize);
        if handles.is_empty() {
            handles.shrink_to_fit();
        }
    }

    /// Whether one of them has an interval.
    pub(super) fn has_paced(&self) -> bool {
        !self.state.lock().paced.is_empty()
    }

    /// Announces that a reader with an interval waits for an entry, as [`ReaderHandle::await_entries`] does: after this
    /// call it must read once more.
    pub(super) fn await_paced(&self) {
        self.paced_waits.swap(true, Ordering::AcqRel);
    }

    /// Marks that all of them are to be woken. Returns whether the log must be added to the queue; it may be there already.
    pub(super) fn queue_wake(&self) -> bool {
        let mut state = self.state.lock();
        match state.waking {
            // Also without a reader: a reader that joins now may have seen the head before this entry, and then sleep.
            None => {
                state.waking = Some(Next::default());
                true
            }
            Some(next) => {
                state.again |= next != Next::default();
                false
            }
        }
    }

    /// Wakes up to `limit` waiting readers, from where the last call stopped; it also stops after visiting many readers
    /// that do not wait. Returns how many were woken, and whether there may be more.
    pub(super) fn wake(&self, limit: usize) -> (usize, bool) {
        let mut state = self.state.lock();
        let (mut woken, mut visits) = (0, 0);
        let mut next = state.waking.unwrap_or_default();
        while woken < limit && visits < limit.saturating_mul(VISITS) {
            let handles = if next.is_paced { &state.paced } else { &state.handles };
            if next.key < handles.capacity() {
                woken += usize::from(handles.get(next.key).is_some_and(|handle| handle.entry()));
                (next.key, visits) = (next.key + 1, visits + 1);
            } else if !next.is_paced && self.paced_waits.swap(false, Ordering::AcqRel) {
                next = Next { is_paced: true, key: 0 };
            } else {
                state.waking = std::mem::take(&mut state.again).then(Next::default);
                return (woken, state.waking.is_some());
            }
        }
        state.waking = Some(next);
        (woken, true)
    }
}
