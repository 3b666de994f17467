//! The JetStream connection: opened when it is first needed, and opened again, to the next server, whenever it is lost.
//! It tries every server that the cluster announces, also those that `broker.url` does not name.

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

use super::client::{Client, Task, client};
use crate::broker::nats::handshake::connect;
use crate::broker::nats::{OPEN_LIMIT, RETRY_LIMIT, Settings, pause};
use crate::broker::{BrokerError, Event, Link};
use crate::net::reason::{LATE, Peer, sentence};

/// The state of the connection.
pub(super) enum State {
    /// The first round of attempts is in progress.
    Opening,
    /// Connected.
    Up(Box<Api>),
    /// Not connected; the reason.
    Down(String),
}

/// A connection.
#[derive(Clone)]
pub(super) struct Api {
    pub(super) client: Client,
}

impl Api {
    /// The current connection, if there is one.
    pub(super) fn now(state: &watch::Receiver<State>) -> Result<Self, BrokerError> {
        match &*state.borrow() {
            State::Up(api) => Ok(Api::clone(api)),
            State::Down(why) => Err(BrokerError::Away(why.clone())),
            State::Opening => Err(BrokerError::Away("it is connecting".into())),
        }
    }

    /// The connection, once there is one. `None` if there will be no more.
    pub(super) async fn next(state: &mut watch::Receiver<State>) -> Option<Self> {
        match &*state.wait_for(|state| matches!(state, State::Up(_))).await.ok()? {
            State::Up(api) => Some(Api::clone(api)),
            State::Opening | State::Down(_) => None,
        }
    }
}

/// Connects, and reconnects, until the event channel closes.
pub(super) async fn keep(mut settings: Settings, events: mpsc::Sender<Event>, state: watch::Sender<State>) {
    let mut server = fastrand::usize(..settings.len());
    let (mut attempts, mut tried) = (0, 0);
    let mut told = None;
    loop {
        let why = match open(&settings, server).await {
            Ok((api, mut connection)) => {
                if events.send(Event::Up(Link::Stored)).await.is_err() {
                    return;
                }
                (told, tried) = (None, settings.len());
                let start = Instant::now();
                state.send_replace(State::Up(Box::new(api)));
                let why = connection.run().await;
                settings.discovered(server, connection.servers());
                if start.elapsed() > RETRY_LIMIT {
                    attempts = 0; // but not for a server that accepts the connection and then closes it
                }
                why
            }
            Err(why) => why,
        };
        server += 1;
        tried += 1;
        if tried < settings.len() {
            continue; // callers wait until every server has been tried once
        }
        if told.as_ref() != Some(&why) {
            state.send_replace(State::Down(why.clone()));
            if events.send(Event::Down { link: Link::Stored, why: why.clone() }).await.is_err() {
                return;
            }
            told = Some(why);
        }
        sleep(pause(attempts)).await;
        attempts += 1;
    }
}

async fn open(settings: &Settings, server: usize) -> Result<(Api, Task), String> {
    let target = settings.target(server)?;
    let late = |_| format!("cannot connect: {}:{}: {}", target.host, target.port, sentence(LATE, Peer::Nats));
    let connection = timeout(OPEN_LIMIT, connect(&target)).await.map_err(late)??;
    let (client, task) = client(connection);
    Ok((Api { client }, task))
}
