//! The topics of one subscribe request: repeats are dropped, their number is bounded before any two are compared, and a
//! topic that another one covers is dropped, so that each message is sent once.
//!
//! Topics and patterns are compared through an index of their segments: each is compared only with those that share
//! segments with it. Nothing here recurses, because a client chooses the number of segments.

use std::collections::{HashMap, HashSet};

use super::problem::Problem;
use crate::metrics::Limit;
use crate::protocol::codes::RefusalCode;
use crate::protocol::topic::{Filter, TopicError, is_reserved};

/// The topics and patterns that a request names.
#[derive(Debug)]
pub(super) struct Topics {
    /// In the order in which they were named.
    named: Vec<Filter>,
    known: HashSet<Filter>,
    limit: usize,
}

impl Topics {
    /// An empty list that takes at most `limit` different topics.
    pub(super) fn new(limit: usize) -> Self {
        Topics { named: Vec::new(), known: HashSet::new(), limit }
    }

    /// Adds a topic. A repeat changes nothing.
    ///
    /// # Errors
    /// The request names too many topics.
    pub(super) fn add(&mut self, filter: Filter) -> Result<(), Problem> {
        if self.known.contains(&filter) {
            return Ok(());
        }
        if self.named.len() >= self.limit {
            return Err(bad_query(format!(
                "a stream may name at most {} topics (limits.topics_per_stream); use a pattern, or several streams",
                self.limit
            ))
            .limit(Limit::TopicsPerStream));
        }
        self.known.insert(filter.clone());
        self.named.push(filter);
        Ok(())
    }

    /// Whether none was added.
    pub(super) fn is_empty(&self) -> bool {
        self.named.is_empty()
    }

    /// The topics that no other one covers.
    ///
    /// # Errors
    /// There is none, or two overlap and neither covers the other, so that neither can be dropped.
    pub(super) fn settle(self) -> Result<Vec<Filter>, Problem> {
        let Topics { named, .. } = self;
        if named.is_empty() {
            return Err(TopicError::Empty.into());
        }
        // Different topics have no message in common.
        if !named.iter().any(Filter::is_pattern) {
            return Ok(named);
        }
        let index = Index::new(&named);
        let covered: Vec<bool> = named.iter().map(|filter| index.covers(filter)).collect();
        let kept: Vec<Filter> = named
            .iter()
            .zip(covered)
            .filter(|(_, covered)| !covered)
            .map(|(filter, _)| filter.clone())
            .collect();
        let index = Index::new(&kept);
        let overlapping = kept.iter().find_map(|filter| Some((filter, index.overlapping(filter)?)));
        if let Some((filter, other)) = overlapping {
            return Err(bad_query(format!(
                "{filter} and {other} overlap and neither covers the other, so messages would be sent twice; \
                 request a pattern that covers both, or use two streams"
            )));
        }
        Ok(kept)
    }
}

fn bad_query(detail: String) -> Problem {
    Problem::new(RefusalCode::BadQuery, detail)
}

/// Filters by their segments. A node is a common prefix of some filters.
struct Index<'a> {
    nodes: Vec<Node<'a>>,
    /// The node that follows another one by a segment.
    edges: HashMap<(usize, &'a str), usize>,
}

#[derive(Default)]
struct Node<'a> {
    /// The filter that ends here.
    filter: Option<&'a Filter>,
    children: Vec<(&'a str, usize)>,
}

const ROOT: usize = 0;

impl<'a> Index<'a> {
    fn new(filters: &'a [Filter]) -> Self {
        let mut index = Index { nodes: vec![Node::default()], edges: HashMap::new() };
        for filter in filters {
            let mut node = ROOT;
            for segment in filter.segments() {
                let new = index.nodes.len();
                let next = *index.edges.entry((node, segment)).or_insert(new);
                if next == new {
                    index.nodes.push(Node::default());
                    index.nodes[node].children.push((segment, new));
                }
                node = next;
            }
            index.nodes[node].filter = Some(filter);
        }
        index
    }

