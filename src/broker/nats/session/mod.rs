//! One connection in service: what is asked of the server on it, what the server answers, and its messages, in the order
//! in which they arrive.
//!
//! A `PING` follows what was asked, and the server's `PONG` confirms it: the server takes the lines of a connection in
//! order, and what it refuses it says before. In a cluster the other servers learn of a subscription later, so whoever
//! subscribed is answered after a pause (`broker.settle`). After a reconnect, and when servers join or leave the cluster,
//! nothing is read for as long; then [`Event::Lost`] is told, and what has arrived meanwhile follows it.
//!
//! While the event channel is full nothing is read: the server waits, and closes the connection in the end.

mod pending;

use std::collections::VecDeque;
use std::io;
use std::pin::pin;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::{Instant, sleep_until};

use self::pending::{Batch, PendingCommand};
use super::handshake::{Connection, Socket};
use super::subjects::{received, subject};
use super::table::Table;
use super::wire::{self, Info, Operation, PONG, Reader};
use crate::broker::{BrokerError, Command, Event, Link};
use crate::net::reason::{Peer, sentence};

/// How long the server may say nothing while an answer is awaited.
const SILENCE_LIMIT: Duration = Duration::from_secs(5);

/// How long an answer may take though the server goes on sending.
const ANSWER_LIMIT: Duration = Duration::from_secs(8);

/// A PING follows the last one by this. With [`SILENCE_LIMIT`], a dead connection is noticed within 9 s.
const PING_AFTER: Duration = Duration::from_secs(4);

/// PINGs that may be unanswered, and answers that may wait for the cluster. Beyond either, commands wait.
const BATCHES: usize = 64;
const SETTLING: usize = 64 * 1024;

/// The most that [`Session::settled`] adds to `broker.settle`.
const SETTLE_MORE: Duration = Duration::from_secs(2);

/// Bytes that wait to be sent. Beyond it commands wait.
const OUT_LIMIT: usize = 256 * 1024;

/// See the module.
pub(super) struct Session {
    read: ReadHalf<Box<dyn Socket>>,
    write: WriteHalf<Box<dyn Socket>>,
    reader: Reader,
    /// What is to be sent.
    out: BytesMut,
    /// Whether what was sent is flushed.
    is_flushed: bool,
    /// Sorted by where to connect, so that servers that come and go are noticed.
    info: Info,
    settle: Duration,
    stage: Stage,
    /// One for each PING that is unanswered, in the order sent.
    batches: VecDeque<Batch>,
    /// Subscriptions that this server has confirmed, and when the cluster will have them.
    settling: VecDeque<(Instant, PendingCommand)>,
    /// Events for which the channel has no room. Nothing is read until it is empty.
    outbox: VecDeque<Event>,
    /// Whether [`Event::Up`] was told.
    pub(super) is_up: bool,
    /// When the server was last heard of, or could not be.
    heard: Instant,
    pinged: Instant,
    /// The server's last words, for the reason of the end.
    words: Option<String>,
}

/// What is done with messages.
enum Stage {
    /// They are dropped: [`Event::Lost`] will be told for them once everything is subscribed again.
    Restoring,
    /// They are left with the server until then; then [`Event::Lost`] is told, with this reason.
    Settling(Instant, &'static str),
    /// They are handed on.
    Open,
}

impl Session {
    /// Begins with what is subscribed already. `settle` is for a server that is in a cluster. `was_up` says that there was
    /// a session before, between which and this one messages may be missing.
    pub(super) fn new(connection: Connection, settle: Duration, was_up: bool, table: &Table) -> Self {
        let Connection { socket, reader, mut info } = connection;
        let (read, write) = split(socket);
        let now = Instant::now();
        info.connect_urls.sort();
        let settle = if info.cluster.is_some() { settle } else { Duration::ZERO };
        let mut session = Session {
            read,
            write,
            reader,
            out: BytesMut::new(),
            is_flushed: true,
            info,
            settle,
            stage: Stage::Open,
            batches: VecDeque::new(),
            settling: VecDeque::new(),
            outbox: VecDeque::new(),
            is_up: false,
            heard: now,
            pinged: now,
            words: None,
        };
        if was_up {
            session.stage = Stage::Restoring;
            for (filter, sid) in table.iter() {
                wire::write_subscribe(&mut session.out, &subject(filter), sid);
            }
            session.ping(Vec::new());
        }
        session
    }

