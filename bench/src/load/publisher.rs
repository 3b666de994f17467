//! The one connection on which messages are published, so that they keep their order.

use std::io::{self, Read, Write};
use std::net::SocketAddr;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

/// How a server takes messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Protocol {
    /// POST to this prefix and the topic, on a persistent connection. The next request does not wait for the answer.
    Post(&'static str),
    /// NATS' PUB, with dots in the subject.
    Nats,
}

/// The publishing connection.
#[derive(Debug)]
pub struct Publisher {
    socket: TcpStream,
    protocol: Protocol,
    out: Vec<u8>,
    written: usize,
    /// The refusal of the server.
    pub refusal: Option<String>,
}

impl Publisher {
    /// Connects.
    pub fn connect(
        address: SocketAddr,
        protocol: Protocol,
        registry: &Registry,
        token: Token,
    ) -> io::Result<Self> {
        let socket = std::net::TcpStream::connect(address)?;
        socket.set_nodelay(true)?;
        socket.set_nonblocking(true)?;
        let mut socket = TcpStream::from_std(socket);
        registry.register(&mut socket, token, Interest::READABLE | Interest::WRITABLE)?;
        let out = match protocol {
            Protocol::Nats => b"CONNECT {\"verbose\":false,\"pedantic\":false}\r\n".to_vec(),
            Protocol::Post(_) => Vec::new(),
        };
        Ok(Publisher { socket, protocol, out, written: 0, refusal: None })
    }

    /// Queues a message.
    pub fn push(&mut self, topic: &str, payload: &str) {
        let length = payload.len();
        // Writing to a Vec cannot fail.
        let _ = match &self.protocol {
            Protocol::Post(prefix) => write!(
                self.out,
                "POST {prefix}{topic} HTTP/1.1\r\nHost: localhost\r\n\
                 Content-Length: {length}\r\n\r\n{payload}"
            ),
            Protocol::Nats => write!(self.out, "PUB {} {length}\r\n{payload}\r\n", topic.replace('/', ".")),
        };
    }

    /// Sends what the socket takes.
    pub fn flush(&mut self) -> io::Result<()> {
        while self.written < self.out.len() {
            match self.socket.write(&self.out[self.written..]) {
                Ok(written) => self.written += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        self.out.clear();
        self.written = 0;
        Ok(())
    }

    /// Reads the answers, which are checked for refusals only, and sends the remaining bytes.
    pub fn ready(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        loop {
            let answer = match self.socket.read(buffer) {
                Ok(0) => return Err(io::ErrorKind::ConnectionReset.into()),
                Ok(length) => &buffer[..length],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            };
            let refusals: &[&[u8]] = match self.protocol {
                Protocol::Post(_) => &[b"HTTP/1.1 4", b"HTTP/1.1 5"],
                Protocol::Nats => &[b"-ERR"],
            };
            for refusal in refusals {
                if let Some(at) = memchr::memmem::find(answer, refusal) {
                    let end = answer.len().min(at + 300);
                    self.refusal.get_or_insert(String::from_utf8_lossy(&answer[at..end]).into_owned());
                }
            }
            if self.protocol == Protocol::Nats && memchr::memmem::find(answer, b"PING\r\n").is_some() {
                self.out.extend_from_slice(b"PONG\r\n");
            }
        }
        self.flush()
    }
}
