//! Changes of the feed of logs: which warm log feeds which logs, and the marks that a change leaves for readers that
//! resume.

use std::sync::Arc;

use parking_lot::MutexGuard;
use smallvec::SmallVec;

use super::fed::Children;
use super::slot::{Feed, Slot};
use super::slots::PART;
use super::{Inner, Registry};
use crate::log::TopicLog;
use crate::log::time::{Horizon, Line};
use crate::protocol::event_id::Sequence;
use crate::protocol::source::Source;
use crate::protocol::topic::Filter;

impl Inner {
    /// Removes a log. The logs that a warm log fed receive nothing more and must be removed too. `sequence` is the one
    /// of the process.
    pub(super) fn remove(&mut self, filter: &Filter, sequence: &Sequence) -> Option<Slot> {
        let slot = self.slots.remove(filter)?;
        self.departed.leave(filter, sequence.head());
        match &slot.feed {
            Feed::Own => {}
            Feed::Warm(_) => _ = self.warm.remove(filter),
            Feed::By(warm) => {
                if let Some(Slot { feed: Feed::Warm(fed), .. }) = self.slots.get_mut(warm) {
                    fed.remove(filter);
                }
            }
        }
        self.leave_mark(filter, &slot, sequence);
        Some(slot)
    }

    /// Leaves a mark for a removed `slot`: a warm log that did not feed it does not continue it.
    fn leave_mark(&mut self, filter: &Filter, slot: &Slot, sequence: &Sequence) {
        if slot.begun == self.feeding || slot.fields.source.is_stored() {
            return; // stored messages have the same numbers by any subscription
        }
        let mut covering: SmallVec<[Filter; 2]> = SmallVec::new();
        self.warm.covering(filter, |warm| covering.push(warm.clone()));
        for warm in &covering {
            let is_fed_by = matches!(&slot.feed, Feed::By(by) if by == warm);
            if let Some(Slot { feed: Feed::Warm(fed), .. }) = self.slots.get_mut(warm)
                && !is_fed_by
            {
                fed.is_complete_from(filter, begin_now(sequence, &self.line));
            }
        }
    }

    /// From now on, the log of `warm` feeds others, or feeds all of them again.
    pub(super) fn begin_to_feed(&mut self, warm: &Filter, sequence: &Sequence) {
        self.feeding = self.feeding.wrapping_add(1);
        self.warm.insert(warm, warm.clone());
        let from = begin_now(sequence, &self.line);
        if let Some(slot) = self.slots.get_mut(warm) {
            slot.log.index_topics();
            slot.feed = match std::mem::replace(&mut slot.feed, Feed::Own) {
                Feed::Warm(fed) => Feed::Warm(fed.from(from)),
                Feed::Own | Feed::By(_) => Feed::Warm(Children::default().from(from)),
            };
        }
    }

    /// The warm log that feeds topics of the rule with this pattern: its own, or a wider one that feeds the log of the
    /// pattern.
    pub(super) fn feeder(&self, rule: &Filter, source: &Source) -> Option<Filter> {
        let feeds = |warm: &Filter| {
            let slot = self.slots.get(warm);
            slot.is_some_and(|slot| matches!(slot.feed, Feed::Warm(_)) && slot.fields.source == *source)
        };
        if feeds(rule) {
            return Some(rule.clone());
        }
        let mut found = None;
        self.warm.covering(rule, |warm| {
            if found.is_none() && feeds(warm) {
                found = Some(warm.clone());
            }
        });
        found
    }
}

/// Takes a number of its own, so that every id sent before is from before it.
pub(super) fn begin_now(sequence: &Sequence, line: &Line) -> Horizon {
    let number = sequence.next();
    sequence.publish(number);
    Horizon { number, time: line.now() }
}

impl Registry {
    /// Records that topics of `filter` now belong to the rule of the warm log `warm`, which does not continue their
    /// former logs.
    pub fn take_over(&self, warm: &Filter, filter: &Filter) {
        let mut inner = self.inner.lock();
        let from = begin_now(&self.sequence, &inner.line);
        if let Some(Slot { feed: Feed::Warm(fed), .. }) = inner.slots.get_mut(warm) {
            fed.is_complete_from(filter, from);
        }
    }

    /// Records that the rules have changed, and with them what feeds a filter. Logs from before are distinguished from
    /// those after.
    pub fn rules_changed(&self) {
        let mut inner = self.inner.lock();
        inner.feeding = inner.feeding.wrapping_add(1);
    }

    /// Forgets the marks from before the oldest entries of warm logs, which no longer matter.
    pub(super) fn forget_marks(&self) {
        let warm: Vec<Filter> = self.inner.lock().warm.values().cloned().collect();
        for warm in warm {
            let mut inner = self.inner.lock();
            if let Some(Slot { log, feed: Feed::Warm(fed), .. }) = inner.slots.get_mut(&warm) {
                fed.forget_marks(log.evicted().number);
            }
        }
    }

    /// Removes `log`, if the registry still has it, and the logs that it feeds, which would receive nothing more. All
    /// of them end at once, by the seal that they share. Then the others are removed in parts; a new lease of one of
    /// them meanwhile gets a new log. Returns all of them.
    pub(super) fn take_out(
        &self,
        filter: &Filter,
        is_meant: impl FnOnce(&Slot) -> bool,
    ) -> Vec<Arc<TopicLog>> {
        let slot = {
            let mut inner = self.inner.lock();
            if !inner.slots.get(filter).is_some_and(is_meant) {
                return Vec::new();
            }
            let Some(slot) = inner.remove(filter, &self.sequence) else { return Vec::new() };
            slot.log.numbering.seal();
            slot
        };
        let logs: Vec<_> = slot.logs().cloned().collect();
        for part in logs.chunks(PART) {
            let mut inner = self.inner.lock();
            let is_held = |log: &&Arc<TopicLog>| {
                inner.slots.get(&log.filter).is_some_and(|slot| Arc::ptr_eq(&slot.log, log))
            };
            let held: Vec<_> = part.iter().filter(is_held).collect();
            let removed: Vec<_> =
                held.into_iter().filter_map(|log| inner.remove(&log.filter, &self.sequence)).collect();
            MutexGuard::unlock_fair(inner);
            drop(removed); // outside of the lock
        }
        logs
    }
}
