//! The publisher: it publishes on a separate connection, because a subscribed connection accepts no other commands.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisError, Value};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::answers::{fault, is_answer, lost, words};
use super::session::Done;
use super::shards::Shard;
use super::{BATCH, CONNECT_LIMIT};
use crate::broker::BrokerError;

/// The timeout of a PUBLISH.
const PUBLISH_LIMIT: Duration = Duration::from_secs(2);

/// A connection that was idle for this long is checked with a PING first: a PUBLISH that fails on a dead connection
/// could not be repeated, because it may have arrived.
const PUBLISH_IDLE: Duration = Duration::from_secs(1);

/// The most payload bytes of a pipeline, which is copied twice.
const PUBLISH_BATCH_BYTES: usize = 1024 * 1024;

/// The most messages that wait to be published. Beyond it, the command channel waits.
pub(super) const PUBLISH_CAPACITY: usize = 1024;

/// A message to publish.
pub(super) struct Publish {
    pub(super) channel: String,
    pub(super) payload: Bytes,
    pub(super) done: Done,
}

/// Publishes in the order received, with `command`, on a connection that is opened when it is needed. Ends with its
/// channel.
pub(super) async fn publish_all(
    client: Client,
    command: &'static str,
    mut publishes: mpsc::Receiver<Publish>,
    shard: Option<Arc<Shard>>,
) {
    let mut connection: Option<(MultiplexedConnection, Instant)> = None;
    let mut batch = Vec::new();
    while publishes.recv_many(&mut batch, BATCH).await > 0 {
        while !batch.is_empty() {
            let mut bytes = 0;
            let count = batch.iter().take_while(|publish| {
                let fits = bytes < PUBLISH_BATCH_BYTES;
                bytes += publish.payload.len();
                fits
            });
            let count = count.count();
            let part: Vec<Publish> = batch.drain(..count).collect();
            match publish_pipeline(&client, command, &mut connection, &part).await {
                Ok(answers) => {
                    for (publish, answer) in part.into_iter().zip(answers) {
                        let answer = answer.map(drop).map_err(|error| fault(&error));
                        if let (Err(BrokerError::Away(_)), Some(shard)) = (&answer, &shard) {
                            shard.refresh_topology();
                        }
                        let _ = publish.done.send(answer);
                    }
                }
                Err(why) => {
                    // The waiting messages would run into the same timeout, one after the other.
                    connection = None;
                    while let Ok(publish) = publishes.try_recv() {
                        batch.push(publish);
                    }
                    for publish in part.into_iter().chain(batch.drain(..)) {
                        let _ = publish.done.send(Err(BrokerError::Away(why.clone())));
                    }
                }
            }
        }
    }
}

/// # Errors
/// Why the connection cannot be made, or is lost.
async fn publish_pipeline(
    client: &Client,
    command: &str,
    connection: &mut Option<(MultiplexedConnection, Instant)>,
    publishes: &[Publish],
) -> Result<Vec<Result<i64, RedisError>>, String> {
    if let Some((idle, used)) = connection
        && used.elapsed() > PUBLISH_IDLE
        && redis::cmd("PING").query_async::<Value>(idle).await.is_err_and(|why| !is_answer(&why))
    {
        *connection = None;
    }
    let (ready, used) = match connection {
        Some(ready) => ready,
        None => {
            let settings = AsyncConnectionConfig::new()
                .set_connection_timeout(Some(CONNECT_LIMIT))
                .set_response_timeout(Some(PUBLISH_LIMIT));
            let new = client.get_multiplexed_async_connection_with_config(&settings).await;
            let new = new.map_err(|why| words(&why))?;
            connection.insert((new, Instant::now()))
        }
    };
    let mut pipeline = redis::Pipeline::with_capacity(publishes.len());
    for publish in publishes {
        pipeline.cmd(command).arg(&publish.channel).arg(&publish.payload[..]);
    }
    let answers = pipeline.ignore_errors().query_async(ready).await.map_err(|why| lost(&why))?;
    *used = Instant::now();
    Ok(answers)
}
