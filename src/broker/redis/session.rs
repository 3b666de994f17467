//! A session: establishes one connection for subscriptions, and sends its subscribe and unsubscribe commands.

use super::push::{Heard, Hearing};
use std::collections::HashSet;
use std::future::{Future, pending};
use std::pin::{Pin, pin};

use futures_util::future::{FutureExt, join_all};
use futures_util::stream::{BoxStream, StreamExt};
use redis::aio::{MultiplexedConnection, PubSubSink};
use redis::{Client, Msg, RedisError, Value};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use super::answers::{fault, is_answer, words};
use super::table::Name;
use super::{BATCH, CONNECT_LIMIT, SILENCE_LIMIT, SessionEnd, shard_channels};
use crate::broker::BrokerError;
use crate::net::reason::{CLOSED, LATE, Peer, sentence};
use crate::protocol::topic::Filter;

/// The most messages that are kept until every filter is confirmed.
const HELD_LIMIT: usize = 4096;

/// The side of a connection that sends commands.
#[derive(Clone)]
pub(super) enum Sink {
    /// `SUBSCRIBE` and `PSUBSCRIBE`.
    Channels(PubSubSink),
    /// `SSUBSCRIBE`, to a shard of a cluster.
    ShardChannels(MultiplexedConnection),
}

/// An established session: every filter is confirmed.
pub(super) struct Session {
    pub(super) sink: Sink,
    pub(super) stream: Hearing,
    /// Messages that arrived before the last confirmation.
    pub(super) held: Vec<Msg>,
    /// Filters that the server no longer allows.
    pub(super) refused: Vec<(Name, String)>,
    /// Shard channels that should be here but are not.
    pub(super) migrating: Vec<String>,
}

/// Connects, and then subscribes to everything, within the time limits.
pub(super) async fn establish(
    client: &Client,
    is_shard: bool,
    channels: Vec<String>,
    globs: Vec<String>,
) -> Result<Session, SessionEnd> {
    let address = client.get_connection_info().addr().to_string();
    let (sink, heard) = timeout(CONNECT_LIMIT, open(client, is_shard))
        .await
        .map_err(|_| unusable(&address, sentence(LATE, Peer::Redis)))?
        .map_err(|why| unusable(&address, words(&why)))?;
    let mut stream = heard.ready_chunks(BATCH);
    let (mut held, mut moved) = (Vec::new(), Vec::new());
    let names = [
        channels.into_iter().map(Name::Channel).collect::<Vec<_>>(),
        globs.into_iter().map(Name::Glob).collect(),
    ];
    let mut subscribe = pin!(subscribe_all(&sink, &address, names));
    let (refused, mut migrating) = loop {
        tokio::select! {
            denied = &mut subscribe => break denied?,
            chunk = stream.next() => {
                let closed = || unusable(&address, sentence(CLOSED, Peer::Redis));
                for heard in chunk.ok_or_else(closed)? {
                    match heard {
                        Heard::Message(message) => held.push(message),
                        Heard::Unsubscribed(channel) => moved.push(channel),
                    }
                }
                // Messages that arrive now are sent after the Lost for all filters. If there are too many, that Lost
                // covers the dropped ones too, as long as the latest are kept.
                if held.len() > HELD_LIMIT {
                    held.clear();
                }
            }
        }
    };
    migrating.append(&mut moved);
    Ok(Session { sink: sink.clone(), stream, held, refused, migrating })
}

fn unusable(address: &str, why: String) -> SessionEnd {
    SessionEnd::Unreachable(format!("{address}: {why}"))
}

async fn open(client: &Client, is_shard: bool) -> Result<(Sink, BoxStream<'static, Heard>), RedisError> {
    if is_shard {
        let (connection, heard) = shard_channels::connect(client).await?;
        return Ok((Sink::ShardChannels(connection), heard));
    }
    let (sink, stream) = client.get_async_pubsub().await?.split();
    Ok((Sink::Channels(sink), stream.map(Heard::Message).boxed()))
}

/// Sees that the server answers, and subscribes to everything. Returns what it no longer allows, and why, and the shard
/// channels that are not there.
async fn subscribe_all(
    sink: &Sink,
    address: &str,
    names: [Vec<Name>; 2],
) -> Result<(Vec<(Name, String)>, Vec<String>), SessionEnd> {
    // The kernel of a stopped server still accepts connections, and a server that requires a password or has too
    // many clients reports it only now. A restricted ACL may not allow PING: that counts as an answer, too.
    let answer = timeout(SILENCE_LIMIT, ping(sink.clone())).await;
    let answer = answer.map_err(|_| unusable(address, sentence(LATE, Peer::Redis)))?;
    if let Some(why) = answer.err().filter(|why| why.code() != Some("NOPERM")) {
        let closed = || sentence(CLOSED, Peer::Redis);
        return Err(unusable(address, if is_answer(&why) { words(&why) } else { closed() }));
    }
    let is_shard = matches!(sink, Sink::ShardChannels(_));
    let (mut refused, mut migrating) = (Vec::new(), Vec::new());
    for chunk in names.iter().flat_map(|names| names.chunks(BATCH)) {
        let denied = timeout(SILENCE_LIMIT, subscribe(sink.clone(), chunk.to_vec())).await;
        for (name, fault) in denied.map_err(|_| SessionEnd::Silent)?.map_err(|_| SessionEnd::Closed)? {
            match (fault, name) {
                (BrokerError::Refused(why) | BrokerError::Unfit(why) | BrokerError::TooLarge(why), name) => {
                    refused.push((name, why))
                }
                (BrokerError::Away(_), Name::Channel(name)) if is_shard => migrating.push(name),
                (BrokerError::Away(why), _) => return Err(unusable(address, why)),
            }
        }
    }
    Ok((refused, migrating))
}