    /// Where else in its cluster one can connect.
    pub(super) fn servers(&self) -> &[String] {
        &self.info.connect_urls
    }

    /// Serves until the connection ends; why it did. `None` once one of the channels has closed.
    pub(super) async fn serve(
        &mut self,
        table: &mut Table,
        commands: &mut mpsc::Receiver<Command>,
        events: &mpsc::Sender<Event>,
    ) -> Option<String> {
        if matches!(self.stage, Stage::Open) {
            self.up(events);
        }
        let why = self.work(table, commands, events).await?;
        let why = self.words.take().map_or(why, |words| sentence(&words, Peer::Nats));
        let settling = self.settling.drain(..).map(|(_, asked)| asked);
        for asked in self.batches.drain(..).flat_map(|batch| batch.asked).chain(settling) {
            asked.fail(BrokerError::Away(why.clone()), table);
        }
        Some(why)
    }

    /// Events that found no room, to be told after the end.
    pub(super) fn left(self) -> VecDeque<Event> {
        self.outbox
    }

    async fn work(
        &mut self,
        table: &mut Table,
        commands: &mut mpsc::Receiver<Command>,
        events: &mpsc::Sender<Event>,
    ) -> Option<String> {
        let mut timer = pin!(sleep_until(self.next_time()));
        loop {
            while self.is_reading() {
                match self.reader.next() {
                    Ok(Some(operation)) => {
                        if let Err(why) = self.take(operation, table, events) {
                            return Some(why);
                        }
                    }
                    Ok(None) => break,
                    Err(error) => return Some(error.to_string()),
                }
            }
            let is_reading = self.is_reading();
            if !is_reading {
                self.heard = Instant::now(); // as far as anyone can tell
            }
            let next = self.next_time();
            if next < timer.deadline() || timer.is_elapsed() {
                timer.as_mut().reset(next);
            }
            let has_room =
                self.out.len() < OUT_LIMIT && self.batches.len() < BATCHES && self.settling.len() < SETTLING;
            tokio::select! {
                read = self.read.read_buf(self.reader.space()), if is_reading => match read {
                    Ok(1..) => self.heard = Instant::now(),
                    Ok(0) => return Some("the server closed the connection".into()),
                    Err(error) => return Some(format!("the connection was lost: {error}")),
                },
                sent = send(&mut self.write, &mut self.out, &mut self.is_flushed),
                    if !(self.out.is_empty() && self.is_flushed) =>
                {
                    if sent.is_err() {
                        // What has arrived is still read: its end is the end of the connection.
                        (self.out, self.is_flushed) = (BytesMut::new(), true);
                    }
                }
                command = commands.recv(), if has_room => self.carry_out(command?, table, commands),
                permit = events.reserve(), if !self.outbox.is_empty() => {
                    if let (Ok(permit), Some(event)) = (permit, self.outbox.pop_front()) {
                        permit.send(event);
                    }
                }
                () = &mut timer => if let Err(why) = self.on_time(table, events) {
                    return Some(why);
                },
                () = events.closed() => return None,
            }
        }
    }

    fn is_reading(&self) -> bool {
        self.outbox.is_empty() && !matches!(self.stage, Stage::Settling(..))
    }

    fn tell(&mut self, event: Event, events: &mpsc::Sender<Event>) {
        if !self.outbox.is_empty() {
            self.outbox.push_back(event);
        } else if let Err(TrySendError::Full(event)) = events.try_send(event) {
            self.outbox.push_back(event);
        }
    }

    fn up(&mut self, events: &mpsc::Sender<Event>) {
        self.stage = Stage::Open;
        if !self.is_up {
            self.is_up = true;
            self.tell(Event::Up(Link::Pubsub), events);
        }
    }

