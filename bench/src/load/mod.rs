//! The load: thousands of subscribers and one publisher, in one thread on one epoll. Every message carries its number and
//! its time, and each subscriber checks that every message arrives once and in order.

mod gzip;
mod http2;
mod publisher;
mod reader;

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use socket2::{Domain, Socket, Type};

pub use self::http2::requests as http2_requests;
pub use self::publisher::Protocol;
use self::publisher::Publisher;
pub use self::reader::{Found, Reader, payload};
use crate::histogram::Histogram;

/// If there is no progress for this long, a message is lost and the run ends.
const PATIENCE: Duration = Duration::from_secs(20);

/// The most messages in flight. A power of two.
const RING: usize = 1 << 16;

/// Connections to open before the open ones are served again.
const CONNECTS: usize = 16;

const READ_BUFFER: usize = 256 * 1024;

/// The size of the buffer for inflated bytes.
const INFLATE_BUFFER: usize = 64 * 1024;
const PUBLISHER: Token = Token(usize::MAX);

/// Connections from one local address: well below the 28,000 ports that the system gives out.
const PER_ADDRESS: u32 = 10_000;

/// Each address is used once, so that connections that linger in the system block no new one.
static ADDRESSES: AtomicU32 = AtomicU32::new(0);

/// One step of opening a stream: the bytes to send, and the answer to wait for before the next step.
#[derive(Debug, Clone)]
pub struct Stage {
    /// To send.
    pub send: Vec<u8>,
    /// To wait for.
    pub until: Until,
}

/// What ends a step.
#[derive(Debug, Clone, Copy)]
pub enum Until {
    /// When these bytes arrive; in the first step the status must also be 200 or 101.
    Bytes(&'static [u8]),
    /// When this many response heads of HTTP/2 have arrived.
    Heads(u32),
}

/// A connection to open.
#[derive(Debug, Clone)]
pub struct Spec {
    /// How.
    pub stages: Rc<[Stage]>,
    /// Streams on it: 1, but for HTTP/2.
    pub streams: u32,
    /// Whether a message counts as delivered only when its streams have it.
    pub counted: bool,
    /// The lowest number that it may receive first.
    pub first: u32,
    /// Topics of each stream; messages are published to them in turn.
    pub topics: u32,
    /// Reads nothing until it is woken, with the smallest possible receive buffer.
    pub asleep: bool,
    /// Records all bytes that it receives.
    pub record: bool,
    /// Its body is compressed.
    pub gzip: bool,
    /// Reads the bytes and ignores them.
    pub blind: bool,
}

impl Spec {
    /// One stream that counts.
    pub fn new(stages: Rc<[Stage]>) -> Self {
        Spec {
            stages,
            streams: 1,
            counted: true,
            first: 0,
            topics: 1,
            asleep: false,
            record: false,
            gzip: false,
            blind: false,
        }
    }
}

#[derive(Debug)]
struct Connection {
    socket: Option<TcpStream>,
    /// Steps still to go; `None` once open.
    opening: Option<Box<Opening>>,
    first_reader: usize,
    streams: u32,
    http2: Option<Box<http2::Http2>>,
    gunzip: Option<Box<gzip::Gunzip>>,
    blind: bool,
    asleep: bool,
    slow: bool,
    record: Option<Vec<u8>>,
}

#[derive(Debug)]
struct Opening {
    stages: Rc<[Stage]>,
    stage: usize,
    sent: usize,
    got: Vec<u8>,
}

/// What went wrong. All zero in a run that counts.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Faults {
    /// Messages that came again, or out of order.
    pub repeated: u64,
    /// Messages that an awake reader never received.
    pub lost: u64,
    /// Messages that were not whole.
    pub torn: u64,
    /// Connections that ended.
    pub closed: u64,
}

/// Messages, as they are counted.
#[derive(Debug)]
struct Tally {
    /// For each message under way: how many readers have yet to see it.
    waiting: Vec<u32>,
    published: u32,
    done: u32,
    delivered: u64,
    /// Messages that sleeping readers missed, and the gap events that they received.
    skipped: u64,
    told: u64,
    latency: Option<Histogram>,
    /// Bytes behind the response heads.
    bytes: u64,
    faults: Faults,
    /// Every reader reads every topic: a missing number is a lost message.
    dense: bool,
}

/// The result of a run.
#[derive(Debug)]
pub struct Outcome {
    /// Messages that reached a subscriber.
    pub deliveries: u64,
    /// From the first publish to the last delivery.
    pub wall: Duration,
    /// The time from when a message was due until it was read.
    pub latency: Histogram,
    /// The part of our own core that was used.
    pub load: f64,
}

