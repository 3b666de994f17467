//! Keeps the topics of warm rules subscribed while they have no reader. The registry holds their logs; this is the task
//! that subscribes again whenever a subscription has ended.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::refusals::Refusals;
use super::{Gateway, is_warm, log_settings};
use crate::broker::{Broker, BrokerError};
use crate::config::Rule;
use crate::ingest::status::{Upstream, Upstreams};
use crate::log::Subscription;
use crate::protocol::source::Source;
use crate::protocol::topic::Filter;

/// How long to wait before subscribing again when the broker was away after all.
const AWAY_RETRY: Duration = Duration::from_millis(200);

/// The same after a refusal by the broker, while nobody wants to read the topic: the first wait, and the longest to
/// which it doubles.
const REFUSED_RETRY: Duration = Duration::from_secs(1);
const REFUSED_RETRY_LIMIT: Duration = Duration::from_secs(30);

/// A rule that is kept warm.
#[derive(Debug)]
pub(super) struct Warm {
    /// Cancelled when the rule is no longer warm.
    cooled: CancellationToken,
    /// The rules above it that have topics which would otherwise belong to it.
    above: Vec<Filter>,
}

impl Gateway {
    /// Keeps the warm rules among these subscribed, and no others.
    pub(super) fn keep_warm(&self, rules: &[Rule]) {
        let mut warm = self.warm.lock();
        warm.retain(|filter, Warm { cooled, .. }| {
            let stays = rules.iter().any(|rule| is_warm(rule) && rule.filter == *filter);
            if !stays {
                cooled.cancel();
                self.denied.clear(filter);
                self.registry.stop_warming(filter);
            }
            stays
        });
        for rule in rules.iter().filter(|rule| is_warm(rule)) {
            if !warm.contains_key(&rule.filter) {
                let cooled = CancellationToken::new();
                let above = above(rules, &rule.filter);
                warm.insert(rule.filter.clone(), Warm { cooled: cooled.clone(), above });
                let (registry, filter) = (self.registry.clone(), rule.filter.clone());
                let (bounds, fields) = log_settings(rule, &self.metrics);
                let keep = move || (registry.warm(&filter, &bounds, &fields), registry.ended(&filter));
                // The first time here, so that the log exists before the first reader.
                let first = keep();
                let (broker, upstream) = (self.broker.clone(), self.upstream.clone());
                let refusals = self.denied.clone();
                tokio::spawn(subscribed(
                    broker,
                    rule.source.clone(),
                    first,
                    keep,
                    upstream,
                    refusals,
                    cooled,
                ));
            }
        }
        self.registry.rules_changed();
    }

    /// To be called before these rules are applied. Topics of a rule that was above a warm one, and no longer is, are
    /// fed by the warm one from now on.
    pub(super) fn hand_topics_over(&self, rules: &[Rule]) {
        for (filter, warm) in self.warm.lock().iter_mut() {
            let before = std::mem::replace(&mut warm.above, above(rules, filter));
            let gone = before.iter().filter(|other| !warm.above.contains(other));
            gone.for_each(|other| self.registry.take_over(filter, other));
        }
    }
}

/// The rules above the rule of `filter` that have topics which would otherwise belong to it.
fn above(rules: &[Rule], filter: &Filter) -> Vec<Filter> {
    let above = rules.iter().take_while(|other| other.filter != *filter);
    above.filter(|other| other.filter.overlaps(filter)).map(|other| other.filter.clone()).collect()
}

/// Subscribes, with retries, and again through `keep` whenever the broker has ended the subscription, until `cooled`.
/// `keep` returns the duty to subscribe, if it is ours, and the end of the subscription.
async fn subscribed<E: Future<Output = ()>>(
    broker: Broker,
    source: Source,
    first: (Option<Subscription>, E),
    keep: impl Fn() -> (Option<Subscription>, E),
    mut upstream: watch::Receiver<Upstreams>,
    refusals: Arc<Refusals>,
    cooled: CancellationToken,
) -> Option<()> {
    let pause = async |time| cooled.run_until_cancelled(tokio::time::sleep(time)).await;
    let (mut subscription, mut ended) = first;
    loop {
        if let Some(subscription) = subscription {
            let filter = subscription.filter().clone();
            let mut retry = REFUSED_RETRY;
            loop {
                // All sources except plain publish/subscribe have connections of their own, which this call creates.
                let up = |state: &Upstreams| source != Source::Pubsub || state.pubsub == Upstream::Up;
                let up = upstream.wait_for(up);
                cooled.run_until_cancelled(up).await?.ok()?; // or the process is shutting down
                // Not cancelled in between: nobody would know of the subscription.
                match broker.subscribe(filter.clone(), source.clone()).await {
                    Ok(()) => {
                        refusals.clear(&filter);
                        break subscription.accepted();
                    }
                    // The broker went away again. Its next `Up` may take a while, and this must not become a busy loop.
                    Err(BrokerError::Away(_)) => pause(AWAY_RETRY).await?,
                    Err(BrokerError::Refused(why) | BrokerError::Unfit(why) | BrokerError::TooLarge(why)) => {
                        if refusals.note(&filter, &why) {
                            tracing::error!(
                                topic = filter.as_str(),
                                why,
                                "the broker refuses the subscription of a rule that is subscribed from the start; it is tried again"
                            );
                        }
                        subscription.refuse();
                        let again = tokio::time::timeout(retry, subscription.wanted());
                        let _ = cooled.run_until_cancelled(again).await?;
                        retry = (retry * 2).min(REFUSED_RETRY_LIMIT);
                    }
                }
            }
        }
        cooled.run_until_cancelled(ended).await?;
        // A stream that was deleted may have been created again; a permission that was withdrawn is hardly restored at
        // once.
        pause(if source.is_stored() { AWAY_RETRY } else { REFUSED_RETRY_LIMIT }).await?;
        (subscription, ended) = keep();
    }
}
