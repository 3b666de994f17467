//! One filter that is followed: one consumer, whose messages go to the event channel in the order of their numbers.
//!
//! It pulls rather than being pushed to, so that what nobody takes stays on the server: while the event channel is full
//! nothing more is asked for. Whatever breaks the row (a consumer number that is missing, heartbeats that stay away, a lost
//! connection, a deleted consumer) ends the consumer, and a new one begins behind the last number.
//!
//! A stream can lose messages before they are read: to its limits, to a purge. Each place between two numbers where that
//! may have taken messages of the filter is told as [`Event::Gone`]. Where the filter is all that the stream holds, any
//! number that is missing was one of it. Where the stream holds more, most missing numbers are of others; there the stream
//! is only asked about them if messages of the filter had to wait. What vanishes there in the instant between being stored
//! and being delivered to a consumer that waits for it is not noticed. A KV bucket forgets the old values of a key on
//! purpose: that is no loss, since the new one comes.

use std::time::{Duration, SystemTime};

use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::stream::Info;
use futures_util::StreamExt;
use futures_util::stream::ReadyChunks;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until};

use super::super::pause;
use super::consumer::{Consumer, bytes_at_once};
use super::held::{Held, Meaning};
use super::link::{Api, State};
use super::names::Names;
use super::stream::{Holes, expect, find, is_whole, look, message_time, next_of, tag};
use crate::broker::{BrokerError, Event};
use crate::config::Source;
use crate::position::Tag;
use crate::topic::Filter;

/// Messages that are asked for at once; the next are when half of them have come.
const BATCH: usize = 500;

/// Bytes that are asked for at once, nearly.
const BATCH_BYTES: usize = 4 * 1024 * 1024;

/// How often the server says that there is nothing. After two that stay away the consumer counts as lost.
const HEARTBEAT: Duration = Duration::from_secs(2);

/// How often the stream is asked whether all of it has been read.
const CHECK: Duration = Duration::from_secs(3);

