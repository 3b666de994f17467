//! An empty web site, which gives a page its origin.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Its icon is in the page: the browser would ask for one.
const PAGE: &str = "<!doctype html><link rel=\"icon\" href=\"data:,\">";

/// Answers every request on a port of its own with a blank page, whatever name it is asked by.
pub struct Site(SocketAddr);

impl Site {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let _ = socket.read(&mut [0; 4096]).await;
                    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n";
                    let page = format!("{head}Content-Length: {}\r\n\r\n{PAGE}", PAGE.len());
                    let _ = socket.write_all(page.as_bytes()).await;
                });
            }
        });
        Site(address)
    }

    /// The origin of its page under `name`, which must mean this machine: `127.0.0.1`, `localhost`, `app.localhost`.
    pub fn origin(&self, name: &str) -> String {
        format!("http://{name}:{}", self.0.port())
    }
}
