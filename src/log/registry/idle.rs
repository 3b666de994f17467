//! Topics without readers: how long they linger, for which address, and how they are released.
//!
//! A topic lingers for the address that requested it last, and counts against that address's topics. If there are too
//! many, the oldest are released. The fuller the registry, the shorter all linger.

use std::collections::HashMap;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::slot::{Feed, Slot, Subscribed};
use super::{Inner, Registry};
use crate::net::address::counted_as;
use crate::protocol::source::Source;
use crate::protocol::topic::Filter;

/// Up to the first part of `limits.topics`, topics linger as long as their rules say; from the second on, none lingers.
/// In between, the time falls linearly, so that new topics find room before the limit is reached.
const ROOMY: f64 = 0.5;
const CROWDED: f64 = 0.9;

/// The topics to release.
#[derive(Debug)]
pub struct Idle {
    /// Longest without a reader first.
    pub due: Vec<Due>,
    /// The number of topics without readers, these included.
    pub lingering: usize,
}

/// A topic to release, unless it has been requested since.
#[derive(Debug)]
pub struct Due {
    filter: Filter,
    idle_since: Instant,
}

/// The part of its linger time that a topic has when `topics` of `most` are held.
fn patience(topics: usize, most: usize) -> f64 {
    let full = topics as f64 / most.max(1) as f64;
    ((CROWDED - full) / (CROWDED - ROOMY)).clamp(0.0, 1.0)
}

impl Slot {
    fn is_idle(&self) -> bool {
        let feeds = matches!(&self.feed, Feed::Warm(fed) if !fed.is_empty());
        self.readers == 0 && !self.kept && !feeds
    }
}

impl Registry {
    /// The topics to release now; `share` is how many may linger for an address.
    pub fn idle(&self, share: impl Fn(IpAddr) -> usize) -> Idle {
        struct Lingering {
            due: Due,
            asked_by: Option<IpAddr>,
            linger: Duration,
        }
        let most = self.max_topics.load(Ordering::Relaxed);
        let (mut lingering, mut at) = (Vec::new(), 0);
        let mut part = |inner: &mut Inner, part: Range<usize>| {
            let patience = patience(inner.slots.len(), most);
            let idle = inner.slots.part(part).filter(|slot| slot.is_idle());
            lingering.extend(idle.map(|slot| Lingering {
                due: Due { filter: slot.log.filter.clone(), idle_since: slot.idle_since },
                asked_by: slot.asked_by.map(counted_as),
                linger: if slot.is_over { Duration::ZERO } else { slot.log.linger().mul_f64(patience) },
            }));
        };
        while let Some((next, ())) = self.with_part(at, &mut part) {
            at = next;
        }
        // The newest first: these are the ones that an address may keep.
        lingering.sort_unstable_by_key(|one| std::cmp::Reverse(one.due.idle_since));
        let (now, count) = (Instant::now(), lingering.len());
        let mut left: HashMap<IpAddr, usize> = HashMap::new();
        let mut due: Vec<Due> = lingering
            .into_iter()
            .filter(|one| {
                let over = now.saturating_duration_since(one.due.idle_since) >= one.linger;
                let fits = one.asked_by.is_none_or(|address| {
                    let left = left.entry(address).or_insert_with(|| share(address));
                    let fits = *left > 0;
                    *left = left.saturating_sub(1);
                    fits
                });
                over || !fits
            })
            .map(|one| one.due)
            .collect();
        due.reverse();
        Idle { due, lingering: count }
    }

    /// Releases these topics, if they are still idle. `unsubscribe` is called under the lock, so that the next
    /// subscription is behind it in the queue; if it returns `false`, this stops. Returns how many were handled.
    pub fn give_up_idle(&self, due: &[Due], mut unsubscribe: impl FnMut(&Filter, &Source) -> bool) -> usize {
        let mut inner = self.inner.lock();
        let (mut done, mut ended) = (0, Vec::new());
        for Due { filter, idle_since } in due {
            let slot =
                inner.slots.get(filter).filter(|slot| slot.is_idle() && slot.idle_since == *idle_since);
            if let Some(slot) = slot {
                let is_fed = matches!(slot.feed, Feed::By(_));
                // An unconfirmed subscription cannot be ended yet.
                let stays = !is_fed && *slot.subscribed.borrow() == Subscribed::Pending;
                if !stays {
                    if !is_fed && !unsubscribe(filter, &slot.fields.source) {
                        break;
                    }
                    ended.push(inner.remove(filter, &self.sequence));
                }
            }
            done += 1;
        }
        drop(inner);
        drop(ended); // outside of the lock
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_linger_less_as_the_limit_comes_closer_and_not_at_all_near_it() {
        for (topics, expected) in
            [(0, 1.0), (500, 1.0), (600, 0.75), (700, 0.5), (800, 0.25), (900, 0.0), (1100, 0.0)]
        {
            assert!((patience(topics, 1000) - expected).abs() < 1e-9, "{topics}");
        }
        assert_eq!(patience(1, 0), 0.0);
    }
}
