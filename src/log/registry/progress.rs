//! The logs for operators: a page of their states, their readers, and a lease of a log that exists. It subscribes to
//! nothing.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::time::Instant;

use super::lease::Lease;
use super::slot::{Feed, Slot, Subscribed};
use super::{Inner, Registry};
use crate::log::TopicLog;
use crate::log::inspect::{Lag, LogState, UpstreamState};
use crate::protocol::topic::Filter;
use crate::reader::handle::ReaderHandle;

/// The part of a stream's state that only its logs know.
#[derive(Debug, Clone, Default)]
pub struct ReaderProgress {
    /// Its topics and patterns.
    pub topics: Vec<Filter>,
    /// Its lag; `None` if its logs have several sequences.
    pub lag: Option<Lag>,
}

impl Registry {
    /// The states of up to `limit` logs whose names begin with `prefix`, ordered by name, after `after`.
    pub fn log_states(&self, prefix: &str, after: &str, limit: usize) -> Vec<LogState> {
        let named = |slot: &&Slot| {
            let name = slot.log.filter.as_str();
            name.starts_with(prefix) && name > after
        };
        let state = |slot: &Slot| {
            let idle = (slot.readers == 0).then(|| Instant::now().duration_since(slot.idle_since));
            (slot.log.clone(), slot.readers, slot.upstream(), idle)
        };
        let mut found = self.of_slots(|slot| Some(slot).filter(named).map(state));
        if found.len() > limit {
            found.select_nth_unstable_by(limit, |(a, ..), (b, ..)| a.filter.cmp(&b.filter));
            found.truncate(limit);
        }
        found.sort_unstable_by(|(a, ..), (b, ..)| a.filter.cmp(&b.filter));
        found.into_iter().map(|(log, readers, upstream, idle)| log.state(readers, upstream, idle)).collect()
    }

    /// The ids of the streams that read a topic or pattern which overlaps with `filter`.
    pub fn readers_of(&self, filter: &Filter) -> Vec<u64> {
        let mut ids = Vec::new();
        for log in self.logs(|slot| slot.log.filter.overlaps(filter)) {
            log.readers.for_each(|handle| ids.push(handle.id));
        }
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// The progress of these streams, by id.
    pub fn reader_progress(&self, streams: &[Arc<ReaderHandle>]) -> HashMap<u64, ReaderProgress> {
        let mut reader_progress: HashMap<u64, ReaderProgress> =
            streams.iter().map(|stream| (stream.id, ReaderProgress::default())).collect();
        for log in self.logs(|slot| slot.readers > 0) {
            let mut found = Vec::new();
            log.readers.for_each(|handle| {
                if reader_progress.contains_key(&handle.id) {
                    found.push((handle.id, handle.position()));
                }
            });
            for (id, position) in found {
                if let Some(reading) = reader_progress.get_mut(&id) {
                    reading.topics.push(log.filter.clone());
                    let lag = position.map(|position| log.lag(position));
                    reading.lag = lag.map(|lag| lag.and(reading.lag.unwrap_or_default()));
                }
            }
        }
        reader_progress
    }

    /// The logs that have readers.
    pub fn logs_read(&self) -> Vec<Arc<TopicLog>> {
        self.logs(|slot| slot.readers > 0)
    }

    /// A lease of the log of `filter`, if it exists. Subscribes to nothing.
    pub fn hold(self: &Arc<Self>, filter: &Filter) -> Option<Lease> {
        let mut inner = self.inner.lock();
        let slot = inner.slots.get_mut(filter)?;
        slot.readers += 1;
        let lease = Lease::new(self.clone(), slot.log.clone());
        drop(inner);
        while !lease.log().take_over() {}
        Some(lease)
    }

    fn logs(&self, wanted: impl Fn(&Slot) -> bool) -> Vec<Arc<TopicLog>> {
        self.of_slots(|slot| wanted(slot).then(|| slot.log.clone()))
    }

    /// Collects the results of `find` over all slots. The lock is released in between.
    fn of_slots<T>(&self, find: impl Fn(&Slot) -> Option<T>) -> Vec<T> {
        let (mut all, mut at) = (Vec::new(), 0);
        let found = |inner: &mut Inner, part| inner.slots.part(part).filter_map(&find).collect::<Vec<_>>();
        while let Some((next, found)) = self.with_part(at, found) {
            at = next;
            all.extend(found);
        }
        all
    }
}

impl Slot {
    fn upstream(&self) -> UpstreamState {
        match (&self.feed, *self.subscribed.borrow()) {
            (_, Subscribed::Refused(_)) => UpstreamState::Refused,
            _ if self.log.numbering.is_stale() => UpstreamState::Stale,
            (Feed::By(_), _) => UpstreamState::Children,
            (_, Subscribed::Pending | Subscribed::Failed(_)) => UpstreamState::Pending,
            (Feed::Own, Subscribed::Confirmed) => UpstreamState::Subscribed,
            (Feed::Warm(_), Subscribed::Confirmed) => UpstreamState::Warm,
        }
    }
}
