//! What JetStream keeps: streams, and key-value buckets, which are streams with conventions.
//!
//! One task takes the commands. Each filter that is followed is a task of its own with one consumer (`follower.rs`), each
//! look into the past and each publication one that ends with its answer; all share one connection (`link.rs`), which the
//! first command makes. What breaks with the connection goes on with the next one from the last number, so that here a lost
//! connection loses nothing.
//!
//! Of NATS it needs the API requests `STREAM.INFO`, `STREAM.NAMES` (for a stream that is not named), `STREAM.MSG.GET`,
//! `DIRECT.GET`, and `CONSUMER.CREATE`, `.INFO`, `.DELETE` and `.MSG.NEXT`, each under `$JS.API.`, and answers on
//! `_INBOX.topicgate.>`.

mod client;
mod consumer;
mod follower;
mod held;
mod history;
mod link;
mod names;
mod page;
mod stream;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::context::{PublishAckFuture, PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::Info;
use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use self::follower::{Follower, Stage};
use self::history::Asked;
use self::link::{Api, State};
use self::names::{Names, check_key};
use self::page::{Look, consumers};
use super::Settings;
use super::headers::write_headers;
use crate::broker::{BrokerError, Event, Fetched, Headers, Located, Place, StoredCommand};
use crate::config::Source;
use crate::topic::{Filter, Topic};

/// Time for an answer of JetStream, and for all of a look into the past.
const LIMIT: Duration = Duration::from_secs(5);

/// Looks into the past at once; more wait for their turn.
const LOOKS: usize = 16;

/// Commands that are being answered; beyond it they wait in their channel.
const ANSWERING: usize = 4096;

/// Answers until the command channel closes. Nothing is connected before the first command.
pub(in crate::broker) async fn run(
    settings: Settings,
    mut commands: mpsc::Receiver<StoredCommand>,
    events: mpsc::Sender<Event>,
) {
    let mut next = commands.recv().await;
    if next.is_none() {
        return;
    }
    let (opened, mut state) = watch::channel(State::Opening);
    let mut tasks = JoinSet::new();
    tasks.spawn(link::keep(settings, events.clone(), opened));
    let _ = state.wait_for(|state| !matches!(state, State::Opening)).await;
    let client = format!("{:08x}", fastrand::u32(..));
    let past = Arc::new(Past { client, looks: Semaphore::new(LOOKS), consumers: consumers() });
    let mut jetstream = JetStream { state, events, past, followed: HashMap::new() };
    while let Some(command) = next {
        jetstream.take(command, &mut tasks).await;
        next = loop {
            tokio::select! {
                command = commands.recv(), if tasks.len() < ANSWERING => break command,
                Some(_) = tasks.join_next() => {}
            }
        };
    }
}

struct JetStream {
    state: watch::Receiver<State>,
    events: mpsc::Sender<Event>,
    past: Arc<Past>,
    followed: HashMap<Filter, Followed>,
}

/// What looks into the past share.
struct Past {
    /// Names this process on the server.
    client: String,
    looks: Semaphore,
    consumers: Semaphore,
}

struct Followed {
    stage: watch::Receiver<Stage>,
    task: JoinHandle<()>,
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl JetStream {
    async fn take(&mut self, command: StoredCommand, tasks: &mut JoinSet<()>) {
        match command {
            StoredCommand::Subscribe { filter, source, done } => {
                self.follow(filter, source, done, tasks).await
            }
            StoredCommand::Unsubscribe { filter } => self.end(&filter).await,
            StoredCommand::Publish { topic, source, payload, headers, done } => {
                // Given to the connection here, in the order of the commands; the answer is waited for elsewhere.
                match self.publish(&topic, &source, payload, &headers).await {
                    Ok(sent) => drop(tasks.spawn(async move { drop(done.send(sent.acknowledged().await)) })),
                    Err(error) => drop(done.send(Err(error))),
                }
            }
            StoredCommand::Fetch { filter, source, after, until, done } => {
                let question = self.question(filter, source);
                tasks.spawn(async move {
                    let answer = match question {
                        Ok(question) => question.fetch(after, until).await,
                        Err(error) => Err(error),
                    };
                    let _ = done.send(answer);
                });
            }
            StoredCommand::Locate { filter, source, place, done } => {
                let question = self.question(filter, source);
                tasks.spawn(async move {
                    let answer = match question {
                        Ok(question) => question.locate(place).await,
                        Err(error) => Err(error),
                    };
                    let _ = done.send(answer);
                });
            }
        }
    }

    async fn follow(
        &mut self,
        filter: Filter,
        source: Source,
        done: oneshot::Sender<Result<(), BrokerError>>,
        tasks: &mut JoinSet<()>,
    ) {
        if let Some(followed) = self.followed.get(&filter)
            && *followed.stage.borrow() != Stage::Over
        {
            let mut stage = followed.stage.clone();
            tasks.spawn(async move {
                let answer = match stage.wait_for(|stage| *stage != Stage::Beginning).await.as_deref() {
                    Ok(Stage::Following(_)) => Ok(()),
                    _ => Err(BrokerError::Away("it could not be followed".into())),
                };
                let _ = done.send(answer);
            });
            return;
        }
        self.end(&filter).await;
        let (stage, stages) = watch::channel(Stage::Beginning);
        let follower = Follower {
            filter: filter.clone(),
            source,
            client: self.past.client.clone(),
            state: self.state.clone(),
            events: self.events.clone(),
            stage,
        };
        let task = tokio::spawn(follower.run(done));
        self.followed.insert(filter, Followed { stage: stages, task });
    }

    /// Ends what follows a filter. Once this returns, nothing more of it comes.
    async fn end(&mut self, filter: &Filter) {
        if let Some(mut followed) = self.followed.remove(filter) {
            followed.task.abort();
            let _ = (&mut followed.task).await;
        }
    }

    async fn publish(
        &self,
        topic: &Topic,
        source: &Source,
        payload: Bytes,
        headers: &Headers,
    ) -> Result<Sent, BrokerError> {
        check_key(source, topic)?;
        let subject = Names::of(source, topic.as_str()).subject(topic.as_str())?;
        let api = Api::now(&self.state)?;
        let mut message = PublishMessage::build().payload(payload).headers(write_headers(headers)?);
        let stream = match source {
            Source::Kv { bucket, .. } => Some(format!("KV_{bucket}")),
            Source::JetStream { stream } => stream.clone(),
            Source::Pubsub | Source::Sharded | Source::RedisStream { .. } => None,
        };
        if let Some(stream) = &stream {
            message = message.expected_stream(stream);
        }
        let sending = api.context.send_publish(subject.clone(), message);
        let late = |_| BrokerError::Away("the connection takes nothing more".into());
        let answer = timeout(LIMIT, sending).await.map_err(late)?.map_err(unpublished)?;
        Ok(Sent { api, source: source.clone(), subject, answer })
    }

    /// A look into the past, with what is needed for it.
    fn question(&self, filter: Filter, source: Source) -> Result<Question, BrokerError> {
        // A stream that was found by its subjects once need not be looked for again.
        let known = self.followed.iter().find_map(|(followed, is)| match &*is.stage.borrow() {
            Stage::Following(stream) if followed.covers(&filter) => Some(stream.clone()),
            _ => None,
        });
        let names = Names::of(&source, filter.as_str());
        let subject = names.subject(filter.as_str())?;
        let past = self.past.clone();
        Ok(Question {
            api: Api::now(&self.state)?,
            past,
            known,
            subject,
            asked: Asked { filter, source, names },
        })
    }
}

/// A look into the past.
struct Question {
    api: Api,
    past: Arc<Past>,
    /// The stream, if it is known.
    known: Option<String>,
    subject: String,
    asked: Asked,
}

impl Question {
    async fn fetch(&self, after: u64, until: u64) -> Result<Fetched, BrokerError> {
        self.look(async |look, info| self.asked.fetch(look, info, after, until).await).await
    }

