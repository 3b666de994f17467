//! JetStream as its administrators and publishers see it, and the contract of `broker` over it.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tokio::sync::mpsc;
use topicgate::internals::broker::{Broker, EVENT_CAPACITY, Event, Fetched, Message};
use topicgate::internals::protocol::event_id::Tag;
use topicgate::internals::protocol::seek::{Seek, SeekResult};
use topicgate::internals::protocol::seq::Seq;
use topicgate::internals::protocol::source::Source;
use topicgate::internals::protocol::topic::{Filter, Topic};

use super::nats::NatsServer;
use super::{LIMIT, broker_config, within};

/// A client that is not topicgate.
#[derive(Clone)]
pub struct Admin {
    pub client: async_nats::Client,
}

/// A server with JetStream, and a client of it.
pub async fn start() -> (NatsServer, Admin) {
    let server = NatsServer::jetstream();
    let admin = Admin::connect(&server.url()).await;
    (server, admin)
}

impl Admin {
    pub async fn connect(url: &str) -> Self {
        let options = async_nats::ConnectOptions::new().retry_on_initial_connect();
        Admin { client: options.connect(url).await.unwrap() }
    }

    /// Asks the JetStream API, again while nobody answers: nodes come and go.
    pub async fn ask(&self, what: &str, question: Value) -> Value {
        let begin = std::time::Instant::now();
        loop {
            let asked = self.client.request(format!("$JS.API.{what}"), question.to_string().into());
            match tokio::time::timeout(std::time::Duration::from_secs(5), asked).await {
                Ok(Ok(answer)) => return serde_json::from_slice(&answer.payload).unwrap(),
                other => assert!(begin.elapsed() < LIMIT, "{what}: {other:?}"),
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    /// As [`Admin::ask`], and insists that it is done.
    pub async fn tell(&self, what: &str, question: Value) -> Value {
        let answer = self.ask(what, question).await;
        assert!(answer["error"].is_null(), "{what}: {answer}");
        answer
    }

    /// Creates a stream; `more` overrides the defaults.
    pub async fn stream(&self, name: &str, subjects: &[&str], more: Value) {
        let mut config = json!({
            "name": name, "subjects": subjects, "retention": "limits", "storage": "file", "discard": "old",
            "num_replicas": 1, "max_consumers": -1, "max_msgs": -1, "max_bytes": -1, "max_age": 0,
            "allow_direct": true,
        });
        for (key, value) in more.as_object().unwrap() {
            config[key] = value.clone();
        }
        // A cluster may have a leader before it knows all of its nodes.
        super::eventually("the stream is made", async || {
            let answer = self.ask(&format!("STREAM.CREATE.{name}"), config.clone()).await;
            let is_early = answer["error"]["err_code"] == 10005;
            assert!(is_early || answer["error"].is_null(), "{answer}");
            !is_early
        })
        .await;
    }

    /// Makes a bucket.
    pub async fn bucket(&self, name: &str, more: Value) {
        let mut config = json!({
            "max_msgs_per_subject": 1, "discard": "new", "allow_rollup_hdrs": true, "deny_delete": true,
        });
        for (key, value) in more.as_object().unwrap() {
            config[key] = value.clone();
        }
        self.stream(&format!("KV_{name}"), &[&format!("$KV.{name}.>")], config).await;
    }

    pub async fn purge(&self, name: &str) {
        self.tell(&format!("STREAM.PURGE.{name}"), json!({})).await;
    }

    pub async fn delete(&self, name: &str) {
        self.tell(&format!("STREAM.DELETE.{name}"), json!({})).await;
    }

    /// Stores a message; its number.
    pub async fn put(&self, subject: &str, payload: impl Into<bytes::Bytes>) -> u64 {
        self.put_with(subject, &[], payload).await
    }

    pub async fn put_with(
        &self,
        subject: &str,
        headers: &[(&str, &str)],
        payload: impl Into<bytes::Bytes>,
    ) -> u64 {
        let mut fields = async_nats::HeaderMap::new();
        for (name, value) in headers {
            fields.append(*name, *value);
        }
        let sent = self.client.request_with_headers(subject.to_owned(), fields, payload.into()).await;
        let answer: Value = serde_json::from_slice(&sent.unwrap().payload).unwrap();
        answer["seq"].as_u64().unwrap_or_else(|| panic!("{subject}: {answer}"))
    }

    /// Stores a message as often as it takes until the stream confirms one: for servers that come and go. It may be
    /// stored more than once.
    pub async fn put_until_stored(&self, subject: &str, payload: &str) -> u64 {
        super::found("the stream stores a message", LIMIT * 2, async || {
            let asked = self.client.request(subject.to_owned(), payload.to_owned().into());
            let answer = tokio::time::timeout(std::time::Duration::from_secs(2), asked).await.ok()?.ok()?;
            serde_json::from_slice::<Value>(&answer.payload).ok()?["seq"].as_u64()
        })
        .await
    }

    /// As [`Admin::put_until_stored`], under its payload as its id: it is stored once. For as long as it takes.
    pub async fn put_once(&self, subject: &str, payload: &str) -> u64 {
        loop {
            let mut fields = async_nats::HeaderMap::new();
            fields.append("Nats-Msg-Id", payload);
            let asked =
                self.client.request_with_headers(subject.to_owned(), fields, payload.to_owned().into());
            let answer = tokio::time::timeout(std::time::Duration::from_secs(1), asked).await;
            let answer = answer.ok().and_then(Result::ok);
            let number = answer
                .and_then(|answer| serde_json::from_slice::<Value>(&answer.payload).ok()?["seq"].as_u64());
            match number {
                Some(number) => return number,
                None => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
            }
        }
    }

    /// Stores many; the number of the last.
    pub async fn put_many(&self, subject: &str, range: std::ops::Range<u64>, payload: &str) -> u64 {
        for number in range.start..range.end - 1 {
            self.client.publish(subject.to_owned(), format!("{number}{payload}").into()).await.unwrap();
        }
        self.put(subject, format!("{}{payload}", range.end - 1)).await
    }

    /// Consumers on a stream.
    pub async fn consumers(&self, name: &str) -> u64 {
        self.tell(&format!("STREAM.INFO.{name}"), json!({})).await["state"]["consumer_count"]
            .as_u64()
            .unwrap()
    }
}

/// A publisher that writes whatever block of header fields it likes, over a socket of its own.
pub struct RawPublisher(tokio::net::TcpStream);

impl RawPublisher {
    pub async fn connect(port: u16) -> Self {
        use tokio::io::AsyncWriteExt;
        let mut socket = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let hello = b"CONNECT {\"verbose\":false,\"headers\":true,\"protocol\":1}\r\n";
        socket.write_all(hello).await.unwrap();
        RawPublisher(socket)
    }

    /// Publishes, and waits until the server has taken it.
    pub async fn publish(&mut self, subject: &str, block: &[u8], payload: &str) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let line = format!("HPUB {subject} {} {}\r\n", block.len(), block.len() + payload.len());
        let bytes = [line.as_bytes(), block, payload.as_bytes(), b"\r\nPING\r\n"].concat();
        self.0.write_all(&bytes).await.unwrap();
        let mut answer = Vec::new();
        while !answer.windows(6).any(|window| window == b"PONG\r\n") {
            assert!(within("a PONG", LIMIT, self.0.read_buf(&mut answer)).await.unwrap() > 0);
            assert!(!answer.windows(4).any(|window| window == b"-ERR"), "{}", answer.escape_ascii());
        }
    }
}

/// Stores a message with such a block, on a connection of its own; whether a stream has confirmed it.
pub async fn store_raw(port: u16, subject: &str, block: &[u8], payload: &str) -> bool {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let Ok(mut socket) = tokio::net::TcpStream::connect(("127.0.0.1", port)).await else { return false };
    let line = format!(
        "CONNECT {{\"verbose\":false,\"headers\":true}}\r\nSUB ack 1\r\nHPUB {subject} ack {} {}\r\n",
        block.len(),
        block.len() + payload.len()
    );
    let bytes = [line.as_bytes(), block, payload.as_bytes(), b"\r\n"].concat();
    let mut answer = Vec::new();
    if socket.write_all(&bytes).await.is_err() {
        return false;
    }
    while !answer.windows(9).any(|window| window == b"{\"stream\"") {
        if !matches!(socket.read_buf(&mut answer).await, Ok(1..)) {
            return false;
        }
    }
    true
}

/// Blocks of header fields of which something cannot be read.
pub const DAMAGED: [&[u8]; 8] = [
    b"NATS/1.0\r\nX: caf\xe9\r\n\r\n",
    b"NATS/1.0\r\nX: a\rb\r\n\r\n",
    b"NATS/1.0\r\nX y: a\r\n\r\n",
    b"NATS/1.0\r\nX\xc3\xa9: a\r\n\r\n",
    b"NATS/1.0\r\nno colon\r\n\r\n",
    b"NATS/2.0\r\nX: a\r\n\r\n",
    b"NATS/1.0\r\n\xff\r\n\r\n",
    b"garbage",
];

/// A broker under test, and its events.
pub struct Kept {
    pub broker: Broker,
    pub events: mpsc::Receiver<Event>,
}

impl Kept {
    pub fn connect(url: &str) -> Self {
        Self::with_room_for(url, EVENT_CAPACITY)
    }

    /// With an event channel that holds no more than `events`.
    pub fn with_room_for(url: &str, events: usize) -> Self {
        let (sender, events) = mpsc::channel(events);
        Kept { broker: Broker::nats(&broker_config(url), sender).unwrap(), events }
    }

    /// The next event that is not one of a connection, nor of plain publish/subscribe.
    pub async fn next(&mut self) -> Event {
        loop {
            match within("an event", LIMIT, self.events.recv()).await.unwrap() {
                Event::Up(_)
                | Event::Down { .. }
                | Event::Interrupted { .. }
                | Event::Resumed { .. }
                | Event::Lost { filters: None, .. } => {}
                event => return event,
            }
        }
    }

    /// Follows, and returns the content of `Begun`.
    pub async fn follow(&mut self, text: &str, source: &Source) -> (Tag, u64) {
        let (broker, asked) = (self.broker.clone(), filter(text));
        let source = source.clone();
        let following = tokio::spawn(async move { broker.subscribe(asked, source).await });
        let begun = self.next().await;
        within("an answer", LIMIT, following).await.unwrap().unwrap();
        match begun {
            Event::Begun { filter: begun, tag, head, .. } => {
                assert_eq!(begun, filter(text));
                (tag, head.get())
            }
            other => panic!("{other:?}"),
        }
    }

    /// The next event, which must be a message.
    pub async fn message(&mut self) -> Message {
        match self.next().await {
            Event::Message(message) => message,
            other => panic!("{other:?}"),
        }
    }

    /// Reads from `after` until the number `until` is delivered; insists that numbers rise.
    pub async fn read_until(&mut self, mut after: u64, until: u64) -> Told {
        let mut told = Told::default();
        while after < until {
            match self.next().await {
                Event::Message(message) => {
                    let number = message.stored.unwrap().number.get();
                    assert!(number > after, "{number} after {after}");
                    after = number;
                    told.messages.insert(number, message);
                }
                Event::Gone { through, .. } => {
                    let through = through.get();
                    assert!(through > after, "gone up to {through} after {after}");
                    told.gone.push((after, through));
                    after = through;
                }
                other => panic!("{other:?}"),
            }
        }
        told
    }

    pub async fn fetch(&self, text: &str, source: &Source, after: u64, until: u64) -> Fetched {
        let (after, until) = (seq(after), seq(until));
        let asked = self.broker.fetch(filter(text), source.clone(), after, until);
        let fetched = within("an answer", LIMIT, asked).await.unwrap();
        assert!(fetched.through > after && fetched.through <= until, "{after} {until} {fetched:?}");
        assert!(fetched.gone.is_none_or(|gone| gone > after && gone <= fetched.through));
        let mut last = fetched.gone.unwrap_or(after);
        for message in &fetched.messages {
            let number = message.stored.unwrap().number;
            assert!(number > last && number <= fetched.through, "{number} after {last}");
            assert_eq!(message.filter, filter(text));
            last = number;
        }
        fetched
    }

    /// Fetches part after part.
    pub async fn fetch_all(&self, text: &str, source: &Source, mut after: u64, until: u64) -> Told {
        let mut told = Told::default();
        while after < until {
            let part = self.fetch(text, source, after, until).await;
            told.gone.extend(part.gone.map(|gone| (after, gone.get())));
            let number = |message: &Message| message.stored.unwrap().number.get();
            told.messages.extend(part.messages.into_iter().map(|message| (number(&message), message)));
            after = part.through.get();
            told.parts += 1;
        }
        told
    }

    pub async fn locate(&self, text: &str, source: &Source, place: Seek) -> SeekResult {
        let asked = self.broker.locate(filter(text), source.clone(), place);
        within("an answer", LIMIT, asked).await.unwrap()
    }
}

/// The events of a range of stored messages.
#[derive(Default)]
pub struct Told {
    pub messages: BTreeMap<u64, Message>,
    /// Each from after which number, up to which.
    pub gone: Vec<(u64, u64)>,
    pub parts: usize,
}

impl Told {
    pub fn numbers(&self) -> Vec<u64> {
        self.messages.keys().copied().collect()
    }

    /// Topics and payloads, in order.
    pub fn values(&self) -> Vec<(String, String)> {
        self.messages.values().map(value).collect()
    }
}

pub fn value(message: &Message) -> (String, String) {
    (message.topic.to_string(), String::from_utf8_lossy(&message.payload).into_owned())
}

/// A number.
pub fn seq(number: u64) -> Seq {
    Seq::new(number)
}

pub fn filter(text: &str) -> Filter {
    Filter::parse(text, 200).unwrap()
}

pub fn topic(text: &str) -> Topic {
    Topic::parse(text, 200).unwrap()
}

/// A stream by its name.
pub fn stream(name: &str) -> Source {
    Source::JetStream { stream: Some(name.into()) }
}

/// A bucket whose keys stand behind `prefix` segments.
pub fn bucket(name: &str, prefix: usize) -> Source {
    Source::Kv { bucket: name.into(), prefix }
}
