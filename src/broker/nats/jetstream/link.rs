//! The connection for what JetStream keeps: made when it is first needed, and made anew, on the next server, whenever it is
//! lost. Every server that the cluster tells of is tried, also those that `broker.url` does not name.

use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::Context;
use async_nats::jetstream::context::ContextBuilder;
use futures_util::StreamExt;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

use super::super::{OPEN_LIMIT, RETRY_LIMIT, Settings, pause};
use super::LIMIT;
use super::client::connect;
use crate::broker::{BrokerError, Event, Link};
use crate::reason::{LATE, Peer, sentence};

/// What answers come to, so that a narrow user can be given `_INBOX.topicgate.>`.
const INBOX: &str = "_INBOX.topicgate";

/// Whether there is a connection.
pub(super) enum State {
    /// The first round of attempts is under way.
    Opening,
    /// There is.
    Up(Box<Api>),
    /// There is none, and why.
    Down(String),
}

/// A connection.
#[derive(Clone)]
pub(super) struct Api {
    pub(super) client: Client,
    pub(super) context: Context,
}

impl Api {
    /// The connection, if there is one now.
    pub(super) fn now(state: &watch::Receiver<State>) -> Result<Self, BrokerError> {
        match &*state.borrow() {
            State::Up(api) => Ok(Api::clone(api)),
            State::Down(why) => Err(BrokerError::Away(why.clone())),
            State::Opening => Err(BrokerError::Away("it is connecting".into())),
        }
    }

    /// The connection, once there is one. `None` if there will be none any more.
    pub(super) async fn next(state: &mut watch::Receiver<State>) -> Option<Self> {
        match &*state.wait_for(|state| matches!(state, State::Up(_))).await.ok()? {
            State::Up(api) => Some(Api::clone(api)),
            State::Opening | State::Down(_) => None,
        }
    }
}

/// Connects, and stays connected, until the event channel closes.
pub(super) async fn keep(mut settings: Settings, events: mpsc::Sender<Event>, state: watch::Sender<State>) {
    let mut server = fastrand::usize(..settings.len());
    let (mut attempts, mut tried) = (0, 0);
    let mut told = None;
    loop {
        let why = match open(&settings, server).await {
            Ok((api, errors)) => {
                if events.send(Event::Up(Link::Stored)).await.is_err() {
                    return;
                }
                (told, tried) = (None, settings.len());
                let start = Instant::now();
                state.send_replace(State::Up(Box::new(api.clone())));
                let why = ended(&api, errors).await;
                settings.discovered(server, &api.client.server_info().connect_urls);
                if start.elapsed() > RETRY_LIMIT {
                    attempts = 0; // but not for a server that takes us in only to throw us out
                }
                why
            }
            Err(why) => why,
        };
        server += 1;
        tried += 1;
        if tried < settings.len() {
            continue; // whoever waits for the first connection waits until every server had its chance
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

async fn open(settings: &Settings, server: usize) -> Result<(Api, mpsc::Receiver<String>), String> {
    let (address, options) = settings.server(server)?;
    let late =
        format!("cannot connect: {}:{}: {}", address.host(), address.port(), sentence(LATE, Peer::Nats));
    let opening = connect(address, options.custom_inbox_prefix(INBOX));
    let (client, errors) = timeout(OPEN_LIMIT, opening).await.map_err(|_| late)??;
    let context = ContextBuilder::new().timeout(LIMIT).build(client.clone());
    Ok((Api { client, context }, errors))
}

/// Waits for the end of the connection; tells why it came, as far as the server said.
async fn ended(api: &Api, mut errors: mpsc::Receiver<String>) -> String {
    let mut last = None;
    let sentinel = api.client.subscribe(api.client.new_inbox()).await;
    if let Ok(mut sentinel) = sentinel {
        loop {
            tokio::select! {
                message = sentinel.next() => if message.is_none() { break }, // nothing is ever delivered there
                Some(words) = errors.recv() => {
                    tracing::warn!(%words, "NATS reports an error");
                    last = Some(words);
                }
            }
        }
    }
    while let Ok(Some(words)) = timeout(Duration::from_secs(1), errors.recv()).await {
        last = Some(words);
    }
    last.map_or("the connection was lost".into(), |words| sentence(&words, Peer::Nats))
}
