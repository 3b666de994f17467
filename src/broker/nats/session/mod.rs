//! A session: one connection, its commands and the server's answers, and its messages in their order of arrival.
//!
//! A `PING` follows what was asked, and the server's `PONG` confirms it: the server takes the lines of a connection in
//! order, and what it refuses it says before. In a cluster the other servers learn of a subscription later, so whoever
//! subscribed is answered after a pause (`broker.settle`). After a reconnect, and when servers join or leave the cluster,
//! nothing is read for as long; then `Event::Lost` is told, and what has arrived meanwhile follows it.
//!
//! While the event channel is full, nothing is read: the server waits, and closes the connection in the end.

mod pending;

use std::collections::VecDeque;
use std::io;
use std::pin::pin;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use self::pending::{Batch, PendingCommand};
use super::handshake::{Connection, Socket};
use super::subjects::{received, subject};
use super::table::Table;
use super::wire::{self, Info, Operation, PONG, Reader};
use crate::broker::sink::EventSink;
use crate::broker::{BrokerError, Command};
use crate::metrics::throttle::Throttle;
use crate::net::reason::{Peer, sentence};

/// How long the server may be silent while it owes an answer.
const SILENCE_LIMIT: Duration = Duration::from_secs(5);

/// How long an answer may take while the server sends other data.
const ANSWER_LIMIT: Duration = Duration::from_secs(8);

/// The interval of PINGs. With [`SILENCE_LIMIT`], a dead connection is detected within 9 s.
const PING_AFTER: Duration = Duration::from_secs(4);

/// The most unanswered PINGs, and the most confirmations that wait for the cluster. Beyond either, commands wait.
const BATCHES: usize = 64;
const SETTLING: usize = 64 * 1024;

/// The longest time that [`Session::settled`] adds to `broker.settle`.
const SETTLE_MORE: Duration = Duration::from_secs(2);

/// The most bytes that wait to be sent. Beyond it, commands wait.
const OUT_LIMIT: usize = 256 * 1024;

/// The state of one session.
pub(super) struct Session {
    read: ReadHalf<Box<dyn Socket>>,
    write: WriteHalf<Box<dyn Socket>>,
    reader: Reader,
    /// Bytes to send.
    out: BytesMut,
    /// Whether all written bytes are flushed.
    is_flushed: bool,
    /// The last `INFO`; its addresses are sorted, so that servers that join or leave are noticed.
    info: Info,
    settle: Duration,
    stage: Stage,
    /// One for each unanswered PING, in the order sent.
    batches: VecDeque<Batch>,
    /// Subscriptions that this server has confirmed, and when the cluster will know them.
    settling: VecDeque<(Instant, PendingCommand)>,
    /// Whether it was told that the connection is up.
    is_up: bool,
    /// When the server last sent anything, or when reading was last paused.
    heard: Instant,
    pinged: Instant,
    /// The server's last error text, for the reason of the end.
    words: Option<String>,
    /// Of the lines that repeat what it says.
    reports: Throttle,
}

/// How messages are handled.
enum Stage {
    /// They are dropped: `Event::Lost` will be told for them once everything is subscribed again.
    Restoring,
    /// They are left with the server until then; then `Event::Lost` is told, with this reason.
    Settling(Instant, &'static str),
    /// Messages are passed on.
    Open,
}

impl Session {
    /// Begins a session, and subscribes to all filters of the table. `settle` is for a server in a cluster. `was_up`:
    /// there was a session before, so messages may be missing in between.
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
            is_up: false,
            heard: now,
            pinged: now,
            words: None,
            reports: Throttle::default(),
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

    /// Other addresses of its cluster.
    pub(super) fn servers(&self) -> &[String] {
        &self.info.connect_urls
    }

    /// Serves until the connection ends; returns the reason. `None` once one of the channels has closed.
    pub(super) async fn serve(
        &mut self,
        table: &mut Table,
        commands: &mut mpsc::Receiver<Command>,
        sink: &mut EventSink,
    ) -> Option<String> {
        if matches!(self.stage, Stage::Open) {
            self.up(sink);
        }
        let why = self.work(table, commands, sink).await?;
        let why = self.words.take().map_or(why, |words| sentence(&words, Peer::Nats));
        let settling = self.settling.drain(..).map(|(_, asked)| asked);
        for asked in self.batches.drain(..).flat_map(|batch| batch.asked).chain(settling) {
            asked.fail(BrokerError::Away(why.clone()), table);
        }
        Some(why)
    }

