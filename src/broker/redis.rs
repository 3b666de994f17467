//! Redis publish/subscribe: `SUBSCRIBE` for a topic, `PSUBSCRIBE` for a pattern, `PUBLISH` on a connection of its own.
//!
//! The client library neither reconnects a pub/sub connection, nor notices one that went dead, nor bounds the messages
//! it holds for us. All three are done here: a session loop with back-off, a PING whenever nothing else was asked for
//! a while, and a loop that takes messages whether or not anyone wants them, dropping and marking what does not fit.
//!
//! It knows one server at a time, which sentinels may name (`servers.rs`), and no cluster. Redis Streams are read beside
//! it, on connections of their own (`streams.rs`).

mod answers;
mod outbox;
mod publisher;
mod servers;
mod session;
mod settings;
pub(super) mod streams;
mod table;

use std::cell::OnceCell;
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::FutureExt;
use futures_util::stream::{ReadyChunks, StreamExt};
use redis::aio::{PubSubSink, PubSubStream};
use redis::{Client, Msg};
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use self::outbox::Outbox;
use self::publisher::{PUBLISH_CAPACITY, Publish, publish_all};
use self::servers::Servers;
use self::session::{Answer, Change, Request, Session, Waiting, answer_of, establish};
pub(super) use self::settings::servers;
use self::table::{Name, Table};
use super::{BrokerError, Command, Event, Headers, Message};
use crate::topic::{Filter, Topic};

/// How long a connection may take, TLS and AUTH included.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);

/// How long the server may say nothing while an answer is awaited. A message counts as a word too: an answer can only
/// come after the messages that the server had queued before it.
const SILENCE_LIMIT: Duration = Duration::from_secs(4);

/// How long an answer may take though messages go on arriving.
const ANSWER_LIMIT: Duration = Duration::from_secs(12);

/// A PING follows the last answer by this. With [`SILENCE_LIMIT`], a dead connection is noticed within 8 s.
const PING_AFTER: Duration = Duration::from_secs(4);

/// The first wait before connecting again, doubled up to the cap.
const BACKOFF_START: Duration = Duration::from_millis(50);
const BACKOFF_CAP: Duration = Duration::from_secs(1);

/// Commands, channels of one command, and messages that are taken at once.
const BATCH: usize = 256;

/// Runs until the command channel or the event channel closes.
pub(super) async fn run(
    servers: Servers,
    separator: char,
    commands: mpsc::Receiver<Command>,
    events: mpsc::Sender<Event>,
) {
    let mut task =
        Task { table: Table::new(separator), commands, outbox: Outbox::new(events), unwanted: Vec::new() };
    let mut backoff = BACKOFF_START;
    // Of the session before this one, none before the first: its end is the reason of what may be lost.
    let mut before: Option<String> = None;
    let mut why = "connecting".to_string();
    loop {
        task.unwanted.clear();
        let (channels, globs) = task.table.names();
        let establishing = async {
            let client = servers.find().await.map_err(End::Unreachable)?;
            let session = establish(&client, channels, globs).await?;
            Ok((client, session))
        };
        let Some(established) = task.while_down(establishing, &why).await else {
            return;
        };
        let end = match established {
            Err(end) => end,
            Ok((client, session)) => {
                let started = Instant::now();
                let end = task.serve(&client, session, before.as_deref()).await;
                before = Some(end.to_string());
                if started.elapsed() >= BACKOFF_CAP {
                    backoff = BACKOFF_START;
                }
                end
            }
        };
        if matches!(end, End::Stopped) {
            return;
        }
        why = end.to_string();
        task.outbox.down(&why);
        // Jittered: a fleet that lost its server together must not come back in step.
        let wait = backoff.mul_f64(0.5 + fastrand::f64() / 2.0);
        backoff = (backoff * 2).min(BACKOFF_CAP);
        if task.while_down(sleep(wait), &why).await.is_none() {
            return;
        }
    }
}

/// Why a session ended.
#[derive(Debug, Error)]
enum End {
    /// No connection, or not in time, or not for us.
    #[error("cannot connect: {0}")]
    Unreachable(String),
    /// The server answered what it was asked first with an error that is no refusal of one filter.
    #[error("the server said: {0}")]
    Rejected(String),
    /// The stream of messages ended: the server or the network closed the connection. The library does not say why.
    #[error("the connection was closed")]
    Closed,
    /// An answer did not come, nor anything else.
    #[error("the server does not answer")]
    Silent,
    /// Nobody is left to serve.
    #[error("stopped")]
    Stopped,
}

struct Task {
    table: Table,
    commands: mpsc::Receiver<Command>,
    outbox: Outbox,
    /// Unsubscribed while a session was being established that subscribes to them.
    unwanted: Vec<Name>,
}

