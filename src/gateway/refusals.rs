//! The topics that the broker does not allow the gateway to read now, with the reasons. For the log and the console
//! only: nothing decides by it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::metrics::throttle::Throttle;
use crate::protocol::topic::Filter;

/// Refusals that are remembered; a new one replaces the oldest.
const REMEMBERED: usize = 32;

/// A refusal that has not been repeated for this long is forgotten.
const STALE: Duration = Duration::from_secs(120);

/// The remembered refusals.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    remembered: Mutex<VecDeque<Refusal>>,
    /// Limits the log lines about topics that the broker refuses: every request for such a topic would write one.
    lines: Throttle,
}

#[derive(Debug)]
struct Refusal {
    filter: Filter,
    why: String,
    at: Instant,
}

impl Refusals {
    /// Records that the broker does not allow the gateway to read a topic, for the log and the console.
    pub(super) fn note_and_log(&self, filter: &Filter, why: &str) {
        self.note(filter, why);
        if self.may_log() {
            tracing::error!(
                topic = filter.as_str(),
                why,
                "the broker does not allow the gateway to read this topic; check the gateway's permissions or the rule"
            );
        }
    }

    /// Whether a refusal may write a log line now.
    pub(super) fn may_log(&self) -> bool {
        self.lines.allows()
    }

    /// Records a refusal. Returns whether the reason differs from the last one for this filter.
    pub(super) fn note(&self, filter: &Filter, why: &str) -> bool {
        let mut refusals = self.remembered.lock();
        let known = refusals.iter().position(|refusal| refusal.filter == *filter);
        let before = known.and_then(|index| refusals.remove(index));
        if refusals.len() == REMEMBERED {
            refusals.pop_front();
        }
        refusals.push_back(Refusal { filter: filter.clone(), why: why.to_owned(), at: Instant::now() });
        before.is_none_or(|before| before.why != why)
    }

    /// Forgets the refusals of a filter that is subscribed now or no longer wanted, and of the filters that it covers.
    pub(super) fn clear(&self, filter: &Filter) {
        self.remembered.lock().retain(|refusal| !filter.covers(&refusal.filter));
    }

    /// The current refusals, each with its reason.
    pub(super) fn list(&self) -> Vec<(Filter, String)> {
        let mut refusals = self.remembered.lock();
        refusals.retain(|refusal| refusal.at.elapsed() < STALE);
        refusals.iter().map(|refusal| (refusal.filter.clone(), refusal.why.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_reason_of_each_filter_is_remembered_until_newer_filters_replace_it() {
        let refusals = Refusals::default();
        let filter = |number: usize| Filter::parse(&format!("a/{number}"), 99).unwrap();
        assert!(refusals.note(&filter(0), "x"));
        assert!(!refusals.note(&filter(0), "x"), "it was said before");
        assert!(refusals.note(&filter(0), "y"));
        assert_eq!(refusals.list(), [(filter(0), "y".to_owned())]);
        for number in 1..=REMEMBERED {
            refusals.note(&filter(number), "z");
        }
        assert_eq!(refusals.list().len(), REMEMBERED);
        assert!(refusals.list().iter().all(|(refused, _)| *refused != filter(0)));
        refusals.clear(&filter(1));
        assert_eq!(refusals.list().len(), REMEMBERED - 1);
    }
}