async fn ping(sink: Sink) -> Result<(), RedisError> {
    match sink {
        Sink::Channels(mut sink) => sink.ping::<Value>().await?.extract_error().map(drop),
        Sink::ShardChannels(mut connection) => shard_channels::ping(&mut connection).await,
    }
}

/// Subscribes to all names of one kind with one command. Returns those that are not subscribed now.
///
/// The server checks all channels of a command before it acts on any, so one refused channel fails all of them. They
/// are then tried one by one.
async fn subscribe(sink: Sink, names: Vec<Name>) -> Result<Vec<(Name, BrokerError)>, RedisError> {
    let sink = match sink {
        Sink::Channels(sink) => sink,
        Sink::ShardChannels(mut connection) => {
            return shard_channels::ask(&mut connection, "SSUBSCRIBE", names).await;
        }
    };
    let Err(error) = subscribe_command(sink.clone(), &names).await else { return Ok(Vec::new()) };
    if !is_answer(&error) {
        return Err(error);
    }
    let all = fault(&error);
    if names.len() <= 1 || matches!(all, BrokerError::Away(_)) {
        return Ok(names.into_iter().map(|name| (name, all.clone())).collect());
    }
    let singly = names.into_iter().map(|name| {
        let sink = sink.clone();
        async move {
            let answer = subscribe_command(sink, std::slice::from_ref(&name)).await;
            (name, answer)
        }
    });
    let mut faults = Vec::new();
    for (name, answer) in join_all(singly).await {
        match answer {
            Ok(()) => {}
            Err(error) if is_answer(&error) => faults.push((name, fault(&error))),
            Err(error) => return Err(error),
        }
    }
    Ok(faults)
}

async fn subscribe_command(mut sink: PubSubSink, names: &[Name]) -> Result<(), RedisError> {
    let (channels, globs) = by_kind(names.iter());
    if !channels.is_empty() {
        sink.subscribe(channels).await?;
    }
    if !globs.is_empty() {
        sink.psubscribe(globs).await?;
    }
    Ok(())
}

fn by_kind<'a>(names: impl Iterator<Item = &'a Name>) -> (Vec<&'a str>, Vec<&'a str>) {
    let (mut channels, mut globs) = (Vec::new(), Vec::new());
    for name in names {
        match name {
            Name::Channel(channel) => channels.push(channel.as_str()),
            Name::Glob(glob) => globs.push(glob.as_str()),
        }
    }
    (channels, globs)
}

pub(super) type Done = oneshot::Sender<Result<(), BrokerError>>;

/// A subscription that waits for the server's confirmation.
pub(super) type Waiting = (Filter, Name, Done);

/// A set of names to subscribe to and to unsubscribe from. No name is in both, so their order does not matter.
#[derive(Default)]
pub(super) struct Change {
    pub(super) subscribe: HashSet<Name>,
    pub(super) unsubscribe: HashSet<Name>,
    pub(super) waiting: Vec<Waiting>,
}

impl Change {
    pub(super) fn is_empty(&self) -> bool {
        self.subscribe.is_empty() && self.unsubscribe.is_empty()
    }

    async fn carry_out(
        mut sink: Sink,
        subscribe_to: Vec<Name>,
        unsubscribe_from: Vec<Name>,
    ) -> Result<Vec<(Name, BrokerError)>, RedisError> {
        // If an UNSUBSCRIBE is refused, the messages are dropped on arrival; nothing else happens.
        match &mut sink {
            Sink::Channels(sink) => {
                let allowed = |why: RedisError| if is_answer(&why) { Ok(()) } else { Err(why) };
                let (channels, globs) = by_kind(unsubscribe_from.iter());
                if !channels.is_empty() {
                    sink.unsubscribe(channels).await.or_else(allowed)?;
                }
                if !globs.is_empty() {
                    sink.punsubscribe(globs).await.or_else(allowed)?;
                }
            }
            Sink::ShardChannels(connection) => {
                shard_channels::ask(connection, "SUNSUBSCRIBE", unsubscribe_from).await?;
            }
        }
        let (channels, globs): (Vec<_>, Vec<_>) =
            subscribe_to.into_iter().partition(|name| matches!(name, Name::Channel(_)));
        let mut faults = Vec::new();
        for names in [channels, globs] {
            if !names.is_empty() {
                faults.extend(subscribe(sink.clone(), names).await?);
            }
        }
        Ok(faults)
    }
}

pub(super) type Answer = Result<Vec<(Name, BrokerError)>, RedisError>;

/// The pending request to the server. There is one at a time, so that no name is in two requests.
pub(super) struct Request {
    answer: Pin<Box<dyn Future<Output = Answer> + Send>>,
    pub(super) change: Change,
    pub(super) sent: Instant,
}

impl Request {
    pub(super) fn change(sink: &Sink, mut change: Change) -> Self {
        let subscribe = std::mem::take(&mut change.subscribe).into_iter().collect();
        let unsubscribe = std::mem::take(&mut change.unsubscribe).into_iter().collect();
        let answer = Box::pin(Change::carry_out(sink.clone(), subscribe, unsubscribe));
        Request { answer, change, sent: Instant::now() }
    }

    pub(super) fn ping(sink: &Sink) -> Self {
        let answer = ping(sink.clone()).map(|answer| match answer {
            Err(why) if !is_answer(&why) => Err(why),
            _ => Ok(Vec::new()),
        });
        Request { answer: Box::pin(answer), change: Change::default(), sent: Instant::now() }
    }
}

/// Waits for the answer to the pending request; for ever if there is none. Cancel-safe.
pub(super) async fn answer_of(request: &mut Option<Request>) -> Answer {
    match request {
        Some(request) => request.answer.as_mut().await,
        None => pending().await,
    }
}
