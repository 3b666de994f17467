//! Which log feeds which: what changes that, and what it leaves behind.

use std::sync::Arc;
use std::time::SystemTime;

use super::super::TopicLog;
use super::super::time::Line;
use super::fed::Fed;
use super::slot::{Feed, Slot};
use super::{Inner, Registry};
use crate::config::Source;
use crate::position::Sequence;
use crate::topic::Filter;

impl Inner {
    /// Takes a log out, and with a warm one those that it feeds: nothing would reach them any more. Returns them all.
    /// `sequence` is that of the process.
    pub(super) fn remove(&mut self, filter: &Filter, sequence: &Sequence) -> Vec<Arc<TopicLog>> {
        let Some(slot) = self.slots.remove(filter) else { return Vec::new() };
        match &slot.feed {
            Feed::Own => {}
            Feed::Warm(_) => {
                self.warm.retain(|warm| warm != filter);
                let is_fed = |other: &Slot| matches!(&other.feed, Feed::By(warm) if warm == filter);
                let fed: Vec<_> = self.slots.extract_if(|_, other| is_fed(other)).collect();
                fed.iter().for_each(|(filter, slot)| self.leave_mark(filter, slot, sequence));
            }
            Feed::By(warm) => {
                if let Some(Slot { feed: Feed::Warm(fed), .. }) = self.slots.get_mut(warm) {
                    fed.remove(filter);
                }
            }
        }
        self.leave_mark(filter, &slot, sequence);
        slot.logs().cloned().collect()
    }

    /// `slot` is gone. What a warm log that did not feed it has of its filter does not go on where it has ended.
    fn leave_mark(&mut self, filter: &Filter, slot: &Slot, sequence: &Sequence) {
        if slot.begun == self.feeding || slot.fields.source.is_stored() {
            return; // for what the broker numbers it makes no difference by what it comes
        }
        for warm in self.warm.iter().filter(|warm| warm.covers(filter)) {
            let is_fed_by = matches!(&slot.feed, Feed::By(by) if by == warm);
            if let Some(Slot { feed: Feed::Warm(fed), .. }) = self.slots.get_mut(warm)
                && !is_fed_by
            {
                fed.is_complete_from(filter, begin_now(sequence, &self.line));
            }
        }
    }

    /// From now on the log of `warm` feeds others, or feeds all of them again.
    pub(super) fn begin_to_feed(&mut self, warm: &Filter, sequence: &Sequence) {
        self.feeding = self.feeding.wrapping_add(1);
        if !self.warm.contains(warm) {
            self.warm.push(warm.clone());
        }
        let from = begin_now(sequence, &self.line);
        if let Some(slot) = self.slots.get_mut(warm) {
            slot.feed = match std::mem::replace(&mut slot.feed, Feed::Own) {
                Feed::Warm(fed) => Feed::Warm(fed.from(from)),
                Feed::Own | Feed::By(_) => Feed::Warm(Fed::default().from(from)),
            };
        }
    }

    /// The warm log that feeds topics of the rule with this pattern: its own, or one that covers it, where a reader of the pattern
    /// has its log from that.
    pub(super) fn feeder(&self, rule: &Filter, source: &Source) -> Option<Filter> {
        let feeds = |warm: &Filter| {
            let slot = self.slots.get(warm);
            slot.is_some_and(|slot| matches!(slot.feed, Feed::Warm(_)) && slot.fields.source == *source)
        };
        if feeds(rule) {
            return Some(rule.clone());
        }
        self.warm.iter().find(|warm| warm.covers(rule) && feeds(warm)).cloned()
    }
}

/// A place of its own, so that every id given out before is from before it.
pub(super) fn begin_now(sequence: &Sequence, line: &Line) -> (u64, SystemTime) {
    let begin = sequence.next();
    sequence.publish(begin);
    (begin, line.now())
}

impl Registry {
    /// Topics of `filter` are no longer of another rule than that of the warm log `warm`, which so has nothing of them that goes
    /// on where they were read before.
    pub fn take_over(&self, warm: &Filter, filter: &Filter) {
        let mut inner = self.inner.lock();
        let from = begin_now(&self.sequence, &inner.line);
        if let Some(Slot { feed: Feed::Warm(fed), .. }) = inner.slots.get_mut(warm) {
            fed.is_complete_from(filter, from);
        }
    }

    /// Other rules than before say what feeds a filter. What is read by those before is told from what will be.
    pub fn rules_changed(&self) {
        let mut inner = self.inner.lock();
        inner.feeding = inner.feeding.wrapping_add(1);
    }

    /// Where warm logs hold nothing any more from before they came to feed a topic, that makes no difference.
    pub(super) fn forget_marks(&self) {
        let mut inner = self.inner.lock();
        let Inner { slots, warm, .. } = &mut *inner;
        for warm in warm {
            if let Some(Slot { log, feed: Feed::Warm(fed), .. }) = slots.get_mut(warm) {
                fed.forget_marks(log.evicted().0);
            }
        }
    }
}
