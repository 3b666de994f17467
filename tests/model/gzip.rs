//! Compressed streams compared with the same streams without compression: both have the same events in any schedule.

use eventsource_stream::Event;
use proptest::prelude::*;
use topicgate::internals::log::message::Format;
use topicgate::internals::protocol::gzip::Content;
use topicgate::internals::protocol::seek::Start;

use crate::client::Reader;
use crate::replica::{Replica, ample, at_most, filter, topic};

const TOPICS: [&str; 3] = ["a", "b", "w/1"];
const STREAMS: [&[&str]; 4] = [&["a"], &["a", "b"], &["w/1"], &["a", "w/*"]];
const PAIRS: usize = 6;

#[derive(Debug, Clone)]
enum Step {
    Publish { topic: usize, count: usize, size: usize },
    Lose(usize),
    Join { pair: usize, stream: usize, format: bool },
    Read { pair: usize, compressed: bool, polls: usize },
    Sweep,
}

/// The same stream twice.
struct Pair {
    gzip: Reader,
    plain: Reader,
    /// What both have given.
    got: [Vec<Event>; 2],
}

impl Pair {
    fn open(replica: &Replica, names: &[&str], format: Format) -> Self {
        let open = |content| {
            let leases = names.iter().map(|name| replica.lease(&filter(name))).collect();
            Reader::new(replica.open_as(leases, &Start::Now, format, content).unwrap())
        };
        Pair { gzip: open(Content::Gzip), plain: open(Content::Identity), got: [vec![], vec![]] }
    }

    fn read(&mut self, compressed: bool, polls: usize) {
        let (reader, got) =
            if compressed { (&mut self.gzip, &mut self.got[0]) } else { (&mut self.plain, &mut self.got[1]) };
        for _ in 0..polls {
            let std::task::Poll::Ready(Some(events)) = reader.poll() else { return };
            // Their retry differs, and gaps of readers that were too slow come when each of them reads.
            got.extend(events.into_iter().filter(|event| event.event != "stream-open"));
        }
    }
}

fn payload(topic: &str, number: usize, size: usize) -> String {
    let noise: String = (0..size).map(|at| char::from(b' ' + ((at * 7 + number * 13) % 90) as u8)).collect();
    format!("{topic}#{number} {{\"symbol\":\"EURUSD\",\"bid\":1.{number:05},\"note\":\"{noise}\"}}")
}

fn step() -> impl Strategy<Value = Step> {
    let size = prop_oneof![6 => Just(0usize), 3 => Just(300), 1 => Just(20_000), 1 => Just(70_000)];
    let publish = (0..TOPICS.len(), prop_oneof![3 => 1..3usize, 1 => 20..90usize], size).prop_map(
        |(topic, count, size)| Step::Publish { topic, count: if size > 1_000 { 1 } else { count }, size },
    );
    prop_oneof![
        8 => publish,
        1 => (0..TOPICS.len()).prop_map(Step::Lose),
        2 => (0..PAIRS, 0..STREAMS.len(), prop_oneof![4 => Just(false), 1 => Just(true)])
            .prop_map(|(pair, stream, format)| Step::Join { pair, stream, format }),
        16 => (0..PAIRS, prop_oneof![3 => Just(true), 1 => Just(false)], 1..5usize)
            .prop_map(|(pair, compressed, polls)| Step::Read { pair, compressed, polls }),
        1 => Just(Step::Sweep),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: crate::cases(100), failure_persistence: None, max_shrink_iters: 2_000, ..ProptestConfig::default()
    })]
    #[test]
    fn a_compressed_stream_has_the_same_events_as_a_plain_one(steps in proptest::collection::vec(step(), 1..120)) {
        let replica = Replica::new(ample());
        let mut pairs: Vec<Pair> =
            (0..PAIRS).map(|pair| Pair::open(&replica, STREAMS[pair % STREAMS.len()], Format::Raw)).collect();
        let mut published = 0;
        for step in steps {
            match step {
                Step::Publish { topic: at, count, size } => {
                    for _ in 0..count {
                        replica.deliver(&topic(TOPICS[at]), &payload(TOPICS[at], published, size), None);
                        published += 1;
                    }
                }
                Step::Lose(at) => replica.lose(Some(&topic(TOPICS[at]))),
                Step::Join { pair, stream, format } => {
                    let format = if format { Format::CloudEvents } else { Format::Raw };
                    pairs[pair] = Pair::open(&replica, STREAMS[stream], format);
                }
                Step::Read { pair, compressed, polls } => pairs[pair].read(compressed, polls),
                Step::Sweep => replica.sweep(),
            }
        }
        for pair in &mut pairs {
            pair.read(true, usize::MAX);
            pair.read(false, usize::MAX);
            prop_assert_eq!(&pair.got[0], &pair.got[1]);
        }
    }
}

