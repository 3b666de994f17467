//! A connection of async-nats that does not come back on its own, because what is in force on it would not be known then.

use std::future::ready;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::{Client, ReconnectToServer, ServerAddr};
use tokio::sync::mpsc;

use crate::reason::{Peer, sentence};

/// Time for a connection, handshakes included, to one address of a server.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);

/// async-nats gives a connection up at the third PING without an answer: 12 s, within the contract's 15.
const PING_INTERVAL: Duration = Duration::from_secs(4);

/// Messages that async-nats may hold for one subscription; beyond it it drops some and says so. Filled lazily.
const SUBSCRIPTION_CAPACITY: usize = 512 * 1024;

/// What stands for async-nats' report that it dropped a message.
const OVERRUN: &str = "messages came in faster than the process could take them";

/// Makes a connection that does not come back on its own, and the lines of `-ERR` that the server sends on it.
pub(super) async fn connect(
    address: ServerAddr,
    options: async_nats::ConnectOptions,
) -> Result<(Client, mpsc::Receiver<String>), String> {
    let (error, errors) = mpsc::channel(1024);
    // async-nats always tries to reconnect. It is allowed one attempt, and that one is sent to a port where nothing
    // can listen: it fails at once, the connection's task ends, and every subscription ends once it is drained.
    let dead = ServerAddr::from_str("nats://127.0.0.1:0").map_err(|error| error.to_string())?;
    let name = format!("{}:{}", address.host(), address.port());
    let pool = vec![address.clone(), dead.clone()];
    let connected = AtomicBool::new(false);
    let client = options
        .name("topicgate")
        .connection_timeout(CONNECT_LIMIT)
        .ping_interval(PING_INTERVAL)
        .subscription_capacity(SUBSCRIPTION_CAPACITY)
        .ignore_discovered_servers()
        .retain_servers_order()
        .max_reconnects(1)
        .reconnect_to_server_callback(move |_, _| {
            let addr = if connected.swap(true, Ordering::Relaxed) { &dead } else { &address };
            let target = ReconnectToServer { addr: addr.clone(), delay: Some(Duration::ZERO) };
            ready(Some(target))
        })
        .event_callback(move |event| {
            let words = match event {
                async_nats::Event::ServerError(error) => Some(error.to_string()),
                async_nats::Event::SlowConsumer(_) => Some(OVERRUN.to_owned()),
                _ => None,
            };
            let error = error.clone();
            async move {
                if let Some(words) = words {
                    let _ = error.send(words).await;
                }
            }
        })
        .connect(pool)
        .await
        .map_err(|error| format!("cannot connect: {name}: {}", sentence(&error.to_string(), Peer::Nats)))?;
    Ok((client, errors))
}
