//! The connections to one server, and the identity of the server, by which a restart or a replacement is detected.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisError, Value};
use tokio::time::sleep;

use super::changes::Changes;
use super::read::ping;
use crate::broker::BrokerError;
use crate::broker::redis::CONNECT_LIMIT;
use crate::broker::redis::answers::{fault, is_answer, lost, words};
use crate::broker::redis::client::in_resp3;
use crate::broker::redis::servers::Servers;

/// The timeout of an answer.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// How long a read blocks for entries. If another key is followed meanwhile, the read is ended at once (`CLIENT
/// UNBLOCK`).
const BLOCK: Duration = Duration::from_secs(1);

/// As [`BLOCK`], if the user has no permission to unblock reads: then a new key waits this long for its first read.
const SHORT_BLOCK: Duration = Duration::from_millis(100);

/// How often a blocking read is unblocked until it ends: it may not have begun at the first attempt.
const INTERRUPT_EVERY: Duration = Duration::from_millis(20);

/// Two connections, because a blocking read would delay all commands after it.
pub(super) struct Session {
    /// For following: one read at a time, in order.
    pub(super) reads: MultiplexedConnection,
    /// For all other commands, concurrently.
    pub(super) commands: MultiplexedConnection,
    pub(super) waking: Waking,
    pub(super) server: Server,
}

/// How new entries are noticed.
pub(super) enum Waking {
    /// Reads block, and can be unblocked by this connection id.
    Unblock(i64),
    /// Reads block briefly, because they cannot be unblocked.
    ShortBlock,
    /// The server reports which keys have changed.
    ChangedKeys(Arc<Changes>),
    /// Every key is read regularly.
    Poll,
}

impl Waking {
    /// How long a read may block.
    pub(super) fn block(&self) -> Duration {
        if matches!(self, Waking::Unblock(_)) { BLOCK } else { SHORT_BLOCK }
    }
}

impl Session {
    /// Connects, within the limits.
    ///
    /// # Errors
    /// Why connecting failed, in one line without secrets.
    pub(super) async fn connect(servers: &Servers) -> Result<Self, String> {
        let client = servers.find().await.map_err(|why| format!("cannot connect: {why}"))?;
        let address = client.get_connection_info().addr();
        let unreachable = |why| format!("cannot connect: {address}: {}", words(&why));
        let settings = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_LIMIT))
            .set_response_timeout(Some(ANSWER_LIMIT));
        let open = || client.get_multiplexed_async_connection_with_config(&settings);
        let mut commands = open().await.map_err(unreachable)?;
        // A server that is loading or requires a password reports it only now. A permission error counts as an answer,
        // too.
        let mut server = match redis::cmd("INFO").query_async::<String>(&mut commands).await {
            // While it loads its file, it reports that it has none, but that information shows whether entries were
            // lost.
            Ok(info) if info.lines().any(|line| line.trim_end() == "loading:1") => {
                return Err("the server is loading its data".into());
            }
            Ok(info)
                if !servers.is_cluster()
                    && info.lines().any(|line| line.trim_end() == "redis_mode:cluster") =>
            {
                return Err(format!("{address} is a node of a Redis Cluster; set broker.cluster = true"));
            }
            Ok(info) => Server::read(&address.to_string(), &info),
            Err(why) if is_answer(&why) && matches!(fault(&why), BrokerError::Refused(_)) => {
                Server::default()
            }
            Err(why) => return Err(unreachable(why)),
        };
        if server.keeps_a_file {
            let mut policy = redis::cmd("CONFIG");
            policy.arg("GET").arg("appendfsync");
            server.keeps_a_file = match policy.query_async::<Vec<String>>(&mut commands).await {
                Ok(policy) => policy.last().is_some_and(|policy| policy == "always"),
                Err(why) if is_answer(&why) => false,
                Err(why) => return Err(unreachable(why)),
            };
        }
        if servers.is_watched() && server.is_replica {
            return Err(format!(
                "cannot connect: {address} is no longer a master, although it was reported as one"
            ));
        }
        let reading = if servers.is_cluster() {
            tracked(&client, &settings).await
        } else {
            match open().await {
                Ok(reads) => waiting(reads).await,
                Err(why) => Err(why),
            }
        };
        let (reads, waking) = reading.map_err(unreachable)?;
        Ok(Session { reads, commands, waking, server })
    }

    /// Sees that the connection for commands works, and keeps the server from closing it because it is idle.
    pub(super) fn check(&self) -> BoxFuture<'static, Result<(), String>> {
        let mut commands = self.commands.clone();
        Box::pin(async move { ping(&mut commands).await.map_err(|why| lost(&why)) })
    }

    /// Unblocks the blocking read repeatedly, until this is dropped; `None` if it cannot be unblocked.
    pub(super) fn interrupt(&self) -> Option<BoxFuture<'static, ()>> {
        let Waking::Unblock(reader) = self.waking else { return None };
        let mut commands = self.commands.clone();
        Some(Box::pin(async move {
            loop {
                let mut unblock = redis::cmd("CLIENT");
                let _ = unblock.arg("UNBLOCK").arg(reader).query_async::<Value>(&mut commands).await;
                sleep(INTERRUPT_EVERY).await;
            }
        }))
    }

    /// Waits until the server reports changed keys; for ever if it does not support that. Cancel-safe.
    pub(super) async fn changed(&self) {
        match &self.waking {
            Waking::ChangedKeys(changes) => changes.changed().await,
            Waking::Unblock(_) | Waking::ShortBlock | Waking::Poll => pending().await,
        }
    }
}

