//! A client that sends bytes that no library would send, and reads the answer as bytes.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::LIMIT;

/// A connection, and the bytes that have arrived and are not checked yet.
pub struct Raw {
    pub socket: TcpStream,
    buffer: Vec<u8>,
}

/// A response that ends by its length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub status: u16,
    /// In lower case, with the status line.
    pub head: String,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Raw {
    pub async fn connect(address: SocketAddr) -> Self {
        Raw::over(TcpStream::connect(address).await.unwrap())
    }

    /// Over a connection of the caller's making.
    pub fn over(socket: TcpStream) -> Self {
        Raw { socket, buffer: vec![] }
    }

    /// Sends, as far as the other side still takes it.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        tokio::time::timeout(LIMIT, self.socket.write_all(bytes.as_ref())).await.expect("it takes nothing")
    }

    /// Reads more. `false` at the end of the connection, however it ends.
    async fn more(&mut self) -> bool {
        let read = tokio::time::timeout(LIMIT, self.socket.read_buf(&mut self.buffer));
        matches!(read.await.expect("neither bytes nor an end"), Ok(1..))
    }

    /// Everything up to and with `needle`.
    pub async fn until(&mut self, needle: &str) -> String {
        loop {
            let found = memchr::memmem::find(&self.buffer, needle.as_bytes());
            if let Some(at) = found {
                let taken: Vec<u8> = self.buffer.drain(..at + needle.len()).collect();
                return String::from_utf8_lossy(&taken).into_owned();
            }
            let more = self.more().await;
            assert!(more, "ended before {needle:?}: {}", String::from_utf8_lossy(&self.buffer));
        }
    }

    /// A head alone: the status, and the head in lower case.
    pub async fn head(&mut self) -> (u16, String) {
        let head = self.until("\r\n\r\n").await.to_lowercase();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head)
    }

    /// A head and as many bytes as it announces.
    pub async fn reply(&mut self) -> Reply {
        let (status, head) = self.head().await;
        let mut reply = Reply { status, head, body: vec![] };
        let length = reply.header("content-length").map_or(0, |length| length.parse().unwrap());
        while self.buffer.len() < length {
            assert!(self.more().await, "the body broke off");
        }
        reply.body = self.buffer.drain(..length).collect();
        reply
    }

    /// Everything until the connection ends, which it must.
    pub async fn rest(&mut self) -> String {
        while self.more().await {}
        String::from_utf8_lossy(&std::mem::take(&mut self.buffer)).into_owned()
    }
}

/// One request of any bytes on a connection of its own, and its reply.
pub async fn exchange(address: SocketAddr, bytes: impl AsRef<[u8]>) -> Reply {
    let mut raw = Raw::connect(address).await;
    raw.send(bytes).await.unwrap();
    raw.reply().await
}

/// A request's bytes. `target` may hold anything; `more` are whole lines, each with its line end.
pub fn ask(method: &str, target: impl AsRef<[u8]>, more: &str) -> Vec<u8> {
    let mut bytes = format!("{method} ").into_bytes();
    bytes.extend_from_slice(target.as_ref());
    bytes.extend_from_slice(b" HTTP/1.1\r\nHost: localhost\r\n");
    bytes.extend_from_slice(more.as_bytes());
    bytes.extend_from_slice(b"\r\n");
    bytes
}
