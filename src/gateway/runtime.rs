//! The runtime: the configuration in force, and everything that is built from it for requests and new streams. A reload
//! replaces it as a whole; a request that began with one continues with it.

use std::collections::HashMap;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::auth::access::{self, Verdict};
use crate::auth::{Action, Auth, Caller, IdentitySource};
use crate::config::Config;
use crate::log::Registry;
use crate::metrics::Metrics;
use crate::protocol::filter_index::FilterIndex;
use crate::protocol::topic::Filter;
use crate::reader::Principal;
use crate::stream::StreamContext;
use crate::stream::outcome::OutcomeLog;

/// A configuration and what is built from it.
#[derive(Debug)]
pub struct Runtime {
    /// The configuration.
    pub config: Config,
    /// Identifies callers.
    pub auth: Auth,
    /// The settings and services of all streams that open now.
    pub streams: Arc<StreamContext>,
    /// The indices of the rules of each pattern.
    rules: FilterIndex<Vec<usize>>,
}

impl Runtime {
    /// Builds it from a configuration and the [`Auth`] of that configuration.
    pub fn new(config: Config, auth: Auth, registry: Arc<Registry>, metrics: Arc<Metrics>) -> Arc<Self> {
        Self::of(config, auth, registry, metrics, Arc::default())
    }

    /// Builds it from a new configuration, for the same gateway.
    pub fn renewed(&self, config: Config, auth: Auth) -> Arc<Self> {
        let StreamContext { registry, metrics, why, .. } = &*self.streams;
        Self::of(config, auth, registry.clone(), metrics.clone(), why.clone())
    }

    fn of(
        config: Config,
        auth: Auth,
        registry: Arc<Registry>,
        metrics: Arc<Metrics>,
        why: Arc<OutcomeLog>,
    ) -> Arc<Self> {
        let streams = Arc::new(StreamContext {
            registry,
            metrics,
            heartbeat: config.streams.heartbeat,
            retry: config.streams.retry,
            max_age: config.streams.max_age,
            write_timeout: config.streams.write_timeout,
            why,
        });
        let mut rules = FilterIndex::default();
        let mut of_pattern: HashMap<&Filter, Vec<usize>> = HashMap::new();
        for (index, rule) in config.topics.iter().enumerate() {
            of_pattern.entry(&rule.filter).or_default().push(index);
        }
        of_pattern.into_iter().for_each(|(filter, indices)| _ = rules.insert(filter, indices));
        Arc::new(Runtime { config, auth, streams, rules })
    }

    /// Whether the rules allow `caller` to do this with all of `filter`.
    pub fn decide(&self, action: Action, filter: &Filter, caller: Option<&Caller>) -> Verdict<'_> {
        // Only the rules that overlap matter, in their order: there may be many others.
        let mut concerned: SmallVec<[usize; 4]> = SmallVec::new();
        self.rules.overlapping(filter, |indices| concerned.extend_from_slice(indices));
        concerned.sort_unstable();
        let rules = concerned.iter().map(|index| &self.config.topics[*index]);
        access::decide(rules, action, filter, caller)
    }

    /// The rule that covers all of `filter`, the first if there are several.
    pub fn rule_index(&self, filter: &Filter) -> Option<usize> {
        let mut first = None;
        self.rules.covering(filter, |indices| first = first.into_iter().chain(indices.iter().copied()).min());
        first
    }

    /// Whether an open stream over `filter` would still be admitted now.
    pub fn still_lets_read(&self, filter: &Filter, principal: &Principal) -> bool {
        let allows = |caller| matches!(self.decide(Action::Subscribe, filter, caller), Verdict::Allowed(_));
        // A backend was asked about certain topics and has not decided about others, whatever the rule requires.
        let speaks_of_it = |caller: &Caller| match &caller.voucher {
            Some(IdentitySource::Backend(_)) => caller.is_granted(Action::Subscribe, filter),
            Some(IdentitySource::Keys(..)) | None => true,
        };
        match principal {
            Principal::Operator => true,
            Principal::Anyone => allows(None),
            Principal::Caller(caller) => {
                let said = self.auth.stands_by(caller) && speaks_of_it(caller);
                allows(None) || said && allows(Some(caller))
            }
        }
    }
}
