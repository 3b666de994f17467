//! The connections to one server, and which server it is.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Value};
use tokio::time::sleep;

use crate::broker::BrokerError;
use crate::broker::redis::CONNECT_LIMIT;
use crate::broker::redis::answers::{fault, is_answer, words};
use crate::broker::redis::servers::Servers;

/// How long the server may take to answer.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// How long a read waits for entries. A read of keys that was begun before another key was followed is ended at once
/// (`CLIENT UNBLOCK`).
const BLOCK: Duration = Duration::from_secs(1);

/// As [`BLOCK`], where the user may not end reads: then a key that is followed anew waits so long for its first read.
const SHORT_BLOCK: Duration = Duration::from_millis(100);

/// The read that waits is told so often to end, until it has: it may not have begun when it was told first.
const INTERRUPT_EVERY: Duration = Duration::from_millis(20);

/// Two connections: a read that waits would hold up everything behind it.
pub(super) struct Session {
    /// Follows: one read at a time, in order.
    pub(super) reads: MultiplexedConnection,
    /// Everything else, at once.
    pub(super) commands: MultiplexedConnection,
    /// The id of `reads`, if the server tells it.
    pub(super) reader: Option<i64>,
    pub(super) server: Server,
}

impl Session {
    /// Connects, within the limits.
    ///
    /// # Errors
    /// Why not: one line, without secrets.
    pub(super) async fn connect(servers: &Servers) -> Result<Self, String> {
        let client = servers.find().await.map_err(|why| format!("cannot connect: {why}"))?;
        let address = client.get_connection_info().addr();
        let unreachable = |why| format!("cannot connect: {address}: {}", words(&why));
        let settings = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_LIMIT))
            .set_response_timeout(Some(ANSWER_LIMIT));
        let open = || client.get_multiplexed_async_connection_with_config(&settings);
        let (mut reads, mut commands) = tokio::try_join!(open(), open()).map_err(unreachable)?;
        // A server that is loading, or wants a password, says so only now. A narrow ACL is an answer like any other.
        let server = match redis::cmd("INFO").query_async::<String>(&mut commands).await {
            // While it loads its file it says that it keeps none, and that is what tells whether something was lost.
            Ok(info) if info.lines().any(|line| line.trim_end() == "loading:1") => {
                return Err("the server is loading what it keeps".into());
            }
            Ok(info) => Server::read(&address.to_string(), &info),
            Err(why) if is_answer(&why) && matches!(fault(&why), BrokerError::Refused(_)) => {
                Server::default()
            }
            Err(why) => return Err(unreachable(why)),
        };
        if servers.is_watched() && server.is_replica {
            return Err(format!(
                "cannot connect: {address} is no master any more, though a sentinel names it"
            ));
        }
        let reader = match redis::cmd("CLIENT").arg("ID").query_async(&mut reads).await {
            Ok(id) => Some(id),
            Err(why) if is_answer(&why) => None,
            Err(why) => return Err(unreachable(why)),
        };
        Ok(Session { reads, commands, reader, server })
    }

    /// Ends the read that waits, over and over until it is dropped.
    pub(super) async fn interrupt(mut commands: MultiplexedConnection, reader: i64) {
        loop {
            let _ = redis::cmd("CLIENT").arg("UNBLOCK").arg(reader).query_async::<Value>(&mut commands).await;
            sleep(INTERRUPT_EVERY).await;
        }
    }

    /// How long a read may wait.
    pub(super) fn block(&self) -> Duration {
        if self.reader.is_some() { BLOCK } else { SHORT_BLOCK }
    }
}

/// Which server, and what it can have lost.
#[derive(Debug, Clone, Default)]
pub(super) struct Server {
    address: String,
    run: Option<String>,
    is_replica: bool,
    history: Option<String>,
    /// The history it continued as a replica, before it became a master.
    continued: Option<String>,
    /// Whether what it has confirmed is in a file (`appendonly`).
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

    /// Whether it holds all that `before` had confirmed: it is the same process, or has read its own file since. What
    /// a user may not ask (`INFO`) is not so.
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
    fn a_server_is_told_from_one_that_took_its_place() {
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
