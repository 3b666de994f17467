//! Recall: fetches from the broker what logs no longer hold and readers ask for.
//!
//! A few at a time, in the order they were asked for: a thousand readers that come back at once wait for their turn here,
//! and what is published meanwhile goes its own way past them.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{Semaphore, mpsc};

use crate::broker::{Broker, BrokerError, Fetched};
use crate::encoder::Encoder;
use crate::log::{Ask, Registry};
use crate::logging::Throttle;
use crate::message::Fields;
use crate::position::Sequence;

/// Fetches at once.
const AT_ONCE: usize = 8;

/// How long one that failed waits before its readers may ask again.
const PAUSE: Duration = Duration::from_millis(500);

/// See the module.
#[derive(Debug)]
pub struct Recall {
    /// Where what was fetched goes.
    pub registry: Arc<Registry>,
    /// Whom to ask.
    pub broker: Broker,
    /// Makes entries of messages.
    pub encoder: Encoder,
}

impl Recall {
    /// Runs for as long as somebody can ask.
    pub async fn run(self, mut asks: mpsc::Receiver<Ask>) {
        let (recall, places) = (Arc::new(self), Arc::new(Semaphore::new(AT_ONCE)));
        let failures = Arc::new(Throttle::default());
        while let Some(ask) = asks.recv().await {
            // Never closed, so there is always a permit to be had in the end.
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let (recall, failures) = (recall.clone(), failures.clone());
            tokio::spawn(async move {
                if ask.is_served() {
                    return ask.give_up();
                }
                // A panic is a fault of ours; its readers ask again, and are not left waiting.
                let answer = AssertUnwindSafe(recall.answer(&ask)).catch_unwind().await;
                let outcome =
                    answer.unwrap_or_else(|_| Err(BrokerError::Away("the fetch has panicked".into())));
                recall.encoder.metrics.recalled(outcome.is_ok());
                drop(place);
                if let Err(error) = outcome {
                    if failures.allows() {
                        tracing::warn!(topics = ask.filter().as_str(), %error, "what a reader missed cannot be fetched now");
                    }
                    tokio::time::sleep(PAUSE).await;
                    ask.give_up();
                }
            });
        }
    }

    async fn answer(&self, ask: &Ask) -> Result<(), BrokerError> {
        let Some((sequence, fields)) = ask.reading() else {
            return Err(BrokerError::Away("its subscription has ended".into()));
        };
        let fetched =
            self.broker.fetch(ask.filter().clone(), fields.source.clone(), ask.after, ask.until).await?;
        self.hand_over(ask, &sequence, &fields, fetched);
        Ok(())
    }

    fn hand_over(&self, ask: &Ask, sequence: &Sequence, fields: &Fields, fetched: Fetched) {
        let entries = fetched.messages.iter().filter_map(|message| {
            let stored = message.stored?;
            let place = (sequence, stored.number);
            Some((stored.number, stored.time, self.encoder.encode_any(message, place, stored.time, fields)))
        });
        self.registry.recall(ask, fetched.through, fetched.gone, fetched.torn, entries);
    }
}
