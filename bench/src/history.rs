//! Messages that a broker stores: written for a run, and read directly, without a gateway. Both brokers are accessed in
//! their own protocol over a plain socket, so that a direct reader costs as little as possible.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;

use crate::load::{Found, Reader, payload};

/// The topic of the messages.
pub const TOPIC: &str = "kept/old";
/// Bytes of each message.
pub const SIZE: usize = 200;

const STREAM: &str = "KEPT";
/// Messages that are requested, or sent, at once.
const PART: u32 = 1000;
/// A broker that is silent for this long has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// The broker that stores the messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum History {
    /// A stream of NATS JetStream, in a file.
    Jetstream,
    /// A Redis Stream.
    RedisStream,
}

impl History {
    /// As in a rule's `source`, and in names of scenarios.
    pub fn name(self) -> &'static str {
        match self {
            History::Jetstream => "jetstream",
            History::RedisStream => "redis-stream",
        }
    }

    /// Stores messages with the numbers from 0 on, and waits until the broker has them.
    pub fn fill(self, broker: SocketAddr, messages: u32) -> Result<()> {
        match self {
            History::Jetstream => Nats::connect(broker)?.fill(messages),
            History::RedisStream => fill_redis(broker, messages),
        }
        .with_context(|| format!("filling a {}", self.name()))
    }

    /// Reads all messages, and returns the number of bytes.
    fn read(self, broker: SocketAddr, messages: u32) -> Result<u64> {
        let mut reader = Checked(Reader::new(0, 1, true));
        match self {
            History::Jetstream => Nats::connect(broker)?.read(messages, &mut reader),
            History::RedisStream => read_redis(broker, messages, &mut reader),
        }
        .with_context(|| format!("reading a {}", self.name()))
    }
}

/// Acts as a direct reader: for each connection that sends a number of messages, reads that many and answers with the
/// number of bytes.
pub fn run(listen: SocketAddr, broker: SocketAddr, history: History) -> Result<()> {
    let listener = TcpListener::bind(listen)?;
    loop {
        let (mut socket, _) = listener.accept()?;
        let mut asked = [0; 4];
        if socket.read_exact(&mut asked).is_err() {
            continue; // it only looked whether we listen
        }
        let bytes = history.read(broker, u32::from_be_bytes(asked))?;
        socket.write_all(&bytes.to_be_bytes())?;
    }
}

/// Asks a direct reader. Returns the number of bytes that it read.
pub fn ask(reader: SocketAddr, messages: u32) -> Result<u64> {
    let mut socket = TcpStream::connect(reader)?;
    socket.write_all(&messages.to_be_bytes())?;
    let mut answer = [0; 8];
    socket.read_exact(&mut answer).context("the direct reader failed")?;
    Ok(u64::from_be_bytes(answer))
}

/// Checks that every message arrives complete and in order, as the load's subscribers do.
struct Checked(Reader);

impl Checked {
    fn feed(&mut self, bytes: &[u8]) -> Result<()> {
        let mut sound = true;
        self.0.feed(bytes, SIZE, |reader, found| {
            sound &= match found {
                Found::Message { number, .. } => reader.advance(number) == Some(0),
                Found::Torn => false,
            };
        });
        ensure!(sound, "a message is torn, or not the next one, after {}", self.0.received);
        Ok(())
    }
}

/// A connection to a nats-server.
struct Nats {
    socket: TcpStream,
    /// Bytes that were read; from `begin` on, they are not parsed yet.
    buffer: Vec<u8>,
    begin: usize,
    bytes: u64,
}

/// A message from a nats-server.
struct Delivered {
    reply: Option<String>,
    /// Its place in the buffer: the header fields, and the payload.
    header: std::ops::Range<usize>,
    payload: std::ops::Range<usize>,
}

impl Nats {
    fn connect(broker: SocketAddr) -> Result<Self> {
        let mut socket = connect(broker)?;
        socket.write_all(
            b"CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true}\r\nSUB _INBOX.answer 1\r\nSUB _INBOX.read 2\r\n",
        )?;
        Ok(Nats { socket, buffer: Vec::new(), begin: 0, bytes: 0 })
    }

    fn fill(&mut self, messages: u32) -> Result<()> {
        let subject = TOPIC.replace('/', ".");
        self.ask(
            &format!("STREAM.CREATE.{STREAM}"),
            &format!(
                r#"{{"name":"{STREAM}","subjects":["kept.>"],"retention":"limits","storage":"file","num_replicas":1,"allow_direct":true}}"#
            ),
        )?;
        for begin in (0..messages).step_by(PART as usize) {
            let (mut out, end) = (Vec::new(), messages.min(begin + PART));
            for number in begin..end {
                // Confirming the last message confirms all before it. A server drops messages if too many arrive.
                let reply = if number + 1 == end { "_INBOX.answer " } else { "" };
                write!(out, "PUB {subject} {reply}{SIZE}\r\n{}\r\n", payload(number, 0, SIZE))?;
            }
            self.socket.write_all(&out)?;
            let answer = self.answer()?;
            ensure!(answer.contains(&format!("\"seq\":{end}")), "not all was stored: {answer}");
        }
        Ok(())
    }