/// How far a follower has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stage {
    /// Not yet confirmed.
    Beginning,
    /// It follows the stream of this name.
    Following(String),
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
        let (reading, feed) = match self.begin().await {
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
            self.stage.send_replace(Stage::Following(reading.stream.clone()));
            let _ = done.send(Ok(()));
            // `None` tells that nobody listens any more.
            let _ = self.follow(reading, feed).await;
        }
    }

    async fn begin(&self) -> Result<(Reading, Feed), BrokerError> {
        let api = Api::now(&self.state)?;
        let names = Names::of(&self.source, self.filter.as_str());
        let subject = names.subject(self.filter.as_str())?;
        let stream = find(&api, &self.source, &subject).await?;
        let info = expect(&api, &stream).await?;
        let mut reading = Reading {
            names,
            stream,
            tag: tag(&info),
            told: info.state.last_sequence,
            sound: info.state.last_sequence,
            time: info.state.last_timestamp.into(),
            read: None,
            behind: false,
            caught_up: None,
            whole: is_whole(&info, &subject),
            subject,
        };
        let feed = self.feed(api, &mut reading).await?;
        Ok((reading, feed))
    }

    /// A consumer of what comes after the last number.
    async fn feed(&self, api: Api, reading: &mut Reading) -> Result<Feed, BrokerError> {
        let from = DeliverPolicy::ByStartSequence { start_sequence: reading.told + 1 };
        let consumer = Consumer::create(&api, &reading.stream, &self.client, &reading.subject, from).await?;
        (reading.behind, reading.caught_up) = (consumer.waiting() > 0, None);
        let messages = consumer
            .pull()
            .stream()
            .max_messages_per_batch(BATCH)
            .max_bytes_per_batch(bytes_at_once(&api, BATCH_BYTES))
            .heartbeat(HEARTBEAT)
            .messages()
            .await
            .map_err(|error| BrokerError::Away(error.to_string()))?;
        Ok(Feed { messages: messages.ready_chunks(BATCH), consumer, api, delivered: 0 })
    }

    async fn follow(mut self, mut reading: Reading, mut feed: Feed) -> Option<()> {
        let mut attempts = 0;
        loop {
            let start = Instant::now();
            let why = self.read(&mut reading, &mut feed).await?;
            tracing::debug!(filter = %self.filter, stream = reading.stream, why, "reading on with a new consumer");
            drop(feed);
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
                    Err(error) => tracing::debug!(filter = %self.filter, %error, "no new consumer yet"),
                }
                sleep(pause(attempts)).await;
                attempts += 1;
            };
        }
    }

    /// A new consumer behind the last number, if it is still the same history.
    async fn again(&self, api: Api, reading: &mut Reading) -> Result<Again, BrokerError> {
        let Some(info) = look(&api, &reading.stream).await? else {
            return Ok(Again::Ended(format!("the stream {:?} is no more", reading.stream)));
        };
        if tag(&info) != reading.tag {
            return Ok(Again::Ended(format!("the stream {:?} was made anew", reading.stream)));
        }
        if info.state.last_sequence < reading.sound || self.is_rewritten(&api, reading).await? {
            return Ok(Again::Ended(format!("the stream {:?} has lost what was read of it", reading.stream)));
        }
        reading.whole = is_whole(&info, &reading.subject);
        let gone = self.emptied(&info, reading.sound);
        let feed = self.feed(api, reading).await?;
        reading.behind = true; // what came meanwhile waited, and may be gone without anything that waits now
        Ok(Again::Feed(Box::new(feed), gone))
    }

    /// Whether the message that was read last is another one now: a server that was killed can lose what it had confirmed
    /// and give the same numbers again.
    async fn is_rewritten(&self, api: &Api, reading: &Reading) -> Result<bool, BrokerError> {
        let Some((number, time)) = reading.read else { return Ok(false) };
        Ok(message_time(api, &reading.stream, number).await?.is_some_and(|now| now != time))
    }

    /// What a stream has dropped after `sound`, before anything that it holds. Of a bucket: if it was emptied whole. Else
    /// what it dropped are old values.
    fn emptied(&self, info: &Info, sound: u64) -> Option<(u64, String)> {
        let state = &info.state;
        let is_kv = matches!(self.source, Source::Kv { .. });
        let through = state.first_sequence.saturating_sub(1).min(state.last_sequence);
        (through > sound && (!is_kv || state.messages == 0))
            .then(|| (through, "the stream had dropped them before they were read".to_owned()))
    }

    /// Reads until something breaks the row; tells what.
    async fn read(&self, reading: &mut Reading, feed: &mut Feed) -> Option<String> {
        let mut check = Instant::now() + CHECK;
        loop {
            let outcome = tokio::select! {
                chunk = feed.messages.next() => match chunk {
                    Some(chunk) => self.take(reading, feed, chunk).await?,
                    None => Err("the connection was lost".to_owned()),
                },
                () = sleep_until(check) => {
                    let checked = self.check(reading, feed).await?;
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
        reading: &mut Reading,
        feed: &mut Feed,
        chunk: Vec<Pulled>,
    ) -> Option<Result<(), String>> {
        // As long as less than half of a batch is here, another is always asked for, and the consumer passes on at once
        // what comes.
        let bytes: usize = chunk.iter().flatten().map(|message| message.length).sum();
        if chunk.len() >= BATCH / 2 || bytes >= BATCH_BYTES / 2 {
            reading.fall_behind();
        }
        let mut holes = None;
        for pulled in chunk {
            let message = match pulled {
                Ok(message) => message,
                Err(error) => return Some(Err(error.to_string())),
            };
            let delivered = message.info().map(|info| info.consumer_sequence);
            let (Ok(delivered), Some(held)) = (delivered, Held::delivered(&message)) else {
                return Some(Err("a message came without its number".into()));
            };
            if delivered != feed.delivered + 1 {
                return Some(Err(format!("delivery {} did not arrive", feed.delivered + 1)));
            }
            feed.delivered = delivered;
            let number = held.number;
            if number <= reading.told {
                continue; // a replica that lags has given us more than we asked for
            }
            if reading.is_suspicious(number, &self.source) {
                let known = match &holes {
                    Some(known) => known,
                    None => match self.holes(&feed.api, reading).await {
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
                if self.events.capacity() == 0 {
                    reading.fall_behind(); // nothing is asked for while this waits
                }
                self.tell(event).await?;
            }
            if reading.caught_up.is_some_and(|place| place <= delivered) {
                (reading.behind, reading.caught_up) = (false, None);
            }
        }
        Some(Ok(()))
    }

    /// Asks whether all that the stream holds has been read: one that was emptied says nothing on its own, and a long silence
    /// in a stream of others would look like a loss once a new consumer is made.
    async fn check(&self, reading: &mut Reading, feed: &Feed) -> Option<Result<(), String>> {
        match self.checked(reading, feed).await {
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
    async fn checked(&self, reading: &mut Reading, feed: &Feed) -> Result<Option<u64>, String> {
        // First how much there is, then what was read: not more than that.
        let head = match look(&feed.api, &reading.stream).await {
            Ok(Some(info)) => info.state.last_sequence,
            Ok(None) => return Err("the stream is no more".into()),
            Err(error) => return Err(error.to_string()),
        };
        let info = feed.consumer.pull().get_info().await.map_err(|error| error.to_string())?;
        if info.num_pending > 0 {
            return Ok(None);
        }
        if info.delivered.consumer_sequence > feed.delivered {
            reading.caught_up = Some(info.delivered.consumer_sequence); // as soon as what is on its way has come
            return Ok(None);
        }
        if reading.is_suspicious(head + 1, &self.source) {
            let next = next_of(&feed.api, &reading.stream, &reading.subject, reading.sound + 1).await;
            if next.map_err(|error| error.to_string())?.is_some_and(|next| next.number <= head) {
                return Ok(None); // the consumer's server does not have it yet
            }
            let holes = self.holes(&feed.api, reading).await?;
            if holes.between(reading.sound, head + 1).is_some() {
                return Ok(Some(head));
            }
        }
        reading.sound = reading.sound.max(head);
        reading.behind = false;
        Ok(None)
    }

    async fn holes(&self, api: &Api, reading: &mut Reading) -> Result<Holes, String> {
        match Holes::of(api, &reading.stream, &reading.subject).await {
            Ok(Some((holes, whole))) => {
                reading.whole = whole;
                Ok(holes)
            }
            Ok(None) => Err("the stream is no more".into()),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn gone(&self, reading: &mut Reading, through: u64, why: String) -> Option<()> {
        (reading.told, reading.sound) = (through, through);
        self.tell(Event::Gone { filter: self.filter.clone(), through, why }).await
    }

    async fn tell(&self, event: Event) -> Option<()> {
        self.events.send(event).await.ok()
    }
}

/// Where a follower is.
struct Reading {
    names: Names,
    subject: String,
    /// The stream that is read, by the name it was found under.
    stream: String,
    tag: Tag,
    /// The highest number that was told.
    told: u64,
    /// When the stream took its last message, as it began.
    time: SystemTime,
    /// Of what the stream held up to here, nothing is missing that was not told. At least `told`.
    sound: u64,
    /// The number of the last message that was read, and when the stream took it.
    read: Option<(u64, SystemTime)>,
    /// Messages of the filter may have waited on the server behind `last`, rather than having come at once.
    behind: bool,
    /// As soon as the consumer has delivered so many, that is over.
    caught_up: Option<u64>,
    /// The filter is all that the stream holds.
    whole: bool,
}

impl Reading {
    fn fall_behind(&mut self) {
        (self.behind, self.caught_up) = (true, None);
    }

    /// Whether messages of the filter may have been lost between the last number and this one.
    fn is_suspicious(&self, number: u64, source: &Source) -> bool {
        number > self.sound + 1 && (self.whole || self.behind) && !matches!(source, Source::Kv { .. })
    }
}

type Pulled = Result<async_nats::jetstream::Message, pull::MessagesError>;

/// A consumer, and what it delivers.
struct Feed {
    messages: ReadyChunks<pull::Stream>,
    consumer: Consumer,
    api: Api,
    /// Messages that it has delivered so far; each has the next number.
    delivered: u64,
}

/// What became of a follower that has to begin anew.
enum Again {
    /// It reads on, and what was gone meanwhile: up to which number, and why.
    Feed(Box<Feed>, Option<(u64, String)>),
    /// It cannot, and why.
    Ended(String),
}
