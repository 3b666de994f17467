//! The reads of readers with an interval. While a log has such readers, it retains the newest of the evicted entries of
//! each topic and type, so that these readers get no gap for evicted entries that were superseded.

use std::sync::Arc;

use super::{State, TopicLog};
use crate::log::newest::{Chosen, Newest};
use crate::log::newest_batch::{NewestBatch, Round};
use crate::log::readers::ReaderKey;
use crate::log::variant::Variant;
use crate::log::{BufferUsage, Entry};
use crate::protocol::seq::Seq;
use crate::protocol::view::View;
use crate::reader::handle::ReaderHandle;

/// The newest of the entries that were evicted.
#[derive(Debug)]
pub(super) struct Retained {
    newest: Newest,
    /// Everything that was evicted after this number is there, or is older than something that is.
    since: Seq,
    usage: Arc<BufferUsage>,
}

impl Retained {
    fn new(since: Seq, usage: &Arc<BufferUsage>) -> Box<Self> {
        Box::new(Retained { newest: Newest::default(), since, usage: usage.clone() })
    }

    /// Adds an evicted entry, and drops the oldest beyond `bytes`.
    pub(super) fn insert(&mut self, entry: &Arc<Entry>, bytes: usize) {
        let before = self.newest.bytes();
        // An end passes every view, and its type may not.
        self.newest.insert(entry, entry.kind.ends());
        while self.newest.bytes() > bytes
            && let Some(oldest) = self.newest.remove_oldest()
        {
            self.since = oldest;
        }
        self.usage.add(self.newest.bytes());
        self.usage.sub(before);
    }
}

impl Drop for Retained {
    fn drop(&mut self) {
        self.usage.sub(self.newest.bytes());
    }
}

impl State {
    /// The number after which nothing is missing for a reader with an interval.
    fn whole_from(&self) -> Seq {
        let retained = self.retained.as_ref().map_or(Seq::MAX, |retained| retained.since);
        self.evicted.number.min(retained)
    }

    fn choose(&self, from: Seq, until: Seq, view: &View) -> Chosen {
        let index = |number: Seq| self.entries.partition_point(|entry| entry.sequence <= number);
        let held = self.entries.range(index(from)..index(until.max(from))).rev();
        let retained = self.retained.iter().flat_map(|retained| retained.newest.after(from).rev());
        Chosen::of(held.chain(retained.filter(|entry| entry.sequence <= until)), view)
    }
}

impl TopicLog {
    /// Adds a reader, and returns its key.
    pub(in crate::log) fn join(&self, handle: &Arc<ReaderHandle>) -> ReaderKey {
        let key = self.readers.join(handle.clone());
        if handle.every().is_some() {
            let mut state = self.state.lock();
            let since = state.evicted.number;
            state.retained.get_or_insert_with(|| Retained::new(since, &self.usage));
        }
        key
    }

    /// Removes the reader with that key.
    pub(in crate::log) fn leave(&self, key: ReaderKey) {
        self.readers.leave(key);
        if key.is_paced() {
            let mut state = self.state.lock();
            // Asked under the lock: a reader that joins now retains after it has joined.
            if !self.readers.has_paced() {
                state.retained = None;
            }
        }
    }

    /// Drops the retained entries, to free memory.
    pub(super) fn forget_retained(&self, state: &mut State) {
        let since = state.evicted.number;
        state.retained.iter_mut().for_each(|retained| *retained = Retained::new(since, &self.usage));
    }

    /// The number after which nothing is missing for a reader with an interval.
    pub(in crate::log) fn whole_from(&self) -> Seq {
        self.state.lock().whole_from()
    }

    /// The selection for a reader with an interval from the entries after `from` up to `until`. If entries after `from` are
    /// missing, also the number of the last missing one.
    pub(in crate::log) fn newest_after(&self, from: Seq, until: Seq, view: &View) -> (Option<Seq>, Chosen) {
        let until = self.numbering.end(until);
        if self.has_nothing_after(from) {
            return (None, Chosen::default());
        }
        let state = self.state.lock();
        let missing = Some(state.whole_from()).filter(|whole_from| *whole_from > from);
        (missing, state.choose(missing.unwrap_or(from), until, view))
    }

    /// As [`TopicLog::newest_after`], as a batch that readers of the same tick share. `Err`: entries up to that number
    /// are missing.
    pub(in crate::log) fn newest_batch(
        &self,
        round: Round,
        variant: Variant<'_>,
        view: &View,
    ) -> Result<Option<NewestBatch>, Seq> {
        if self.has_nothing_after(round.from) && round.until.is_none() {
            return Ok(None);
        }
        let mut state = self.state.lock();
        let whole_from = state.whole_from();
        if whole_from > round.from {
            return Err(whole_from);
        }
        if let Some(batch) = state.batches.newest(view).find(round, variant) {
            return Ok(Some(batch));
        }
        let mut until = state.batches.newest(view).end(round);
        let mut chosen = state.choose(round.from, until, view);
        if chosen.entries.is_empty() && round.until.is_none() && until < round.head {
            // The round of the others has nothing new, but there are entries after it, which must not wait for the next
            // entry.
            until = round.head;
            chosen = state.choose(round.from, until, view);
        }
        if chosen.entries.is_empty() && chosen.filtered == 0 {
            return Ok(None);
        }
        Ok(Some(state.batches.newest(view).make(round, until, &chosen, variant)))
    }
}
