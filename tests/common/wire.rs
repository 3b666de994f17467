//! Bytes as they are on the wire: for details that a client library hides, and for readers that misbehave.

use std::net::SocketAddr;

use bytes::Bytes;
use eventsource_stream::{Event, Eventsource};
use futures_util::{StreamExt, stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::LIMIT;

/// A subscriber that sees every byte of the body.
pub struct Wire {
    pub socket: TcpStream,
    pub head: String,
    /// The body that was read so far, with its chunks.
    pub body: Vec<u8>,
}

impl Wire {
    /// A stream over HTTP/1.1. Insists on 200.
    pub async fn open(address: SocketAddr, path: &str) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        Self::over(socket, address, path, "1.1").await
    }

    /// A stream to a client whose receive buffer is so small that it is soon full, and which then reads badly.
    pub async fn narrow(address: SocketAddr, path: &str) -> Self {
        Self::buffered(address, path, 4 * 1024).await
    }

    /// A stream to a client with a receive buffer of this size.
    pub async fn buffered(address: SocketAddr, path: &str, bytes: u32) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(bytes).unwrap();
        Self::over(socket, address, path, "1.1").await
    }

    pub async fn over(socket: TcpSocket, address: SocketAddr, path: &str, version: &str) -> Self {
        Self::ask(socket, address, path, version, "").await
    }

    /// A compressed stream over HTTP/1.1, to a client with a receive buffer of this size if one is given.
    pub async fn gzip(address: SocketAddr, path: &str, buffer: Option<u32>) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        buffer.into_iter().for_each(|bytes| socket.set_recv_buffer_size(bytes).unwrap());
        Self::ask(socket, address, path, "1.1", "Accept-Encoding: gzip\r\n").await
    }

    /// `fields` are whole lines.
    async fn ask(socket: TcpSocket, address: SocketAddr, path: &str, version: &str, fields: &str) -> Self {
        let mut socket = timeout(LIMIT, socket.connect(address)).await.unwrap().unwrap();
        let request = format!("GET {path} HTTP/{version}\r\nHost: {address}\r\n{fields}\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut wire = Wire { socket, head: String::new(), body: Vec::new() };
        wire.until(b"\r\n\r\n").await;
        let end = wire.body.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        wire.head = String::from_utf8(wire.body.drain(..end).collect()).unwrap();
        assert!(wire.head.contains(" 200 "), "{}", wire.head);
        wire
    }

    /// Reads until these bytes have come.
    pub async fn until(&mut self, needle: &[u8]) {
        let mut seen = 0;
        while !self.body[seen..].windows(needle.len()).any(|window| window == needle) {
            seen = (self.body.len() + 1).saturating_sub(needle.len());
            self.body.reserve(64 * 1024);
            let read =
                timeout(LIMIT, self.socket.read_buf(&mut self.body)).await.expect("too little").unwrap();
            assert!(read > 0, "the connection ended early: {}", String::from_utf8_lossy(&self.body));
        }
    }

    /// Reads at most `count` bytes; returns how many arrived, 0 at the end.
    pub async fn take(&mut self, most: usize) -> usize {
        let mut bytes = vec![0; most];
        let read = timeout(LIMIT, self.socket.read(&mut bytes)).await.expect("nothing came").unwrap();
        self.body.extend_from_slice(&bytes[..read]);
        read
    }

    /// Reads to the end of the connection.
    pub async fn until_end(&mut self) -> &[u8] {
        timeout(LIMIT, self.socket.read_to_end(&mut self.body)).await.expect("no end").unwrap();
        &self.body
    }

    /// Leaves with a reset, as a client does that crashes.
    pub fn reset(self) {
        self.socket.set_zero_linger().unwrap();
    }
}

/// The content of the whole chunks at the beginning of a body.
pub fn begun(mut coded: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    while let Some(line) = coded.windows(2).position(|two| two == b"\r\n") {
        let length = usize::from_str_radix(std::str::from_utf8(&coded[..line]).unwrap(), 16).unwrap();
        let Some(chunk) = coded.get(line + 2..line + 2 + length) else { break };
        plain.extend_from_slice(chunk);
        coded = coded.get(line + 2 + length + 2..).unwrap_or_default();
    }
    plain
}

/// The content of a chunked body that is whole: every chunk of its length, and the last of length 0.
pub fn dechunk(mut coded: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    loop {
        let line = coded.windows(2).position(|two| two == b"\r\n").expect("no end of a chunk's length");
        let length = usize::from_str_radix(std::str::from_utf8(&coded[..line]).unwrap(), 16).unwrap();
        coded = &coded[line + 2..];
        plain.extend_from_slice(&coded[..length]);
        assert_eq!(&coded[length..length + 2], b"\r\n");
        coded = &coded[length + 2..];
        if length == 0 {
            assert!(coded.is_empty(), "bytes after the last chunk");
            return plain;
        }
    }
}

/// The events of a whole plain body, read by a parser that is not ours. The body must end with a whole event.
pub async fn events(plain: Vec<u8>) -> Vec<Event> {
    assert!(plain.ends_with(b"\n\n"), "ends within an event: {:?}", String::from_utf8_lossy(&plain));
    let bytes = stream::iter([Ok::<_, std::convert::Infallible>(Bytes::from(plain))]);
    bytes.eventsource().map(Result::unwrap).collect().await
}

/// Publishes each payload in order over one connection, without waiting for one answer before the next request, and
/// insists that all are accepted.
pub async fn publish_all(
    address: SocketAddr,
    topic: &str,
    payloads: impl IntoIterator<Item = impl AsRef<[u8]>>,
) {
    let mut requests = Vec::new();
    let mut count = 0;
    for payload in payloads {
        let payload = payload.as_ref();
        let length = payload.len();
        let head =
            format!("POST /topics/{topic} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {length}\r\n\r\n");
        requests.extend_from_slice(head.as_bytes());
        requests.extend_from_slice(payload);
        count += 1;
    }
    let (mut from, mut to) = TcpStream::connect(address).await.unwrap().into_split();
    let sending = async move {
        to.write_all(&requests).await.unwrap();
        to
    };
    let receiving = async {
        let (mut answers, mut accepted) = (Vec::new(), 0);
        while accepted < count {
            let read = timeout(LIMIT, from.read_buf(&mut answers)).await.expect("no answer").unwrap();
            assert!(read > 0, "the connection ended after {accepted} answers");
            const ANSWER: &[u8] = b"HTTP/1.1 202 ";
            let mut place = 0;
            while let Some(found) = answers[place..].windows(ANSWER.len()).position(|window| window == ANSWER)
            {
                place += found + ANSWER.len();
                accepted += 1;
            }
            answers.drain(..place);
        }
    };
    tokio::join!(sending, receiving);
}