/// What is published.
#[derive(Debug, Clone)]
pub struct Work {
    /// Topics, one after the other.
    pub topics: Rc<[String]>,
    /// Counted readers of each topic.
    pub readers: u32,
    /// Bytes of a payload.
    pub size: usize,
    /// Whether payloads are JSON, as applications send it, instead of one repeated character.
    pub json: bool,
}

/// A publisher and its subscribers.
#[derive(Debug)]
pub struct Load {
    poll: Poll,
    events: Events,
    epoch: Instant,
    buffer: Vec<u8>,
    inflated: Vec<u8>,
    address: SocketAddr,
    source: u32,
    connections: Vec<Connection>,
    readers: Vec<Reader>,
    queue: VecDeque<Spec>,
    opening: usize,
    /// Connections that may be opening at once.
    concurrency: usize,
    publisher: Publisher,
    work: Work,
    /// Messages under way at once, in a closed loop.
    window: u32,
    tally: Tally,
}

impl Load {
    /// A load without subscribers. `dense`: every subscriber reads every topic.
    pub fn new(
        subscribe: SocketAddr,
        publish: SocketAddr,
        protocol: Protocol,
        work: Work,
        dense: bool,
    ) -> Result<Self> {
        let poll = Poll::new()?;
        let publisher = Publisher::connect(publish, protocol, poll.registry(), PUBLISHER)
            .context("connecting as publisher")?;
        let tally = Tally {
            waiting: vec![0; RING],
            published: 0,
            done: 0,
            delivered: 0,
            skipped: 0,
            told: 0,
            latency: None,
            bytes: 0,
            faults: Faults::default(),
            dense,
        };
        Ok(Load {
            poll,
            events: Events::with_capacity(1024),
            epoch: Instant::now(),
            buffer: vec![0; READ_BUFFER],
            inflated: vec![0; INFLATE_BUFFER],
            address: subscribe,
            source: 0,
            connections: Vec::new(),
            readers: Vec::new(),
            queue: VecDeque::new(),
            opening: 0,
            concurrency: 0,
            publisher,
            work,
            window: 0,
            tally,
        })
    }

    /// The messages that sleeping readers missed, and the number of gap events that they received.
    pub fn skipped(&self) -> (u64, u64) {
        (self.tally.skipped, self.tally.told)
    }

    /// From now on, this is published.
    pub fn set_work(&mut self, work: Work) {
        self.work = work;
    }

    /// The number of the next message.
    pub fn next_number(&self) -> u32 {
        self.tally.published
    }

    /// Opens connections, up to `concurrency` at a time, and waits for all of them.
    pub fn open(&mut self, specs: impl IntoIterator<Item = Spec>, concurrency: usize) -> Result<()> {
        self.start_opening(specs, concurrency);
        let mut progress = Progress::new();
        while self.is_opening() {
            self.turn(Duration::from_millis(100))?;
            progress.check((self.opening + self.queue.len()) as u64, "connections do not open")?;
        }
        self.ensure_healthy()
    }

    /// Begins to open connections; [`Load::turn`] goes on with it.
    pub fn start_opening(&mut self, specs: impl IntoIterator<Item = Spec>, concurrency: usize) {
        self.queue.extend(specs);
        self.concurrency = concurrency;
    }

    /// Whether connections are still to open.
    pub fn is_opening(&self) -> bool {
        self.opening > 0 || !self.queue.is_empty()
    }

    /// The number of messages that each stream has received, beginning with stream `from`.
    pub fn received(&self, from: usize) -> impl Iterator<Item = u32> {
        self.readers[from..].iter().map(|reader| reader.received)
    }

    /// Bytes that came on streams, behind their response heads.
    pub fn bytes(&self) -> u64 {
        self.tally.bytes
    }

    /// Streams, open or not.
    pub fn streams(&self) -> usize {
        self.readers.len()
    }

    /// All bytes of connection `index`, which must record them.
    pub fn recorded(&self, index: usize) -> &[u8] {
        self.connections[index].record.as_deref().unwrap_or_default()
    }

    /// Publishes, with `window` messages under way, for at least `time`, and until all have arrived.
    pub fn closed_loop(&mut self, window: u32, time: Duration) -> Result<Outcome> {
        let begin = Begin::new(self);
        self.window = window;
        self.publish_window()?;
        let mut progress = Progress::new();
        loop {
            self.turn(Duration::from_millis(50))?;
            self.ensure_healthy()?;
            if begin.time.elapsed() >= time {
                self.window = 0;
            }
            if self.window == 0 && self.tally.done == self.tally.published {
                break;
            }
            progress.check(self.tally.delivered, "messages do not arrive").with_context(|| self.missing())?;
        }
        begin.outcome(self)
    }

