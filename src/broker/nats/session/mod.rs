//! A session: one connection, its commands and the server's answers, and its messages in their order of arrival.
//!
//! A `PING` follows the commands, and the server's `PONG` confirms them: the server handles the lines of a connection in
//! order, and reports a refusal before its `PONG`. In a cluster, the other servers learn of a subscription later, so the
//! subscriber is answered after a pause (`broker.settle`). After a reconnect, and when servers join or leave the cluster,
//! the session reads nothing for the same time. Then it sends `Event::Lost`, and after it the messages that have arrived
//! meanwhile.
//!
//! While the event channel is full, the session reads nothing: the server waits, and in the end closes the connection.

mod pending;

use std::collections::VecDeque;
use std::pin::pin;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use self::pending::{Batch, PendingCommand};
use super::handshake::Connection;
use super::subjects::{received, subject};
use super::table::Table;
use super::transport::Transport;
use super::wire::{self, Info, Operation, PONG};
use crate::broker::sink::EventSink;
use crate::broker::{BrokerError, Command};

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

/// The state of one session.
pub(super) struct Session {
    /// The addresses of its `INFO` are sorted, so that servers that join or leave are noticed.
    transport: Transport,
    settle: Duration,
    stage: Stage,
    /// One for each unanswered PING, in the order sent.
    batches: VecDeque<Batch>,
    /// Subscriptions that this server has confirmed, and when the cluster will know them.
    settling: VecDeque<(Instant, PendingCommand)>,
    /// Whether `Event::Up` was sent.
    is_up: bool,
    pinged: Instant,
}

/// How messages are handled.
enum Stage {
    /// They are dropped: `Event::Lost` will be sent for them once everything is subscribed again.
    Restoring,
    /// They stay on the server until then; then `Event::Lost` is sent, with this reason.
    Settling(Instant, &'static str),
    /// Messages are passed on.
    Open,
}

impl Session {
    /// Begins a session, and subscribes to all filters of the table. `settle` is for a server in a cluster. `was_up`:
    /// there was a session before, so messages may be missing in between.
    pub(super) fn new(connection: Connection, settle: Duration, was_up: bool, table: &Table) -> Self {
        let mut transport = Transport::new(connection);
        transport.info.connect_urls.sort();
        let settle = if transport.info.cluster.is_some() { settle } else { Duration::ZERO };
        let mut session = Session {
            transport,
            settle,
            stage: Stage::Open,
            batches: VecDeque::new(),
            settling: VecDeque::new(),
            is_up: false,
            pinged: Instant::now(),
        };
        if was_up {
            session.stage = Stage::Restoring;
            for (filter, sid) in table.iter() {
                wire::write_subscribe(&mut session.transport.out, &subject(filter), sid);
            }
            session.ping(Vec::new());
        }
        session
    }

    /// Other addresses of its cluster.
    pub(super) fn servers(&self) -> &[String] {
        self.transport.servers()
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
        let why = self.transport.end(why);
        let settling = self.settling.drain(..).map(|(_, pending)| pending);
        for pending in self.batches.drain(..).flat_map(|batch| batch.pending).chain(settling) {
            pending.fail(BrokerError::Away(why.clone()), table);
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
                match self.transport.next() {
                    Ok(Some(operation)) => {
                        if let Err(why) = self.take(operation, table, sink) {
                            return Some(why);
                        }
                    }
                    Ok(None) => break,
                    Err(why) => return Some(why),
                }
            }
            let is_reading = self.is_reading(sink);
            if !is_reading {
                self.transport.heard = Instant::now(); // reading was paused, so nothing else is known
            }
            let next = self.next_time(sink);
            if next < timer.deadline() || timer.is_elapsed() {
                timer.as_mut().reset(next);
            }
            let has_room =
                self.transport.has_room() && self.batches.len() < BATCHES && self.settling.len() < SETTLING;
            tokio::select! {
                exchanged = self.transport.exchange(is_reading) => if let Err(why) = exchanged {
                    return Some(why);
                },
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
            Operation::Ping => self.transport.out.extend_from_slice(PONG),
            Operation::Error(words) => self.refused(words, table, sink),
            Operation::Info(info) => self.informed(*info),
            Operation::Ok => {}
        }
        Ok(())
    }

    fn informed(&mut self, mut info: Info) {
        info.connect_urls.sort();
        let is_changed = info.connect_urls != self.transport.info.connect_urls;
        self.transport.info = info;
        // Messages from a server that was away never arrived here; a server that joins does not know the subscriptions
        // yet.
        if is_changed && self.transport.info.cluster.is_some() && matches!(self.stage, Stage::Open) {
            self.settle(Instant::now(), "servers joined or left the cluster");
        }
    }

    /// When the other servers of a cluster know the commands that were sent at `sent` and are confirmed now. They get as
    /// much time as this server took, because they may be as busy.
    fn settled(&self, sent: Instant) -> Instant {
        let now = Instant::now();
        if self.settle.is_zero() { now } else { now + self.settle + (now - sent).min(SETTLE_MORE) }
    }

    /// Called when everything is subscribed on this server; `Event::Lost` follows once the others know.
    fn settle(&mut self, sent: Instant, why: &'static str) {
        self.stage = Stage::Settling(self.settled(sent), why);
    }

    /// When the next timeout is due.
    fn next_time(&self, sink: &EventSink) -> Instant {
        let front = self.batches.front();
        let silent = front
            .filter(|_| self.is_reading(sink))
            .map(|batch| self.transport.heard.max(batch.sent) + SILENCE_LIMIT);
        let late = self
            .batches
            .iter()
            .find(|batch| !batch.pending.is_empty())
            .map(|batch| batch.sent + ANSWER_LIMIT);
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
            && let Some((_, pending)) = self.settling.pop_front()
        {
            pending.confirm(table);
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
        if self.is_reading(sink) && self.transport.heard.max(front.sent) + SILENCE_LIMIT <= now {
            return Err(format!("no confirmation within {} s", SILENCE_LIMIT.as_secs()));
        }
        self.fail_late(now, table);
        Ok(())
    }
}