    /// With an ordered consumer (ADR-17): a push consumer without acknowledgements, with flow control.
    fn read(&mut self, messages: u32, reader: &mut Checked) -> Result<u64> {
        let config = r#"{"deliver_subject":"_INBOX.read","deliver_policy":"all","ack_policy":"none","max_deliver":1,"replay_policy":"instant","flow_control":true,"idle_heartbeat":5000000000,"mem_storage":true,"num_replicas":1}"#;
        self.bytes = 0;
        let create = format!("CONSUMER.CREATE.{STREAM}");
        self.send(&create, &format!(r#"{{"stream_name":"{STREAM}","config":{config}}}"#))?;
        while reader.0.received < messages {
            let delivered = self.next()?;
            if delivered.header.is_empty() {
                reader.feed(&self.buffer[delivered.payload])?;
            } else if let Some(reply) = &delivered.reply {
                write!(self.socket, "PUB {reply} 0\r\n\r\n")?; // flow control; a heartbeat wants no answer
            }
        }
        Ok(self.bytes)
    }

    fn send(&mut self, what: &str, question: &str) -> Result<()> {
        let length = question.len();
        Ok(write!(self.socket, "PUB $JS.API.{what} _INBOX.answer {length}\r\n{question}\r\n")?)
    }

    fn ask(&mut self, what: &str, question: &str) -> Result<()> {
        self.send(what, question)?;
        let answer = self.answer()?;
        ensure!(!answer.contains("\"error\":"), "{what}: {answer}");
        Ok(())
    }

    fn answer(&mut self) -> Result<String> {
        let delivered = self.next()?;
        Ok(String::from_utf8_lossy(&self.buffer[delivered.payload]).into_owned())
    }

    /// The next message.
    fn next(&mut self) -> Result<Delivered> {
        loop {
            let Some(end) = memchr::memchr(b'\n', &self.buffer[self.begin..]) else {
                self.fetch()?;
                continue;
            };
            let end = self.begin + end + 1;
            let line = String::from_utf8_lossy(&self.buffer[self.begin..end]).trim_end().to_owned();
            let words: Vec<&str> = line.split(' ').collect();
            let number = |word: &str| word.parse::<usize>().with_context(|| line.clone());
            // The subject and the subscription come first; a reply subject, if there is one, before the lengths.
            let (header, length, reply) = match *words {
                ["MSG", _, _, length] => (0, number(length)?, None),
                ["MSG", _, _, reply, length] => (0, number(length)?, Some(reply)),
                ["HMSG", _, _, header, length] => (number(header)?, number(length)?, None),
                ["HMSG", _, _, reply, header, length] => (number(header)?, number(length)?, Some(reply)),
                ["-ERR", ..] => bail!("{line}"),
                _ => {
                    if line == "PING" {
                        self.socket.write_all(b"PONG\r\n")?;
                    }
                    self.begin = end;
                    continue;
                }
            };
            let reply = reply.map(str::to_owned);
            if self.buffer.len() < end + length + 2 {
                self.fetch()?;
                continue;
            }
            self.begin = end + length + 2;
            return Ok(Delivered { reply, header: end..end + header, payload: end + header..end + length });
        }
    }

    /// Reads more.
    fn fetch(&mut self) -> Result<()> {
        self.buffer.drain(..self.begin);
        self.begin = 0;
        let have = self.buffer.len();
        self.buffer.resize(have + 256 * 1024, 0);
        let read = self.socket.read(&mut self.buffer[have..])?;
        self.buffer.truncate(have + read);
        ensure!(read > 0, "the broker closed the connection");
        self.bytes += read as u64;
        Ok(())
    }
}

fn connect(broker: SocketAddr) -> Result<TcpStream> {
    let socket = TcpStream::connect(broker)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// The id of entry `number`, chosen here so that a reader need not find it in an answer.
fn entry_id(number: u32) -> String {
    format!("{}-0", number + 1)
}

fn command(out: &mut Vec<u8>, words: &[&str]) {
    // Writing to a Vec cannot fail.
    let _ = write!(out, "*{}\r\n", words.len());
    for word in words {
        let _ = write!(out, "${}\r\n{word}\r\n", word.len());
    }
}

fn fill_redis(broker: SocketAddr, messages: u32) -> Result<()> {
    let (mut socket, key) = (connect(broker)?, TOPIC.replace('/', ":"));
    let mut buffer = vec![0; 64 * 1024];
    for begin in (0..messages).step_by(PART as usize) {
        let (mut out, end) = (Vec::new(), messages.min(begin + PART));
        for number in begin..end {
            command(&mut out, &["XADD", &key, &entry_id(number), "data", &payload(number, 0, SIZE)]);
        }
        socket.write_all(&out)?;
        let mut stored = begin;
        while stored < end {
            let read = socket.read(&mut buffer)?;
            let answer = &buffer[..read];
            ensure!(read > 0 && !answer.contains(&b'E'), "{}", String::from_utf8_lossy(answer));
            stored += memchr::memchr_iter(b'$', answer).count() as u32; // one id is one `$`
        }
    }
    Ok(())
}

/// With XRANGE, part by part.
fn read_redis(broker: SocketAddr, messages: u32, reader: &mut Checked) -> Result<u64> {
    let (mut socket, key) = (connect(broker)?, TOPIC.replace('/', ":"));
    let (mut buffer, mut bytes) = (vec![0; 256 * 1024], 0);
    while reader.0.received < messages {
        let begin = reader.0.received;
        let mut out = Vec::new();
        command(&mut out, &["XRANGE", &key, &entry_id(begin), "+", "COUNT", &PART.to_string()]);
        socket.write_all(&out)?;
        while reader.0.received < messages.min(begin + PART) {
            let read = socket.read(&mut buffer)?;
            ensure!(read > 0, "the broker closed the connection");
            bytes += read as u64;
            reader.feed(&buffer[..read])?;
        }
    }
    Ok(bytes)
}
