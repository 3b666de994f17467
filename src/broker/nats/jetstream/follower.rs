//! Follows one filter: a consumer, whose messages go to the event channel in the order of their numbers.
//!
//! It uses a pull consumer, so that messages stay on the server while the event channel is full. Anything that breaks
//! the sequence (a missing delivery number, missing heartbeats, a lost connection, a deleted consumer) ends the
//! consumer, and a new one begins after the last number.
//!
//! Wherever the stream may have dropped messages of the filter between two numbers, it sends [`Event::Gone`];
//! `reading.rs` decides where that is.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until};

use super::consumer::{Consumer, From, bytes_at_once};
use super::found::{Found, Publishing};
use super::info::Info;
use super::link::{Api, State};
use super::pull::{Delivered, Pull};
use super::raw_message::{Meaning, RawMessage};
use super::reading::{Extent, LastRead, ReadPosition};
use super::request::{message, next_of};
use super::stream::{self, Holes};
use crate::broker::backoff::Backoff;
use crate::broker::{BrokerError, Event};
use crate::protocol::seq::Seq;
use crate::protocol::source::Source;
use crate::protocol::topic::Filter;

/// Messages to request at once; more are requested when half of them have arrived.
const BATCH: usize = 500;

/// The approximate bytes to request at once.
const BATCH_BYTES: usize = 4 * 1024 * 1024;

/// How long a follower retries before it reports a refusal. For a moment, the server's state of an old consumer can
/// prevent a new one.
const GRACE: Duration = Duration::from_secs(5);

/// How often the follower asks whether it has read the whole stream.
const CHECK: Duration = Duration::from_secs(3);

/// The state of a follower.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stage {
    /// Not yet confirmed.
    Beginning,
    /// It follows a stream; publishers need this information about it.
    Following(Box<Publishing>),
    /// It has ended: only the event that reports the end is still to be sent.
    Over,
}

/// The follower of one filter.
pub(super) struct Follower {
    pub(super) filter: Filter,
    pub(super) source: Source,
    /// The name of this process on the server.
    pub(super) client: String,
    pub(super) state: watch::Receiver<State>,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) stage: watch::Sender<Stage>,
}

impl Follower {
    /// Follows until the stream is deleted or replaced, or the event channel closes.
    pub(super) async fn run(self, done: oneshot::Sender<Result<(), BrokerError>>) {
        let (reading, publishing, feed) = match self.begin().await {
            Ok(begun) => begun,
            Err(error) => {
                self.stage.send_replace(Stage::Over);
                let _ = done.send(Err(error));
                return;
            }
        };
        let begun = Event::Begun {
            filter: self.filter.clone(),
            tag: reading.tag.clone(),
            head: reading.last_emitted,
            time: reading.time,
        };
        if self.events.send(begun).await.is_ok() {
            self.stage.send_replace(Stage::Following(Box::new(publishing)));
            let _ = done.send(Ok(()));
            // `None`: the event channel has closed.
            let _ = self.follow(reading, feed).await;
        }
    }

    async fn begin(&self) -> Result<(ReadPosition, Publishing, Pull), BrokerError> {
        let api = Api::now(&self.state)?;
        let found = Found::of(&api, &self.source, self.filter.as_str(), None).await?;
        found.readable()?;
        let publishing = found.publishing(&self.source);
        let mut reading = ReadPosition::of(found, &self.source);
        let pull = self.pull(api, &mut reading).await?;
        if let Extent::Beyond(setting) = reading.extent {
            tracing::warn!(
                topics = self.filter.as_str(),
                stream = reading.stream,
                setting,
                "the stream drops messages soon after they arrive, and also has other topics: the gateway reads all \
                 of it to detect losses; raise the limit, or let the rule cover the whole stream"
            );
        }
        Ok((reading, publishing, pull))
    }

    /// Creates a consumer that begins after the last number.
    async fn pull(&self, api: Api, reading: &mut ReadPosition) -> Result<Pull, BrokerError> {
        let from = From::Number(reading.last_emitted.next());
        let consumer = Consumer::create(&api, &reading.stream, &self.client, reading.wanted(), from).await?;
        (reading.behind, reading.caught_up, reading.pending) =
            (consumer.waiting() > 0, None, consumer.waiting());
        let pull = Pull::begin(consumer, BATCH, bytes_at_once(&api, BATCH_BYTES)).await;
        pull.map_err(|_| BrokerError::Away("the connection was lost".into()))
    }