    /// The messages that some readers have not received, and the number of these readers.
    fn missing(&self) -> String {
        let numbers = self.tally.published.saturating_sub(RING as u32)..self.tally.published;
        let waiting = numbers.map(|number| (number, self.tally.waiting[number as usize % RING]));
        let missing: Vec<_> = waiting.filter(|(_, readers)| *readers > 0).take(20).collect();
        format!("(message, readers who wait for it): {missing:?}")
    }

    /// Publishes messages at a fixed rate per second for `time`, whether or not earlier ones have arrived, and calls `also`
    /// meanwhile.
    pub fn paced(
        &mut self,
        rate: f64,
        time: Duration,
        mut also: impl FnMut(&mut Self) -> bool,
    ) -> Result<Outcome> {
        let begin = Begin::new(self);
        self.tally.latency = Some(Histogram::default());
        let mut progress = Progress::new();
        let mut count = 0u32;
        loop {
            let elapsed = begin.time.elapsed();
            let going_on = also(self) || elapsed < time;
            let due = Duration::from_secs_f64(f64::from(count) / rate);
            if going_on && elapsed >= due {
                // The message carries the time when it was due. So our own delay counts; otherwise a stall would hide its
                // latency.
                self.publish(begin.time + due);
                self.publisher.flush()?;
                count += 1;
                continue;
            }
            if !going_on && self.tally.done == self.tally.published {
                break;
            }
            let wait = if going_on { due - elapsed } else { Duration::from_millis(50) };
            self.turn(wait.min(Duration::from_millis(50)))?;
            self.ensure_healthy()?;
            progress.check(self.tally.delivered + self.opening as u64, "messages do not arrive")?;
        }
        begin.outcome(self)
    }

    /// Reads for `time`.
    pub fn rest(&mut self, time: Duration) -> Result<()> {
        let begin = Instant::now();
        while begin.elapsed() < time {
            self.turn(time.saturating_sub(begin.elapsed()).min(Duration::from_millis(50)))?;
        }
        self.ensure_healthy()
    }

    /// Wakes the sleeping readers.
    pub fn wake_sleepers(&mut self) -> Result<()> {
        for index in 0..self.connections.len() {
            if std::mem::take(&mut self.connections[index].asleep) {
                self.read(index)?; // its event may have come and gone while it slept
            }
        }
        Ok(())
    }

    /// Closes every subscriber's connection.
    pub fn close(&mut self) {
        self.connections.clear();
        self.readers.clear();
    }

    fn ensure_healthy(&self) -> Result<()> {
        if let Some(refusal) = &self.publisher.refusal {
            bail!("a message was refused: {refusal}");
        }
        ensure!(self.tally.faults == Faults::default(), "{:?}", self.tally.faults);
        Ok(())
    }

    /// Opens a few of the waiting connections. In real life, the open readers are other machines: they must not seem slow
    /// because this thread is busy connecting.
    fn fill(&mut self) -> Result<()> {
        for _ in 0..CONNECTS {
            if self.opening >= self.concurrency {
                break;
            }
            let Some(spec) = self.queue.pop_front() else { break };
            let mut socket = self.connect(spec.asleep)?;
            let token = Token(self.connections.len());
            self.poll.registry().register(&mut socket, token, Interest::READABLE | Interest::WRITABLE)?;
            let is_http2 = matches!(spec.stages.first(), Some(Stage { until: Until::Heads(_), .. }));
            self.connections.push(Connection {
                socket: Some(socket),
                opening: Some(Box::new(Opening { stages: spec.stages, stage: 0, sent: 0, got: Vec::new() })),
                first_reader: self.readers.len(),
                streams: spec.streams,
                http2: is_http2.then(Box::default),
                gunzip: spec.gzip.then(Box::default),
                blind: spec.blind,
                asleep: spec.asleep,
                slow: spec.asleep,
                record: spec.record.then(Vec::new),
            });
            for _ in 0..spec.streams {
                self.readers.push(Reader::new(spec.first, spec.topics, spec.counted));
            }
            self.opening += 1;
        }
        Ok(())
    }

