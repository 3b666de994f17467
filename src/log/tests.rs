//! Tests of the logs: what a crowd of readers shares, how it is woken, and the cost of each step.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::mpsc;

use super::message::{Extracted, FieldMapping, Format, Message};
use super::topic_log::Place;
use super::variant::Variant;
use super::*;
use crate::protocol::event_id::{Epoch, Sequence};
use crate::protocol::frame::Coding;
use crate::protocol::gzip::Content;
use crate::protocol::seek::Start;
use crate::protocol::seq::Seq;
use crate::protocol::source::{Field, Source};
use crate::protocol::topic::{Filter, Topic};
use crate::reader::handle::ReaderHandle;

const MESSAGES: u64 = 2_000;

thread_local! {
    static VISITED: Cell<usize> = const { Cell::new(0) };
    static PARTS: Cell<usize> = const { Cell::new(0) };
}

/// Counts an entry that is visited.
pub(super) fn count_visit() {
    VISITED.set(VISITED.get() + 1);
}

/// Counts a part of the slots that is visited while the lock is held once.
pub(super) fn count_part() {
    PARTS.set(PARTS.get() + 1);
}

/// How many entries and parts `work` visits.
fn steps(work: impl FnOnce()) -> (usize, usize) {
    VISITED.set(0);
    PARTS.set(0);
    work();
    (VISITED.get(), PARTS.get())
}

fn full_registry() -> (Arc<Registry>, Lease) {
    let registry = Registry::new(Sequence::new(Epoch::random()), 10, usize::MAX, mpsc::channel(1).0);
    let lease = lease(&registry);
    append(&registry, "a", MESSAGES);
    (registry, lease)
}

fn append(registry: &Arc<Registry>, topic: &str, count: u64) {
    append_by(registry, &Filter::parse(topic, 9).unwrap(), topic, count);
}

