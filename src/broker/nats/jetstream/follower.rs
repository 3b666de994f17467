//! One filter that is followed: one consumer, whose messages go to the event channel in the order of their numbers.
//!
//! It pulls rather than being pushed to, so that what nobody takes stays on the server: while the event channel is full
//! nothing more is asked for. Whatever breaks the row (a consumer number that is missing, heartbeats that stay away, a lost
//! connection, a deleted consumer) ends the consumer, and a new one begins behind the last number.
//!
//! Each place between two numbers where the stream may have dropped messages of the filter is told as [`Event::Gone`];
//! `reading.rs` says where that is.

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
use super::reading::{Extent, ReadPosition};
use super::request::{message, next_of};
use super::stream::{Holes, look};
use crate::broker::nats::pause;
use crate::broker::{BrokerError, Event};
use crate::protocol::source::Source;
use crate::protocol::topic::Filter;

/// Messages that are asked for at once; the next are when half of them have come.
const BATCH: usize = 500;

/// Bytes that are asked for at once, nearly.
const BATCH_BYTES: usize = 4 * 1024 * 1024;

/// How long a follower that cannot read on asks again before the refusal is told. What the server had of a consumer before
/// can be in the way of a new one for a moment.
const GRACE: Duration = Duration::from_secs(5);

/// How often the stream is asked whether all of it has been read.
const CHECK: Duration = Duration::from_secs(3);

/// How far a follower has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stage {
    /// Not yet confirmed.
    Beginning,
    /// It follows a stream, of which whoever publishes to it has to know this.
    Following(Publishing),
    /// It is over: nothing more of it comes but the event that says so.
    Over,
}

/// What follows one filter.
pub(super) struct Follower {
    pub(super) filter: Filter,
    pub(super) source: Source,
    /// Names this process on the server.
    pub(super) client: String,
    pub(super) state: watch::Receiver<State>,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) stage: watch::Sender<Stage>,
}

