//! What a crowd of readers shares, and how it is woken.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::*;
use crate::config::{Field, Source};
use crate::message::{Fields, Format, Found, Message};
use crate::metrics::RuleMetrics;
use crate::position::{Epoch, Sequence, Start};
use crate::signal::Signal;
use crate::sse::frame::Coding;
use crate::topic::{Filter, Topic};

const MESSAGES: u64 = 2_000;

fn full_registry() -> (Arc<Registry>, Lease) {
    let registry = Registry::new(Sequence::new(Epoch::random()), 10, usize::MAX, mpsc::channel(1).0);
    let lease = lease(&registry);
    append(&registry, "a", MESSAGES);
    (registry, lease)
}

fn append(registry: &Arc<Registry>, topic: &str, count: u64) {
    let topic = Topic::parse(topic, 9).unwrap();
    for _ in 0..count {
        registry.append(&topic.clone().into(), &topic, None, |_, sequence, time, _| {
            let id = registry.sequence().event_id(sequence, None);
            EntryKind::Message(Message::new(topic.clone(), time, id, Found::default(), &[b'x'; 200]))
        });
    }
}

fn read(cursors: &mut Cursors) -> Option<Batch> {
    match cursors.read(Format::Raw, Coding::Chunked, &Arc::default()) {
        Read::Batch(batch) => Some(batch),
        Read::Nothing | Read::Fetching => None,
    }
}

fn lease(registry: &Arc<Registry>) -> Lease {
    lease_of(registry, "a")
}

fn lease_of(registry: &Arc<Registry>, topic: &str) -> Lease {
    let age = Duration::from_secs(60);
    let bounds =
        Bounds { messages: usize::MAX, bytes: usize::MAX, age, linger: age, rule: RuleMetrics::default() };
    let fields =
        Fields { source: Source::Pubsub, id: Field::Header("a".into()), kind: Field::Header("b".into()) };
    let (lease, subscription) =
        registry.lease(&Filter::parse(topic, 9).unwrap(), &bounds, &Arc::new(fields), None).unwrap();
    if let Some(subscription) = subscription {
        subscription.confirm();
    }
    lease
}

/// Where each piece that the reader is given lies in memory, to the end.
fn places(registry: &Arc<Registry>, start: &Start) -> Vec<(*const u8, usize)> {
    let opened = Cursors::open(vec![lease(registry)], &Arc::default(), start, &[]);
    let mut cursors = opened.cursors;
    let read = || read(&mut cursors);
    std::iter::from_fn(read).map(|batch| (batch.bytes.as_ptr(), batch.bytes.len())).collect()
}

#[test]
fn readers_who_go_through_the_same_places_share_every_piece() {
    let (registry, _lease) = full_registry();
    let first = places(&registry, &Start::All);
    assert!(first.len() > 4, "{}", first.len());
    assert_eq!(places(&registry, &Start::All), first);
}

#[test]
fn a_reader_who_starts_elsewhere_comes_to_the_places_of_the_others() {
    let (registry, _lease) = full_registry();
    let middle = Start::After(Some(registry.sequence().event_id(MESSAGES / 2, None)));
    // The later starter builds one piece of its own, whichever of the two it is.
    let from_middle = places(&registry, &middle);
    let from_start = places(&registry, &Start::All);
    let shared = from_start.iter().filter(|place| from_middle.contains(place)).count();
    assert!(shared >= from_middle.len() - 1, "{shared} of {}", from_middle.len());
    let inside = Start::After(Some(registry.sequence().event_id(MESSAGES / 2 + 3, None)));
    let from_inside = places(&registry, &inside);
    assert_eq!(from_inside[1..], from_middle[1..]);
}

fn reader(registry: &Arc<Registry>, start: &Start) -> Cursors {
    Cursors::open(vec![lease(registry)], &Arc::default(), start, &[]).cursors
}

#[test]
fn who_is_served_late_reads_what_came_meanwhile_in_one_piece_and_the_early_ones_share_the_rest() {
    let (registry, _lease) = full_registry();
    let mut readers: Vec<_> = (0..4).map(|_| reader(&registry, &Start::Now)).collect();
    let mut read = |index: usize| {
        read(&mut readers[index]).map(|batch| {
            let Batch { bytes, entries, .. } = batch;
            (entries, bytes.as_ptr())
        })
    };
    append(&registry, "a", 40);
    assert_eq!((read(0).unwrap().0, read(1).unwrap().0), (40, 40));
    append(&registry, "a", 10);
    let (late, later) = (read(2).unwrap(), read(3).unwrap());
    assert_eq!((late.0, late), (50, later));
    let (rest, other_rest) = (read(0).unwrap(), read(1).unwrap());
    assert_eq!((rest.0, rest), (10, other_rest));
    assert!((0..4).all(|index| read(index).is_none()));
}

#[test]
fn a_piece_is_not_built_anew_for_a_little_more() {
    let (registry, _lease) = full_registry();
    let mut readers: Vec<_> = (0..2).map(|_| reader(&registry, &Start::Now)).collect();
    let mut entries = |index: usize| read(&mut readers[index]).unwrap().entries;
    append(&registry, "a", 40);
    assert_eq!(entries(0), 40);
    append(&registry, "a", 9);
    assert_eq!((entries(1), entries(1)), (40, 9));
}

#[test]
fn readers_are_woken_in_parts_all_of_them_and_again_for_what_came_between() {
    let (registry, _lease) = full_registry();
    while registry.wake(usize::MAX) {}
    let (crowd, other) = (lease(&registry), lease_of(&registry, "b"));
    let waits = |log: &TopicLog| {
        let signal = Arc::new(Signal::default());
        signal.await_entries();
        log.join(signal.clone());
        signal
    };
    let crowd: Vec<_> = (0..10).map(|_| waits(crowd.log())).collect();
    let alone = waits(other.log());
    // Asking takes the wish away, so who is asked and still waited is put back.
    let woken = |signal: &Arc<Signal>| {
        !signal.entry() || {
            signal.await_entries();
            false
        }
    };
    append(&registry, "a", 1);
    assert!(registry.wake(4));
    assert_eq!(crowd.iter().filter(|signal| woken(signal)).count(), 4);
    append(&registry, "b", 1);
    crowd[0].await_entries();
    append(&registry, "a", 1);
    assert!(registry.wake(4), "six of the first pass, and the one that waits again");
    assert!(registry.wake(1));
    assert!(woken(&alone), "a crowd on one topic does not hold up another");
    while registry.wake(4) {}
    assert!(crowd.iter().all(woken));
    assert!(!registry.wake(1));
}

#[test]
fn pieces_count_among_the_bytes_that_are_held_and_go_with_the_next_sweep() {
    let (registry, _lease) = full_registry();
    let before = registry.bytes();
    let pieces = places(&registry, &Start::All);
    let joined: usize = pieces.iter().rev().take(piece::PIECES).map(|(_, length)| length).sum();
    assert!(registry.bytes() >= before + joined / 2, "{joined}");
    registry.sweep(|_, _| true);
    assert_eq!(registry.bytes(), before);
}
