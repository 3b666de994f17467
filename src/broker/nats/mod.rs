//! NATS: plain publish/subscribe, with our own implementation of the client protocol.
//!
//! It is a loop of sessions, each with one connection (`session`, opened by `handshake`, encoded by `wire`, its bytes
//! moved by `transport`).
//! Subscriptions outlive the sessions (`table`). A session after the first subscribes to all of them, sends
//! [`Event::Lost`] and [`Event::Up`], and only then passes messages on. When it ends, messages that have arrived are
//! delivered, [`Event::Down`] is sent, and the next server is tried, including those that the cluster has announced.
//!
//! async-nats is not used: it drops messages without saying where, holds a channel for each subscription, and ends
//! the connection at a header field that it cannot read.
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
mod transport;
mod wire;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;

use self::handshake::Connection;
use self::session::Session;
pub(super) use self::settings::Settings;
use self::table::Table;
use super::reconnect::{Connect, stay_connected};
use super::sink::{EventSink, WhenFull};
use super::{BrokerError, Command, Event, Link};
use crate::net::reason::{LATE, Peer, sentence};

/// The timeout for all addresses of a server, name resolution included.
const OPEN_LIMIT: Duration = Duration::from_secs(8);

/// Connects, and reconnects, until the command channel or the event channel closes. Sets `largest` to the size of the
/// largest message that the server accepts.
pub(super) async fn run(
    settings: Settings,
    commands: mpsc::Receiver<Command>,
    events: mpsc::Sender<Event>,
    largest: Arc<AtomicUsize>,
) {
    let mut nats = Nats {
        server: settings.any(),
        settings,
        commands,
        sink: EventSink::new(events, Some(Link::Pubsub), WhenFull::Wait),
        table: Table::default(),
        was_up: false,
        largest,
    };
    let _ = stay_connected(&mut nats).await;
}

/// The task of publish/subscribe.
struct Nats {
    settings: Settings,
    /// Which server is tried next.
    server: usize,
    commands: mpsc::Receiver<Command>,
    sink: EventSink,
    table: Table,
    /// Whether there was a session before.
    was_up: bool,
    /// The size of the largest message that the server accepts.
    largest: Arc<AtomicUsize>,
}

impl Connect for Nats {
    type Session = Connection;
    type Command = Command;

    async fn connect(&mut self, why: Option<&str>) -> Option<Result<Connection, String>> {
        let Some(why) = why else {
            let open = |server| open(&self.settings, server);
            return Some(first(&mut self.server, self.settings.len(), open).await);
        };
        let opening = open(&self.settings, self.server);
        // A session that cannot be read would only make the server end it.
        self.until_flushed(why).await?;
        self.while_down(opening, why).await
    }

    async fn serve(&mut self, connection: Connection) -> Option<String> {
        self.largest.store(connection.info.max_payload, Ordering::Relaxed);
        let mut session = Session::new(connection, self.settings.settle, self.was_up, &self.table);
        self.was_up = true;
        let why = session.serve(&mut self.table, &mut self.commands, &mut self.sink).await?;
        self.settings.discovered(self.server, session.servers());
        Some(why)
    }

    fn down(&mut self, why: &str) {
        self.sink.down(why);
        self.server += 1;
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

    fn channels(&mut self) -> (Option<&mut mpsc::Receiver<Command>>, &mut EventSink) {
        (Some(&mut self.commands), &mut self.sink)
    }
}

/// The first connection, to one of `servers`: commands wait until every server has been tried.
async fn first<C, F: Future<Output = Result<C, String>>>(
    server: &mut usize,
    servers: usize,
    open: impl Fn(usize) -> F,
) -> Result<C, String> {
    for _ in 1..servers {
        if let Ok(connection) = open(*server).await {
            return Ok(connection);
        }
        *server += 1;
    }
    open(*server).await
}

/// Connects to server `index`, within the limit.
fn open(settings: &Settings, index: usize) -> impl Future<Output = Result<Connection, String>> + use<> {
    let target = settings.target(index);
    async move {
        let target = target?;
        let late =
            |_| format!("cannot connect: {}:{}: {}", target.host, target.port, sentence(LATE, Peer::Nats));
        timeout(OPEN_LIMIT, handshake::connect(&target)).await.map_err(late)?
    }
}

/// The refusal of a message for which the server would end the connection.
fn above_max_payload(bytes: usize, most: usize) -> BrokerError {
    BrokerError::TooLarge(format!(
        "the message has {bytes} bytes with its header fields, and the NATS server accepts at most {most} (max_payload)"
    ))
}
