//! Backfill: reads stored messages from the broker for readers. It fetches ranges that the logs no longer hold, and
//! finds the positions where streams begin.
//!
//! It does a few at a time; client addresses take turns, each at its pace (`paced.rs`). A thousand readers that
//! reconnect at once wait here, and do not delay new messages.

use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::{mpsc, oneshot};
use tokio::task::yield_now;

use super::encoder::Encoder;
use super::paced::{self, PacedRequest};
use crate::broker::{Broker, BrokerError, Fetched, Message, Stored};
use crate::log::message::FieldMapping;
use crate::log::{BACKFILL_CAPACITY, BackfillRequest, RangeExtent, Registry, StoredPosition};
use crate::metrics::throttle::Throttle;
use crate::protocol::event_id::{Position, Sequence};
use crate::protocol::seek::{Seek, SeekResult};
use crate::protocol::source::Source;
use crate::protocol::topic::Filter;
use crate::reader::quota::{self, Clients};

/// The most concurrent fetches, and the most concurrent seeks.
const AT_ONCE: usize = 8;

/// How long a failed fetch waits before its readers may request it again.
const PAUSE: Duration = Duration::from_millis(500);

/// The most seeks that wait: enough for a few streams with the most topics. If the queue is full, the client is refused
/// for now.
const LOOKUPS: usize = 1024;

/// The task that fetches and seeks.
#[derive(Debug)]
pub struct Backfill {
    /// Where fetched messages go.
    pub registry: Arc<Registry>,
    /// The broker to read from.
    pub broker: Broker,
    /// Encodes messages as entries.
    pub encoder: Encoder,
    /// The pace of each client address.
    pub clients: Arc<Clients>,
}

/// The queue of seeks. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Lookups(mpsc::Sender<Lookup>);

/// A seek that waits for its turn.
#[derive(Debug)]
pub struct Lookup {
    address: IpAddr,
    filter: Filter,
    source: Source,
    what: What,
}

/// The kind of a lookup, with the receiver of its result.
#[derive(Debug)]
enum What {
    /// A position.
    Place(Seek, oneshot::Sender<Result<SeekResult, BrokerError>>),
    /// The last message of a topic.
    Last(oneshot::Sender<Result<Option<Message>, BrokerError>>),
}

impl Lookups {
    /// Creates the queue, and its receiver for [`Backfill::run`].
    pub fn new() -> (Self, mpsc::Receiver<Lookup>) {
        let (sender, receiver) = mpsc::channel(LOOKUPS);
        (Lookups(sender), receiver)
    }

    /// Finds a position among the broker's stored messages, for a client at `address`.
    ///
    /// # Errors
    /// As [`Broker::locate`], and [`BrokerError::Away`] if the queue is full.
    pub async fn find(
        &self,
        address: IpAddr,
        filter: Filter,
        source: Source,
        seek: Seek,
    ) -> Result<SeekResult, BrokerError> {
        let (done, found) = oneshot::channel();
        let lookup = Lookup { address, filter, source, what: What::Place(seek, done) };
        self.0.send(lookup).await.map_err(|_| too_many())?;
        found.await.map_err(|_| too_many())?
    }

    /// The last message of the topic `filter` that the broker stores, for a client at `address`.
    ///
    /// # Errors
    /// As [`Broker::last`], and [`BrokerError::Away`] if the queue is full.
    pub async fn last(
        &self,
        address: IpAddr,
        filter: Filter,
        source: Source,
    ) -> Result<Option<Message>, BrokerError> {
        let (done, found) = oneshot::channel();
        let lookup = Lookup { address, filter, source, what: What::Last(done) };
        self.0.send(lookup).await.map_err(|_| too_many())?;
        found.await.map_err(|_| too_many())?
    }
}

fn too_many() -> BrokerError {
    BrokerError::Away("too many readers look up stored positions at once".into())
}

