//! The followed keys, and the scheduling of their reads.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use redis::RedisError;
use tokio::time::Instant;

use super::key::Key;
use super::read::{KeyRead, Wanted, read, read_each, sift, sweep};
use super::server::{Session, Waking};
use super::size::EntrySize;
use crate::broker::redis::answers::{fault, is_answer, lost, words};
use crate::broker::{BrokerError, Event};
use crate::protocol::topic::Filter;

/// The target size of a read, in bytes, according to the recent size of entries.
const READ_BYTES: usize = 4 * 1024 * 1024;

/// The most keys that are read at once of those that are behind, and the most entries of all of them together.
const BEHIND_KEYS: usize = 64;
const BEHIND_ENTRIES: usize = 4096;

/// The most entries per key in a read of all keys.
const WAITING_ENTRIES: usize = 16;

/// A read of all keys costs the server half a microsecond per key, and on a busy server the reads follow each other.
/// This much time per key must pass between two of them, which limits the cost to a tenth of a core.
const PACE: Duration = Duration::from_micros(5);

/// A read within this time after the previous one is prompt: little can have been trimmed in between.
const PROMPT: Duration = Duration::from_millis(20);

/// How often some keys are sampled even without new entries: they may have been deleted.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
const SWEEP_KEYS: usize = 100;

/// The target size of these samples, in bytes: a sample contains the first and the last entry.
const SWEEP_BYTES: usize = 256 * 1024;

/// How often every key is read in a cluster, if the server does not report changes.
const POLL_EVERY: Duration = Duration::from_millis(100);

/// How long until a key that another node may have is read again.
const MISPLACED_RETRY: Duration = Duration::from_millis(100);

/// The kind of the current read.
pub(super) enum Round {
    /// All keys except those that are behind, until one has new entries.
    Waiting,
    /// These keys, which were behind, or which the server has reported as changed.
    Behind(Vec<Arc<str>>),
    /// Samples.
    Sweep,
    /// Finding the keys that the server does not allow to be read.
    Sift,
}

/// A read in progress.
pub(super) type PendingRead = BoxFuture<'static, Result<Vec<KeyRead>, RedisError>>;

/// The followed keys of one server.
pub(super) struct FollowedKeys {
    keys: BTreeMap<Arc<str>, Key>,
    /// Whether it is a shard of a cluster: then each key is read separately, and no read blocks.
    is_shard: bool,
    /// The keys with [`Key::behind`], and the times after which entries may well have been trimmed before they are
    /// read. May contain others too.
    behind: VecDeque<(Arc<str>, Instant)>,
    /// Keys that were not here at the last read, and when they are tried again.
    misplaced: Vec<Arc<str>>,
    misplaced_at: Instant,
    /// Keys of which at least one must not be read, so that a read of all fails; and the server's text.
    suspects: VecDeque<Arc<str>>,
    refusal: Option<String>,
    size: Arc<EntrySize>,
    /// The key that was sampled last by the sweep.
    swept: Option<Arc<str>>,
    waiting_at: Instant,
    /// When all keys were read last.
    answered_at: Instant,
    /// When the current read was sent.
    asked_at: Instant,
    is_turn_of_behind: bool,
    sweep_at: Instant,
}

