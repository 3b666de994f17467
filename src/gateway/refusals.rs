//! What the broker refuses to let the gateway read now, and why: for the log and the console.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::protocol::topic::Filter;

/// Refusals that are remembered; the oldest goes.
const REMEMBERED: usize = 32;

/// A refusal that was not repeated for so long says nothing of now.
const STALE: Duration = Duration::from_secs(120);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<VecDeque<Refusal>>);

#[derive(Debug)]
struct Refusal {
    filter: Filter,
    why: String,
    at: Instant,
}

impl Refusals {
    /// Notes one. Whether it is another reason than the last one for this filter.
    pub(super) fn note(&self, filter: &Filter, why: &str) -> bool {
        let mut refusals = self.0.lock();
        let known = refusals.iter().position(|refusal| refusal.filter == *filter);
        let before = known.and_then(|index| refusals.remove(index));
        if refusals.len() == REMEMBERED {
            refusals.pop_front();
        }
        refusals.push_back(Refusal { filter: filter.clone(), why: why.to_owned(), at: Instant::now() });
        before.is_none_or(|before| before.why != why)
    }

    /// It is subscribed now, or nobody wants it; and so is what it covers.
    pub(super) fn clear(&self, filter: &Filter) {
        self.0.lock().retain(|refusal| !filter.covers(&refusal.filter));
    }

    /// Those of now, each with its reason.
    pub(super) fn list(&self) -> Vec<(Filter, String)> {
        let mut refusals = self.0.lock();
        refusals.retain(|refusal| refusal.at.elapsed() < STALE);
        refusals.iter().map(|refusal| (refusal.filter.clone(), refusal.why.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_reason_of_each_filter_is_remembered_and_the_oldest_go() {
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
