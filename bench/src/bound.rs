//! The bound: the cost of the kernel, and nothing more. It has one thread and one epoll, and writes a ready frame to each
//! subscriber with one `write`. It has no resume, no heartbeat, no limits, and no HTTP beyond the blank line that ends a
//! request: this is the cost of fan-out without any promise. Its messages come from a nats-server, as the gateway's do;
//! all messages of one read are one frame.
//!
//! A stream of several topics is stored under the first segment that they share, so that it is one list as well.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use slab::Slab;

/// A reader that is further behind than this loses messages silently, because the bound has no log.
const MAX_PENDING: usize = 1 << 20;

const LISTENER: Token = Token(usize::MAX);
const BROKER: Token = Token(usize::MAX - 1);
const HEAD: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";

struct Connection {
    socket: TcpStream,
    /// Bytes that the socket has not taken yet.
    pending: Vec<u8>,
}

struct Bound {
    poll: Poll,
    connections: Slab<Connection>,
    broker: TcpStream,
    /// The subscribers of each topic. One that has left is dropped at the next write to it.
    topics: HashMap<String, Vec<usize>>,
    /// The bytes of a message that has not arrived completely.
    partial: Vec<u8>,
    buffer: Vec<u8>,
    sequence: u64,
}

/// Serves the messages of `broker` until the process is killed.
pub fn run(address: SocketAddr, broker: SocketAddr) -> Result<()> {
    let mut listener = TcpListener::bind(address)?;
    let poll = Poll::new()?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut broker = std::net::TcpStream::connect(broker)?;
    broker.write_all(b"CONNECT {\"verbose\":false,\"pedantic\":false}\r\nSUB > 1\r\n")?;
    broker.set_nonblocking(true)?;
    let mut broker = TcpStream::from_std(broker);
    poll.registry().register(&mut broker, BROKER, Interest::READABLE)?;
    let mut bound = Bound {
        poll,
        connections: Slab::new(),
        broker,
        topics: HashMap::new(),
        partial: Vec::new(),
        buffer: vec![0; 1 << 20],
        sequence: 0,
    };
    let mut events = Events::with_capacity(1024);
    loop {
        match bound.poll.poll(&mut events, None) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        }
        for event in &events {
            if event.token() == LISTENER {
                bound.accept(&listener)?;
                continue;
            }
            if event.token() == BROKER {
                bound.receive()?;
                continue;
            }
            let key = event.token().0;
            if event.is_writable() {
                bound.write(key, &[]);
            }
            if event.is_readable() {
                bound.read(key)?;
            }
        }
    }
}

impl Bound {
    fn accept(&mut self, listener: &TcpListener) -> Result<()> {
        loop {
            let mut socket = match listener.accept() {
                Ok((socket, _)) => socket,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            socket.set_nodelay(true)?;
            let entry = self.connections.vacant_entry();
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.poll.registry().register(&mut socket, Token(entry.key()), interest)?;
            entry.insert(Connection { socket, pending: Vec::new() });
        }
    }

    /// A request arrives in one read here: the client is on loopback and writes it at once.
    fn read(&mut self, key: usize) -> Result<()> {
        loop {
            let Some(connection) = self.connections.get_mut(key) else { return Ok(()) };
            let length = match connection.socket.read(&mut self.buffer) {
                Ok(0) => {
                    self.connections.remove(key);
                    return Ok(());
                }
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(_) => {
                    self.connections.remove(key);
                    return Ok(());
                }
            };
            if let Some(topic) = request_topic(&self.buffer[..length]) {
                self.topics.entry(topic).or_default().push(key);
                self.write(key, HEAD);
            }
        }
    }

    fn receive(&mut self) -> Result<()> {
        loop {
            match self.broker.read(&mut self.buffer) {
                Ok(0) => bail!("the broker is gone"),
                Ok(length) => self.partial.extend_from_slice(&self.buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            self.publish()?;
        }
    }

    /// Writes every whole message of `partial`.
    fn publish(&mut self) -> Result<()> {
        let bytes = std::mem::take(&mut self.partial);
        let mut rest = &bytes[..];
        let mut batch: Vec<(String, Vec<u8>)> = Vec::new();
        while let Some(end) = memchr::memchr(b'\n', rest) {
            let line = std::str::from_utf8(&rest[..end])?.trim_end();
            let mut words = line.split(' ');
            match words.next() {
                Some("MSG") => {}
                other => {
                    if other == Some("PING") {
                        self.broker.write_all(b"PONG\r\n")?;
                    }
                    rest = &rest[end + 1..];
                    continue;
                }
            }
            let subject = words.next().context("MSG without a subject")?;
            let length: usize = words.next_back().context("MSG without a length")?.parse()?;
            let Some(payload) = rest.get(end + 1..end + 1 + length) else { break };
            let Some(next) = rest.get(end + 1 + length + 2..) else { break };
            rest = next;
            self.sequence += 1;
            let mut topic = subject.replace('.', "/");
            if !self.topics.contains_key(&topic) {
                topic.truncate(topic.find('/').unwrap_or(topic.len()));
            }
            if batch.last().is_none_or(|(last, _)| *last != topic) {
                batch.push((topic, Vec::new()));
            }
            if let Some((_, frames)) = batch.last_mut() {
                let id = self.sequence;
                let size = format!("id: {id}\ndata: ").len() + payload.len() + 2;
                write!(frames, "{size:x}\r\nid: {id}\ndata: ")?;
                frames.extend_from_slice(payload);
                frames.extend_from_slice(b"\n\n\r\n");
            }
        }
        self.partial = rest.to_vec();
        for (topic, frames) in batch {
            let Some(mut readers) = self.topics.remove(&topic) else { continue };
            readers.retain(|key| self.write(*key, &frames));
            self.topics.insert(topic, readers);
        }
        Ok(())
    }

    /// Writes what is pending and then `bytes`. Returns whether the connection is still there.
    fn write(&mut self, key: usize, bytes: &[u8]) -> bool {
        let Some(connection) = self.connections.get_mut(key) else { return false };
        if !connection.pending.is_empty() {
            if connection.pending.len() < MAX_PENDING {
                connection.pending.extend_from_slice(bytes);
            }
            let mut pending = std::mem::take(&mut connection.pending);
            let written = send(&mut connection.socket, &pending);
            pending.drain(..written);
            connection.pending = pending;
        } else if !bytes.is_empty() {
            let written = send(&mut connection.socket, bytes);
            connection.pending.extend_from_slice(&bytes[written..]);
        }
        true
    }
}

/// The number of bytes that the socket takes. A broken socket takes all of them; its end is noticed by reading.
fn send(socket: &mut TcpStream, bytes: &[u8]) -> usize {
    let mut written = 0;
    while written < bytes.len() {
        match socket.write(&bytes[written..]) {
            Ok(more) => written += more,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return written,
            Err(_) => return bytes.len(),
        }
    }
    written
}

fn request_topic(request: &[u8]) -> Option<String> {
    let target = std::str::from_utf8(request).ok()?.strip_prefix("GET /topics")?.split(' ').next()?;
    Some(match target.strip_prefix("?topic=") {
        Some(topics) => topics.split('/').next()?.to_owned(),
        None => target.strip_prefix('/')?.to_owned(),
    })
}
