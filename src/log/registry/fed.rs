//! The logs that a warm log feeds, and from which position on it is complete for each of them.
//!
//! A message that arrives by two subscriptions has two numbers. So a warm log continues another log of a filter only if
//! it has fed that log. Otherwise, for readers that resume, its messages of the filter begin at the time when it began
//! to feed the filter.

use std::collections::HashMap;
use std::sync::Arc;

use crate::log::TopicLog;
use crate::log::time::Horizon;
use crate::protocol::filter_index::FilterIndex;
use crate::protocol::seq::Seq;
use crate::protocol::topic::{Filter, Topic};

/// The most filters with their own mark. With more, marks apply to all that it feeds.
const PATTERNS: usize = 64;
const TOPICS: usize = 100_000;

/// The logs that one warm log feeds.
#[derive(Debug)]
pub(super) struct Children {
    topics: HashMap<Filter, Arc<TopicLog>>,
    patterns: FilterIndex<Arc<TopicLog>>,
    /// The position from which it feeds others.
    from: Horizon,
    /// The same for filters that had another feed after that.
    from_of: HashMap<Filter, Horizon>,
    from_of_patterns: Vec<(Filter, Horizon)>,
}

impl Default for Children {
    fn default() -> Self {
        Children {
            topics: HashMap::new(),
            patterns: FilterIndex::default(),
            from: Horizon::START,
            from_of: HashMap::new(),
            from_of_patterns: Vec::new(),
        }
    }
}

impl Children {
    /// Sets the position from which it feeds others.
    pub(super) fn from(mut self, from: Horizon) -> Self {
        self.from = from;
        self.from_of.clear();
        self.from_of_patterns.clear();
        self
    }

    /// Marks that filters inside `filter` had another feed until then.
    pub(super) fn is_complete_from(&mut self, filter: &Filter, from: Horizon) {
        match filter.is_pattern() {
            false if self.from_of.len() < TOPICS => _ = self.from_of.insert(filter.clone(), from),
            true if self.from_of_patterns.len() < PATTERNS => {
                self.from_of_patterns.push((filter.clone(), from));
            }
            _ => self.from = from,
        }
    }

    /// The position from which it is complete for a log of `filter`.
    pub(super) fn complete_from(&self, filter: &Filter) -> Horizon {
        let own = self.from_of.get(filter).copied();
        let patterns = self.from_of_patterns.iter().filter(|(pattern, _)| pattern.overlaps(filter));
        let marks = patterns.map(|(_, from)| *from).chain(own);
        marks.fold(self.from, Horizon::later)
    }

    /// Forgets marks before the number `evicted`, from which time the log has no entries any more.
    pub(super) fn forget_marks(&mut self, evicted: Seq) {
        self.from_of.retain(|_, from| from.number > evicted);
        self.from_of_patterns.retain(|(_, from)| from.number > evicted);
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

    /// All logs that it feeds.
    pub(super) fn logs(&self) -> impl Iterator<Item = &Arc<TopicLog>> {
        self.topics.values().chain(self.patterns.values())
    }

    /// Calls `work` with each log that matches `topic`.
    pub(super) fn matching<'a>(&'a self, topic: &Topic, mut work: impl FnMut(&'a Arc<TopicLog>)) {
        self.topics.get(&Filter::from(topic.clone())).into_iter().for_each(&mut work);
        if !self.patterns.is_empty() {
            self.patterns.matching(topic, work);
        }
    }
}