    /// Takes in what the server sent. An error is why the connection cannot go on.
    fn take(
        &mut self,
        operation: Operation,
        table: &mut Table,
        events: &mpsc::Sender<Event>,
    ) -> Result<(), String> {
        match operation {
            Operation::Message(message) => {
                if let Some(filter) = table.filter(message.sid)
                    && matches!(self.stage, Stage::Open)
                    && let Some(event) = received(filter, message)
                {
                    self.tell(event, events);
                }
            }
            Operation::TooLarge { sid, bytes } => {
                if let Some(filter) = table.filter(sid) {
                    let why = format!("a message has {bytes} bytes, more than can be read");
                    self.tell(Event::Lost { filters: Some(vec![filter.clone()]), why }, events);
                }
            }
            Operation::Pong => return self.answered(table, events),
            Operation::Ping => self.out.extend_from_slice(PONG),
            Operation::Error(words) => self.refused(words, table, events),
            Operation::Info(info) => self.informed(*info),
            Operation::Ok => {}
        }
        Ok(())
    }

    fn informed(&mut self, mut info: Info) {
        info.connect_urls.sort();
        let is_changed = info.connect_urls != self.info.connect_urls;
        self.info = info;
        // What was published on another server while it was away never came here; one that joins has yet to learn what is
        // subscribed.
        if is_changed && self.info.cluster.is_some() && matches!(self.stage, Stage::Open) {
            self.settle(Instant::now(), "servers have joined or left the cluster");
        }
    }

    /// When the other servers of a cluster know of what was sent to this one then, and is confirmed now. They are given as
    /// long again as this one took, because they may be as busy, or the subscriptions as many.
    fn settled(&self, sent: Instant) -> Instant {
        let now = Instant::now();
        if self.settle.is_zero() { now } else { now + self.settle + (now - sent).min(SETTLE_MORE) }
    }

    /// Everything is subscribed on this server; [`Event::Lost`] follows once the others know.
    fn settle(&mut self, sent: Instant, why: &'static str) {
        self.stage = Stage::Settling(self.settled(sent), why);
    }

    /// When something is due that no event brings.
    fn next_time(&self) -> Instant {
        let front = self.batches.front();
        let silent =
            front.filter(|_| self.is_reading()).map(|batch| self.heard.max(batch.sent) + SILENCE_LIMIT);
        let late =
            self.batches.iter().find(|batch| !batch.asked.is_empty()).map(|batch| batch.sent + ANSWER_LIMIT);
        let quiet = front.is_none().then(|| self.pinged + PING_AFTER);
        let settled = self.settling.front().map(|(at, _)| *at);
        let open = if let Stage::Settling(at, _) = self.stage { Some(at) } else { None };
        // One of `silent`, `late` and `quiet` is there unless nothing is read, and then somebody else wakes us.
        let next = [silent, late, quiet, settled, open].into_iter().flatten().min();
        next.unwrap_or_else(|| Instant::now() + PING_AFTER)
    }

    /// Does what is due. An error is why the connection cannot go on.
    fn on_time(&mut self, table: &mut Table, events: &mpsc::Sender<Event>) -> Result<(), String> {
        let now = Instant::now();
        while self.settling.front().is_some_and(|(at, _)| *at <= now)
            && let Some((_, asked)) = self.settling.pop_front()
        {
            asked.confirm(table);
        }
        if let Stage::Settling(at, why) = self.stage
            && at <= now
        {
            // After every subscription is whole again and before the first message that came since.
            self.tell(Event::Lost { filters: None, why: why.into() }, events);
            self.up(events);
        }
        let Some(front) = self.batches.front() else {
            if self.pinged + PING_AFTER <= now {
                self.ping(Vec::new());
            }
            return Ok(());
        };
        if self.is_reading() && self.heard.max(front.sent) + SILENCE_LIMIT <= now {
            return Err(format!("no confirmation within {} s", SILENCE_LIMIT.as_secs()));
        }
        self.fail_late(now, table);
        Ok(())
    }
}

/// Sends what there is, and sees that it leaves. Nothing is lost if it is given up in between.
async fn send(
    write: &mut (impl AsyncWrite + Unpin),
    out: &mut BytesMut,
    is_flushed: &mut bool,
) -> io::Result<()> {
    while !out.is_empty() {
        *is_flushed = false;
        write.write_buf(out).await?;
    }
    if out.capacity() > 2 * OUT_LIMIT {
        *out = BytesMut::new();
    }
    write.flush().await?;
    *is_flushed = true;
    Ok(())
}