fn append_by(registry: &Arc<Registry>, subscribed: &Filter, topic: &str, count: u64) {
    let topic = Topic::parse(topic, 99).unwrap();
    for _ in 0..count {
        registry.append(subscribed, &topic, None, |sequence, number, time, _| {
            let (topic, found) = (topic.clone(), Extracted::default());
            EntryKind::Message(Message::new(topic, time, sequence, number, found, &[b'x'; 200]))
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
    lease_in(registry, topic, None)
}

fn lease_in(registry: &Arc<Registry>, topic: &str, warm: Option<&Filter>) -> Lease {
    let filter = Filter::parse(topic, 99).unwrap();
    let (lease, subscription) = registry.lease(&filter, &bounds(), &fields(), warm).unwrap();
    if let Some(subscription) = subscription {
        subscription.accepted();
    }
    while lease.ready().now_or_never().is_none() {}
    lease
}

fn bounds() -> Bounds {
    let age = Duration::from_secs(60);
    Bounds { messages: usize::MAX, bytes: usize::MAX, age, linger: Duration::ZERO, rule: Default::default() }
}

fn fields() -> Arc<FieldMapping> {
    let (id, kind) = (Field::Header("a".into()), Field::Header("b".into()));
    Arc::new(FieldMapping { source: Source::Pubsub, id, kind, data: None, end: Field::Nowhere })
}

/// The memory address of each batch that the reader gets, to the end.
fn places(registry: &Arc<Registry>, start: &Start) -> Vec<(*const u8, usize)> {
    let opened = Cursors::open(vec![lease(registry)], &Arc::default(), start, &[]);
    let mut cursors = opened.cursors;
    let read = || read(&mut cursors);
    std::iter::from_fn(read).map(|batch| (batch.bytes.as_ptr(), batch.bytes.len())).collect()
}

#[test]
fn readers_at_the_same_positions_share_every_batch() {
    let (registry, _lease) = full_registry();
    let first = places(&registry, &Start::All);
    assert!(first.len() > 4, "{}", first.len());
    assert_eq!(places(&registry, &Start::All), first);
}

#[test]
fn a_reader_that_starts_elsewhere_soon_shares_the_batches_of_the_others() {
    let (registry, _lease) = full_registry();
    let middle = Start::After(Some(registry.sequence().event_id(Seq::new(MESSAGES / 2), None).into()));
    // The one that starts later builds one batch of its own, whichever of the two it is.
    let from_middle = places(&registry, &middle);
    let from_start = places(&registry, &Start::All);
    let shared = from_start.iter().filter(|place| from_middle.contains(place)).count();
    assert!(shared >= from_middle.len() - 1, "{shared} of {}", from_middle.len());
    let inside = Start::After(Some(registry.sequence().event_id(Seq::new(MESSAGES / 2 + 3), None).into()));
    let from_inside = places(&registry, &inside);
    assert_eq!(from_inside[1..], from_middle[1..]);
}

fn reader(registry: &Arc<Registry>, start: &Start) -> Cursors {
    Cursors::open(vec![lease(registry)], &Arc::default(), start, &[]).cursors
}

#[test]
fn late_readers_read_new_entries_in_one_batch_and_early_readers_share_the_rest() {
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
fn a_batch_is_not_rebuilt_for_a_few_more_entries() {
    let (registry, _lease) = full_registry();
    let mut readers: Vec<_> = (0..2).map(|_| reader(&registry, &Start::Now)).collect();
    let mut entries = |index: usize| read(&mut readers[index]).unwrap().entries;
    append(&registry, "a", 40);
    assert_eq!(entries(0), 40);
    append(&registry, "a", 9);
    assert_eq!((entries(1), entries(1)), (40, 9));
}

/// A stream that waits for new entries of these topics.
fn reader_of(registry: &Arc<Registry>, topics: &[&str]) -> Cursors {
    let leases = topics.iter().map(|topic| lease_of(registry, topic)).collect();
    let mut cursors = Cursors::open(leases, &Arc::default(), &Start::Now, &[]).cursors;
    assert!(read(&mut cursors).is_none());
    cursors
}

#[test]
fn streams_of_the_same_topics_share_what_is_merged_and_others_do_not() {
    let (registry, _lease) = full_registry();
    let _unread = lease_of(&registry, "d");
    let mut same: Vec<_> = (0..3).map(|_| reader_of(&registry, &["a", "b", "c"])).collect();
    let mut other = reader_of(&registry, &["a", "c"]);
    let mut read_next = |index: usize| {
        let mut batch = None;
        let (visits, _) = steps(|| batch = read(&mut same[index]));
        (visits, batch.map(|batch| (batch.entries, batch.bytes)))
    };
    for round in 1..4 {
        for (topic, count) in [("a", 2), ("b", 3), ("c", round)] {
            append(&registry, topic, count);
        }
        let all = 5 + round as usize;
        let (visits, first) = read_next(0);
        assert_eq!((visits, first.as_ref().unwrap().0), (all, all));
        for index in 1..3 {
            let (visits, shared) = read_next(index);
            assert_eq!((visits, &shared), (0, &first));
            assert_eq!(shared.unwrap().1.as_ptr(), first.as_ref().unwrap().1.as_ptr());
        }
        // A topic that only others read: nothing for these, and the second need not look for itself.
        append(&registry, "d", 1);
        assert!((0..3).all(|index| read_next(index) == (0, None)));
        assert_eq!(read(&mut other).unwrap().entries, all - 3);
    }
    append(&registry, "b", 40);
    assert_eq!(read_next(0).1.unwrap().0, 40);
    append(&registry, "c", 20);
    assert_eq!(read_next(1).1.unwrap().0, 60, "what much follows is merged again");
    assert_eq!(read_next(0).1.unwrap().0, 20);
    assert_eq!((read_next(2).1.unwrap().0, read_next(2).1), (60, None));
    // The bytes that are kept for others are counted, and given back.
    let kept = registry.bytes();
    registry.age();
    assert!(registry.bytes() < kept, "{kept}");
}

#[test]
fn a_stream_that_shares_knows_its_place_in_each_log() {
    let (registry, _lease) = full_registry();
    let mut readers: Vec<_> = (0..2).map(|_| reader_of(&registry, &["a", "b"])).collect();
    append(&registry, "b", 3);
    for reader in &mut readers {
        assert_eq!(reader.lag().messages, 3);
        assert_eq!(read(reader).unwrap().entries, 3);
        assert_eq!((reader.lag().messages, reader.position()), (0, Some(registry.sequence().head())));
    }
    append(&registry, "a", 1);
    assert!(readers.iter_mut().all(|reader| reader.lag().messages == 1 && reader.has_more()));
    for reader in &mut readers {
        reader.close();
        assert!(!reader.is_closed());
        assert_eq!(read(reader).unwrap().entries, 1);
        assert!(reader.is_closed() && !reader.has_more());
    }
}

#[test]
fn readers_are_woken_in_groups_and_again_for_messages_that_came_in_between() {
    let (registry, _lease) = full_registry();
    while registry.wake(usize::MAX) {}
    let (crowd, other) = (lease(&registry), lease_of(&registry, "b"));
    let waits = |log: &TopicLog| {
        let handle = Arc::new(ReaderHandle::default());
        handle.await_entries();
        log.readers.join(handle.clone());
        handle
    };
    let crowd: Vec<_> = (0..10).map(|_| waits(crowd.log())).collect();
    let alone = waits(other.log());
    // Asking clears the flag, so a reader that still waited is put back.
    let woken = |handle: &Arc<ReaderHandle>| {
        !handle.entry() || {
            handle.await_entries();
            false
        }
    };
    append(&registry, "a", 1);
    assert!(registry.wake(4));
    assert_eq!(crowd.iter().filter(|handle| woken(handle)).count(), 4);
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
fn cached_batches_count_in_the_buffered_bytes_until_the_next_sweep() {
    let (registry, _lease) = full_registry();
    let before = registry.bytes();
    let batches = places(&registry, &Start::All);
    let joined: usize =
        batches.iter().rev().take(batch_cache::CACHED_BATCHES).map(|(_, length)| length).sum();
    assert!(registry.bytes() >= before + joined / 2, "{joined}");
    registry.sweep(|_, _| true);
    assert_eq!(registry.bytes(), before);
}

/// A registry with a warm log of `w/**`, and its filter.
fn warm_registry() -> (Arc<Registry>, Filter) {
    let registry = Registry::new(Sequence::new(Epoch::random()), 1_000_000, usize::MAX, mpsc::channel(1).0);
    let warm = Filter::parse("w/**", 9).unwrap();
    registry.warm(&warm, &bounds(), &fields()).unwrap().accepted();
    (registry, warm)
}

#[test]
fn a_new_topic_in_a_warm_rule_visits_only_its_own_messages() {
    let visited = |topics: usize| {
        let (registry, warm) = warm_registry();
        for _ in 0..10 {
            (0..topics).for_each(|topic| append_by(&registry, &warm, &format!("w/{topic}"), 1));
        }
        let (steps, _) = steps(|| drop(lease_in(&registry, "w/7", Some(&warm))));
        let held = lease_in(&registry, "w/7", Some(&warm)).log().state.lock().entries.len();
        assert_eq!(held, 10);
        steps
    };
    assert_eq!((visited(10), visited(1_000)), (10, 10));
}

#[test]
fn the_index_of_topics_forgets_evicted_messages() {
    let (registry, warm) = warm_registry();
    (0..100).for_each(|topic| append_by(&registry, &warm, &format!("w/{}", topic % 30), 1));
    let log = lease_in(&registry, "w/**", None).log().clone();
    let found = |topic: &str| {
        let (topic, state) = (Topic::parse(topic, 9).unwrap(), log.state.lock());
        state.by_topic.as_ref().unwrap().newest(&topic).is_some()
    };
    assert!(found("w/3") && found("w/20"));
    log.evict_through(Seq::new(registry.sequence().head().get() - 10));
    assert!(found("w/3") && !found("w/20"));
    log.evict_all();
    assert!(!found("w/3"));
    let held = lease_in(&registry, "w/3", Some(&warm)).log().state.lock().entries.len();
    assert_eq!(held, 0);
    append_by(&registry, &warm, "w/3", 2);
    assert!(found("w/3"));
}

#[test]
fn a_catch_up_over_many_topics_visits_few_more_entries_than_it_sends() {
    let visited = |topics: usize| {
        let (registry, _) = warm_registry();
        let names: Vec<String> = (0..topics).map(|topic| format!("t/{topic}")).collect();
        let leases = || names.iter().map(|name| lease_of(&registry, name)).collect();
        let held: Vec<Lease> = leases();
        let start = Start::After(Some(registry.sequence().event_id(registry.sequence().head(), None).into()));
        for _ in 0..5_000 / topics {
            names.iter().for_each(|name| append_by(&registry, &Filter::parse(name, 9).unwrap(), name, 1));
        }
        let mut cursors = Cursors::open(leases(), &Arc::default(), &start, &[]).cursors;
        let mut sent = 0;
        let (steps, _) = steps(|| {
            while let Some(batch) = read(&mut cursors) {
                sent += batch.entries;
            }
        });
        assert_eq!(sent, 5_000);
        drop(held);
        steps
    };
    for topics in [2, 10, 100] {
        let steps = visited(topics);
        assert!((5_000..10_000).contains(&steps), "{steps} for {topics}");
    }
}

#[test]
fn streams_of_the_same_topics_share_the_batch_of_a_new_message() {
    let (registry, _) = warm_registry();
    let names: Vec<String> = (0..100).map(|topic| format!("t/{topic}")).collect();
    let open = || {
        let leases = names.iter().map(|name| lease_of(&registry, name)).collect();
        Cursors::open(leases, &Arc::default(), &Start::Now, &[]).cursors
    };
    let mut streams = [open(), open()];
    for name in ["t/7", "t/99", "t/7"] {
        append_by(&registry, &Filter::parse(name, 9).unwrap(), name, 3);
        let places: Vec<_> =
            streams.iter_mut().map(|cursors| read(cursors).unwrap().bytes.as_ptr()).collect();
        assert_eq!(places[0], places[1]);
        assert!(streams.iter_mut().all(|cursors| read(cursors).is_none()));
    }
}

#[test]
fn work_on_thousands_of_logs_releases_the_lock_in_between() {
    const LOGS: usize = 3_000;
    let (registry, warm) = warm_registry();
    let lease = |topic: usize| lease_in(&registry, &format!("w/{topic}/*"), Some(&warm));
    let leases: Vec<_> = (0..LOGS).map(lease).collect();
    let parts = |work: &dyn Fn()| steps(work).1;
    assert!(parts(&|| registry.set_rules(|_| Some((bounds(), fields())))) >= LOGS / 256);
    assert!(parts(&|| assert_eq!(registry.logs_read().len(), LOGS)) >= LOGS / 256);
    assert!(parts(&|| _ = registry.sweep(|_, _| true)) >= LOGS / 256);
    assert_eq!(registry.topics(), LOGS + 1);
    drop(leases);
    assert!(parts(&|| _ = registry.sweep(|_, _| true)) >= LOGS / 256);
    assert_eq!(registry.topics(), 1);
}

#[test]
fn a_reader_that_arrives_while_a_warm_log_ends_gets_a_live_log() {
    let (registry, warm) = warm_registry();
    let old = lease_in(&registry, "w/1", Some(&warm));
    // The state between the end of the warm log and the end of the others.
    old.log().numbering.seal();
    let new = lease_of(&registry, "w/1");
    assert!(!Arc::ptr_eq(old.log(), new.log()));
    assert!(new.log().numbering.sealed().is_none());
    registry.refuse(&warm);
    drop(old);
    append(&registry, "w/1", 1);
    assert_eq!(new.log().state.lock().entries.len(), 1);
}

#[test]
fn a_batch_that_others_share_never_goes_beyond_where_a_reader_may_read() {
    let (registry, lease) = full_registry();
    let log = lease.log();
    let variant =
        Variant { format: Format::Raw, coding: Coding::Chunked, content: Content::Identity, view: None };
    let place = |position: Seq, until| Place { position, since: position, until };
    let begin = log.evicted().number;
    let long = log.shared(place(begin, None), variant).unwrap().unwrap();
    // A reader of several logs that had read its head before, and must not skip what others received meanwhile.
    let until = begin.next().next();
    assert!(long.last > until);
    let short = log.shared(place(begin, Some(until)), variant).unwrap().unwrap();
    assert_eq!((short.first, short.last), (long.first, until));
    drop(registry);
}
