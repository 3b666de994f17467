//! A TCP proxy that delivers everything late, and can cut its connections.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

/// See the module. It ends with the value.
pub struct Slow {
    pub address: SocketAddr,
    is_cut: watch::Sender<bool>,
}

impl Slow {
    /// Proxies to `upstream`; each way takes `delay`.
    pub async fn start(upstream: SocketAddr, delay: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (is_cut, mut cut) = watch::channel(false);
        tokio::spawn(async move {
            loop {
                let client = tokio::select! {
                    Ok((client, _)) = listener.accept() => client,
                    Err(_) = ended(&mut cut) => return,
                };
                if !*cut.borrow() {
                    tokio::spawn(pass(client, upstream, delay, cut.clone()));
                }
            }
        });
        Slow { address, is_cut }
    }

    /// Cuts every connection, and those that are made until [`Slow::heal`].
    pub fn cut(&self) {
        self.is_cut.send_replace(true);
    }

    pub fn heal(&self) {
        self.is_cut.send_replace(false);
    }
}

async fn ended(cut: &mut watch::Receiver<bool>) -> Result<(), watch::error::RecvError> {
    while cut.changed().await.is_ok() {}
    cut.changed().await
}

async fn pass(client: TcpStream, upstream: SocketAddr, delay: Duration, mut cut: watch::Receiver<bool>) {
    let Ok(server) = TcpStream::connect(upstream).await else { return };
    for socket in [&client, &server] {
        socket.set_nodelay(true).unwrap();
    }
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let both = async {
        tokio::select! {
            () = late(from_client, to_server, delay) => {}
            () = late(from_server, to_client, delay) => {}
        }
    };
    tokio::select! {
        () = both => {}
        _ = cut.wait_for(|is_cut| *is_cut) => {}
    }
}

/// Copies until either side has had enough; each piece arrives `delay` after it came.
async fn late(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Duration) {
    let (sender, mut pieces) = mpsc::unbounded_channel();
    let read = async move {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            if sender.send((Instant::now() + delay, buffer[..length].to_vec())).is_err() {
                return;
            }
        }
        drop(sender);
        std::future::pending::<()>().await;
    };
    let write = async {
        while let Some((at, piece)) = pieces.recv().await {
            sleep_until(at).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = read => {}
        () = write => {}
    }
}
