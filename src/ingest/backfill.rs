//! Recall: what readers need of the broker's histories. Fetches parts that logs no longer hold, and finds the places where
//! streams begin.
//!
//! A few at a time, addresses in turn and each at its pace (`paced.rs`): a thousand readers that come back at once wait for
//! their turn here, and what is published meanwhile goes its own way past them.

use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::{mpsc, oneshot};

use super::encoder::Encoder;
use super::paced::{self, Look};
use crate::broker::{Broker, BrokerError, Fetched};
use crate::log::message::FieldMapping;
use crate::log::{BACKFILL_CAPACITY, BackfillRequest, Registry};
use crate::metrics::throttle::Throttle;
use crate::protocol::event_id::Sequence;
use crate::protocol::seek::{Seek, SeekResult};
use crate::protocol::source::Source;
use crate::protocol::topic::Filter;
use crate::reader::quota::{self, Clients};

/// Fetches at once, and places that are looked for at once.
const AT_ONCE: usize = 8;

/// How long one that failed waits before its readers may ask again.
const PAUSE: Duration = Duration::from_millis(500);

/// Places that wait to be looked for: a few streams of as many topics as they may have. Who finds no room is told to come back.
const LOOKUPS: usize = 1024;

/// See the module.
#[derive(Debug)]
pub struct Backfill {
    /// Where what was fetched goes.
    pub registry: Arc<Registry>,
    /// Whom to ask.
    pub broker: Broker,
    /// Makes entries of messages.
    pub encoder: Encoder,
    /// Who may ask for how much.
    pub clients: Arc<Clients>,
}

/// The way to have a place looked for. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Lookups(mpsc::Sender<Lookup>);

/// A place that is looked for.
#[derive(Debug)]
pub struct Lookup {
    address: IpAddr,
    filter: Filter,
    source: Source,
    place: Seek,
    done: oneshot::Sender<Result<SeekResult, BrokerError>>,
}

impl Lookups {
    /// The way, and where what goes by it comes out: for [`Backfill::run`].
    pub fn new() -> (Self, mpsc::Receiver<Lookup>) {
        let (sender, receiver) = mpsc::channel(LOOKUPS);
        (Lookups(sender), receiver)
    }

    /// Finds a place in what the broker keeps, for a client at `address`.
    ///
    /// # Errors
    /// As [`Broker::locate`]; [`BrokerError::Away`] too if there was no place in line.
    pub async fn find(
        &self,
        address: IpAddr,
        filter: Filter,
        source: Source,
        place: Seek,
    ) -> Result<SeekResult, BrokerError> {
        let no_place = || BrokerError::Away("too many places in its histories are looked for at once".into());
        let (done, found) = oneshot::channel();
        let lookup = Lookup { address, filter, source, place, done };
        self.0.send(lookup).await.map_err(|_| no_place())?;
        found.await.map_err(|_| no_place())?
    }
}

impl Look for Lookup {
    const KIND: quota::Look = quota::Look::Locate;

    fn address(&self) -> IpAddr {
        self.address
    }

    fn is_wanted(&self) -> bool {
        !self.done.is_closed()
    }
}

impl Look for BackfillRequest {
    const KIND: quota::Look = quota::Look::Fetch;

    fn address(&self) -> IpAddr {
        self.address
    }

    fn is_wanted(&self) -> bool {
        self.is_awaited()
    }

    fn begin(&self) -> bool {
        BackfillRequest::begin(self)
    }
}

impl Backfill {
    /// Runs for as long as somebody can ask.
    pub async fn run(self, asks: mpsc::Receiver<BackfillRequest>, lookups: mpsc::Receiver<Lookup>) {
        let recall = Arc::new(self);
        let shared = || (recall.clients.clone(), recall.encoder.metrics.clone());
        let failures = Arc::new(Throttle::default());
        let fetch = |ask| fetch(recall.clone(), failures.clone(), ask);
        let find = |lookup| find(recall.broker.clone(), lookup);
        tokio::join!(
            paced::serve(asks, BACKFILL_CAPACITY, AT_ONCE, shared(), fetch),
            paced::serve(lookups, LOOKUPS, AT_ONCE, shared(), find),
        );
    }

    async fn answer(&self, ask: &BackfillRequest) -> Result<usize, BrokerError> {
        let Some((sequence, fields)) = ask.reading() else {
            return Err(BrokerError::Away("its subscription has ended".into()));
        };
        let fetched =
            self.broker.fetch(ask.filter().clone(), fields.source.clone(), ask.after, ask.until).await?;
        let bytes = fetched.messages.iter().map(|message| message.payload.len()).sum();
        self.hand_over(ask, &sequence, &fields, fetched);
        Ok(bytes)
    }

    fn hand_over(&self, ask: &BackfillRequest, sequence: &Sequence, fields: &FieldMapping, fetched: Fetched) {
        let entries = fetched.messages.iter().filter_map(|message| {
            let stored = message.stored?;
            let place = (sequence, stored.number);
            Some((stored.number, stored.time, self.encoder.encode_any(message, place, stored.time, fields)))
        });
        self.registry.recall(ask, fetched.through, fetched.gone, fetched.torn, entries);
    }
}

/// Fetches a part. Returns the bytes of its messages.
async fn fetch(recall: Arc<Backfill>, failures: Arc<Throttle>, ask: BackfillRequest) -> usize {
    // A panic is a fault of ours; its readers ask again, and are not left waiting.
    let answer = AssertUnwindSafe(recall.answer(&ask)).catch_unwind().await;
    let outcome = answer.unwrap_or_else(|_| Err(BrokerError::Away("the fetch has panicked".into())));
    recall.encoder.metrics.recalled(outcome.as_ref().ok().copied());
    outcome.unwrap_or_else(|error| {
        if failures.allows() {
            tracing::warn!(topics = ask.filter().as_str(), %error, "what a reader missed cannot be fetched now");
        }
        // Beside the turns: who waits here keeps nobody from theirs.
        tokio::spawn(async move {
            tokio::time::sleep(PAUSE).await;
            ask.give_up();
        });
        0
    })
}

/// Finds a place.
async fn find(broker: Broker, lookup: Lookup) -> usize {
    let Lookup { filter, source, place, done, .. } = lookup;
    let _ = done.send(broker.locate(filter, source, place).await);
    0
}