/// What each of them was sent, as a part of what it got.
fn ratios(readers: &[Reader]) -> Vec<f64> {
    readers.iter().map(|reader| reader.body.received.0 as f64 / reader.body.received.1 as f64).collect()
}

fn join(replica: &Replica, names: &[&str], count: usize) -> Vec<Reader> {
    let mut readers: Vec<Reader> = (0..count)
        .map(|_| {
            let leases = names.iter().map(|name| replica.lease(&filter(name))).collect();
            Reader::new(replica.open_as(leases, &Start::Now, Format::Raw, Content::Gzip).unwrap())
        })
        .collect();
    readers.iter_mut().for_each(|reader| _ = reader.read_all());
    readers
}

#[test]
fn readers_share_one_compression_history_and_newcomers_soon_join_it() {
    let replica = Replica::new(ample());
    let mut readers = join(&replica, &["a"], 5);
    for number in 0..300 {
        replica.deliver(&topic("a"), &payload("a", number, 0), None);
        let first = number % readers.len();
        let (late, early) = readers.split_at_mut(first);
        early.iter_mut().chain(late).for_each(|reader| assert_eq!(reader.read_all().len(), 1));
        if number == 150 {
            readers.extend(join(&replica, &["a"], 1));
        }
    }
    let ratios = ratios(&readers);
    assert!(ratios.iter().all(|ratio| *ratio < 0.75), "{ratios:?}");
    assert!(ratios[..5].iter().all(|ratio| *ratio < 0.6), "{ratios:?}");
}

#[test]
fn a_stream_of_several_topics_shares_the_history_of_the_busy_one() {
    let replica = Replica::new(ample());
    let mut alone = join(&replica, &["a"], 2);
    let mut several = join(&replica, &["a", "b"], 2);
    for number in 0..600 {
        replica.deliver(&topic("a"), &payload("a", number, 0), None);
        alone.iter_mut().chain(&mut several).for_each(|reader| _ = reader.read_all());
        if number % 100 == 0 {
            replica.deliver(&topic("b"), &payload("b", number, 0), None);
            several.iter_mut().for_each(|reader| assert_eq!(reader.read_all().len(), 1));
        }
    }
    let (alone, several) = (ratios(&alone), ratios(&several));
    assert!(alone.iter().all(|ratio| *ratio < 0.6), "{alone:?}");
    assert!(several.iter().all(|ratio| *ratio < 0.8), "{several:?}");
}

#[test]
fn a_reader_that_fell_behind_the_log_gets_its_gap_in_a_compressed_stream_too() {
    let replica = Replica::new(at_most(4));
    let mut readers = join(&replica, &["a"], 2);
    for number in 0..40 {
        replica.deliver(&topic("a"), &payload("a", number, 300), None);
        readers[0].read_all();
    }
    replica.sweep(); // the pieces go
    let kinds: Vec<String> = readers[1].read_all().into_iter().map(|event| event.event).collect();
    assert_eq!(kinds, ["stream-gap", "message", "message", "message", "message"]);
    replica.deliver(&topic("a"), &payload("a", 40, 300), None);
    assert!(readers.iter_mut().all(|reader| reader.read_all().len() == 1));
}