    async fn work(
        &mut self,
        table: &mut Table,
        commands: &mut mpsc::Receiver<Command>,
        sink: &mut EventSink,
    ) -> Option<String> {
        let mut timer = pin!(sleep_until(self.next_time(sink)));
        loop {
            while self.is_reading(sink) {
                match self.reader.next() {
                    Ok(Some(operation)) => {
                        if let Err(why) = self.take(operation, table, sink) {
                            return Some(why);
                        }
                    }
                    Ok(None) => break,
                    Err(error) => return Some(error.to_string()),
                }
            }
            let is_reading = self.is_reading(sink);
            if !is_reading {
                self.heard = Instant::now(); // reading was paused, so nothing else is known
            }
            let next = self.next_time(sink);
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
                        // Data that has arrived is still read: the end of the connection follows it.
                        (self.out, self.is_flushed) = (BytesMut::new(), true);
                    }
                }
                command = commands.recv(), if has_room => self.carry_out(command?, table, commands),
                () = &mut timer => if let Err(why) = self.on_time(table, sink) {
                    return Some(why);
                },
                is_open = sink.flush() => is_open.then_some(())?,
            }
        }
    }

    fn is_reading(&self, sink: &EventSink) -> bool {
        sink.is_empty() && !matches!(self.stage, Stage::Settling(..))
    }

    fn up(&mut self, sink: &mut EventSink) {
        self.stage = Stage::Open;
        if !self.is_up {
            self.is_up = true;
            sink.up();
        }
    }

    /// Handles the data from the server. An error is the reason to end the connection.
    fn take(&mut self, operation: Operation, table: &mut Table, sink: &mut EventSink) -> Result<(), String> {
        match operation {
            Operation::Message(message) => {
                if let Some(filter) = table.filter(message.sid)
                    && matches!(self.stage, Stage::Open)
                    && let Some(event) = received(filter, message)
                {
                    sink.push(event);
                }
            }
            Operation::TooLarge { sid, bytes } => {
                if let Some(filter) = table.filter(sid) {
                    let why = format!("a message has {bytes} bytes, more than the gateway reads");
                    sink.lost(Some(vec![filter.clone()]), why);
                }
            }
            Operation::Pong => return self.answered(table, sink),
            Operation::Ping => self.out.extend_from_slice(PONG),
            Operation::Error(words) => self.refused(words, table, sink),
            Operation::Info(info) => self.informed(*info),
            Operation::Ok => {}
        }
        Ok(())
    }

    fn informed(&mut self, mut info: Info) {
        info.connect_urls.sort();
        let is_changed = info.connect_urls != self.info.connect_urls;
        self.info = info;
        // Messages from a server that was away never arrived here; a server that joins does not know the subscriptions
        // yet.
        if is_changed && self.info.cluster.is_some() && matches!(self.stage, Stage::Open) {
            self.settle(Instant::now(), "servers joined or left the cluster");
        }
    }

    /// When the other servers of a cluster know the commands that were sent then and are confirmed now. They get as
    /// much time again as this server took, because they may be as busy.
    fn settled(&self, sent: Instant) -> Instant {
        let now = Instant::now();
        if self.settle.is_zero() { now } else { now + self.settle + (now - sent).min(SETTLE_MORE) }
    }

    /// Everything is subscribed on this server; `Event::Lost` follows once the others know.
    fn settle(&mut self, sent: Instant, why: &'static str) {
        self.stage = Stage::Settling(self.settled(sent), why);
    }

    /// When the next timeout is due.
    fn next_time(&self, sink: &EventSink) -> Instant {
        let front = self.batches.front();
        let silent =
            front.filter(|_| self.is_reading(sink)).map(|batch| self.heard.max(batch.sent) + SILENCE_LIMIT);
        let late =
            self.batches.iter().find(|batch| !batch.asked.is_empty()).map(|batch| batch.sent + ANSWER_LIMIT);
        let quiet = front.is_none().then(|| self.pinged + PING_AFTER);
        let settled = self.settling.front().map(|(at, _)| *at);
        let open = if let Stage::Settling(at, _) = self.stage { Some(at) } else { None };
        // One of `silent`, `late` and `quiet` is set unless reading is paused, and then something else wakes the
        // session.
        let next = [silent, late, quiet, settled, open].into_iter().flatten().min();
        next.unwrap_or_else(|| Instant::now() + PING_AFTER)
    }

    /// Handles timeouts. An error is the reason to end the connection.
    fn on_time(&mut self, table: &mut Table, sink: &mut EventSink) -> Result<(), String> {
        let now = Instant::now();
        while self.settling.front().is_some_and(|(at, _)| *at <= now)
            && let Some((_, asked)) = self.settling.pop_front()
        {
            asked.confirm(table);
        }
        if let Stage::Settling(at, why) = self.stage
            && at <= now
        {
            // After every subscription is confirmed again, and before the first message since then.
            sink.lost(None, why.into());
            self.up(sink);
        }
        let Some(front) = self.batches.front() else {
            if self.pinged + PING_AFTER <= now {
                self.ping(Vec::new());
            }
            return Ok(());
        };
        if self.is_reading(sink) && self.heard.max(front.sent) + SILENCE_LIMIT <= now {
            return Err(format!("no confirmation within {} s", SILENCE_LIMIT.as_secs()));
        }
        self.fail_late(now, table);
        Ok(())
    }
}

/// Sends and flushes the bytes. Cancel-safe.
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
