//! What a warm log feeds: the logs inside its pattern, and from where on it is complete for each.
//!
//! A message that comes by two subscriptions has two numbers. So a warm log goes on where another log of a filter has ended only
//! if it has fed that log; else what it holds of the filter begins, for those who come back, when it came to feed it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use crate::log::TopicLog;
use crate::protocol::filter_index::FilterIndex;
use crate::protocol::topic::{Filter, Topic};

/// A number, and when that was.
type Place = (u64, SystemTime);

/// Patterns and topics that it remembers. Beyond it their marks hold for all that it feeds.
const PATTERNS: usize = 64;
const TOPICS: usize = 100_000;

/// See the module.
#[derive(Debug)]
pub(super) struct Children {
    topics: HashMap<Filter, Arc<TopicLog>>,
    patterns: FilterIndex<Arc<TopicLog>>,
    /// Since when it feeds others.
    from: Place,
    /// The same of what was fed otherwise after that.
    from_of: HashMap<Filter, Place>,
    from_of_patterns: Vec<(Filter, Place)>,
}

impl Default for Children {
    fn default() -> Self {
        Children {
            topics: HashMap::new(),
            patterns: FilterIndex::default(),
            from: (0, SystemTime::UNIX_EPOCH),
            from_of: HashMap::new(),
            from_of_patterns: Vec::new(),
        }
    }
}

impl Children {
    /// It feeds others since then.
    pub(super) fn from(mut self, from: Place) -> Self {
        self.from = from;
        self.from_of.clear();
        self.from_of_patterns.clear();
        self
    }

    /// What is inside of `filter` was fed otherwise until then.
    pub(super) fn is_complete_from(&mut self, filter: &Filter, from: Place) {
        match filter.is_pattern() {
            false if self.from_of.len() < TOPICS => _ = self.from_of.insert(filter.clone(), from),
            true if self.from_of_patterns.len() < PATTERNS => {
                self.from_of_patterns.push((filter.clone(), from));
            }
            _ => self.from = from,
        }
    }

    /// From where on it is complete for a log of `filter`.
    pub(super) fn complete_from(&self, filter: &Filter) -> Place {
        let own = self.from_of.get(filter).copied();
        let patterns = self.from_of_patterns.iter().filter(|(pattern, _)| pattern.overlaps(filter));
        let marks = patterns.map(|(_, from)| *from).chain(own);
        marks.fold(self.from, |from, mark| if mark.0 > from.0 { mark } else { from })
    }

    /// Its log holds nothing any more from before the number `evicted`.
    pub(super) fn forget_marks(&mut self, evicted: u64) {
        self.from_of.retain(|_, (number, _)| *number > evicted);
        self.from_of_patterns.retain(|(_, (number, _))| *number > evicted);
        if self.from_of.capacity() > 64 && self.from_of.len() * 4 < self.from_of.capacity() {
            self.from_of.shrink_to_fit();
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.topics.is_empty() && self.patterns.is_empty()
    }

    pub(super) fn add(&mut self, log: &Arc<TopicLog>) {
        if log.filter.is_pattern() {
            self.patterns.insert(&log.filter, log.clone());
        } else {
            self.topics.insert(log.filter.clone(), log.clone());
        }
    }

    pub(super) fn remove(&mut self, filter: &Filter) {
        if filter.is_pattern() {
            self.patterns.remove(filter);
        } else {
            self.topics.remove(filter);
        }
    }

    /// All of them.
    pub(super) fn logs(&self) -> impl Iterator<Item = &Arc<TopicLog>> {
        self.topics.values().chain(self.patterns.values())
    }

    /// Calls `work` with each that a message of `topic` is for.
    pub(super) fn matching<'a>(&'a self, topic: &Topic, mut work: impl FnMut(&'a Arc<TopicLog>)) {
        self.topics.get(&Filter::from(topic.clone())).into_iter().for_each(&mut work);
        if !self.patterns.is_empty() {
            self.patterns.matching(topic, work);
        }
    }
}