    async fn follow(mut self, mut reading: ReadPosition, mut feed: Pull) -> Option<()> {
        let mut backoff = Backoff::new();
        loop {
            let start = Instant::now();
            let mut delivered = 0;
            let why = self.read(&mut reading, &mut feed, &mut delivered).await?;
            tracing::debug!(filter = %self.filter, stream = reading.stream, why, "continuing with a new consumer");
            drop(feed);
            self.send(Event::Interrupted { filters: vec![self.filter.clone()] }).await?;
            let broken = Instant::now();
            backoff.ended(start);
            feed = loop {
                let api = Api::next(&mut self.state).await?;
                match self.again(api, &mut reading).await {
                    Ok(Again::Feed(feed, gone)) => {
                        if let Some(Dropped { through, why }) = gone {
                            self.gone(&mut reading, through, why).await?;
                        }
                        break *feed;
                    }
                    Ok(Again::Ended(why)) => {
                        self.stage.send_replace(Stage::Over);
                        return self.send(Event::Ended { filter: self.filter.clone(), why }).await;
                    }
                    Err(BrokerError::Refused(why)) if broken.elapsed() > GRACE => {
                        self.stage.send_replace(Stage::Over);
                        return self.send(Event::Refused { filter: self.filter.clone(), why }).await;
                    }
                    Err(error) => tracing::debug!(filter = %self.filter, %error, "no new consumer yet"),
                }
                sleep(backoff.pause()).await;
            };
            self.send(Event::Resumed { filters: vec![self.filter.clone()] }).await?;
        }
    }

    /// Creates a new consumer after the last number, if the stream is still the same.
    async fn again(&self, api: Api, reading: &mut ReadPosition) -> Result<Again, BrokerError> {
        let Some(info) = stream::info(&api, &reading.stream).await? else {
            return Ok(Again::Ended(format!("the stream {:?} was deleted", reading.stream)));
        };
        if info.tag() != reading.tag {
            return Ok(Again::Ended(format!(
                "the stream {:?} was deleted and created again",
                reading.stream
            )));
        }
        if info.state.last_seq < reading.verified_through || self.is_rewritten(&api, reading).await? {
            return Ok(Again::Ended(format!(
                "the stream {:?} has lost messages that were already read",
                reading.stream
            )));
        }
        let gone = self.emptied(&info, reading.verified_through);
        self.take_in(info, reading)?;
        let pull = self.pull(api, reading).await?;
        reading.behind = true; // messages that arrived meanwhile had to wait, and may be gone
        Ok(Again::Feed(Box::new(pull), gone))
    }

    /// Updates what depends on the configuration of the stream.
    fn take_in(&self, info: Info, reading: &mut ReadPosition) -> Result<(), BrokerError> {
        let info = Arc::new(info);
        let found = Found { info, names: reading.names.clone(), subject: reading.subject.clone() };
        found.readable()?;
        let publishing = Stage::Following(Box::new(found.publishing(&self.source)));
        self.stage.send_if_modified(|stage| {
            let is_new = *stage != publishing;
            *stage = publishing;
            is_new
        });
        reading.extent = Extent::of(&found, &self.source);
        Ok(())
    }

    /// Whether the message that was read last is another one now: a server that was killed can lose confirmed messages
    /// and give their numbers again.
    async fn is_rewritten(&self, api: &Api, reading: &ReadPosition) -> Result<bool, BrokerError> {
        let Some(LastRead { number, time }) = reading.read else { return Ok(false) };
        let now = message(api, &reading.stream, &json!({ "seq": number })).await?;
        Ok(now.is_some_and(|now| now.time != time))
    }

    /// The messages that a stream has dropped after `verified_through` and before its first message. For a bucket, only
    /// if it was emptied completely; otherwise it only dropped old values.
    fn emptied(&self, info: &Info, verified_through: Seq) -> Option<Dropped> {
        let state = &info.state;
        let is_kv = matches!(self.source, Source::Kv { .. });
        let through = state.first_seq.previous().min(state.last_seq);
        (through > verified_through && (!is_kv || state.messages == 0))
            .then(|| Dropped { through, why: "the stream dropped them before they were read".to_owned() })
    }

    /// Reads until something breaks the sequence, and returns what. `delivered` is the number of messages that this
    /// consumer has delivered.
    async fn read(&self, reading: &mut ReadPosition, feed: &mut Pull, delivered: &mut u64) -> Option<String> {
        let mut check = Instant::now() + CHECK;
        loop {
            let outcome = tokio::select! {
                chunk = feed.next(BATCH) => match chunk {
                    Ok(chunk) => self.take(reading, feed, delivered, chunk).await?,
                    Err(why) => Err(why),
                },
                () = sleep_until(check) => {
                    let checked = self.check(reading, feed, *delivered).await?;
                    check = Instant::now() + CHECK;
                    checked
                }
                () = self.events.closed() => return None,
            };
            if let Err(why) = outcome {
                return Some(why);
            }
        }
    }

