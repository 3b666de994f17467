//! Topics that are subscribed without a reader, because their rule is warm.

use std::future::Future;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Gateway, follow, is_warm, log_settings};
use crate::broker::{Broker, BrokerError};
use crate::config::{Rule, Source};
use crate::ingest::{Upstream, Upstreams};
use crate::log::Subscription;

/// How long a warm topic is not asked for again when the broker says no, and when it was away after all.
const REFUSED_RETRY: Duration = Duration::from_secs(30);
const AWAY_RETRY: Duration = Duration::from_millis(200);

/// The same where it may be that a stream or a bucket is still to be made.
const MISSING_RETRY: Duration = Duration::from_secs(5);

impl Gateway {
    /// Keeps the topics of these rules warm that say so, and no others.
    pub(super) fn keep_warm(&self, rules: &[Rule]) {
        let mut warm = self.warm.lock();
        warm.retain(|filter, cooled| {
            let stays = rules.iter().any(|rule| is_warm(rule) && rule.filter == *filter);
            if !stays {
                cooled.cancel();
                self.registry.cool(filter);
            }
            stays
        });
        for rule in rules.iter().filter(|rule| is_warm(rule)) {
            if !warm.contains_key(&rule.filter) {
                let cooled = CancellationToken::new();
                warm.insert(rule.filter.clone(), cooled.clone());
                let (registry, filter) = (self.registry.clone(), rule.filter.clone());
                let (bounds, fields) = log_settings(rule, &self.metrics);
                let keep = move || (registry.warm(&filter, &bounds, &fields), registry.ended(&filter));
                // The first time here, so that it is there before the first reader.
                let first = keep();
                let (broker, upstream) = (self.broker.clone(), self.upstream.clone());
                tokio::spawn(subscribed(broker, rule.source.clone(), first, keep, upstream, cooled));
            }
        }
    }
}

/// Subscribes, for as long as it takes, and anew with `keep` whenever the broker has ended it, until `cooled`. `keep`
/// returns the duty to subscribe, if it is ours, and the end of the subscription.
async fn subscribed<E: Future<Output = ()>>(
    broker: Broker,
    source: Source,
    first: (Option<Subscription>, E),
    keep: impl Fn() -> (Option<Subscription>, E),
    mut upstream: watch::Receiver<Upstreams>,
    cooled: CancellationToken,
) -> Option<()> {
    let pause = async |time| cooled.run_until_cancelled(tokio::time::sleep(time)).await;
    let (mut subscription, mut ended) = first;
    loop {
        if let Some(subscription) = subscription {
            let filter = subscription.filter().clone();
            loop {
                // All but plain publish/subscribe has connections of its own, which are made by this.
                let up = |state: &Upstreams| source != Source::Pubsub || state.pubsub == Upstream::Up;
                let up = upstream.wait_for(up);
                cooled.run_until_cancelled(up).await?.ok()?; // or the process is ending
                // Not broken off in between: nobody would know of the subscription.
                match follow(&broker, &source, filter.clone()).await {
                    Ok(()) => break subscription.confirm(),
                    // It went away again; its next `Up` may be some way off, and is not to be waited for in a loop.
                    Err(BrokerError::Away(_)) => pause(AWAY_RETRY).await?,
                    Err(BrokerError::Refused(why)) => {
                        tracing::error!(
                            topic = filter.as_str(),
                            why,
                            "the broker refuses what a rule reads from the start"
                        );
                        pause(if source.is_stored() { MISSING_RETRY } else { REFUSED_RETRY }).await?;
                    }
                }
            }
        }
        cooled.run_until_cancelled(ended).await?;
        // A history that has ended may be there anew; a right that was withdrawn is hardly back at once.
        pause(if source.is_stored() { AWAY_RETRY } else { REFUSED_RETRY }).await?;
        (subscription, ended) = keep();
    }
}
