//! An index from filters to values, searched by topic: a trie of segments.
//!
//! A search costs a few steps per segment of the topic, however many filters there are; adding or removing a filter
//! costs one step per segment. Only filters that share a prefix and have `*` in different places are visited one by
//! one. It agrees with [`Filter::matches`] and [`Filter::covers`], and knows nothing of logs.

use std::collections::HashMap;

use slab::Slab;
use smallvec::{SmallVec, smallvec};

use super::topic::{Filter, Topic, is_reserved};

/// The root node, which always exists.
const ROOT: usize = 0;

/// The trie.
#[derive(Debug)]
pub struct FilterIndex<T> {
    /// Not nested in each other: filters may have thousands of segments, and dropping them would recurse.
    nodes: Slab<Node<T>>,
}

/// The filters that share a prefix.
#[derive(Debug)]
struct Node<T> {
    /// The value of the filter that ends here.
    here: Option<T>,
    /// The value of the filter that ends with `**` after this.
    rest: Option<T>,
    /// The node after a `*`.
    one: Option<usize>,
    literal: HashMap<Box<str>, usize>,
}

impl<T> Node<T> {
    fn new() -> Self {
        Node { here: None, rest: None, one: None, literal: HashMap::new() }
    }

    fn is_empty(&self) -> bool {
        self.here.is_none() && self.rest.is_none() && self.one.is_none() && self.literal.is_empty()
    }
}

impl<T> Default for FilterIndex<T> {
    fn default() -> Self {
        let mut nodes = Slab::new();
        nodes.insert(Node::new());
        FilterIndex { nodes }
    }
}