impl Follower {
    /// Follows until the history ends, or nobody listens.
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
            head: reading.told,
            time: reading.time,
        };
        if self.events.send(begun).await.is_ok() {
            self.stage.send_replace(Stage::Following(publishing));
            let _ = done.send(Ok(()));
            // `None` tells that nobody listens any more.
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
                "the stream drops messages soon after they came, and holds others than these topics: the gateway reads all of it \
                 to see what is lost; raise the limit, or let the rule cover the stream"
            );
        }
        Ok((reading, publishing, pull))
    }

    /// A consumer of what comes after the last number.
    async fn pull(&self, api: Api, reading: &mut ReadPosition) -> Result<Pull, BrokerError> {
        let from = From::Number(reading.told + 1);
        let consumer = Consumer::create(&api, &reading.stream, &self.client, reading.wanted(), from).await?;
        (reading.behind, reading.caught_up, reading.pending) =
            (consumer.waiting() > 0, None, consumer.waiting());
        let pull = Pull::begin(consumer, BATCH, bytes_at_once(&api, BATCH_BYTES)).await;
        pull.map_err(|_| BrokerError::Away("the connection was lost".into()))
    }

    async fn follow(mut self, mut reading: ReadPosition, mut feed: Pull) -> Option<()> {
        let mut attempts = 0;
        loop {
            let start = Instant::now();
            let mut delivered = 0;
            let why = self.read(&mut reading, &mut feed, &mut delivered).await?;
            tracing::debug!(filter = %self.filter, stream = reading.stream, why, "reading on with a new consumer");
            drop(feed);
            let broken = Instant::now();
            if start.elapsed() > Duration::from_secs(1) {
                attempts = 0;
            }
            feed = loop {
                let api = Api::next(&mut self.state).await?;
                match self.again(api, &mut reading).await {
                    Ok(Again::Feed(feed, gone)) => {
                        if let Some((through, why)) = gone {
                            self.gone(&mut reading, through, why).await?;
                        }
                        break *feed;
                    }
                    Ok(Again::Ended(why)) => {
                        self.stage.send_replace(Stage::Over);
                        return self.tell(Event::Ended { filter: self.filter.clone(), why }).await;
                    }
                    Err(BrokerError::Refused(why)) if broken.elapsed() > GRACE => {
                        self.stage.send_replace(Stage::Over);
                        return self.tell(Event::Refused { filter: self.filter.clone(), why }).await;
                    }
                    Err(error) => tracing::debug!(filter = %self.filter, %error, "no new consumer yet"),
                }
                sleep(pause(attempts)).await;
                attempts += 1;
            };
        }
    }

    /// A new consumer behind the last number, if it is still the same history.
    async fn again(&self, api: Api, reading: &mut ReadPosition) -> Result<Again, BrokerError> {
        let Some(info) = look(&api, &reading.stream).await? else {
            return Ok(Again::Ended(format!("the stream {:?} is no more", reading.stream)));
        };
        if info.tag() != reading.tag {
            return Ok(Again::Ended(format!("the stream {:?} was deleted and made again", reading.stream)));
        }
        if info.state.last_seq < reading.sound || self.is_rewritten(&api, reading).await? {
            return Ok(Again::Ended(format!("the stream {:?} has lost what was read of it", reading.stream)));
        }
        let gone = self.emptied(&info, reading.sound);
        self.take_in(info, reading)?;
        let pull = self.pull(api, reading).await?;
        reading.behind = true; // what came meanwhile waited, and may be gone without anything that waits now
        Ok(Again::Feed(Box::new(pull), gone))
    }

    /// Takes in that the configuration of the stream may have changed.
    fn take_in(&self, info: Info, reading: &mut ReadPosition) -> Result<(), BrokerError> {
        let found = Found { info, names: reading.names.clone(), subject: reading.subject.clone() };
        found.readable()?;
        let publishing = Stage::Following(found.publishing(&self.source));
        self.stage.send_if_modified(|stage| {
            let is_new = *stage != publishing;
            *stage = publishing;
            is_new
        });
        reading.extent = Extent::of(&found, &self.source);
        Ok(())
    }

    /// Whether the message that was read last is another one now: a server that was killed can lose what it had confirmed
    /// and give the same numbers again.
    async fn is_rewritten(&self, api: &Api, reading: &ReadPosition) -> Result<bool, BrokerError> {
        let Some((number, time)) = reading.read else { return Ok(false) };
        let now = message(api, &reading.stream, &json!({ "seq": number })).await?;
        Ok(now.is_some_and(|now| now.time != time))
    }

    /// What a stream has dropped after `sound`, before anything that it holds. Of a bucket: if it was emptied whole. Else
    /// what it dropped are old values.
    fn emptied(&self, info: &Info, sound: u64) -> Option<(u64, String)> {
        let state = &info.state;
        let is_kv = matches!(self.source, Source::Kv { .. });
        let through = state.first_seq.saturating_sub(1).min(state.last_seq);
        (through > sound && (!is_kv || state.messages == 0))
            .then(|| (through, "the stream had dropped them before they were read".to_owned()))
    }

    /// Reads until something breaks the row; tells what. `delivered` is how many messages have come of this consumer.
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

    /// Passes on what has come.
    async fn take(
        &self,
        reading: &mut ReadPosition,
        feed: &Pull,
        delivered: &mut u64,
        chunk: Vec<Delivered>,
    ) -> Option<Result<(), String>> {
        let mut holes = None;
        for message in chunk {
            let place = message.place;
            if place.delivery != *delivered + 1 {
                return Some(Err(format!("delivery {} did not arrive", *delivered + 1)));
            }
            *delivered = place.delivery;
            reading.before(place.pending);
            let held = RawMessage::from(message);
            let number = held.number;
            if number <= reading.told {
                continue; // a replica that lags has given us more than we asked for
            }
            if reading.is_suspicious(number) {
                let known = match &holes {
                    Some(known) => known,
                    None => match self.holes(&feed.consumer.api, reading).await {
                        Ok(asked) => holes.insert(asked),
                        Err(why) => return Some(Err(why)), // and is asked again
                    },
                };
                if known.between(reading.sound, number).is_some() {
                    let why = "the stream dropped them before they were read".to_owned();
                    self.gone(reading, number - 1, why).await?;
                }
            }
            reading.told = number;
            reading.sound = reading.sound.max(number);
            reading.read = Some((number, held.time));
            let event = match held.read(&self.filter, &reading.names, &self.source) {
                Meaning::Message(message) => Some(Event::Message(message)),
                Meaning::Unnameable => Some(Event::Unnameable { filter: self.filter.clone() }),
                Meaning::Other => None,
            };
            if let Some(event) = event {
                self.tell(event).await?;
            }
            reading.after(place.pending, *delivered);
        }
        Some(Ok(()))
    }

    /// Asks whether all that the stream holds has been read: one that was emptied says nothing on its own, and a long silence
    /// in a stream of others would look like a loss once a new consumer is made.
    async fn check(
        &self,
        reading: &mut ReadPosition,
        feed: &Pull,
        delivered: u64,
    ) -> Option<Result<(), String>> {
        match self.checked(reading, feed, delivered).await {
            Ok(Some(gone)) => {
                let why = "the stream was emptied before they were read".to_owned();
                self.gone(reading, gone, why).await?;
                reading.behind = false;
                Some(Ok(()))
            }
            Ok(None) => Some(Ok(())),
            Err(why) => Some(Err(why)),
        }
    }

    /// Up to where messages are gone, if some are.
    async fn checked(
        &self,
        reading: &mut ReadPosition,
        feed: &Pull,
        delivered: u64,
    ) -> Result<Option<u64>, String> {
        // First how much there is, then what was read: not more than that.
        let api = &feed.consumer.api;
        let info = match look(api, &reading.stream).await {
            Ok(Some(info)) => info,
            Ok(None) => return Err("the stream is no more".into()),
            Err(error) => return Err(error.to_string()),
        };
        let (head, before) = (info.state.last_seq, reading.extent);
        self.take_in(info, reading).map_err(|error| error.to_string())?;
        if reading.extent != before {
            return Err("the configuration of the stream has changed".into());
        }
        let state = feed.consumer.look().await.map_err(|error| error.to_string())?;
        if state.num_pending > 0 {
            return Ok(None);
        }
        if state.delivered.consumer_seq > delivered {
            reading.caught_up = Some(state.delivered.consumer_seq); // as soon as what is on its way has come
            return Ok(None);
        }
        if reading.is_suspicious(head + 1) {
            let subject = reading.wanted().unwrap_or(">");
            let next = next_of(api, &reading.stream, subject, reading.sound + 1).await;
            if next.map_err(|error| error.to_string())?.is_some_and(|next| next.number <= head) {
                return Ok(None); // the consumer's server does not have it yet
            }
            let holes = self.holes(api, reading).await?;
            if holes.between(reading.sound, head + 1).is_some() {
                return Ok(Some(head));
            }
        }
        reading.sound = reading.sound.max(head);
        reading.behind = false;
        Ok(None)
    }

    async fn holes(&self, api: &Api, reading: &ReadPosition) -> Result<Holes, String> {
        match Holes::of(api, &reading.stream).await {
            Ok(Some((holes, _))) => Ok(holes),
            Ok(None) => Err("the stream is no more".into()),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn gone(&self, reading: &mut ReadPosition, through: u64, why: String) -> Option<()> {
        (reading.told, reading.sound) = (through, through);
        self.tell(Event::Gone { filter: self.filter.clone(), through, why }).await
    }

    async fn tell(&self, event: Event) -> Option<()> {
        self.events.send(event).await.ok()
    }
}

/// What became of a follower whose consumer has ended.
enum Again {
    /// It reads on, and what was gone meanwhile: up to which number, and why.
    Feed(Box<Pull>, Option<(u64, String)>),
    /// It cannot, and why.
    Ended(String),
}