impl FollowedKeys {
    pub(super) fn new(size: Arc<EntrySize>, is_shard: bool) -> Self {
        let now = Instant::now();
        FollowedKeys {
            keys: BTreeMap::new(),
            is_shard,
            behind: VecDeque::new(),
            misplaced: Vec::new(),
            misplaced_at: now,
            suspects: VecDeque::new(),
            refusal: None,
            size,
            swept: None,
            waiting_at: now,
            answered_at: now,
            asked_at: now,
            is_turn_of_behind: false,
            sweep_at: now,
        }
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.keys.contains_key(name)
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// The filters of all keys.
    pub(super) fn filters(&self) -> Vec<Filter> {
        self.keys.values().map(|key| key.filter().clone()).collect()
    }

    pub(super) fn follow(&mut self, name: &str, key: Key) {
        self.keys.insert(name.into(), key);
        if self.is_shard {
            // The server reports only keys that were read.
            self.read_on(name, Instant::now());
        }
    }

    /// Releases the keys that have moved to another shard.
    pub(super) fn leave(&mut self, has_left: impl Fn(&str) -> bool) -> Vec<(Arc<str>, Key)> {
        let keys = std::mem::take(&mut self.keys).into_iter();
        let (left, stay): (Vec<_>, Vec<_>) = keys.partition(|(name, _)| has_left(name));
        self.keys = stay.into_iter().collect();
        left
    }

    /// Adopts keys from another shard. `lost` is the reason if messages may be missing. Returns the events to send.
    pub(super) fn enter(&mut self, keys: Vec<(Arc<str>, Key)>, lost: Option<&str>) -> Vec<Event> {
        let mut events = Vec::new();
        for (name, mut key) in keys {
            (key.since, key.behind, key.sampled) = (Instant::now(), false, None);
            if let Some(why) = lost {
                key.moved(why, &mut events);
            }
            self.follow(&name, key);
        }
        events
    }

    /// Whether some keys should be here but were not found.
    pub(super) fn is_misplaced(&self) -> bool {
        !self.misplaced.is_empty()
    }

    pub(super) fn unfollow(&mut self, name: &str) {
        self.keys.remove(name);
    }

    /// Continues to read every key on a new connection. `moved` is the reason if messages may be missing there. Returns
    /// the events to send.
    pub(super) fn resume(&mut self, moved: Option<&str>) -> Vec<Event> {
        let mut events = Vec::new();
        let now = Instant::now();
        self.behind = self.keys.keys().map(|name| (name.clone(), now)).collect();
        self.misplaced.clear();
        self.suspects.clear();
        self.refusal = None;
        for key in self.keys.values_mut() {
            key.behind = true;
            key.sampled = None;
            if let Some(why) = moved {
                key.moved(why, &mut events);
            }
        }
        events
    }

    /// The read to send now.
    pub(super) fn next(&mut self, session: &Session) -> Option<(Round, PendingRead)> {
        let now = Instant::now();
        self.notice(&session.waking, now);
        self.asked_at = now;
        let connection = session.reads.clone();
        if !self.suspects.is_empty() {
            let part: Vec<_> = self.suspects.drain(..self.suspects.len().min(BEHIND_KEYS)).collect();
            let part: Vec<_> = part.into_iter().filter(|name| self.contains(name)).collect();
            return Some((Round::Sift, Box::pin(sift(connection, part))));
        }
        if now >= self.sweep_at {
            self.sweep_at = now + SWEEP_EVERY;
            return Some((Round::Sweep, Box::pin(sweep(connection, self.next_swept()))));
        }
        let is_waiting_due = now >= self.waiting_at;
        // In turns, so that keys that are far behind do not delay the others.
        if !self.behind.is_empty() && (self.is_shard || self.is_turn_of_behind || !is_waiting_due) {
            self.is_turn_of_behind = false;
            if let Some((names, wanted, is_late)) = self.next_behind(now) {
                let share = names.len();
                let count = self.size.fitting(READ_BYTES / share, BEHIND_ENTRIES / share);
                let reading: PendingRead = if self.is_shard {
                    Box::pin(read_each(connection, wanted, count, is_late))
                } else {
                    Box::pin(read(connection, wanted, count, None, is_late))
                };
                return Some((Round::Behind(names), reading));
            }
        }
        if !is_waiting_due || self.is_shard {
            return None;
        }
        let keys = self.keys.iter().filter(|(_, key)| !key.behind);
        let wanted: Vec<Wanted> = keys.map(|(name, key)| wanted(name, key)).collect();
        self.waiting_at = now + PACE * u32::try_from(wanted.len()).unwrap_or(u32::MAX);
        self.is_turn_of_behind = true;
        if wanted.is_empty() {
            return None;
        }
        let count = self.size.fitting(READ_BYTES / BEHIND_KEYS, WAITING_ENTRIES);
        let is_late = self.answered_at.elapsed() > PROMPT;
        let block = self.behind.is_empty().then(|| session.waking.block());
        Some((Round::Waiting, Box::pin(read(connection, wanted, count, block, is_late))))
    }

    /// In a cluster: adds the changed keys to those that are behind.
    fn notice(&mut self, waking: &Waking, now: Instant) {
        let mut all = false;
        match waking {
            Waking::ChangedKeys(changes) => {
                self.waiting_at = now + SWEEP_EVERY; // waiting brought nothing
                let changed = changes.take();
                all = changed.all;
                for name in &changed.keys {
                    if let Ok(name) = std::str::from_utf8(name) {
                        self.read_on(name, now + PROMPT);
                    }
                }
            }
            Waking::Poll if now >= self.waiting_at => {
                all = true;
                self.waiting_at = now + POLL_EVERY.max(PACE * self.keys.len().try_into().unwrap_or(u32::MAX));
            }
            Waking::Poll | Waking::Unblock(_) | Waking::ShortBlock => {}
        }
        if all {
            let names: Vec<_> = self.keys.keys().cloned().collect();
            names.iter().for_each(|name| self.read_on(name, now + PROMPT));
        }
        if now >= self.misplaced_at {
            let misplaced = std::mem::take(&mut self.misplaced);
            misplaced.iter().for_each(|name| self.read_on(name, now));
        }
    }

    /// When the next read is due, unless a new key is followed earlier.
    pub(super) fn next_at(&self) -> Instant {
        if self.is_shard && !self.misplaced.is_empty() {
            return self.sweep_at.min(self.waiting_at).min(self.misplaced_at);
        }
        let is_idle = self.suspects.is_empty() && self.behind.is_empty() && self.keys.is_empty();
        if is_idle { self.sweep_at } else { self.sweep_at.min(self.waiting_at) }
    }

    /// Handles the result of a read. Returns the events to send.
    ///
    /// # Errors
    /// Why nothing can be read, in one line.
    pub(super) fn take(
        &mut self,
        round: Round,
        answer: Result<Vec<KeyRead>, RedisError>,
    ) -> Result<Vec<Event>, String> {
        let answer = match answer {
            Err(why) if is_answer(&why) && !matches!(round, Round::Sift) => {
                return self.suspect(round, &why).map(|()| Vec::new());
            }
            answer => answer.map_err(|why| lost(&why))?,
        };
        if let Round::Waiting = round {
            self.answered_at = Instant::now();
        }
        let mut events = Vec::new();
        self.size.learn(answer.iter().flat_map(|found| &found.entries));
        self.take_nothing(&round, &answer, &mut events);
        for found in answer {
            self.take_key(found, &mut events)?;
        }
        if let Round::Sift = round
            && self.suspects.is_empty()
            && let Some(why) = self.refusal.take()
        {
            // None of them is refused alone, but all together are.
            return Err(why);
        }
        Ok(events)
    }

    /// Compares the samples of the requested keys that had no entries. The others continue to wait.
    fn take_nothing(&mut self, round: &Round, answer: &[KeyRead], events: &mut Vec<Event>) {
        let has_more = |found: &&KeyRead| !found.entries.is_empty() || matches!(found.sample, Some(Err(_)));
        let found: HashSet<_> = answer.iter().filter(has_more).map(|found| &found.name).collect();
        let had_nothing = |name: &Arc<str>, key: &Key| key.is_checked() && !found.contains(name);
        let unanswered: Vec<Arc<str>> = match round {
            Round::Waiting => {
                let requested = self.keys.iter().filter(|(_, key)| !key.behind);
                requested.filter(|(name, key)| had_nothing(name, key)).map(|(name, _)| name.clone()).collect()
            }
            Round::Behind(names) => {
                let requested = names.iter().filter_map(|name| Some((name, self.keys.get(name)?)));
                requested.filter(|(name, key)| had_nothing(name, key)).map(|(name, _)| name.clone()).collect()
            }
            Round::Sweep | Round::Sift => Vec::new(),
        };
        for name in unanswered {
            if let Some(key) = self.keys.get_mut(&name)
                && let Err(end) = key.nothing_more(events)
            {
                self.end(&name, |_| *end, events);
            }
        }
    }

    /// Handles the result of a read for one key.
    ///
    /// # Errors
    /// Why nothing can be read, in one line.
    fn take_key(&mut self, found: KeyRead, events: &mut Vec<Event>) -> Result<(), String> {
        let KeyRead { name, entries, is_full, sample } = found;
        let Some(key) = self.keys.get_mut(&name) else { return Ok(()) };
        if key.since > self.asked_at {
            if self.is_shard {
                self.read_on(&name, Instant::now());
            }
            return Ok(());
        }
        let sample = match sample.transpose() {
            Ok(sample) => sample,
            Err(BrokerError::Away(_)) if self.is_shard => {
                if self.misplaced.is_empty() {
                    self.misplaced_at = Instant::now() + MISPLACED_RETRY;
                }
                self.misplaced.push(name);
                return Ok(());
            }
            Err(BrokerError::Away(why)) => return Err(why),
            Err(BrokerError::Refused(why) | BrokerError::Unfit(why) | BrokerError::TooLarge(why)) => {
                self.refusal = None;
                self.end(&name, |key| key.refuse(why), events);
                return Ok(());
            }
        };
        match key.take(entries, sample, events) {
            Ok(()) => {
                // In a cluster, no read of all keys follows that would show whether there are more.
                if is_full || self.is_shard && key.is_checked() {
                    self.read_on(&name, Instant::now());
                }
            }
            Err(end) => self.end(&name, |_| *end, events),
        }
        Ok(())
    }

    /// A read of many keys was refused: each of them is checked.
    fn suspect(&mut self, round: Round, why: &RedisError) -> Result<(), String> {
        if let BrokerError::Away(why) = fault(why) {
            return Err(why);
        }
        self.refusal = Some(words(why));
        self.suspects = self.keys.keys().cloned().collect();
        if let Round::Behind(names) = round {
            names.iter().for_each(|name| self.read_on(name, Instant::now()));
        }
        Ok(())
    }

    /// Adds a key to those that are behind. After `late_at`, entries may well have been trimmed before it is read.
    fn read_on(&mut self, name: &str, late_at: Instant) {
        if let Some((name, _)) = self.keys.get_key_value(name)
            && let name = name.clone()
            && let Some(key) = self.keys.get_mut(&name).filter(|key| !key.behind)
        {
            key.behind = true;
            self.behind.push_back((name, late_at));
        }
    }

    /// Takes some keys from those that are behind; they are added again if their answer is full again. Also returns
    /// whether one of them is late.
    fn next_behind(&mut self, now: Instant) -> Option<(Vec<Arc<str>>, Vec<Wanted>, bool)> {
        let most = self.size.fitting(READ_BYTES, BEHIND_KEYS);
        let (mut names, mut keys, mut is_late) = (Vec::new(), Vec::new(), false);
        while names.len() < most
            && let Some((name, late_at)) = self.behind.pop_front()
        {
            if let Some(key) = self.keys.get_mut(&name).filter(|key| key.behind) {
                key.behind = false;
                keys.push(wanted(&name, key));
                names.push(name);
                is_late |= late_at <= now;
            }
        }
        (!names.is_empty()).then_some((names, keys, is_late))
    }

    /// The next keys to sample, in turns.
    fn next_swept(&mut self) -> Vec<Arc<str>> {
        let from = self.swept.take().map_or(Bound::Unbounded, Bound::Excluded);
        let most = self.size.fitting(SWEEP_BYTES, SWEEP_KEYS);
        let names: Vec<_> = self.keys.range::<Arc<str>, _>((from, Bound::Unbounded)).take(most).collect();
        let names: Vec<_> = names.into_iter().map(|(name, _)| name.clone()).collect();
        self.swept = (names.len() == most).then(|| names.last().cloned()).flatten();
        names
    }

    fn end(&mut self, name: &str, event: impl FnOnce(Key) -> Event, events: &mut Vec<Event>) {
        if let Some(key) = self.keys.remove(name) {
            events.push(event(key));
        }
    }
}

fn wanted(name: &Arc<str>, key: &Key) -> Wanted {
    Wanted { name: name.clone(), after: key.cursor, sampled: key.sampled, length: key.length }
}