    /// Passes on the messages that have arrived.
    async fn take(
        &self,
        reading: &mut ReadPosition,
        feed: &Pull,
        delivered: &mut u64,
        chunk: Vec<Delivered>,
    ) -> Option<Result<(), String>> {
        let mut holes = None;
        for message in chunk {
            let info = message.info;
            if info.delivery != *delivered + 1 {
                return Some(Err(format!("delivery {} did not arrive", *delivered + 1)));
            }
            *delivered = info.delivery;
            reading.before(info.pending, message.may_have_waited);
            let held = RawMessage::from(message);
            let number = held.number;
            if number <= reading.last_emitted {
                continue; // a lagging replica has delivered more than requested
            }
            if reading.is_suspicious(number) {
                let known = match &holes {
                    Some(known) => known,
                    None => match self.holes(&feed.consumer.api, reading).await {
                        Ok(found) => holes.insert(found),
                        Err(why) => return Some(Err(why)), // the caller tries again
                    },
                };
                if known.between(reading.verified_through, number).is_some() {
                    let why = "the stream dropped them before they were read".to_owned();
                    self.gone(reading, number.previous(), why).await?;
                }
            }
            reading.last_emitted = number;
            reading.verified_through = reading.verified_through.max(number);
            reading.read = Some(LastRead { number, time: held.time });
            let event = match held.read(&self.filter, &reading.names, &self.source) {
                Meaning::Message(message) => Some(Event::Message(message)),
                Meaning::Unnameable => Some(Event::Unnameable { filter: self.filter.clone() }),
                Meaning::Other => None,
            };
            if let Some(event) = event {
                self.send(event).await?;
            }
            reading.after(info.pending, *delivered);
        }
        Some(Ok(()))
    }

    /// Asks whether the whole stream has been read. A stream that was emptied does not report it, and after a long
    /// silence, a new consumer could not tell a loss from messages of other topics.
    async fn check(
        &self,
        reading: &mut ReadPosition,
        feed: &mut Pull,
        delivered: u64,
    ) -> Option<Result<(), String>> {
        match self.checked(reading, feed, delivered).await {
            Ok(Some(gone)) => {
                let why = "the stream was emptied before they were read".to_owned();
                self.gone(reading, gone, why).await?;
                reading.behind = false;
                feed.caught_up();
                Some(Ok(()))
            }
            Ok(None) => Some(Ok(())),
            Err(why) => Some(Err(why)),
        }
    }

    /// The number up to which messages are gone, if any are.
    async fn checked(
        &self,
        reading: &mut ReadPosition,
        feed: &mut Pull,
        delivered: u64,
    ) -> Result<Option<Seq>, String> {
        if feed.may_have_missed() {
            reading.fall_behind();
        }
        // First the size of the stream, then the progress, so that the progress is not ahead.
        let api = &feed.consumer.api;
        let info = match stream::info(api, &reading.stream).await {
            Ok(Some(info)) => info,
            Ok(None) => return Err("the stream was deleted".into()),
            Err(error) => return Err(error.to_string()),
        };
        let (head, before) = (info.state.last_seq, reading.extent);
        self.take_in(info, reading).map_err(|error| error.to_string())?;
        if reading.extent != before {
            return Err("the configuration of the stream has changed".into());
        }
        let state = feed.consumer.state().await.map_err(|error| error.to_string())?;
        if state.num_pending > 0 {
            return Ok(None);
        }
        if state.delivered.consumer_seq > delivered {
            reading.caught_up = Some(state.delivered.consumer_seq); // once the pending deliveries have arrived
            return Ok(None);
        }
        if reading.is_suspicious(head.next()) {
            let subject = reading.wanted().unwrap_or(">");
            let next = next_of(api, &reading.stream, subject, reading.verified_through.next()).await;
            if next.map_err(|error| error.to_string())?.is_some_and(|next| next.number <= head) {
                return Ok(None); // the consumer's server does not have the message yet
            }
            let holes = self.holes(api, reading).await?;
            if holes.between(reading.verified_through, head.next()).is_some() {
                return Ok(Some(head));
            }
        }
        reading.verified_through = reading.verified_through.max(head);
        reading.behind = false;
        feed.caught_up();
        Ok(None)
    }

    async fn holes(&self, api: &Api, reading: &ReadPosition) -> Result<Holes, String> {
        match Holes::of(api, &reading.stream).await {
            Ok(Some((holes, _))) => Ok(holes),
            Ok(None) => Err("the stream was deleted".into()),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn gone(&self, reading: &mut ReadPosition, through: Seq, why: String) -> Option<()> {
        (reading.last_emitted, reading.verified_through) = (through, through);
        self.send(Event::Gone { filter: self.filter.clone(), through, why }).await
    }

    async fn send(&self, event: Event) -> Option<()> {
        self.events.send(event).await.ok()
    }
}

/// Messages that the stream dropped before they were read.
struct Dropped {
    /// Up to this number.
    through: Seq,
    /// The reason, for the log.
    why: String,
}

/// The result of replacing a consumer.
enum Again {
    /// Reading continues, after messages that were dropped, if any were.
    Feed(Box<Pull>, Option<Dropped>),
    /// The source has ended; the reason.
    Ended(String),
}
