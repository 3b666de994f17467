//! Outages: which subscriptions receive nothing now, because their part of the broker is away. Once that has lasted for
//! a while, their readers must know: what a page shows is no longer live.
//!
//! Each subscription has one mark, in the numbering that its logs share. Streams compare it with what they have sent
//! ([`crate::log::Cursors`]); there is no state per reader here.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::slot::{Feed, Slot};
use super::{Inner, Registry};
use crate::protocol::source::Source;
use crate::protocol::topic::Filter;

/// How long an outage lasts before readers receive it: a connection that is lost is usually back sooner.
const STALE_AFTER: Duration = Duration::from_secs(2);

/// The outages that have not ended.
#[derive(Debug, Default)]
pub(super) struct Outages {
    /// The number of the last one.
    last: u64,
    /// The outage of plain publish/subscribe as a whole, and whether its readers have received it.
    plain: Option<(u64, bool)>,
    /// The outages that readers have not received yet, oldest first: when each began, its number, and its filters; `None` is
    /// every filter of plain publish/subscribe.
    begun: VecDeque<(Instant, u64, Option<Vec<Filter>>)>,
}

impl Registry {
    /// Records that the subscriptions of these filters, or all of plain publish/subscribe, receive nothing from now on.
    pub fn feeds_lost(&self, filters: Option<Vec<Filter>>) {
        let mut inner = self.inner.lock();
        let Inner { slots, outages, .. } = &mut *inner;
        let number = outages.last + 1;
        match &filters {
            None if outages.plain.is_some() => return,
            None => outages.plain = Some((number, false)),
            Some(filters) => {
                let slots = filters.iter().filter_map(|filter| slots.get(filter));
                if slots.filter(|slot| slot.log.numbering.lose_feed(number)).count() == 0 {
                    return;
                }
            }
        }
        outages.last = number;
        outages.begun.push_back((Instant::now(), number, filters));
    }

    /// Records that they receive messages again.
    pub fn feeds_back(&self, filters: Option<&[Filter]>) {
        let was_stale = match filters {
            None => self.inner.lock().outages.plain.take().is_some_and(|(_, is_told)| is_told),
            Some(filters) => {
                let inner = self.inner.lock();
                let slots = filters.iter().filter_map(|filter| inner.slots.get(filter));
                slots.filter(|slot| slot.log.numbering.regain_feed()).count() > 0
            }
        };
        if was_stale {
            if filters.is_none() {
                self.for_plain(|slot| _ = slot.log.numbering.regain_feed());
            }
            self.wake_of(filters);
        }
    }

    /// When the readers of the oldest outage must receive it.
    pub fn outage_due(&self) -> Option<Instant> {
        self.inner.lock().outages.begun.front().map(|(begun, ..)| *begun + STALE_AFTER)
    }

    /// Marks the subscriptions whose outage has lasted, and queues their readers to be woken.
    pub fn mark_outages(&self) {
        while let Some((number, filters)) = self.due_outage() {
            match &filters {
                None => self.for_plain(|slot| slot.log.numbering.lose_feed_for_long(number)),
                Some(filters) => {
                    let inner = self.inner.lock();
                    let slots = filters.iter().filter_map(|filter| inner.slots.get(filter));
                    slots.for_each(|slot| slot.log.numbering.mark_stale(number));
                }
            }
            self.wake_of(filters.as_deref());
        }
    }

    /// The next outage that has lasted, unless it is over.
    fn due_outage(&self) -> Option<(u64, Option<Vec<Filter>>)> {
        let mut inner = self.inner.lock();
        let outages = &mut inner.outages;
        while outages.begun.front().is_some_and(|(begun, ..)| begun.elapsed() >= STALE_AFTER) {
            let (_, number, filters) = outages.begun.pop_front()?;
            match (&filters, &mut outages.plain) {
                (None, Some((plain, is_told))) if *plain == number => *is_told = true,
                (None, _) => continue,
                (Some(_), _) => {}
            }
            return Some((number, filters));
        }
        None
    }

    /// Counts a change, and queues the readers concerned. The marks must be set before.
    fn wake_of(&self, filters: Option<&[Filter]>) {
        self.feed_changes.fetch_add(1, Ordering::Release);
        let wake = |inner: &mut Inner, filter: &Filter| {
            let Inner { slots, waking, .. } = inner;
            slots.get(filter).into_iter().flat_map(Slot::logs).for_each(|log| log.queue_wake(waking));
        };
        match filters {
            Some(filters) => {
                let mut inner = self.inner.lock();
                filters.iter().for_each(|filter| wake(&mut inner, filter));
            }
            None => {
                let mut at = 0;
                while let Some((next, ())) = self.with_part(at, |inner, part| {
                    let Inner { slots, waking, .. } = inner;
                    let plain = slots.part(part).filter(|slot| slot.fields.source == Source::Pubsub);
                    plain.for_each(|slot| slot.log.queue_wake(waking));
                }) {
                    at = next;
                }
            }
        }
    }

    /// Calls `work` with each subscription of plain publish/subscribe.
    fn for_plain(&self, work: impl Fn(&Slot)) {
        let mut at = 0;
        while let Some((next, ())) = self.with_part(at, |inner, part| {
            let own =
                |slot: &&Slot| slot.fields.source == Source::Pubsub && !matches!(slot.feed, Feed::By(_));
            inner.slots.part(part).filter(own).for_each(&work);
        }) {
            at = next;
        }
    }

    /// Changes whenever a feed becomes stale or live.
    pub fn feed_changes(&self) -> u32 {
        self.feed_changes.load(Ordering::Acquire)
    }

    /// The topics and patterns that are held and stale.
    pub fn stale_topics(&self) -> usize {
        // Usually there has been no outage.
        if self.feed_changes() == 0 {
            return 0;
        }
        let (mut at, mut count) = (0, 0);
        let stale = |inner: &mut Inner, part| {
            inner.slots.part(part).filter(|slot| slot.log.numbering.is_stale()).count()
        };
        while let Some((next, some)) = self.with_part(at, stale) {
            (at, count) = (next, count + some);
        }
        count
    }
}