/// The connection for blocking reads, outside of a cluster.
async fn waiting(mut reads: MultiplexedConnection) -> Result<(MultiplexedConnection, Waking), RedisError> {
    match redis::cmd("CLIENT").arg("ID").query_async(&mut reads).await {
        Ok(id) => Ok((reads, Waking::Unblock(id))),
        Err(why) if is_answer(&why) => Ok((reads, Waking::ShortBlock)),
        Err(why) => Err(why),
    }
}

/// A connection on which the server reports changes of the keys that were read, or a plain one if the user has no
/// permission for that (`HELLO`, `CLIENT TRACKING`).
async fn tracked(
    client: &Client,
    settings: &AsyncConnectionConfig,
) -> Result<(MultiplexedConnection, Waking), RedisError> {
    let unasked = in_resp3(client)?;
    let changes = Arc::new(Changes::default());
    let listening = settings.clone().set_push_sender(changes.listen());
    let asking = async {
        let mut reads = unasked.get_multiplexed_async_connection_with_config(&listening).await?;
        redis::cmd("CLIENT").arg("TRACKING").arg("ON").query_async::<Value>(&mut reads).await?;
        Ok::<_, RedisError>(reads)
    };
    match asking.await {
        Ok(reads) => Ok((reads, Waking::ChangedKeys(changes))),
        Err(why) if is_answer(&why) => {
            Ok((client.get_multiplexed_async_connection_with_config(settings).await?, Waking::Poll))
        }
        Err(why) => Err(why),
    }
}

/// The identity of a server, and whether it can have lost entries.
#[derive(Debug, Clone, Default)]
pub(super) struct Server {
    address: String,
    run: Option<String>,
    is_replica: bool,
    history: Option<String>,
    /// The replication id that it continued as a replica before it became a master.
    continued: Option<String>,
    /// Whether confirmed entries are in a file: with `appendonly yes` and `appendfsync always`. With `everysec`, the
    /// file may be up to two seconds behind while the disk is busy, and entries that nobody had read by then would be
    /// lost silently.
    keeps_a_file: bool,
}

impl Server {
    fn read(address: &str, info: &str) -> Self {
        let value = |name: &str| {
            let mut lines = info.lines().filter_map(|line| line.split_once(':'));
            lines.find(|(key, _)| *key == name).map(|(_, value)| value.trim().to_owned())
        };
        Server {
            address: address.to_owned(),
            run: value("run_id"),
            is_replica: value("role").as_deref() == Some("slave"),
            history: value("master_replid"),
            continued: value("master_replid2"),
            keeps_a_file: value("aof_enabled").as_deref() == Some("1"),
        }
    }

    /// Whether it has all entries that `before` had confirmed: it is the same process, or has loaded its own file
    /// since. Without permission for `INFO`, the answer is no.
    pub(super) fn continues(&self, before: &Server) -> bool {
        let same = self.run.is_some() && self.run == before.run && self.history == before.history;
        let promoted = self.continued == before.history;
        let same_place = self.address == before.address;
        same || same_place && before.keeps_a_file && self.keeps_a_file && self.history.is_some() && !promoted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_distinguished_from_one_that_took_its_place() {
        let server = |run: &str, history: &str, continued: &str, aof: &str| {
            Server::read(
                "h:1",
                &format!(
                    "# Server\r\nrun_id:{run}\r\nmaster_replid:{history}\r\nmaster_replid2:{continued}\r\naof_enabled:{aof}\r\n"
                ),
            )
        };
        let before = server("r1", "h1", "0", "0");
        assert!(server("r1", "h1", "0", "0").continues(&before));
        assert!(!server("r2", "h2", "0", "0").continues(&before), "restarted without a file");
        assert!(!server("r1", "h2", "0", "0").continues(&before), "it has followed another one meanwhile");
        let before = server("r1", "h1", "0", "1");
        assert!(server("r2", "h2", "0", "1").continues(&before), "restarted with its file");
        assert!(!server("r2", "h2", "h1", "1").continues(&before), "a replica that was promoted");
        assert!(!Server::default().continues(&Server::default()));
    }
}
