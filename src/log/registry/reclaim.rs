//! Reclaims memory: releases idle logs, drops entries that are too old, and enforces the bound on all logs.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;
use std::sync::atomic::Ordering;

use tokio::time::Instant;

use super::idle::Idle;
use super::{Inner, Registry};
use crate::protocol::source::Source;
use crate::protocol::topic::Filter;

/// If all logs together exceed the bound, they are reduced to this part of it, so that this does not happen again with
/// the next message.
const RECLAIM_TO: f64 = 0.9;

impl Registry {
    /// Frees memory if all logs together exceed the bound. Returns whether they did.
    pub fn keep_bound(&self) -> bool {
        let beyond = self.bytes() > self.max_bytes.load(Ordering::Relaxed);
        if beyond {
            self.reclaim();
        }
        beyond
    }

    /// Frees memory until the bound is kept: first logs without readers, longest idle first, then the oldest entries of
    /// any log.
    fn reclaim(&self) {
        let target = (self.max_bytes.load(Ordering::Relaxed) as f64 * RECLAIM_TO) as usize;
        let (mut idle, mut busy) = (Vec::new(), Vec::new());
        let mut at = 0;
        let found = |inner: &mut Inner, part| {
            let slots = inner.slots.part(part);
            slots.map(|slot| (slot.readers > 0, slot.idle_since, slot.log.clone())).collect::<Vec<_>>()
        };
        while let Some((next, found)) = self.with_part(at, found) {
            at = next;
            let (read, unread): (Vec<_>, Vec<_>) = found.into_iter().partition(|(read, ..)| *read);
            idle.extend(unread);
            busy.extend(read);
        }
        // Cached batches can be rebuilt, so dropping them loses no message.
        idle.iter().chain(&busy).for_each(|(_, _, log)| log.clear_batches());
        idle.sort_unstable_by_key(|(_, since, _)| *since);
        for (_, _, log) in &idle {
            if self.usage.bytes() <= target {
                return;
            }
            log.evict_all();
        }
        let mut oldest_first: BinaryHeap<_> = busy
            .iter()
            .enumerate()
            .filter_map(|(index, (_, _, log))| log.oldest().map(|oldest| Reverse((oldest, index))))
            .collect();
        while self.usage.bytes() > target
            && let Some(Reverse((oldest, index))) = oldest_first.pop()
        {
            let log = &busy[index].2;
            log.evict_through(oldest);
            oldest_first.extend(log.oldest().map(|oldest| Reverse((oldest, index))));
        }
    }

    /// Releases logs that have had no reader for their linger time, and ages the others. `unsubscribe` as in
    /// [`Registry::give_up_idle`]. Returns as [`Registry::keep_bound`].
    pub fn sweep(&self, unsubscribe: impl FnMut(&Filter, &Source) -> bool) -> bool {
        let Idle { due, .. } = self.idle(|_| usize::MAX);
        self.give_up_idle(&due, unsubscribe);
        self.age()
    }

    /// Ages the logs. Returns as [`Registry::keep_bound`].
    pub fn age(&self) -> bool {
        let (now, mut at) = (Instant::now(), 0);
        let part = |inner: &mut Inner, part: Range<usize>| -> Vec<_> {
            inner.slots.part(part).map(|slot| slot.log.clone()).collect()
        };
        while let Some((next, logs)) = self.with_part(at, part) {
            at = next;
            logs.iter().for_each(|log| log.sweep(now));
        }
        self.inner.lock().slots.shrink();
        self.forget_marks();
        self.ranges.sweep();
        // Readers can fill memory as well, with envelopes.
        self.keep_bound()
    }
}
