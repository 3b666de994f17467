//! The JetStream connection: opened when it is first needed, and opened again, to the next server, whenever it is lost.
//! It tries every server that the cluster announces, also those that `broker.url` does not name.

use std::convert::Infallible;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use super::client::{AnsweringConnection, Client, client, subscribe_to_answers};
use crate::broker::nats::{Settings, first, open};
use crate::broker::reconnect::{Connect, stay_connected};
use crate::broker::sink::{EventSink, WhenFull};
use crate::broker::{BrokerError, Event, Link};

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
    /// The prefix of its subjects.
    prefix: Arc<str>,
}

/// The prefix of the API of the server's own JetStream.
const OWN: &str = "$JS.API";

impl Api {
    /// The subject of a request.
    pub(super) fn subject(&self, what: &str) -> String {
        format!("{}.{what}", self.prefix)
    }

    /// The prefix of the API, unless it is the API of the server's own JetStream.
    pub(super) fn other(&self) -> Option<&str> {
        Some(&*self.prefix).filter(|prefix| *prefix != OWN)
    }

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
pub(super) async fn keep(settings: Settings, events: mpsc::Sender<Event>, state: watch::Sender<State>) {
    let sink = EventSink::new(events, Some(Link::Stored), WhenFull::Wait);
    let _ = stay_connected(&mut Keeper { server: settings.any(), settings, sink, state }).await;
}

/// The task that keeps the connection.
struct Keeper {
    settings: Settings,
    /// Which server is tried next.
    server: usize,
    sink: EventSink,
    /// What the other tasks of JetStream see.
    state: watch::Sender<State>,
}

impl Connect for Keeper {
    type Session = AnsweringConnection;
    type Command = Infallible;

    async fn connect(&mut self, why: Option<&str>) -> Option<Result<AnsweringConnection, String>> {
        self.until_flushed(why.unwrap_or_default()).await?;
        let open = |server| {
            let opening = open(&self.settings, server);
            async { subscribe_to_answers(opening.await?).await }
        };
        Some(match why {
            None => first(&mut self.server, self.settings.len(), open).await,
            Some(_) => open(self.server).await,
        })
    }

    async fn serve(&mut self, connection: AnsweringConnection) -> Option<String> {
        self.sink.up();
        self.until_flushed("").await?;
        let (client, mut task) = client(connection);
        let prefix = self.settings.jetstream.clone();
        self.state.send_replace(State::Up(Box::new(Api { client, prefix })));
        let why = task.run().await;
        self.settings.discovered(self.server, task.servers());
        Some(why)
    }

    fn down(&mut self, why: &str) {
        self.state.send_replace(State::Down(why.into()));
        self.sink.down(why);
        self.server += 1;
    }

    fn answer_away(&mut self, command: Infallible, _: &str) {
        match command {}
    }

    fn channels(&mut self) -> (Option<&mut mpsc::Receiver<Infallible>>, &mut EventSink) {
        (None, &mut self.sink)
    }
}
