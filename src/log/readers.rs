//! The readers of a log, and how they are woken: in groups, so that a crowd on one topic does not delay another.

use std::sync::Arc;

use parking_lot::Mutex;
use slab::Slab;

use crate::protocol::codes::CloseCode;
use crate::reader::handle::ReaderHandle;

/// How many readers are visited for each reader that may be woken at once.
const VISITS: usize = 16;

/// The readers of one log.
#[derive(Debug, Default)]
pub(super) struct Readers(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    handles: Slab<Arc<ReaderHandle>>,
    /// While readers are being woken in groups: the key of the next one.
    waking: Option<usize>,
    /// More was appended since the first was woken, so all must be woken once more.
    again: bool,
    /// Nothing will be appended any more. A reader that joins now is closed like the others.
    ended: Option<CloseCode>,
}

impl Readers {
    /// Their handles.
    pub(super) fn handles(&self) -> Vec<Arc<ReaderHandle>> {
        self.0.lock().handles.iter().map(|(_, handle)| handle.clone()).collect()
    }

    /// Calls `work` with the handle of each of them.
    pub(super) fn for_each(&self, mut work: impl FnMut(&ReaderHandle)) {
        self.0.lock().handles.iter().for_each(|(_, handle)| work(handle));
    }

    /// Closes their streams; the readers then reconnect.
    pub(super) fn close(&self, code: CloseCode) {
        let mut state = self.0.lock();
        state.ended = Some(code);
        state.handles.iter().for_each(|(_, handle)| handle.close(code));
    }

    /// Adds one, and returns its key.
    pub(super) fn join(&self, handle: Arc<ReaderHandle>) -> u32 {
        let mut state = self.0.lock();
        state.ended.into_iter().for_each(|code| handle.close(code));
        // Keys are given again, and there are never as many readers at once.
        state.handles.insert(handle) as u32
    }

    pub(super) fn leave(&self, key: u32) {
        let handles = &mut self.0.lock().handles;
        handles.try_remove(key as usize);
        if handles.is_empty() {
            handles.shrink_to_fit();
        }
    }

    /// Marks that all of them are to be woken. Returns whether the log must be added to the queue; it may be there already.
    pub(super) fn queue_wake(&self) -> bool {
        let mut state = self.0.lock();
        match state.waking {
            // Also without a reader: a reader that joins now may have seen the head before this entry, and then sleep.
            None => {
                state.waking = Some(0);
                true
            }
            Some(next) => {
                state.again |= next > 0;
                false
            }
        }
    }

    /// Wakes up to `limit` waiting readers, from where the last call stopped; it also stops after visiting many readers that do
    /// not wait. Returns how many were woken, and whether there may be more.
    pub(super) fn wake(&self, limit: usize) -> (usize, bool) {
        let mut state = self.0.lock();
        let mut woken = 0;
        let first = state.waking.unwrap_or_default();
        let mut key = first;
        while woken < limit && key - first < limit.saturating_mul(VISITS) {
            if key >= state.handles.capacity() {
                state.waking = std::mem::take(&mut state.again).then_some(0);
                return (woken, state.waking.is_some());
            }
            woken += usize::from(state.handles.get(key).is_some_and(|handle| handle.entry()));
            key += 1;
        }
        state.waking = Some(key);
        (woken, true)
    }
}
