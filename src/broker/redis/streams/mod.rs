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
mod commands;
mod entry;
mod following;
mod key;
mod lookup;
mod read;
mod sample;
mod server;
mod size;

use std::collections::VecDeque;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout_at};

use self::following::{FollowedKeys, PendingRead, Round};
use self::key::Key;
use self::lookup::{Broken, Lookup};
use self::server::{Server, Session};
use self::size::EntrySize;
use super::context::Context;
use super::servers::Servers;
use super::shards::{Routed, Shard};
use super::table::Table;
use super::{BATCH, PING_AFTER};
use crate::broker::reconnect::{Connect, stay_connected};
use crate::broker::sink::{EventSink, WhenFull};
use crate::broker::{BrokerError, Event, Link, StoredCommand};
use crate::protocol::topic::Filter;

/// The most concurrent lookups, and the most that wait. Beyond it, the command channel waits.
const LOOKUPS: usize = 16;
const LOOKUPS_WAITING: usize = 1024;

/// How long commands wait for the first attempt to connect after a connection has failed: the server may have closed it
/// although it works, for example because it was idle.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long a session whose one connection has ended waits for the end of its other one.
const LAST_ANSWERS: Duration = Duration::from_millis(100);

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
            | StoredCommand::Locate { filter, .. }
            | StoredCommand::Last { topic: filter, .. } => filter.clone(),
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
            StoredCommand::Last { done, .. } => drop(done.send(Err(why))),
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
    let link = shard.is_none().then_some(Link::Stored);
    let mut task = Task {
        following: FollowedKeys::new(size.clone(), shard.is_some()),
        size,
        server: None,
        queue: VecDeque::from([first.into()]),
        lookups: VecDeque::new(),
        patient_until: None,
        has_failed_to_follow: false,
        context: Context {
            servers,
            table: Table::new(separator),
            commands,
            sink: EventSink::new(events, link, WhenFull::Wait),
            shard: shard.map(Arc::new),
            is_down: false,
        },
    };
    let _ = stay_connected(&mut task).await;
}

struct Task<C> {
    context: Context<C>,
    following: FollowedKeys,
    size: Arc<EntrySize>,
    /// The server that was read last.
    server: Option<Server>,
    /// Commands that were received and not handled yet.
    queue: VecDeque<ShardCommand>,
    /// Lookups that wait for their turn.
    lookups: VecDeque<Lookup>,
    /// Until when commands wait for the next session.
    patient_until: Option<Instant>,
    /// Whether the last session ended while subscriptions were made.
    has_failed_to_follow: bool,
}

/// The events that a session waits for, in addition to commands.
struct Service {
    /// The lookups in progress.
    asking: FuturesUnordered<BoxFuture<'static, Result<Option<BrokerError>, Broken>>>,
    /// When the connection for commands last answered.
    answered: Instant,
    /// Whether that connection still works. No command is sent meanwhile: an XADD that fails on a dead connection could
    /// not be repeated, because it may have arrived.
    checking: Option<BoxFuture<'static, Result<(), String>>>,
    reading: Option<(Round, PendingRead)>,
    /// Ends the blocking read.
    interrupting: Option<BoxFuture<'static, ()>>,
}

impl<C: Into<ShardCommand>> Connect for Task<C> {
    type Session = Session;
    type Command = C;

    async fn connect(&mut self, why: Option<&str>) -> Option<Result<Session, String>> {
        let servers = self.context.servers.clone();
        let connecting = Session::connect(&servers);
        let connected = match why {
            // Commands wait until the first attempt to connect has ended.
            None => connecting.await,
            Some(why) => self.while_down(connecting, why).await?,
        };
        self.patient_until = None;
        Some(connected)
    }

    async fn serve(&mut self, session: Session) -> Option<String> {
        self.begin(&session);
        let mut service = Service {
            asking: FuturesUnordered::new(),
            answered: Instant::now(),
            checking: None,
            reading: None,
            interrupting: None,
        };
        let why = self.work(&session, &mut service).await?;
        self.patient_until = Some(Instant::now() + PATIENCE);
        // If the connection for commands was closed too, the lookups on it are about to fail.
        let end = Instant::now() + LAST_ANSWERS;
        while let Ok(Some(answered)) = timeout_at(end, service.asking.next()).await {
            self.lookups.extend(answered.err().and_then(|broken| broken.again));
        }
        Some(why)
    }

    fn down(&mut self, why: &str) {
        if !self.context.is_down {
            self.context.sink.interrupted(self.following.filters());
        }
        self.context.down(why);
    }

    fn patient_until(&self) -> Option<Instant> {
        self.patient_until
    }

