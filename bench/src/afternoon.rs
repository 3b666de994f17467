//! The afternoon version: a server that one can write with axum and tokio in an afternoon. It has `axum::response::Sse`
//! over a broadcast channel per topic, a POST that sends, and a heartbeat. It has no resume, and a slow reader loses
//! messages silently.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Sse;
use axum::response::sse::{Event, KeepAlive};
use axum::routing::get;
use axum::serve::ListenerExt;
use futures_util::{Stream, stream};
use tokio::sync::broadcast::{self, error::RecvError};

/// More messages than the load ever has under way.
const CAPACITY: usize = 1024;

#[derive(Clone)]
struct Message {
    id: u64,
    data: Arc<str>,
}

#[derive(Default)]
struct Topics {
    senders: HashMap<String, broadcast::Sender<Message>>,
    last_id: u64,
}

type StreamContext = Arc<Mutex<Topics>>;

/// Serves until it is ended.
pub fn run(address: SocketAddr) -> Result<()> {
    let app = Router::new()
        .route("/topics/{*topic}", get(subscribe).post(publish))
        .with_state(StreamContext::default());
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        // Nagle's algorithm is off, because anyone who writes such a server soon notices the delay.
        let listener = tokio::net::TcpListener::bind(address).await?.tap_io(|socket| {
            let _ = socket.set_nodelay(true);
        });
        Ok(axum::serve(listener, app).await?)
    })
}

fn lock(topics: &StreamContext) -> MutexGuard<'_, Topics> {
    topics.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn subscribe(
    State(topics): State<StreamContext>,
    Path(topic): Path<String>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let sender = &mut lock(&topics).senders;
    let receiver = sender.entry(topic).or_insert_with(|| broadcast::channel(CAPACITY).0).subscribe();
    let events = stream::unfold(receiver, |mut receiver| async {
        loop {
            match receiver.recv().await {
                Ok(Message { id, data }) => {
                    return Some((Ok(Event::default().id(id.to_string()).data(&data)), receiver));
                }
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    });
    Sse::new(events).keep_alive(KeepAlive::default())
}

async fn publish(State(topics): State<StreamContext>, Path(topic): Path<String>, body: String) -> StatusCode {
    let mut topics = lock(&topics);
    topics.last_id += 1;
    let message = Message { id: topics.last_id, data: body.into() };
    if let Some(sender) = topics.senders.get(&topic) {
        let _ = sender.send(message); // an error says that nobody listens
    }
    StatusCode::ACCEPTED
}