impl PacedRequest for Lookup {
    const KIND: quota::StoredRead = quota::StoredRead::Locate;

    fn address(&self) -> IpAddr {
        self.address
    }

    fn is_wanted(&self) -> bool {
        match &self.what {
            What::Place(_, done) => !done.is_closed(),
            What::Last(done) => !done.is_closed(),
        }
    }
}

impl PacedRequest for BackfillRequest {
    const KIND: quota::StoredRead = quota::StoredRead::Fetch;

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
    /// Runs until all senders of requests are gone.
    pub async fn run(self, requests: mpsc::Receiver<BackfillRequest>, lookups: mpsc::Receiver<Lookup>) {
        let backfill = Arc::new(self);
        let (clients, metrics) = (&backfill.clients, &backfill.encoder.metrics);
        let failures = Arc::new(Throttle::default());
        let fetch = |request| fetch(backfill.clone(), failures.clone(), request);
        let find = |lookup| find(backfill.broker.clone(), lookup);
        tokio::join!(
            paced::serve(requests, BACKFILL_CAPACITY, AT_ONCE, clients.clone(), metrics.clone(), fetch),
            paced::serve(lookups, LOOKUPS, AT_ONCE, clients.clone(), metrics.clone(), find),
        );
    }

    async fn answer(&self, request: &BackfillRequest) -> Result<usize, BrokerError> {
        let Some((sequence, fields)) = request.reading() else {
            return Err(BrokerError::Away("its subscription has ended".into()));
        };
        let fetched = self
            .broker
            .fetch(request.filter().clone(), fields.source.clone(), request.after, request.until)
            .await?;
        let bytes = fetched.messages.iter().map(|message| message.payload.len()).sum();
        request.read_ahead(fetched.through);
        // The request leaves before this range is encoded, which takes a millisecond.
        yield_now().await;
        self.hand_over(request, &sequence, &fields, fetched);
        Ok(bytes)
    }

    fn hand_over(
        &self,
        request: &BackfillRequest,
        sequence: &Sequence,
        fields: &FieldMapping,
        fetched: Fetched,
    ) {
        let entries = fetched.messages.iter().filter_map(|message| {
            let Stored { number, time, .. } = message.stored?;
            let place = match fields.source {
                Source::Kv { .. } => Position::among_values(number, request.until),
                _ => number.into(),
            };
            let position = StoredPosition { number, time };
            Some((position, self.encoder.encode_any(message, sequence, place, time, fields)))
        });
        let Fetched { through, gone, is_hole, torn, .. } = fetched;
        self.registry.answer_backfill(request, RangeExtent { through, gone, is_hole, torn }, entries);
    }
}

/// Fetches a range. Returns the bytes of its messages.
async fn fetch(backfill: Arc<Backfill>, failures: Arc<Throttle>, request: BackfillRequest) -> usize {
    // A panic is our bug; the readers request the range again instead of waiting for ever.
    let answer = AssertUnwindSafe(backfill.answer(&request)).catch_unwind().await;
    let outcome = answer.unwrap_or_else(|_| Err(BrokerError::Away("the fetch has panicked".into())));
    backfill.encoder.metrics.recalled(outcome.as_ref().ok().copied());
    outcome.unwrap_or_else(|error| {
        if failures.allows() {
            tracing::warn!(topics = request.filter().as_str(), %error, "cannot fetch messages that a reader missed; it is \
            tried again");
        }
        // Outside of the turns, so that this pause delays nobody else.
        tokio::spawn(async move {
            tokio::time::sleep(PAUSE).await;
            request.give_up();
        });
        0
    })
}

/// Runs one lookup.
async fn find(broker: Broker, lookup: Lookup) -> usize {
    let Lookup { filter, source, what, .. } = lookup;
    match what {
        What::Place(seek, done) => drop(done.send(broker.locate(filter, source, seek).await)),
        What::Last(done) => drop(done.send(broker.last(filter, source).await)),
    }
    0
}
