//! Redis Streams: `XREAD` to follow keys, `XRANGE` to fetch older entries, `XADD` to publish. A topic is a key.
//!
//! All keys are followed with one blocking read on one connection; other commands use a second one. Keys that are
//! behind are read in groups of a few keys, so that answers stay small and a busy key does not delay the others.
//! Reading stops while the event channel is full: the entries wait on the server.
//!
//! In a cluster there is one such task per master (`../shards.rs`). There, keys of different slots cannot share a read,
//! so reads do not block: the server reports which keys have changed (`changes.rs`), and these are read.
//!
//! Entries can be lost if they are removed before they are read (`key.rs` detects that), or if the server is restarted
//! or replaced (`server.rs` does). There are no consumer groups, and no patterns, because Redis cannot read streams by
//! pattern.

mod changes;
mod entry;
mod following;
mod key;
mod lookup;
mod outbox;
mod read;
mod sample;
mod server;
mod size;

use std::collections::VecDeque;
use std::future::pending;
use std::pin::pin;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until};

use self::following::{FollowedKeys, PendingRead, Round};
use self::key::Key;
use self::lookup::{Lookup, What};
use self::outbox::{Done, EventQueue, LeftKeys};
use self::read::samples;
use self::server::{Server, Session};
use self::size::EntrySize;
use super::answers::words;
use super::cluster::Slots;
use super::servers::Servers;
use super::shards::{Adopted, Released, Routed, Shard};
use super::table::{Name, Table};
use super::{BACKOFF_CAP, BACKOFF_START, BATCH};
use crate::broker::{BrokerError, Event, StoredCommand};
use crate::protocol::source::Source;
use crate::protocol::topic::{Filter, Topic};

/// The most concurrent lookups, and the most that wait. Beyond it, the command channel waits.
const LOOKUPS: usize = 16;
const LOOKUPS_WAITING: usize = 1024;

/// The most events that wait for room. Beyond it, the command channel waits.
const EVENTS_WAITING: usize = 4096;

type ShardCommand = super::shards::ShardCommand<StoredCommand>;

impl Routed for StoredCommand {
    type Assignment = (Arc<str>, Key);
    const NO_PATTERNS: &'static str = "a pattern cannot be read from Redis Streams; name each topic";

    fn filter(&self) -> Filter {
        match self {
            StoredCommand::Subscribe { filter, .. }
            | StoredCommand::Unsubscribe { filter }
            | StoredCommand::Fetch { filter, .. }
            | StoredCommand::Locate { filter, .. } => filter.clone(),
            StoredCommand::Publish { topic, .. } => Filter::from(topic.clone()),
        }
    }

    fn unsubscribe_again(&self) -> Option<Self> {
        let StoredCommand::Unsubscribe { filter } = self else { return None };
        Some(StoredCommand::Unsubscribe { filter: filter.clone() })
    }

    fn fail(self, why: BrokerError) {
        match self {
            StoredCommand::Subscribe { done, .. } => drop(done.send(Err(why))),
            StoredCommand::Unsubscribe { .. } => {}
            StoredCommand::Publish { done, .. } => drop(done.send(Err(why))),
            StoredCommand::Fetch { done, .. } => drop(done.send(Err(why))),
            StoredCommand::Locate { done, .. } => drop(done.send(Err(why))),
        }
    }

    fn name_of((name, _): &Self::Assignment) -> &str {
        name
    }
}