impl<T> FilterIndex<T> {
    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.nodes[ROOT].is_empty()
    }

    /// The value of every filter.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.nodes.iter().flat_map(|(_, node)| node.here.iter().chain(&node.rest))
    }

    /// Sets the value of `filter`, and returns the old one.
    pub fn insert(&mut self, filter: &Filter, value: T) -> Option<T> {
        let mut at = ROOT;
        for segment in filter.segments() {
            if segment == "**" {
                return self.nodes[at].rest.replace(value); // the last segment, by the grammar
            }
            at = self.next(at, segment).unwrap_or_else(|| {
                let new = self.nodes.insert(Node::new());
                match segment {
                    "*" => self.nodes[at].one = Some(new),
                    _ => _ = self.nodes[at].literal.insert(segment.into(), new),
                }
                new
            });
        }
        self.nodes[at].here.replace(value)
    }

    /// Removes the value of `filter`.
    pub fn remove(&mut self, filter: &Filter) -> Option<T> {
        let mut path: SmallVec<[(usize, &str); 8]> = SmallVec::new();
        let (mut at, mut rest) = (ROOT, false);
        for segment in filter.segments() {
            if segment == "**" {
                rest = true;
                break;
            }
            path.push((at, segment));
            at = self.next(at, segment)?;
        }
        let node = &mut self.nodes[at];
        let value = if rest { node.rest.take() } else { node.here.take() };
        while self.nodes[at].is_empty()
            && let Some((parent, segment)) = path.pop()
        {
            self.nodes.remove(at);
            let node = &mut self.nodes[parent];
            match segment {
                "*" => node.one = None,
                _ => _ = node.literal.remove(segment),
            }
            if node.literal.len() * 4 < node.literal.capacity() {
                node.literal.shrink_to_fit();
            }
            at = parent;
        }
        if self.is_empty() {
            *self = FilterIndex::default();
        }
        value
    }

    /// Calls `found` with the value of each filter that matches `topic`, in no order. Returns how many nodes were
    /// visited.
    pub fn matching<'a>(&'a self, topic: &Topic, found: impl FnMut(&'a T)) -> usize {
        self.walk(topic.as_str(), found)
    }

    /// Likewise for each filter that covers all of `filter`.
    pub fn covering<'a>(&'a self, filter: &Filter, found: impl FnMut(&'a T)) -> usize {
        self.walk(filter.as_str(), found)
    }

    /// Likewise for each filter that overlaps with `filter`. It costs a step per result, and for each wildcard in
    /// `filter` a step per segment in its place.
    pub fn overlapping<'a>(&'a self, filter: &Filter, mut found: impl FnMut(&'a T)) {
        let text = filter.as_str();
        let mut stack: SmallVec<[(usize, Option<&str>, bool); 8]> = smallvec![(ROOT, Some(text), true)];
        while let Some((at, left, is_first)) = stack.pop() {
            let node = &self.nodes[at];
            let Some(left) = left else {
                node.here.as_ref().into_iter().for_each(&mut found);
                continue;
            };
            let (segment, behind) =
                left.split_once('/').map_or((left, None), |(segment, behind)| (segment, Some(behind)));
            let is_reserved = |segment: &str| is_first && is_reserved(segment);
            if !is_reserved(segment) {
                node.rest.as_ref().into_iter().for_each(&mut found);
            }
            let wild = segment == "*" || segment == "**";
            // A `**` continues with every segment below.
            let (behind, rest) = if segment == "**" { (Some("**"), true) } else { (behind, false) };
            let mut push = |next: usize| {
                if rest {
                    self.nodes[next].here.as_ref().into_iter().for_each(&mut found);
                }
                stack.push((next, behind, false));
            };
            if wild || !is_reserved(segment) {
                node.one.into_iter().for_each(&mut push);
            }
            if wild {
                let literal = node.literal.iter().filter(|(literal, _)| !is_reserved(literal));
                literal.for_each(|(_, next)| push(*next));
            } else {
                node.literal.get(segment).copied().into_iter().for_each(push);
            }
        }
    }

    fn next(&self, at: usize, segment: &str) -> Option<usize> {
        match segment {
            "*" => self.nodes[at].one,
            _ => self.nodes[at].literal.get(segment).copied(),
        }
    }

    fn walk<'a>(&'a self, text: &str, mut found: impl FnMut(&'a T)) -> usize {
        let mut looked_at = 0;
        let mut stack: SmallVec<[(usize, Option<&str>); 8]> = smallvec![(ROOT, Some(text))];
        while let Some((at, left)) = stack.pop() {
            looked_at += 1;
            let node = &self.nodes[at];
            let Some(left) = left else {
                node.here.as_ref().into_iter().for_each(&mut found);
                continue;
            };
            let (segment, behind) =
                left.split_once('/').map_or((left, None), |(segment, behind)| (segment, Some(behind)));
            let is_first = left.len() == text.len();
            if !(is_first && is_reserved(segment)) {
                node.rest.as_ref().into_iter().for_each(&mut found);
                if segment != "**" {
                    stack.extend(node.one.map(|next| (next, behind)));
                }
            }
            stack.extend(node.literal.get(segment).map(|next| (*next, behind)));
        }
        looked_at
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filter(text: &str) -> Filter {
        Filter::parse(text, usize::MAX).unwrap()
    }

    fn topic(text: &str) -> Topic {
        Topic::parse(text, usize::MAX).unwrap()
    }

    fn index(filters: &[&str]) -> FilterIndex<String> {
        let mut index = FilterIndex::default();
        filters.iter().for_each(|text| _ = index.insert(&filter(text), (*text).to_owned()));
        index
    }

    #[test]
    fn a_topic_costs_as_many_steps_among_ten_thousand_patterns_as_among_one() {
        let steps = |patterns: usize| {
            let mut index = FilterIndex::default();
            for number in 0..patterns {
                for text in [format!("w/{number}/*"), format!("w/*/{number}"), format!("w/{number}/**")] {
                    index.insert(&filter(&text), ());
                }
            }
            index.matching(&topic("w/a/b/c"), |()| panic!("none matches"))
        };
        assert_eq!(steps(1), steps(10_000));
        assert!(steps(10_000) <= 4);
    }

    #[test]
    fn a_removed_filter_leaves_no_node_behind() {
        let all = ["a", "a/b", "a/*", "a/*/c", "a/**", "**", "*", "*/b/**"];
        let mut index = index(&all);
        for text in all {
            assert_eq!(index.remove(&filter(text)).as_deref(), Some(text));
            assert_eq!(index.remove(&filter(text)), None);
        }
        assert!(index.is_empty());
        assert_eq!(index.nodes.len(), 1);
    }

    #[test]
    fn a_filter_of_many_segments_needs_no_stack() {
        let long = "a/".repeat(100_000) + "*";
        let mut index = index(&[&long]);
        let mut found = 0;
        index.matching(&topic(&("a/".repeat(100_000) + "b")), |_| found += 1);
        assert_eq!(found, 1);
        index.remove(&filter(&long));
        assert!(index.is_empty());
    }

    fn filters() -> impl Strategy<Value = String> {
        let words = proptest::collection::vec(proptest::sample::select(vec!["a", "b", "$S", "*"]), 1..5);
        (words, any::<bool>()).prop_map(|(mut words, rest)| {
            if rest {
                words.push("**");
            }
            words.join("/")
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn the_index_agrees_with_a_plain_map_after_any_insertions_and_removals(
            steps in proptest::collection::vec((filters(), any::<bool>()), 0..40),
            queries in proptest::collection::vec(filters(), 1..10),
        ) {
            let (mut index, mut model) = (FilterIndex::default(), std::collections::BTreeMap::new());
            for (number, (text, added)) in steps.iter().enumerate() {
                let filter = filter(text);
                if *added {
                    prop_assert_eq!(index.insert(&filter, number), model.insert(filter, number));
                } else {
                    prop_assert_eq!(index.remove(&filter), model.remove(&filter));
                }
            }
            prop_assert_eq!(index.is_empty(), model.is_empty());
            let sorted = |mut values: Vec<usize>| {
                values.sort_unstable();
                values
            };
            prop_assert_eq!(sorted(index.values().copied().collect()), sorted(model.values().copied().collect()));
            for text in queries {
                let filter = filter(&text);
                let mut found = Vec::new();
                index.covering(&filter, |number| found.push(*number));
                let covering = model.iter().filter(|(other, _)| other.covers(&filter)).map(|(_, number)| *number);
                prop_assert_eq!(sorted(found), sorted(covering.collect()), "{}", text);
                let mut found = Vec::new();
                index.overlapping(&filter, |number| found.push(*number));
                let overlapping = model.iter().filter(|(other, _)| other.overlaps(&filter));
                prop_assert_eq!(sorted(found), sorted(overlapping.map(|(_, number)| *number).collect()), "{}", text);
                if let Some(topic) = filter.topic() {
                    let mut found = Vec::new();
                    index.matching(&topic, |number| found.push(*number));
                    let matching = model.iter().filter(|(other, _)| other.matches(&topic)).map(|(_, number)| *number);
                    prop_assert_eq!(sorted(found), sorted(matching.collect()), "{}", topic);
                }
            }
        }
    }
}