impl Task {
    /// Answers commands until `work` is done; `None` if the task is to end.
    async fn while_down<F: Future>(&mut self, work: F, why: &str) -> Option<F::Output> {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Some(done),
                command = self.commands.recv() => {
                    let name = self.answer_away(command?, why);
                    self.unwanted.extend(name);
                }
                room = self.outbox.room(), if self.outbox.is_pending() => {
                    if !room {
                        return None;
                    }
                    self.outbox.flush();
                }
            }
        }
    }

    /// Answers a command without a connection. Returns the name that an unsubscription made unwanted.
    fn answer_away(&mut self, command: Command, why: &str) -> Option<Name> {
        match command {
            Command::Subscribe { done, .. } | Command::Publish { done, .. } => {
                let _ = done.send(Err(BrokerError::Away(why.into())));
                None
            }
            Command::Unsubscribe { filter } => {
                self.outbox.forget(&filter);
                let name = self.table.name(&filter).ok()?;
                self.table.remove(&name, &filter).then_some(name)
            }
        }
    }

    /// Serves one session from its first event to its end, and answers what it leaves behind.
    async fn serve(&mut self, client: &Client, session: Session, before: Option<&str>) -> End {
        let Session { sink, mut stream, held, refused } = session;
        for (name, why) in refused {
            for filter in self.table.remove_name(&name) {
                self.outbox.refused(filter, &why);
            }
        }
        self.outbox.up(before);
        for message in held {
            self.route(&message);
        }
        // A publishing connection for each session: one of the last session would fail the first publish of this one.
        let (publisher, publishes) = mpsc::channel(PUBLISH_CAPACITY);
        tokio::spawn(publish_all(client.clone(), publishes));

        let mut queue = VecDeque::new();
        let unsubscribe = self.unwanted.drain(..).collect();
        let mut request = Some(Request::change(&sink, Change { unsubscribe, ..Change::default() }));
        let end = self.session(&sink, &mut stream, &publisher, &mut queue, &mut request).await;

        while let Some(Some(chunk)) = stream.next().now_or_never() {
            chunk.iter().for_each(|message| self.route(message));
        }
        let why = end.to_string();
        for (filter, name, done) in request.into_iter().flat_map(|request| request.change.waiting) {
            self.table.remove(&name, &filter);
            let _ = done.send(Err(BrokerError::Away(why.clone())));
        }
        for command in queue {
            self.answer_away(command, &why);
        }
        end
    }

    async fn session(
        &mut self,
        sink: &PubSubSink,
        stream: &mut ReadyChunks<PubSubStream>,
        publisher: &mpsc::Sender<Publish>,
        queue: &mut VecDeque<Command>,
        request: &mut Option<Request>,
    ) -> End {
        let mut batch = Vec::with_capacity(BATCH);
        let mut heard = Instant::now();
        let mut answered = heard;
        let mut timer = pin!(sleep_until(heard + PING_AFTER));
        loop {
            if request.is_none() {
                *request = self.advance(sink, publisher, queue);
            }
            let deadline = match request {
                Some(request) => (request.sent.max(heard) + SILENCE_LIMIT).min(request.sent + ANSWER_LIMIT),
                None => answered + PING_AFTER,
            };
            if timer.deadline() != deadline {
                timer.as_mut().reset(deadline);
            }
            let idle = request.is_none();
            tokio::select! {
                chunk = stream.next() => {
                    let Some(chunk) = chunk else { return End::Closed };
                    heard = Instant::now();
                    chunk.iter().for_each(|message| self.route(message));
                    if self.outbox.is_closed() {
                        return End::Stopped;
                    }
                }
                answer = answer_of(request) => {
                    answered = Instant::now();
                    let waiting = request.take().map(|request| request.change.waiting).unwrap_or_default();
                    if !self.answer(waiting, answer) {
                        return End::Closed;
                    }
                }
                taken = self.commands.recv_many(&mut batch, BATCH), if idle && queue.is_empty() => {
                    if taken == 0 {
                        return End::Stopped;
                    }
                    queue.extend(batch.drain(..));
                }
                // While a publish heads the queue there is no room for it (see `advance`); nor for what is behind it.
                permit = publisher.reserve(), if idle && !queue.is_empty() => drop(permit),
                () = &mut timer => {
                    if request.is_some() {
                        return End::Silent;
                    }
                    *request = Some(Request::ping(sink));
                }
                room = self.outbox.room(), if self.outbox.is_pending() => {
                    if !room {
                        return End::Stopped;
                    }
                    self.outbox.flush();
                }
            }
        }
    }

    /// Answers those who waited for a change. `false` if the connection failed.
    fn answer(&mut self, waiting: Vec<Waiting>, answer: Answer) -> bool {
        let closed = answer.is_err();
        let faults: HashMap<Name, BrokerError> = answer.unwrap_or_default().into_iter().collect();
        for (filter, name, done) in waiting {
            let result = if closed {
                Err(BrokerError::Away(End::Closed.to_string()))
            } else {
                faults.get(&name).cloned().map_or(Ok(()), Err)
            };
            if result.is_err() {
                self.table.remove(&name, &filter);
                self.outbox.forget(&filter);
            }
            let _ = done.send(result);
        }
        !closed
    }

    /// Takes commands from the queue until the server has to be asked for something, or a publish finds no room.
    fn advance(
        &mut self,
        sink: &PubSubSink,
        publisher: &mpsc::Sender<Publish>,
        queue: &mut VecDeque<Command>,
    ) -> Option<Request> {
        let mut change = Change::default();
        while let Some(command) = queue.pop_front() {
            match command {
                Command::Subscribe { filter, done } => {
                    let name = match self.table.name(&filter) {
                        Ok(name) => name,
                        Err(refused) => {
                            let _ = done.send(Err(refused));
                            continue;
                        }
                    };
                    if change.unsubscribe.contains(&name) {
                        queue.push_front(Command::Subscribe { filter, done });
                        break;
                    }
                    // In the table before it is asked for: its first messages can overtake the confirmation here.
                    let known = self.table.contains(&name);
                    if self.table.insert(&name, filter.clone()) {
                        self.outbox.forget(&filter);
                    }
                    if known && !change.subscribe.contains(&name) {
                        let _ = done.send(Ok(()));
                    } else {
                        change.subscribe.insert(name.clone());
                        change.waiting.push((filter, name, done));
                    }
                }
                Command::Unsubscribe { filter } => {
                    let Ok(name) = self.table.name(&filter) else { continue };
                    if change.subscribe.contains(&name) {
                        queue.push_front(Command::Unsubscribe { filter });
                        break;
                    }
                    self.outbox.forget(&filter);
                    if self.table.remove(&name, &filter) {
                        change.unsubscribe.insert(name);
                    }
                }
                Command::Publish { topic, payload, headers, done } => {
                    if !change.is_empty() {
                        // After the subscriptions sent before it, or they would miss it.
                        queue.push_front(Command::Publish { topic, payload, headers, done });
                        break;
                    }
                    if let Err(refused) = self.publishable(&topic, &headers) {
                        let _ = done.send(Err(refused));
                        continue;
                    }
                    match publisher.try_reserve() {
                        Ok(permit) => {
                            permit.send(Publish {
                                channel: topic.to_subject(self.table.separator),
                                payload,
                                done,
                            });
                        }
                        Err(mpsc::error::TrySendError::Full(())) => {
                            queue.push_front(Command::Publish { topic, payload, headers, done });
                            break;
                        }
                        Err(mpsc::error::TrySendError::Closed(())) => {
                            let _ = done.send(Err(BrokerError::Away("the publisher has stopped".into())));
                        }
                    }
                }
            }
        }
        (!change.is_empty()).then(|| Request::change(sink, change))
    }

    fn publishable(&self, topic: &Topic, headers: &Headers) -> Result<(), BrokerError> {
        if !headers.is_empty() {
            let why = "Redis messages have no header fields; put what they carry into the payload";
            return Err(BrokerError::Refused(why.into()));
        }
        self.table.name(&Filter::from(topic.clone())).map(drop)
    }

    /// Hands a message to every filter that it came by and that matches it.
    fn route(&mut self, message: &Msg) {
        let payload = OnceCell::new();
        let payload = || payload.get_or_init(|| Bytes::copy_from_slice(message.get_payload_bytes())).clone();
        let headers = Headers::default;
        if !message.from_pattern() {
            let Some((filter, topic)) = self.table.channels.get(message.get_channel_name()) else { return };
            self.outbox.forward(filter, || Message {
                filter: filter.clone(),
                topic: topic.clone(),
                payload: payload(),
                headers: headers(),
                stored: None,
            });
            return;
        }
        let Ok(glob) = message.get_pattern::<String>() else { return };
        let Some(filters) = self.table.globs.get(&glob) else { return };
        let Some(topic) = Topic::from_subject(message.get_channel_name(), self.table.separator) else {
            filters.iter().for_each(|filter| self.outbox.unnameable(filter));
            return;
        };
        for filter in filters.iter().filter(|filter| filter.matches(&topic)) {
            self.outbox.forward(filter, || Message {
                filter: filter.clone(),
                topic: topic.clone(),
                payload: payload(),
                headers: headers(),
                stored: None,
            });
        }
    }
}