    fn connect(&mut self, small: bool) -> Result<TcpStream> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        if small {
            socket.set_recv_buffer_size(4096)?;
        }
        if self.source.is_multiple_of(PER_ADDRESS) {
            // Away from those of the last runs, whose ports the system does not give again for a minute.
            let first = std::process::id() % 4096 * 16;
            self.source = (first + ADDRESSES.fetch_add(1, Ordering::Relaxed)) * PER_ADDRESS;
        }
        let address = 256 + self.source / PER_ADDRESS; // from 127.0.1.0 on, away from the servers' 127.0.0.1
        self.source += 1;
        let source = Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 0, 0, 0)) + address % (1 << 24));
        socket.bind(&SocketAddr::from((source, 0)).into())?;
        match socket.connect(&self.address.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
            Err(error) => return Err(error).context("connecting a subscriber"),
        }
        Ok(TcpStream::from_std(socket.into()))
    }

    /// Waits for events, for `timeout` at most, and handles them.
    pub fn turn(&mut self, timeout: Duration) -> Result<()> {
        self.fill()?;
        let more = !self.queue.is_empty() && self.opening < self.concurrency;
        let timeout = if more { Duration::ZERO } else { timeout };
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            other => other?,
        }
        let events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        for event in &events {
            if event.token() == PUBLISHER {
                self.publisher.ready(&mut self.buffer).context("publishing")?;
                continue;
            }
            let index = event.token().0;
            if self.connections.get(index).is_some_and(|connection| connection.opening.is_some()) {
                self.go_on_opening(index)?;
            } else if event.is_readable() {
                self.read(index)?;
            }
        }
        self.events = events;
        Ok(())
    }

    fn go_on_opening(&mut self, index: usize) -> Result<()> {
        let Connection { socket: Some(socket), opening: Some(opening), .. } = &mut self.connections[index]
        else {
            return Ok(());
        };
        let stage = &opening.stages[opening.stage];
        while opening.sent < stage.send.len() {
            match socket.write(&stage.send[opening.sent..]) {
                Ok(sent) => opening.sent += sent,
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected) =>
                {
                    return Ok(());
                }
                Err(_) => return self.lose(index),
            }
        }
        self.read(index)
    }

    /// Reads a socket until it is empty. A read that does not fill the buffer has emptied it: epoll reports later
    /// bytes, so a second read is not needed.
    fn read(&mut self, index: usize) -> Result<()> {
        loop {
            let Some(connection) = self.connections.get_mut(index) else { return Ok(()) };
            let Some(socket) = &mut connection.socket else { return Ok(()) };
            if connection.asleep && connection.opening.is_none() {
                return Ok(());
            }
            let length = match socket.read(&mut self.buffer) {
                Ok(0) => return self.lose(index),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(_) => return self.lose(index),
            };
            if let Some(record) = &mut connection.record {
                record.extend_from_slice(&self.buffer[..length]);
            }
            let done = self.tally.done;
            if connection.opening.is_some() {
                self.opened_further(index, length)?;
            } else {
                self.take(index, length);
            }
            if self.tally.done != done && self.window > 0 {
                self.publish_window()?;
            }
            if length < READ_BUFFER {
                return Ok(());
            }
        }
    }

    /// Checks the first bytes of the buffer, which an open connection has received.
    fn take(&mut self, index: usize, length: usize) {
        let connection = &mut self.connections[index];
        let bytes = &self.buffer[..length];
        let now = if self.tally.latency.is_some() { self.epoch.elapsed().as_nanos() as u64 } else { 0 };
        let (tally, size) = (&mut self.tally, self.work.size);
        tally.bytes += length as u64;
        if connection.blind {
            return;
        }
        if connection.slow {
            tally.told += memchr::memmem::find_iter(bytes, b"event: stream-gap").count() as u64;
        }
        let readers =
            &mut self.readers[connection.first_reader..connection.first_reader + connection.streams as usize];
        if let Some(gunzip) = &mut connection.gunzip {
            let mut feed =
                |bytes: &[u8]| readers[0].feed(bytes, size, |reader, found| tally.found(reader, found, now));
            let is_gzip = gunzip.feed(bytes, &mut self.inflated, &mut feed);
            tally.faults.torn += u64::from(!is_gzip);
            return;
        }
        match &mut connection.http2 {
            None => readers[0].feed(bytes, size, |reader, found| tally.found(reader, found, now)),
            Some(http2) => {
                let answer = http2.feed(bytes, |stream, data| {
                    if let Some(reader) = readers.get_mut(stream as usize) {
                        reader.feed(data, size, |reader, found| tally.found(reader, found, now));
                    }
                });
                if http2.ended {
                    tally.faults.closed += 1;
                }
                // A few bytes now and then always fit. If they were lost, the server would end the connection.
                if let Some(socket) = &mut connection.socket {
                    let _ = socket.write(&answer);
                }
            }
        }
    }

    fn opened_further(&mut self, index: usize, length: usize) -> Result<()> {
        let connection = &mut self.connections[index];
        let Some(opening) = &mut connection.opening else { return Ok(()) };
        let stage = &opening.stages[opening.stage];
        match stage.until {
            Until::Heads(heads) => {
                self.take(index, length);
                let connection = &mut self.connections[index];
                if connection.http2.as_ref().is_some_and(|http2| http2.opened >= heads) {
                    connection.opening = None;
                    self.opening -= 1;
                }
            }
            Until::Bytes(until) => {
                opening.got.extend_from_slice(&self.buffer[..length]);
                let Some(at) = memchr::memmem::find(&opening.got, until) else { return Ok(()) };
                if opening.stage == 0
                    && ![b"HTTP/1.1 200", b"HTTP/1.1 101"].iter().any(|ok| opening.got.starts_with(*ok))
                {
                    bail!("a stream was refused: {}", String::from_utf8_lossy(&opening.got));
                }
                let behind = opening.got.split_off(at + until.len());
                opening.got.clear();
                if opening.stage + 1 < opening.stages.len() {
                    opening.stage += 1;
                    opening.sent = 0;
                    return self.go_on_opening(index);
                }
                connection.opening = None;
                self.opening -= 1;
                self.buffer[..behind.len()].copy_from_slice(&behind);
                self.take(index, behind.len());
            }
        }
        Ok(())
    }

    fn lose(&mut self, index: usize) -> Result<()> {
        let connection = &mut self.connections[index];
        ensure!(connection.opening.is_none(), "a connection ended before its stream began");
        connection.socket = None;
        if !connection.slow {
            self.tally.faults.closed += 1;
        }
        Ok(())
    }

    fn publish_window(&mut self) -> Result<()> {
        while self.tally.published - self.tally.done < self.window {
            self.publish(Instant::now());
        }
        self.publisher.flush().context("publishing")
    }

    fn publish(&mut self, due: Instant) {
        let number = self.tally.published;
        let topic = &self.work.topics[number as usize % self.work.topics.len()];
        let nanos = due.duration_since(self.epoch).as_nanos() as u64;
        let payload = if self.work.json { reader::json } else { reader::payload };
        self.publisher.push(topic, &payload(number, nanos, self.work.size));
        self.tally.waiting[number as usize % RING] = self.work.readers;
        self.tally.published += 1;
        if self.work.readers == 0 {
            self.tally.done += 1;
        }
    }
}