/// Runs until the command channel or the event channel closes. Connects when the first command arrives. `shard` is the
/// shard of a cluster that it serves.
pub(super) async fn run<C: Into<ShardCommand>>(
    servers: Servers,
    shard: Option<Shard>,
    separator: char,
    mut commands: mpsc::Receiver<C>,
    events: mpsc::Sender<Event>,
) {
    let Some(first) = commands.recv().await else { return };
    let size = Arc::new(EntrySize::new());
    let shard = shard.map(Arc::new);
    let mut task = Task {
        table: Table::new(separator),
        following: FollowedKeys::new(size.clone(), shard.is_some()),
        size,
        outbox: EventQueue::new(events, shard.clone()),
        shard,
        server: None,
        queue: VecDeque::from([first.into()]),
        lookups: VecDeque::new(),
    };
    let mut backoff = BACKOFF_START;
    // Commands wait until the first attempt to connect has ended.
    let mut why: Option<String> = None;
    loop {
        let connect = Session::connect(&servers);
        let connected = match &why {
            None => Some(connect.await),
            Some(why) => task.while_down(connect, &mut commands, why).await,
        };
        let end = match connected {
            None => return,
            Some(Err(why)) => SessionEnd::Failed(why),
            Some(Ok(session)) => {
                let started = Instant::now();
                let end = task.serve(&session, &mut commands).await;
                if started.elapsed() >= BACKOFF_CAP {
                    backoff = BACKOFF_START;
                }
                end
            }
        };
        let SessionEnd::Failed(reason) = end else { return };
        task.fail(&reason);
        // With jitter, so that many gateways that lost their server at once do not reconnect in step.
        let wait = sleep(backoff.mul_f64(0.5 + fastrand::f64() / 2.0));
        backoff = (backoff * 2).min(BACKOFF_CAP);
        if task.while_down(wait, &mut commands, &reason).await.is_none() {
            return;
        }
        why = Some(reason);
    }
}

/// Why a session ended.
enum SessionEnd {
    /// The connection or the server failed. One line without secrets.
    Failed(String),
    /// The gateway is shutting down.
    Stopped,
}

struct Task {
    table: Table,
    following: FollowedKeys,
    size: Arc<EntrySize>,
    outbox: EventQueue,
    /// The shard, in a cluster.
    shard: Option<Arc<Shard>>,
    /// The server that was read last.
    server: Option<Server>,
    /// Commands that were received and not handled yet.
    queue: VecDeque<ShardCommand>,
    /// Lookups that wait for their turn.
    lookups: VecDeque<Lookup>,
}

