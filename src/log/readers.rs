//! The readers of a log, and how they are woken: in groups, so that a crowd on one topic does not delay another.

use std::collections::VecDeque;
use std::sync::Arc;

use slab::Slab;

use super::TopicLog;
use crate::protocol::codes::CloseCode;
use crate::reader::handle::ReaderHandle;

/// How many readers are visited for each reader that may be woken at once.
const LOOKS: usize = 16;

/// The readers of one log.
#[derive(Debug, Default)]
pub(super) struct Readers {
    handles: Slab<Arc<ReaderHandle>>,
    /// While readers are being woken in groups: the key of the next one.
    waking: Option<usize>,
    /// More was appended since the first was woken, so all must be woken once more.
    again: bool,
    /// Nothing will be appended any more. A reader that joins now is closed like the others.
    ended: Option<CloseCode>,
}

impl TopicLog {
    /// The handles of its readers.
    pub fn readers(&self) -> Vec<Arc<ReaderHandle>> {
        self.readers.lock().handles.iter().map(|(_, handle)| handle.clone()).collect()
    }

    /// Calls `look` with the handle of every stream that reads it.
    pub(super) fn for_each_reader(&self, mut look: impl FnMut(&ReaderHandle)) {
        self.readers.lock().handles.iter().for_each(|(_, handle)| look(handle));
    }

    /// Closes the streams of its readers, which then reconnect.
    pub(super) fn close(&self, code: CloseCode) {
        let mut readers = self.readers.lock();
        readers.ended = Some(code);
        readers.handles.iter().for_each(|(_, handle)| handle.close(code));
    }

    pub(super) fn join(&self, handle: Arc<ReaderHandle>) -> usize {
        let mut readers = self.readers.lock();
        readers.ended.into_iter().for_each(|code| handle.close(code));
        readers.handles.insert(handle)
    }

    pub(super) fn leave(&self, key: usize) {
        let readers = &mut self.readers.lock().handles;
        readers.try_remove(key);
        if readers.is_empty() {
            readers.shrink_to_fit();
        }
    }

    /// Adds the log to the queue of logs whose readers must be woken, unless it is in it.
    pub(super) fn queue_wake(self: &Arc<Self>, queue: &mut VecDeque<Arc<TopicLog>>) {
        let mut readers = self.readers.lock();
        match readers.waking {
            // Also without a reader: a reader that joins now may have seen the head before this entry, and then sleep.
            None => {
                readers.waking = Some(0);
                queue.push_back(self.clone());
            }
            Some(next) => readers.again |= next > 0,
        }
    }

    /// Wakes up to `limit` waiting readers, from where the last call stopped; it also stops after visiting many readers
    /// that do not wait. Returns how many were woken, and whether there may be more.
    pub(super) fn wake(&self, limit: usize) -> (usize, bool) {
        let mut readers = self.readers.lock();
        let mut woken = 0;
        let first = readers.waking.unwrap_or_default();
        let mut key = first;
        while woken < limit && key - first < limit.saturating_mul(LOOKS) {
            if key >= readers.handles.capacity() {
                readers.waking = std::mem::take(&mut readers.again).then_some(0);
                return (woken, readers.waking.is_some());
            }
            woken += usize::from(readers.handles.get(key).is_some_and(|handle| handle.entry()));
            key += 1;
        }
        readers.waking = Some(key);
        (woken, true)
    }
}