impl Tally {
    fn found(&mut self, reader: &mut Reader, found: Found, now: u64) {
        let Found::Message { number, nanos } = found else {
            self.faults.torn += 1;
            return;
        };
        let Some(missing) = reader.advance(number) else {
            self.faults.repeated += 1;
            return;
        };
        if self.dense {
            *(if reader.counted { &mut self.faults.lost } else { &mut self.skipped }) += u64::from(missing);
        }
        self.delivered += 1;
        if !reader.counted {
            return;
        }
        if let Some(latency) = &mut self.latency {
            latency.add(now.saturating_sub(nanos));
        }
        let waiting = &mut self.waiting[number as usize % RING];
        *waiting = waiting.saturating_sub(1);
        if *waiting == 0 {
            self.done += 1;
        }
    }
}

/// The state at the beginning of a run.
struct Begin {
    time: Instant,
    delivered: u64,
    cpu: Duration,
}

impl Begin {
    fn new(load: &Load) -> Self {
        let cpu = crate::process::cpu_of(std::process::id()).unwrap_or_default();
        Begin { time: Instant::now(), delivered: load.tally.delivered, cpu }
    }

    fn outcome(self, load: &mut Load) -> Result<Outcome> {
        let wall = self.time.elapsed();
        let cpu = crate::process::cpu_of(std::process::id())?.saturating_sub(self.cpu);
        Ok(Outcome {
            deliveries: load.tally.delivered - self.delivered,
            wall,
            latency: load.tally.latency.take().unwrap_or_default(),
            load: cpu.as_secs_f64() / wall.as_secs_f64(),
        })
    }
}

/// Ends a run that makes no progress.
struct Progress {
    last: u64,
    since: Instant,
}

impl Progress {
    fn new() -> Self {
        Progress { last: u64::MAX, since: Instant::now() }
    }

    fn check(&mut self, now: u64, what: &str) -> Result<()> {
        if self.last != now {
            *self = Progress { last: now, since: Instant::now() };
        }
        if self.since.elapsed() > PATIENCE {
            bail!("{what}: nothing for {PATIENCE:?}, at {now}");
        }
        Ok(())
    }
}
