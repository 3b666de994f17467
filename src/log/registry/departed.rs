//! The topics that this process held before. A reader may add a topic to its stream and send the event id of its other
//! topics; it must not receive a gap in a topic that it has never read.
//!
//! The id of a reader is from a time when all of its topics were held, so a topic that was not held then was not among
//! them. The table has a fixed size and is not exact: it may cause an unneeded gap, and never hides one.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::slot::Feed;
use super::{Inner, Lease, Registry};
use crate::protocol::seq::Seq;
use crate::protocol::topic::Filter;

/// The places of the table.
const PLACES: usize = 4096;

/// The last positions at which topics were held that are no longer held.
#[derive(Debug)]
pub(super) struct Departed {
    topics: Box<[Seq]>,
    /// The last position at which any pattern was held.
    patterns: Seq,
}

impl Default for Departed {
    fn default() -> Self {
        Departed { topics: vec![Seq::START; PLACES].into(), patterns: Seq::START }
    }
}

impl Departed {
    /// Records that readers may have read a topic or pattern up to this position. Another topic may share its place.
    pub(super) fn leave(&mut self, filter: &Filter, position: Seq) {
        let last = if filter.is_pattern() { &mut self.patterns } else { &mut self.topics[place(filter)] };
        *last = position.max(*last);
    }

    /// Whether a reader that has this position may have read the topic.
    fn may_have_read(&self, topic: &Filter, position: Seq) -> bool {
        self.topics[place(topic)].max(self.patterns) >= position
    }
}

fn place(filter: &Filter) -> usize {
    let mut hasher = DefaultHasher::new();
    filter.as_str().hash(&mut hasher);
    hasher.finish() as usize % PLACES
}

impl Registry {
    /// Records that a reload has changed the source of topics.
    pub fn sources_changed(&self) {
        self.inner.lock().sources_changed = true;
    }
}

impl Lease {
    /// Whether no reader with this position can have read the log, because its topic was not held then. If one may have, the
    /// table notes that the topic may have been read up to the beginning of the log.
    pub(in crate::log) fn is_new_after(&self, position: Seq) -> bool {
        let log = self.log();
        if self.filter().is_pattern() || !log.is_whole() {
            return false;
        }
        let mut inner = self.registry.inner.lock();
        let Inner { slots, departed, .. } = &mut *inner;
        if departed.may_have_read(self.filter(), position) {
            // Its gap comes where the log begins. The reader may be cut before, with an id from when the topic was not held.
            departed.leave(self.filter(), log.evicted().number);
            return false;
        }
        let is_own = slots.get(self.filter()).is_some_and(|slot| matches!(slot.feed, Feed::Own));
        is_own && !slots.has_pattern_over(self.filter())
    }

    /// Whether its topics have had the same source for as long as the process runs.
    pub(in crate::log) fn has_one_source(&self) -> bool {
        !self.registry.inner.lock().sources_changed
    }

    /// Whether this part of an event id is a position in another sequence that is followed here.
    pub(in crate::log) fn is_followed(&self, part: &str) -> bool {
        let inner = self.registry.inner.lock();
        let shared = inner.warm.values().filter_map(|warm| inner.slots.get(warm));
        let mut sequences = shared.filter_map(|slot| slot.log.sequence());
        self.registry.sequence.has_written(part) || sequences.any(|sequence| sequence.has_written(part))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_that_was_read_further_is_not_forgotten_for_one_in_the_same_place() {
        let mut departed = Departed::default();
        let topic = |number: usize| Filter::parse(&format!("t/{number}"), 99).unwrap();
        let one = topic(0);
        let other = (1..).map(topic).find(|other| place(other) == place(&one)).unwrap();
        departed.leave(&one, Seq::new(9));
        departed.leave(&other, Seq::new(4));
        assert!(departed.may_have_read(&one, Seq::new(9)));
        assert!(!departed.may_have_read(&one, Seq::new(10)));
    }
}