    fn fail_unfinished(&mut self, why: &str) {
        for lookup in self.lookups.drain(..) {
            lookup.what.fail(BrokerError::Away(why.into()));
        }
        for order in std::mem::take(&mut self.queue) {
            self.answer_order_away(order, why);
        }
    }

    fn answer_away(&mut self, command: C, why: &str) {
        self.answer_order_away(command.into(), why);
    }

    fn channels(&mut self) -> (Option<&mut mpsc::Receiver<C>>, &mut EventSink) {
        (Some(&mut self.context.commands), &mut self.context.sink)
    }
}

impl<C: Into<ShardCommand>> Task<C> {
    /// Serves a session to its end. Returns the reason of the end; `None` once one of the channels has closed.
    async fn work(&mut self, session: &Session, service: &mut Service) -> Option<String> {
        let mut batch = Vec::new();
        loop {
            if let Err(why) = self.advance(session, service).await {
                return Some(why);
            }
            let is_room = self.queue.is_empty()
                && self.lookups.len() < LOOKUPS_WAITING
                && self.context.sink.len() < EVENTS_WAITING;
            let is_idle = service.asking.is_empty() && service.checking.is_none();
            let is_paused = service.reading.is_none() && self.context.sink.is_empty();
            tokio::select! {
                answer = answer_of(&mut service.reading) => {
                    service.interrupting = None;
                    let Some((round, _)) = service.reading.take() else { continue };
                    match self.following.take(round, answer) {
                        Ok(events) => self.emit(events),
                        Err(why) => return Some(why),
                    }
                    if self.following.is_misplaced() {
                        self.context.refresh_topology();
                    }
                }
                taken = self.context.commands.recv_many(&mut batch, BATCH), if is_room => {
                    if taken == 0 {
                        return None;
                    }
                    self.queue.extend(batch.drain(..).map(Into::into));
                }
                Some(answered) = service.asking.next(), if !service.asking.is_empty() => match answered {
                    Ok(error) => {
                        service.answered = Instant::now();
                        error.iter().for_each(|why| self.look_elsewhere(why));
                    }
                    Err(Broken { why, again }) => {
                        self.lookups.extend(again);
                        return Some(why);
                    }
                },
                checked = end_of(&mut service.checking) => {
                    service.checking = None;
                    if let Err(why) = checked {
                        return Some(why);
                    }
                    service.answered = Instant::now();
                }
                () = sleep_until(service.answered + PING_AFTER), if is_idle => {}
                is_open = self.context.sink.flush() => is_open.then_some(())?,
                () = sleep_until(self.following.next_at()), if is_paused => {}
                () = session.changed(), if is_paused => {}
                () = end_of(&mut service.interrupting) => {}
            }
        }
    }

    /// Reports possible losses, and that the connection is up.
    fn begin(&mut self, session: &Session) {
        let before = self.server.replace(session.server.clone());
        let moved = before.is_some_and(|before| !session.server.continues(&before));
        let why = "the Redis server was restarted or replaced, and may lack the latest entries";
        let events = self.following.resume(moved.then_some(why));
        self.emit(events);
        self.context.up();
        self.context.sink.resumed(self.following.filters());
    }

    /// Runs the commands of the queue, and starts the lookups and the read that are possible now.
    ///
    /// # Errors
    /// Why the connection is no longer usable.
    async fn advance(&mut self, session: &Session, service: &mut Service) -> Result<(), String> {
        if service.asking.is_empty() && service.checking.is_none() && service.answered.elapsed() >= PING_AFTER
        {
            service.checking = Some(session.check());
        }
        let may_ask = service.checking.is_none();
        let is_new = self.carry_out(session, may_ask).await?;
        if is_new && matches!(service.reading, Some((Round::Waiting, _))) {
            service.interrupting = session.interrupt();
        }
        while may_ask
            && service.asking.len() < LOOKUPS
            && let Some(lookup) = self.lookups.pop_front()
        {
            // It may have waited for longer than its caller: a message would be stored although the publisher has been told
            // that it was not.
            if !lookup.what.is_wanted() {
                continue;
            }
            let (connection, size) = (session.commands.clone(), self.size.clone());
            service.asking.push(Box::pin(async move { lookup.run(connection, &size).await }));
        }
        if service.reading.is_none() && self.context.sink.is_empty() {
            service.reading = self.following.next(session);
        }
        Ok(())
    }

    fn emit(&mut self, events: Vec<Event>) {
        events.into_iter().for_each(|event| self.context.sink.push(event));
    }

    /// In a cluster: a command failed here, and another node may be the right one.
    fn look_elsewhere(&self, why: &BrokerError) {
        if matches!(why, BrokerError::Away(_)) {
            self.context.refresh_topology();
        }
    }
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
async fn end_of<T>(future: &mut Option<BoxFuture<'static, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => pending().await,
    }
}