    async fn locate(&self, place: Place) -> Result<Located, BrokerError> {
        self.look(async |look, info| self.asked.locate(look, info, place).await).await
    }

    async fn look<T>(
        &self,
        ask: impl AsyncFnOnce(&Look<'_>, &Info) -> Result<T, BrokerError>,
    ) -> Result<T, BrokerError> {
        let _turn = self.past.looks.acquire().await.map_err(|error| BrokerError::Away(error.to_string()))?;
        let looking = async {
            let stream = match &self.known {
                Some(stream) => stream.clone(),
                None => stream::find(&self.api, &self.asked.source, &self.subject).await?,
            };
            let info = stream::expect(&self.api, &stream).await?;
            let look = Look {
                api: &self.api,
                stream: &stream,
                subject: &self.subject,
                direct: info.config.allow_direct,
                client: &self.past.client,
                consumers: &self.past.consumers,
            };
            ask(&look, &info).await
        };
        let late = |_| BrokerError::Away(format!("JetStream did not answer within {} s", LIMIT.as_secs()));
        timeout(LIMIT, looking).await.map_err(late)?
    }
}

/// A message that was sent and waits for the stream to confirm it.
struct Sent {
    api: Api,
    source: Source,
    subject: String,
    answer: PublishAckFuture,
}

impl Sent {
    async fn acknowledged(self) -> Result<u64, BrokerError> {
        match self.answer.await {
            Ok(stored) => Ok(stored.sequence),
            Err(error) if error.kind() == PublishErrorKind::StreamNotFound => {
                // Nobody takes it: there is no such stream, or it has no leader for now.
                let stream = stream::find(&self.api, &self.source, &self.subject).await?;
                stream::expect(&self.api, &stream).await?;
                Err(BrokerError::Away(format!("the stream {stream:?} takes nothing now")))
            }
            Err(error) => Err(unpublished(error)),
        }
    }
}

fn unpublished(error: PublishError) -> BrokerError {
    let words = error.to_string();
    match error.kind() {
        PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe | PublishErrorKind::MaxAckPending => {
            BrokerError::Away(words)
        }
        PublishErrorKind::StreamNotFound
        | PublishErrorKind::WrongLastMessageId
        | PublishErrorKind::WrongLastSequence
        | PublishErrorKind::MaxPayloadExceeded
        | PublishErrorKind::Other => BrokerError::Refused(words),
    }
}