impl Task {
    /// Answers commands as `Away` until `work` is done; `None` if the task must end.
    async fn while_down<F: Future>(
        &mut self,
        work: F,
        commands: &mut mpsc::Receiver<impl Into<ShardCommand>>,
        why: &str,
    ) -> Option<F::Output> {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Some(done),
                order = commands.recv() => self.answer_away(order?.into(), why),
                told = self.outbox.flush() => told.then_some(())?,
            }
        }
    }

    /// The session has ended: fails its pending commands.
    fn fail(&mut self, why: &str) {
        self.outbox.down(why);
        for lookup in self.lookups.drain(..) {
            lookup.what.fail(BrokerError::Away(why.into()));
        }
        for order in std::mem::take(&mut self.queue) {
            self.answer_away(order, why);
        }
    }

    /// Answers a command while there is no connection.
    fn answer_away(&mut self, order: ShardCommand, why: &str) {
        match order {
            ShardCommand::Command(StoredCommand::Unsubscribe { filter }) => self.unfollow(&filter),
            ShardCommand::Command(command) => command.fail(BrokerError::Away(why.into())),
            ShardCommand::Release { slots, left } => self.leave(&slots, left, false),
            ShardCommand::Adopt(entering) => self.enter(entering),
        }
    }

    /// Releases the keys that another shard has now.
    fn leave(&mut self, slots: &Slots, asked: oneshot::Sender<LeftKeys>, is_whole: bool) {
        let shard = self.shard.as_ref();
        let held = self.following.leave(|name| shard.is_some_and(|shard| shard.has_lost(slots, name)));
        self.outbox.left(asked, Released { held, is_whole, remaining: self.following.len() });
    }

    /// In a cluster: a command failed here, and another node may be the right one.
    fn refresh_topology(&self, why: &BrokerError) {
        if let (Some(shard), BrokerError::Away(_)) = (&self.shard, why) {
            shard.refresh_topology();
        }
    }

    /// Adopts keys that another shard has followed, at the same position.
    fn enter(&mut self, Adopted { held, lost }: Adopted<(Arc<str>, Key)>) {
        let events = self.following.enter(held, lost.as_deref());
        self.outbox.extend(events);
    }

    /// Serves one session from its first event to its end.
    async fn serve(
        &mut self,
        session: &Session,
        commands: &mut mpsc::Receiver<impl Into<ShardCommand>>,
    ) -> SessionEnd {
        let before = self.server.replace(session.server.clone());
        let moved = before.is_some_and(|before| !session.server.continues(&before));
        let why = "the Redis server was restarted or replaced, and may lack the latest entries";
        self.outbox.extend(self.following.resume(moved.then_some(why)));
        self.outbox.up();

        let mut batch = Vec::new();
        let mut asking = FuturesUnordered::new();
        let mut reading: Option<(Round, PendingRead)> = None;
        let mut interrupting: Option<BoxFuture<'static, ()>> = None;
        loop {
            match self.carry_out(session).await {
                Ok(true) if matches!(reading, Some((Round::Waiting, _))) => {
                    interrupting = session.interrupt()
                }
                Ok(_) => {}
                Err(why) => return SessionEnd::Failed(why),
            }
            while asking.len() < LOOKUPS
                && let Some(lookup) = self.lookups.pop_front()
            {
                let (connection, size) = (session.commands.clone(), self.size.clone());
                asking.push(async move { lookup.run(connection, &size).await });
            }
            if reading.is_none() && self.outbox.is_empty() {
                reading = self.following.next(session);
            }
            let is_room = self.lookups.len() < LOOKUPS_WAITING && self.outbox.len() < EVENTS_WAITING;
            let is_paused = reading.is_none() && self.outbox.is_empty();
            tokio::select! {
                answer = answer_of(&mut reading) => {
                    interrupting = None;
                    let Some((round, _)) = reading.take() else { continue };
                    match self.following.take(round, answer) {
                        Ok(events) => self.outbox.extend(events),
                        Err(why) => return SessionEnd::Failed(why),
                    }
                    if let Some(shard) = &self.shard
                        && self.following.is_misplaced()
                    {
                        shard.refresh_topology();
                    }
                }
                taken = commands.recv_many(&mut batch, BATCH), if is_room => {
                    if taken == 0 {
                        return SessionEnd::Stopped;
                    }
                    self.queue.extend(batch.drain(..).map(Into::into));
                }
                Some(answered) = asking.next(), if !asking.is_empty() => match answered {
                    Ok(None) => {}
                    Ok(Some(why)) => self.refresh_topology(&why),
                    Err(why) => return SessionEnd::Failed(why),
                },
                told = self.outbox.flush() => {
                    if !told {
                        return SessionEnd::Stopped;
                    }
                }
                () = sleep_until(self.following.next_at()), if is_paused => {}
                () = session.changed(), if is_paused => {}
                () = end_of(&mut interrupting) => {}
            }
        }
    }

    /// Runs the commands of the queue. Returns whether a new key is followed.
    ///
    /// # Errors
    /// Why the connection cannot be used any more.
    async fn carry_out(&mut self, session: &Session) -> Result<bool, String> {
        let mut is_new = false;
        while let Some(order) = self.queue.pop_front() {
            let command = match order {
                ShardCommand::Command(command) => command,
                ShardCommand::Release { slots, left } => {
                    self.leave(&slots, left, true);
                    continue;
                }
                ShardCommand::Adopt(entering) => {
                    self.enter(entering);
                    continue;
                }
            };
            match command {
                StoredCommand::Subscribe { .. } => {
                    self.queue.push_front(command.into());
                    is_new |= self.follow(session).await?;
                }
                StoredCommand::Unsubscribe { filter } => self.unfollow(&filter),
                StoredCommand::Publish { topic, source, payload, headers, done } => {
                    self.look_up(&Filter::from(topic), source, What::Publish { payload, headers, done });
                }
                StoredCommand::Fetch { filter, source, after, until, done } => {
                    self.look_up(&filter, source, What::Fetch { after, until, done });
                }
                StoredCommand::Locate { filter, source, place, done } => {
                    self.look_up(&filter, source, What::Locate { place, done });
                }
            }
        }
        Ok(is_new)
    }

    /// Follows the keys of the subscriptions at the head of the queue, with one round trip to the server.
    async fn follow(&mut self, session: &Session) -> Result<bool, String> {
        let mut begins: Vec<(KeyOf, Filter, Done)> = Vec::new();
        while let Some(order) = self.queue.pop_front() {
            let ShardCommand::Command(StoredCommand::Subscribe { filter, source, done }) = order else {
                self.queue.push_front(order);
                break;
            };
            match self.key_of(&filter, &source) {
                Err(why) => drop(done.send(Err(why))),
                Ok(key) if self.following.contains(&key.name) => drop(done.send(Ok(()))),
                // Handled again once the first is followed.
                Ok(key) if begins.iter().any(|(other, ..)| other.name == key.name) => {
                    self.queue.push_front(StoredCommand::Subscribe { filter, source, done }.into());
                    break;
                }
                Ok(key) => begins.push((key, filter, done)),
            }
        }
        let mut connection = session.commands.clone();
        let samples = match samples(&mut connection, begins.iter().map(|(key, ..)| &*key.name)).await {
            Ok(samples) => samples,
            Err(error) => {
                let why = words(&error);
                for (.., done) in begins {
                    let _ = done.send(Err(BrokerError::Away(why.clone())));
                }
                return Err(why);
            }
        };
        let mut is_new = false;
        for ((KeyOf { name, topic, payload }, filter, done), sample) in begins.into_iter().zip(samples) {
            match sample.and_then(|sample| Key::begin(filter, topic, payload, &sample)) {
                Ok((key, head)) => {
                    self.outbox.begun(key.begun(&name, head), done);
                    self.following.follow(&name, key);
                    is_new = true;
                }
                Err(why) => {
                    self.refresh_topology(&why);
                    let _ = done.send(Err(why));
                }
            }
        }
        Ok(is_new)
    }

    fn unfollow(&mut self, filter: &Filter) {
        if let Ok(Name::Channel(name)) = self.table.name(filter) {
            self.following.unfollow(&name);
            self.outbox.forget(filter);
        }
    }

    fn look_up(&mut self, filter: &Filter, source: Source, what: What) {
        match self.key_of(filter, &source) {
            Ok(key) => self.lookups.push_back(Lookup { key, what }),
            Err(why) => what.fail(why),
        }
    }

    /// The key of a topic.
    fn key_of(&self, filter: &Filter, source: &Source) -> Result<KeyOf, BrokerError> {
        let refused = |why: &str| Err(BrokerError::Refused(why.into()));
        let Source::RedisStream { payload } = source else {
            return refused("Redis stores only Redis Streams");
        };
        match (self.table.name(filter)?, filter.topic()) {
            (Name::Channel(name), Some(topic)) => Ok(KeyOf { name, topic, payload: payload.clone() }),
            _ => refused(StoredCommand::NO_PATTERNS),
        }
    }
}

/// The key and the payload field of a topic.
struct KeyOf {
    name: String,
    topic: Topic,
    /// The field that is the payload.
    payload: Option<String>,
}

/// Waits for the current read; for ever if there is none. Cancel-safe.
async fn answer_of(
    reading: &mut Option<(Round, PendingRead)>,
) -> Result<Vec<read::KeyRead>, redis::RedisError> {
    match reading {
        Some((_, reading)) => reading.await,
        None => pending().await,
    }
}

/// Waits for `future`; for ever if there is none.
async fn end_of(future: &mut Option<BoxFuture<'static, ()>>) {
    match future {
        Some(future) => future.await,
        None => pending().await,
    }
}
