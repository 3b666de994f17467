//! A TCP proxy that cuts connections: after a number of bytes, with FIN or with RST, even in the middle of an event.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// See the module.
pub struct Proxy {
    pub address: SocketAddr,
    cuts: Arc<AtomicUsize>,
}

impl Proxy {
    /// Proxies to `upstream`. Connection *n* is cut once `bytes(n)` bytes went to the client, for the first `cuts`
    /// connections; every other one with RST instead of FIN.
    pub async fn start(upstream: SocketAddr, cuts: usize, bytes: fn(usize) -> usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let counter = Arc::new(AtomicUsize::new(0));
        let cut = counter.clone();
        tokio::spawn(async move {
            let mut connections = 0;
            while let Ok((client, _)) = listener.accept().await {
                let budget = if connections < cuts { bytes(connections) } else { usize::MAX };
                tokio::spawn(pass(client, upstream, budget, connections % 2 == 1, cut.clone()));
                connections += 1;
            }
        });
        Proxy { address, cuts: counter }
    }

    /// Connections cut so far.
    pub fn cuts(&self) -> usize {
        self.cuts.load(Ordering::Relaxed)
    }
}

async fn pass(
    client: TcpStream,
    upstream: SocketAddr,
    mut budget: usize,
    reset: bool,
    cuts: Arc<AtomicUsize>,
) {
    let Ok(server) = TcpStream::connect(upstream).await else { return };
    let (mut from_server, mut to_server) = server.into_split();
    let (mut from_client, mut to_client) = client.into_split();
    let requests = tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
    let mut buffer = vec![0; 16 * 1024];
    while budget > 0 {
        let Ok(length @ 1..) = from_server.read(&mut buffer).await else { break };
        let part = length.min(budget);
        if to_client.write_all(&buffer[..part]).await.is_err() {
            break;
        }
        budget -= part;
    }
    requests.abort();
    if budget == 0 {
        cuts.fetch_add(1, Ordering::Relaxed);
        if reset {
            // A linger of zero makes the close an RST; but a half that is dropped says FIN first.
            let _ = socket2::SockRef::from(to_client.as_ref()).set_linger(Some(Duration::ZERO));
            to_client.forget();
        }
    }
}
