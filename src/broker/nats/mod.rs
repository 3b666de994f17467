//! NATS: plain publish/subscribe, with our own implementation of the client protocol.
//!
//! It is a loop of sessions, each with one connection (`session`, opened by `handshake`, encoded by `wire`).
//! Subscriptions outlive the sessions (`table`). A session after the first subscribes to all of them, sends
//! [`Event::Lost`] and [`Event::Up`], and only then passes messages on. When it ends, messages that have arrived are
//! delivered, [`Event::Down`] is sent, and the next server is tried, including those that the cluster has announced.
//!
//! async-nats is not used here: it drops messages without saying where, has a channel for each subscription, and ends
//! the connection at a header field that it cannot parse.
//!
//! JetStream is in `jetstream`. A server in lame-duck mode is left only when it closes the connection: core NATS loses
//! messages that are published in between either way.

mod handshake;
mod headers;
pub(super) mod jetstream;
mod session;
mod settings;
mod subjects;
mod table;
mod wire;

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use self::handshake::Connection;
use self::session::Session;
pub(super) use self::settings::Settings;
use self::table::Table;
use super::{BrokerError, Command, Event, Link};

/// The timeout for all addresses of a server, name resolution included.
const OPEN_LIMIT: Duration = Duration::from_secs(8);

/// The longest pause between two attempts.
const RETRY_LIMIT: Duration = Duration::from_secs(1);

/// Connects, and reconnects, until the command channel or the event channel closes.
pub(super) async fn run(settings: Settings, commands: mpsc::Receiver<Command>, events: mpsc::Sender<Event>) {
    // `None`: one of the channels has closed.
    let _ = Nats { settings, commands, events, table: Table::default() }.run().await;
}

struct Nats {
    settings: Settings,
    commands: mpsc::Receiver<Command>,
    events: mpsc::Sender<Event>,
    table: Table,
}

impl Nats {
    async fn run(&mut self) -> Option<()> {
        let mut server = fastrand::usize(..self.settings.len());
        let mut attempts = 0;
        let mut was_up = false;
        let mut told = None;
        loop {
            let why = match self.open(server).await? {
                Ok(connection) => {
                    let start = Instant::now();
                    let mut session = Session::new(connection, self.settings.settle, was_up, &self.table);
                    was_up = true;
                    let why = session.serve(&mut self.table, &mut self.commands, &self.events).await?;
                    self.settings.discovered(server, session.servers());
                    if session.is_up {
                        told = None;
                    }
                    if start.elapsed() > RETRY_LIMIT {
                        attempts = 0; // but not for a server that accepts the connection and then closes it
                    }
                    for event in session.left() {
                        self.tell(event).await?;
                    }
                    why
                }
                Err(why) => why,
            };
            if told.as_ref() != Some(&why) {
                self.tell(Event::Down { link: Link::Pubsub, why: why.clone() }).await?;
                told = Some(why.clone());
            }
            self.away_while(&why, sleep(pause(attempts))).await?;
            attempts += 1;
            server += 1;
        }
    }

    /// Connects. `Ok(Err)` is the reason of a failure.
    async fn open(&mut self, server: usize) -> Option<Result<Connection, String>> {
        let target = match self.settings.target(server) {
            Ok(target) => target,
            Err(why) => return Some(Err(why)),
        };
        let opening = async {
            let connected = timeout(OPEN_LIMIT, handshake::connect(&target)).await;
            connected.unwrap_or_else(|_| Err("connecting took too long".into()))
        };
        self.away_while("it is connecting", opening).await
    }

    /// Sends an event, and answers commands while the channel is full.
    async fn tell(&mut self, event: Event) -> Option<()> {
        let events = self.events.clone();
        let sent =
            self.away_while("the gateway is overloaded", async move { events.send(event).await }).await?;
        sent.ok()
    }

    /// Answers commands as `Away` until `work` is done. `None` once one of the channels has closed.
    async fn away_while<T>(&mut self, why: &str, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        let events = self.events.clone();
        loop {
            tokio::select! {
                result = &mut work => return Some(result),
                command = self.commands.recv() => self.answer_away(command?, why),
                () = events.closed() => return None,
            }
        }
    }

    fn answer_away(&mut self, command: Command, why: &str) {
        match command {
            Command::Subscribe { done, .. } | Command::Publish { done, .. } => {
                let _ = done.send(Err(BrokerError::Away(why.to_owned())));
            }
            Command::Unsubscribe { filter } => {
                self.table.remove(&filter);
            }
        }
    }
}

/// 25 to 50 ms at first, doubled by each attempt, up to a second; random, so that many gateways do not reconnect at
/// once.
fn pause(attempts: u32) -> Duration {
    let longest = Duration::from_millis(50).saturating_mul(1 << attempts.min(8)).min(RETRY_LIMIT);
    longest.mul_f64(0.5 + 0.5 * fastrand::f64())
}
