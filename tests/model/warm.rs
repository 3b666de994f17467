//! Topics and patterns inside a warm rule are opened and released, overlap, and lose messages: each log holds the same
//! messages as a plain scan of everything that was published.

use std::collections::{BTreeMap, VecDeque};

use futures_util::FutureExt;
use proptest::prelude::*;
use topicgate::internals::log::Lease;
use topicgate::internals::log::message::Format;
use topicgate::internals::protocol::codes::GapReason;
use topicgate::internals::protocol::seek::Start;
use topicgate::internals::protocol::topic::Filter;

use crate::client::Reader;
use crate::replica::{Replica, WARM, at_most, filter, topic};

const TOPICS: [&str; 7] = ["w/a", "w/b", "w/a/a", "w/a/b", "w/b/a", "w/b/b/a", "w/a/b/c"];
const FILTERS: [&str; 14] = [
    "w/a", "w/b", "w/a/a", "w/b/b/a", "w/*", "w/**", "w/a/*", "w/*/a", "w/*/*", "w/a/**", "w/*/**",
    "w/*/b/**", "w/*/*/*", "w/b/*/a",
];

#[derive(Debug, Clone)]
enum Step {
    Publish {
        topic: usize,
        count: usize,
    },
    /// Every log inside the rule may miss something.
    Lose,
    /// One topic misses a message.
    LoseOf(usize),
    Open(usize),
    Close(usize),
    /// `count` patterns that match nothing.
    Crowd(usize),
    Leave,
    Sweep,
}

/// What a log holds: payloads, and `None` for a gap.
type Items = VecDeque<Option<String>>;

struct World {
    replica: Replica,
    bound: usize,
    published: usize,
    leases: BTreeMap<Filter, Lease>,
    crowd: Vec<Lease>,
    /// What each log that is held must hold, and of each item whom it concerns.
    model: BTreeMap<Filter, Items>,
    /// The topic of each item in the warm log; `None` for a gap in all of them.
    topics: VecDeque<Option<usize>>,
}

impl World {
    fn new(bound: usize) -> Self {
        World {
            replica: Replica::new(at_most(bound)),
            bound,
            published: 0,
            leases: BTreeMap::new(),
            crowd: Vec::new(),
            model: BTreeMap::from([(filter(WARM), Items::new())]),
            topics: VecDeque::new(),
        }
    }

    fn push(&mut self, of: Option<usize>, item: Option<&str>) {
        for (filter, items) in &mut self.model {
            if of.is_none_or(|of| filter.matches(&topic(TOPICS[of]))) {
                items.push_back(item.map(str::to_owned));
                if items.len() > self.bound {
                    items.pop_front();
                }
            }
        }
        self.topics.push_back(of);
        if self.topics.len() > self.bound {
            self.topics.pop_front();
        }
    }

    fn lease(&self, filter: &Filter) -> Lease {
        let lease = self.replica.lease(filter);
        while lease.ready().now_or_never().is_none() {}
        lease
    }

    fn open(&mut self, filter: Filter) {
        self.model.entry(filter.clone()).or_insert_with(|| {
            // What the warm log holds after the last gap in all its topics, by a look at all of it.
            let warm = self.replica.lease(&crate::replica::filter(WARM));
            let mut reader =
                Reader::new(self.replica.open_leases(vec![warm], &Start::All, Format::Raw).unwrap());
            let items = items(&mut reader);
            assert_eq!(items.len(), self.topics.len());
            let whole = self.topics.iter().rposition(Option::is_none).map_or(0, |gap| gap + 1);
            let messages = items.into_iter().zip(&self.topics).skip(whole);
            let matching = messages.filter(|(_, of)| of.is_some_and(|of| filter.matches(&topic(TOPICS[of]))));
            matching.map(|(item, _)| item).collect()
        });
        let lease = self.lease(&filter);
        self.leases.insert(filter, lease);
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::Publish { topic: of, count } => {
                for _ in 0..count {
                    let payload = self.published.to_string();
                    self.published += 1;
                    self.replica.deliver(&topic(TOPICS[of]), &payload, None);
                    self.push(Some(of), Some(&payload));
                }
            }
            Step::Lose => {
                self.replica.lose(None);
                self.push(None, None);
            }
            Step::LoseOf(of) => {
                let (warm, topic) = ([filter(WARM)], topic(TOPICS[of]));
                self.replica.registry.append_gap(Some(&warm), Some(&topic), GapReason::TooLarge);
                self.push(Some(of), None);
            }
            Step::Open(which) => self.open(filter(FILTERS[which])),
            Step::Close(which) => _ = self.leases.remove(&filter(FILTERS[which])),
            Step::Crowd(count) => {
                let crowd = (0..count).map(|index| {
                    let text = match index % 3 {
                        0 => format!("w/none{index}/**"),
                        1 => format!("w/*/none{index}/*"),
                        _ => format!("w/a/*/none{index}"),
                    };
                    self.replica.lease(&filter(&text))
                });
                self.crowd.extend(crowd.collect::<Vec<_>>());
            }
            Step::Leave => self.crowd.clear(),
            Step::Sweep => {
                self.replica.sweep();
                let leases = &self.leases;
                self.model.retain(|held, _| leases.contains_key(held) || *held == filter(WARM));
            }
        }
    }

    /// Every log that is held, against the model.
    fn check(&self) {
        for (filter, expected) in &self.model {
            let lease = self.lease(filter);
            let mut reader =
                Reader::new(self.replica.open_leases(vec![lease], &Start::All, Format::Raw).unwrap());
            assert_eq!(items(&mut reader), *expected, "{filter}");
        }
    }
}

fn items(reader: &mut Reader) -> Items {
    let events = reader.read_all();
    let item = |event: &eventsource_stream::Event| match event.event.as_str() {
        "stream-open" => None,
        "stream-gap" => Some(None),
        _ => Some(Some(event.data.clone())),
    };
    events.iter().filter_map(item).collect()
}

fn step() -> impl Strategy<Value = Step> {
    // Now and then more than are taken over at once.
    let count = prop_oneof![8 => 1..6usize, 1 => 200..600usize];
    prop_oneof![
        8 => (0..TOPICS.len(), count).prop_map(|(topic, count)| Step::Publish { topic, count }),
        1 => Just(Step::Lose),
        1 => (0..TOPICS.len()).prop_map(Step::LoseOf),
        6 => (0..FILTERS.len()).prop_map(Step::Open),
        4 => (0..FILTERS.len()).prop_map(Step::Close),
        1 => (1..300usize).prop_map(Step::Crowd),
        1 => Just(Step::Leave),
        3 => Just(Step::Sweep),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: crate::cases(250), failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_log_inside_a_warm_rule_holds_the_same_messages_as_a_plain_scan(
        steps in proptest::collection::vec(step(), 1..40),
        bound in prop_oneof![Just(3usize), Just(40), Just(100_000)],
    ) {
        let mut world = World::new(bound);
        for step in &steps {
            world.run(step);
        }
        world.check();
    }
}
