//! Sharded publish/subscribe on the wire: `SSUBSCRIBE` to a channel at the node that has its slot.
//!
//! The library's pub/sub connection does not support shard channels, so this is an ordinary RESP3 connection with
//! pushes.

use std::convert::Infallible;

use futures_util::stream::{self, BoxStream, StreamExt};
use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Msg, PushInfo, PushKind, RedisError, Value};
use tokio::sync::mpsc;

use super::CONNECT_LIMIT;
use super::answers::fault;
use super::client::in_resp3;
use super::push::Heard;
use super::table::Name;
use crate::broker::BrokerError;

/// The most messages that wait to be taken. A connection with more is closed, and its messages may be lost.
pub(super) const HEARD_CAPACITY: usize = 64 * 1024;

/// Connects. The pushes end with the connection.
pub(super) async fn connect(
    client: &Client,
) -> Result<(MultiplexedConnection, BoxStream<'static, Heard>), RedisError> {
    let client = in_resp3(client)?;
    let (sender, receiver) = mpsc::channel(HEARD_CAPACITY);
    let sender = Mutex::new(Some(sender));
    let listen = move |push: PushInfo| {
        let mut sender = sender.lock();
        let is_end = push.kind == PushKind::Disconnection;
        let is_full = heard(push)
            .is_some_and(|heard| sender.as_ref().is_some_and(|sender| sender.try_send(heard).is_err()));
        if is_end || is_full {
            *sender = None;
        }
        Ok::<_, Infallible>(())
    };
    // The callers have their own timeouts.
    let settings = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_LIMIT))
        .set_response_timeout(None)
        .set_push_sender(listen);
    let connection = client.get_multiplexed_async_connection_with_config(&settings).await?;
    let heard = stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver)));
    Ok((connection, heard.boxed()))
}

fn heard(push: PushInfo) -> Option<Heard> {
    match push.kind {
        PushKind::SMessage => Msg::from_push_info(push).map(Heard::Message),
        PushKind::SUnsubscribe => {
            let channel = push.data.into_iter().next()?;
            redis::from_redis_value(channel).ok().map(Heard::Unsubscribed)
        }
        _ => None,
    }
}

/// Checks whether the server answers.
pub(super) async fn ping(connection: &mut MultiplexedConnection) -> Result<(), RedisError> {
    ask_all(connection, redis::pipe()).await.map(drop)
}

/// Sends one command per channel, because channels of different slots cannot share a command. Returns the channels for
/// which it failed.
pub(super) async fn ask(
    connection: &mut MultiplexedConnection,
    command: &str,
    names: Vec<Name>,
) -> Result<Vec<(Name, BrokerError)>, RedisError> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let mut pipeline = redis::pipe();
    for name in &names {
        pipeline.cmd(command).arg(name.as_str());
    }
    let answers = ask_all(connection, pipeline).await?;
    let mut denied = Vec::new();
    for (name, answer) in names.into_iter().zip(answers) {
        match answer {
            Ok(Value::Push { data, .. }) if is_of(&data, &name) => {}
            Ok(_) => return Err(shifted()),
            Err(why) => denied.push((name, fault(&why))),
        }
    }
    Ok(denied)
}

fn is_of(confirmation: &[Value], name: &Name) -> bool {
    matches!(confirmation.first(), Some(Value::BulkString(channel)) if channel == name.as_str().as_bytes())
}

fn shifted() -> RedisError {
    (redis::ErrorKind::UnexpectedReturnType, "an answer belongs to another command").into()
}

/// Sends the commands, and checks that the answers belong to them. When a slot moves, the server pushes that its
/// channels are unsubscribed, and the library takes the push for the answer to the last command, so that all later
/// answers are shifted. A PING with a unique text as the last command detects that.
async fn ask_all(
    connection: &mut MultiplexedConnection,
    mut pipeline: redis::Pipeline,
) -> Result<Vec<Result<Value, RedisError>>, RedisError> {
    let word = fastrand::u64(..).to_string();
    pipeline.cmd("PING").arg(&word);
    let mut answers: Vec<Result<Value, RedisError>> =
        pipeline.ignore_errors().query_async(connection).await?;
    match answers.pop() {
        Some(Ok(Value::BulkString(back))) if back == word.as_bytes() => Ok(answers),
        // A restricted ACL: this is still the answer to the PING.
        Some(Err(why))
            if why.code() == Some("NOPERM") && why.detail().is_some_and(|why| why.contains("'ping'")) =>
        {
            Ok(answers)
        }
        _ => Err(shifted()),
    }
}
