//! JetStream as a stored source: streams, and key-value buckets, which are streams with conventions.
//!
//! One task takes the commands. Each followed filter has its own task with one consumer (`follower.rs`). Each fetch,
//! each seek and each publication is a task that ends with its answer. All share one connection (`link.rs`), which the
//! first command opens. After a lost connection, reading continues from the last number, so nothing is lost.
//!
//! It needs these API requests of NATS: `STREAM.INFO`, `STREAM.NAMES` (for a stream that is not named),
//! `STREAM.MSG.GET`, `DIRECT.GET`, and `CONSUMER.CREATE`, `.INFO`, `.DELETE` and `.MSG.NEXT`, each under `$JS.API.`
//! or what `broker.jetstream` says, with answers on `_INBOX.topicgate.>`.

mod client;
mod consumer;
mod follower;
mod found;
mod history;
mod info;
mod link;
mod names;
mod page;
mod publish;
mod pull;
mod raw_message;
mod reading;
mod recent;
mod request;
mod stream;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use self::follower::{Follower, Stage};
use self::found::{Found, Publishing};
use self::history::HistoryQuery;
use self::info::Info;
use self::link::{Api, State};
use self::page::{StreamReader, consumers};
use self::publish::Publication;
use self::recent::RecentStreams;
use super::Settings;
use crate::broker::{BrokerError, Event, Fetched, Message, StoredCommand};
use crate::protocol::seek::{Seek, SeekResult};
use crate::protocol::seq::Seq;
use crate::protocol::source::Source;
use crate::protocol::topic::Filter;

/// The timeout of a JetStream request, and of a whole fetch or seek.
const LIMIT: Duration = Duration::from_secs(5);

/// The most concurrent fetches and seeks; more wait for their turn.
const QUERIES: usize = 16;

/// The most commands in progress; more wait in their channel.
const ANSWERING: usize = 4096;

/// Runs until the command channel closes. Connects when the first command arrives.
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
    let (queries, recent) = (Semaphore::new(QUERIES), RecentStreams::new());
    let past = Arc::new(Past { client, queries, consumers: consumers(), recent });
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

/// The state that fetches and seeks share.
struct Past {
    /// The name of this process on the server.
    client: String,
    queries: Semaphore,
    consumers: Semaphore,
    recent: RecentStreams,
}

struct Followed {
    source: Source,
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
                let known = self.known(&topic.clone().into(), &source);
                let publication = Publication { topic, source, payload, headers };
                let api = Api::now(&self.state);
                match (api, known) {
                    (Err(error), _) => drop(done.send(Err(error))),
                    // Sent here, in the order of the commands; another task waits for the answer.
                    (Ok(api), Some(known)) => match publication.send(api, &known).await {
                        Ok(sent) => {
                            tasks.spawn(async move { drop(done.send(sent.acknowledged().await)) });
                        }
                        Err(error) => drop(done.send(Err(error))),
                    },
                    (Ok(api), None) => {
                        tasks.spawn(async move { drop(done.send(publication.find_and_send(api).await)) });
                    }
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
            StoredCommand::Locate { filter, source, seek, done } => {
                let question = self.question(filter, source);
                tasks.spawn(async move {
                    let answer = match question {
                        Ok(question) => question.locate(seek).await,
                        Err(error) => Err(error),
                    };
                    let _ = done.send(answer);
                });
            }
            StoredCommand::Last { topic, source, done } => {
                let question = self.question(topic, source);
                tasks.spawn(async move {
                    let answer = match question {
                        Ok(question) => question.last().await,
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
                    _ => Err(BrokerError::Away("it could not be subscribed".into())),
                };
                let _ = done.send(answer);
            });
            return;
        }
        self.end(&filter).await;
        let (stage, stages) = watch::channel(Stage::Beginning);
        let follower = Follower {
            filter: filter.clone(),
            source: source.clone(),
            client: self.past.client.clone(),
            state: self.state.clone(),
            events: self.events.clone(),
            stage,
        };
        let task = tokio::spawn(follower.run(done));
        self.followed.insert(filter, Followed { source, stage: stages, task });
    }

    /// Ends the follower of a filter. Once this returns, it sends no more events.
    async fn end(&mut self, filter: &Filter) {
        if let Some(mut followed) = self.followed.remove(filter) {
            followed.task.abort();
            let _ = (&mut followed.task).await;
        }
    }

    /// The stream of a filter, if a rule that covers it is followed: then it need not be searched for again.
    fn known(&self, filter: &Filter, source: &Source) -> Option<Publishing> {
        let following = self.followed.iter().filter_map(|(followed, is)| match &*is.stage.borrow() {
            Stage::Following(known) if is.source == *source && followed.covers(filter) => {
                Some((followed.as_str().len(), known.clone()))
            }
            _ => None,
        });
        following.max_by_key(|(length, _)| *length).map(|(_, known)| *known)
    }

    /// Creates a fetch or a seek.
    fn question(&self, filter: Filter, source: Source) -> Result<Question, BrokerError> {
        let known = self.known(&filter, &source).map(|known| known.stream);
        Ok(Question { api: Api::now(&self.state)?, past: self.past.clone(), known, filter, source })
    }
}

/// A fetch or a seek.
struct Question {
    api: Api,
    past: Arc<Past>,
    /// The stream, if it is known.
    known: Option<String>,
    filter: Filter,
    source: Source,
}

impl Question {
    async fn fetch(&self, after: Seq, until: Seq) -> Result<Fetched, BrokerError> {
        let found = Found::recently(
            &self.api,
            &self.source,
            self.filter.as_str(),
            self.known.clone(),
            &self.past.recent,
        );
        self.query(found, async |query, stream, info| query.fetch(stream, &info.config, after, until).await)
            .await
    }

    async fn locate(&self, seek: Seek) -> Result<SeekResult, BrokerError> {
        self.query(self.found(), async |query, stream, info| query.locate(stream, info, seek).await).await
    }

    async fn last(&self) -> Result<Option<Message>, BrokerError> {
        self.query(self.found(), async |query, stream, _| query.last_message(stream).await).await
    }

    fn found(&self) -> impl Future<Output = Result<Found, BrokerError>> {
        Found::of(&self.api, &self.source, self.filter.as_str(), self.known.clone())
    }

    async fn query<T>(
        &self,
        found: impl Future<Output = Result<Found, BrokerError>>,
        ask: impl AsyncFnOnce(&HistoryQuery, &StreamReader<'_>, &Info) -> Result<T, BrokerError>,
    ) -> Result<T, BrokerError> {
        let _turn =
            self.past.queries.acquire().await.map_err(|error| BrokerError::Away(error.to_string()))?;
        let querying = async {
            let found = found.await?;
            found.readable()?;
            let Found { info, names, subject } = found;
            let stream = StreamReader {
                api: &self.api,
                name: &info.config.name,
                subject: &subject,
                direct: info.config.allow_direct,
                client: &self.past.client,
                consumers: &self.past.consumers,
                recent: &self.past.recent,
            };
            ask(
                &HistoryQuery { filter: self.filter.clone(), source: self.source.clone(), names },
                &stream,
                &info,
            )
            .await
        };
        let late = |_| BrokerError::Away(format!("JetStream did not answer within {} s", LIMIT.as_secs()));
        timeout(LIMIT, querying).await.map_err(late)?
    }
}