    /// The filter that ends at `node`, unless it is `but`.
    fn other(&self, node: usize, but: &Filter) -> Option<&'a Filter> {
        self.nodes[node].filter.filter(|filter| *filter != but)
    }

    /// Whether another filter covers all of `filter`.
    fn covers(&self, filter: &Filter) -> bool {
        let segments: Vec<&str> = filter.segments().collect();
        let mut left = vec![(ROOT, 0)];
        while let Some((node, depth)) = left.pop() {
            let Some(segment) = segments.get(depth).copied() else {
                if self.other(node, filter).is_some() {
                    return true;
                }
                continue;
            };
            let edge = |name| self.edges.get(&(node, name)).copied();
            let wildcards_match = depth > 0 || !is_reserved(segment);
            if wildcards_match && edge("**").is_some_and(|rest| self.other(rest, filter).is_some()) {
                return true;
            }
            if wildcards_match && segment != "*" && segment != "**" {
                left.extend(edge("*").map(|next| (next, depth + 1)));
            }
            left.extend(edge(segment).map(|next| (next, depth + 1)));
        }
        false
    }

    /// Another filter that overlaps with `filter`.
    fn overlapping(&self, filter: &Filter) -> Option<&'a Filter> {
        let segments: Vec<&str> = filter.segments().collect();
        let mut left = vec![(ROOT, 0)];
        while let Some((node, depth)) = left.pop() {
            let Some(segment) = segments.get(depth).copied() else {
                if let Some(other) = self.other(node, filter) {
                    return Some(other);
                }
                continue;
            };
            let edge = |name| self.edges.get(&(node, name)).copied();
            // A wildcard as the first segment matches no reserved segment.
            let meet = |a: &str, b: &str| a == b || depth > 0 || !(is_reserved(a) || is_reserved(b));
            if let Some(rest) = edge("**").filter(|_| meet("**", segment))
                && let Some(other) = self.other(rest, filter)
            {
                return Some(other);
            }
            match segment {
                "**" => {
                    let children = self.nodes[node].children.iter().filter(|(name, _)| meet(name, segment));
                    let found = children.filter_map(|(_, child)| self.any_below(*child, filter)).next();
                    if found.is_some() {
                        return found;
                    }
                }
                "*" => {
                    let children = self.nodes[node].children.iter();
                    let met = children.filter(|(name, _)| *name != "**" && meet(name, segment));
                    left.extend(met.map(|(_, child)| (*child, depth + 1)));
                }
                _ => {
                    left.extend(edge(segment).map(|next| (next, depth + 1)));
                    left.extend(edge("*").filter(|_| meet("*", segment)).map(|next| (next, depth + 1)));
                }
            }
        }
        None
    }

    /// A filter other than `but` that ends at `node` or below it.
    fn any_below(&self, node: usize, but: &Filter) -> Option<&'a Filter> {
        let mut left = vec![node];
        while let Some(node) = left.pop() {
            if let Some(other) = self.other(node, but) {
                return Some(other);
            }
            left.extend(self.nodes[node].children.iter().map(|(_, child)| *child));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn settle(texts: &[&str], limit: usize) -> Result<Vec<String>, Problem> {
        let mut topics = Topics::new(limit);
        for text in texts {
            topics.add(Filter::parse(text, 99).unwrap())?;
        }
        topics.settle().map(|kept| kept.iter().map(|filter| filter.to_string()).collect())
    }

    #[test]
    fn topics_that_another_topic_covers_are_dropped_and_partial_overlaps_are_refused() {
        assert_eq!(settle(&["a/b", "a/**", "a/*", "a/b"], 3).unwrap(), ["a/**"]);
        assert_eq!(settle(&["a", "b", "a"], 3).unwrap(), ["a", "b"]);
        assert!(settle(&["a/*", "*/b"], 3).is_err());
        assert!(settle(&["a", "b", "c", "d"], 3).is_err());
        assert!(settle(&[], 3).is_err());
    }

    #[test]
    fn the_number_of_topics_is_checked_before_they_are_compared_and_a_repeated_topic_counts_once() {
        assert!(settle(&["a/1", "a/2", "a/3", "a/*"], 3).is_err());
        assert_eq!(settle(&["a/1", "a/2", "a/1", "a/2", "a/1"], 2).unwrap(), ["a/1", "a/2"]);
    }

    #[test]
    fn a_topic_of_very_many_segments_does_not_overflow_the_stack() {
        let long = vec!["a"; 300_000].join("/");
        let filters = [long.clone() + "/*", long.clone() + "/b", long + "/**"];
        let mut topics = Topics::new(3);
        for filter in &filters {
            topics.add(Filter::parse(filter, usize::MAX).unwrap()).unwrap();
        }
        assert_eq!(topics.settle().unwrap().len(), 1);
    }

    fn filter() -> impl Strategy<Value = Filter> {
        let segment = prop_oneof![3 => "[abc]", 1 => Just("$a".to_owned()), 2 => Just("*".to_owned())];
        (proptest::collection::vec(segment, 0..4), any::<bool>()).prop_filter_map(
            "empty",
            |(mut all, rest)| {
                if rest {
                    all.push("**".into());
                }
                Filter::parse(&all.join("/"), 99).ok()
            },
        )
    }

    proptest! {
        #[test]
        fn the_index_finds_the_same_overlaps_as_comparing_all_pairs(
            filters in proptest::collection::hash_set(filter(), 1..12),
        ) {
            let filters: Vec<Filter> = filters.into_iter().collect();
            let index = Index::new(&filters);
            for filter in &filters {
                let others = || filters.iter().filter(|other| *other != filter);
                prop_assert_eq!(index.covers(filter), others().any(|other| other.covers(filter)), "{}", filter);
                let found = index.overlapping(filter);
                prop_assert_eq!(found.is_some(), others().any(|other| other.overlaps(filter)), "{}", filter);
                prop_assert!(found.is_none_or(|other| other != filter && other.overlaps(filter)));
            }
        }
    }
}
