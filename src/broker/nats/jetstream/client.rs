//! The client of the JetStream connection: requests with their answers, and inboxes, over the NATS protocol.
//!
//! One task reads and writes ([`Task::run`]); handles ([`Client`]) send it orders. An answer goes to its request, a
//! message to its inbox. None of them can block another: an inbox that is not emptied ends. Header fields are passed on
//! as raw bytes, so that nothing a publisher wrote can end the connection.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use crate::broker::nats::handshake::Connection;
use crate::broker::nats::transport::Transport;
use crate::broker::nats::wire::{self, Delivered, Operation, PING, PONG};

/// The prefix of the subjects for answers, so that a restricted user can be granted `_INBOX.topicgate.>`.
const INBOX: &str = "_INBOX.topicgate";

/// The subscription for all answers.
const ANSWERS: u64 = 1;

/// The most messages that wait in an inbox: more than are ever requested at once.
const INBOX_CAPACITY: usize = 4096;

/// The most orders that wait. If the queue is full, senders wait.
const ORDERS: usize = 1024;

/// A PING is sent after this much silence of the server; if the silence continues, the connection is given up.
const PING_AFTER: Duration = Duration::from_secs(4);
const SILENCE_LIMIT: Duration = Duration::from_secs(9);

/// How long a new connection waits for the confirmation of its subscription.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

const NO_ANSWERS: &str = "the server refuses the subscription to _INBOX.topicgate.>, where the answers of JetStream arrive \
                          (Permissions Violation); allow the gateway's user to subscribe to it";

/// A handle to a connection.
#[derive(Clone)]
pub(super) struct Client(Arc<Shared>);

struct Shared {
    orders: mpsc::Sender<Order>,
    /// The prefix of its inboxes.
    prefix: String,
    last_sid: AtomicU64,
    max_payload: usize,
    version: String,
}

/// Why a request was not answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// The subject has no subscriber.
    NoResponders,
    /// The user has no permission to publish to the subject; the server's text.
    Denied(String),
    /// The connection has ended.
    Lost,
}

enum Order {
    Subscribe { sid: u64, subject: String, inbox: mpsc::Sender<Delivered> },
    Unsubscribe(u64),
    Send(Outgoing, String),
    Request(Outgoing, oneshot::Sender<Result<Delivered, Failure>>),
}

/// A message to send.
pub(super) struct Outgoing {
    pub(super) subject: String,
    /// A block of header fields, or empty.
    pub(super) fields: Vec<u8>,
    pub(super) payload: Bytes,
}

/// A subject of our own and its messages. Dropping it ends the subscription.
pub(super) struct Inbox {
    pub(super) subject: String,
    sid: u64,
    messages: mpsc::Receiver<Delivered>,
    client: Client,
}

impl Inbox {
    /// The next message; `None` once the connection has ended, or the inbox has overflowed.
    pub(super) async fn next(&mut self) -> Option<Delivered> {
        self.messages.recv().await
    }

    /// The next message if it has already arrived.
    pub(super) fn try_next(&mut self) -> Option<Delivered> {
        self.messages.try_recv().ok()
    }

    /// How many messages have arrived and were not taken yet.
    pub(super) fn waiting(&self) -> usize {
        self.messages.len()
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        // If the queue is full, the task notices later that nobody takes the messages.
        let _ = self.client.0.orders.try_send(Order::Unsubscribe(self.sid));
    }
}

impl Client {
    /// Sends a request, and waits for the answer as long as the connection lasts.
    pub(super) async fn request(&self, message: Outgoing) -> Result<Delivered, Failure> {
        self.send_request(message).await?.await.map_err(|_| Failure::Lost)?
    }

    /// Sends a request, and returns a future of the answer. Requests are sent in order.
    pub(super) async fn send_request(
        &self,
        message: Outgoing,
    ) -> Result<oneshot::Receiver<Result<Delivered, Failure>>, Failure> {
        let (done, answer) = oneshot::channel();
        self.0.orders.send(Order::Request(message, done)).await.map_err(|_| Failure::Lost)?;
        Ok(answer)
    }

    /// Sends a message whose answers go to an inbox.
    pub(super) async fn send(&self, message: Outgoing, inbox: &Inbox) -> Result<(), Failure> {
        let order = Order::Send(message, inbox.subject.clone());
        self.0.orders.send(order).await.map_err(|_| Failure::Lost)
    }

    /// A new inbox. It is subscribed before any later message is sent.
    pub(super) async fn inbox(&self) -> Result<Inbox, Failure> {
        let (sender, messages) = mpsc::channel(INBOX_CAPACITY);
        let sid = self.0.last_sid.fetch_add(1, Ordering::Relaxed) + 1;
        let subject = format!("{}.{sid}", self.0.prefix);
        let order = Order::Subscribe { sid, subject: subject.clone(), inbox: sender };
        self.0.orders.send(order).await.map_err(|_| Failure::Lost)?;
        Ok(Inbox { subject, sid, messages, client: self.clone() })
    }

    /// The largest message that the server accepts.
    pub(super) fn max_payload(&self) -> usize {
        self.0.max_payload
    }

    /// Whether the server has this version or a newer one.
    pub(super) fn is_at_least(&self, major: u32, minor: u32) -> bool {
        let mut numbers = self.0.version.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (major, minor)
    }
}

/// A connection with the subscription for answers.
pub(super) struct AnsweringConnection {
    connection: Connection,
    /// The prefix of its inboxes.
    prefix: String,
}

/// Subscribes to the answers on a new connection, which is of no use without: no request would be answered.
pub(super) async fn subscribe_to_answers(mut connection: Connection) -> Result<AnsweringConnection, String> {
    let prefix = format!("{INBOX}.{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..));
    let subscribed = timeout(ANSWER_LIMIT, connection.subscribe(&format!("{prefix}.r.*"), ANSWERS)).await;
    match subscribed.unwrap_or_else(|_| Err("the server does not answer".into())) {
        Err(words) if is_subscription_refused(&words) => Err(NO_ANSWERS.into()),
        Err(words) => Err(words),
        Ok(()) => Ok(AnsweringConnection { connection, prefix }),
    }
}

fn is_subscription_refused(words: &str) -> bool {
    words.starts_with("Permissions Violation for Subscription")
}

/// Creates a handle to a connection, and the task to run for it.
pub(super) fn client(AnsweringConnection { connection, prefix }: AnsweringConnection) -> (Client, Task) {
    let transport = Transport::new(connection);
    let (orders, receiver) = mpsc::channel(ORDERS);
    let shared = Shared {
        orders,
        prefix: prefix.clone(),
        last_sid: AtomicU64::new(ANSWERS),
        max_payload: transport.info.max_payload,
        version: transport.info.version.clone(),
    };
    let task = Task {
        orders: receiver,
        transport,
        prefix,
        inboxes: HashMap::new(),
        requests: HashMap::new(),
        last_request: 0,
        pinged: None,
    };
    (Client(Arc::new(shared)), task)
}

/// The task that reads and writes.
pub(super) struct Task {
    orders: mpsc::Receiver<Order>,
    transport: Transport,
    prefix: String,
    inboxes: HashMap<u64, mpsc::Sender<Delivered>>,
    /// Requests that wait for an answer, with their subjects: the server names the subject if it refuses the
    /// permission.
    requests: HashMap<u64, (String, oneshot::Sender<Result<Delivered, Failure>>)>,
    last_request: u64,
    /// When a PING was last sent.
    pinged: Option<Instant>,
}

impl Task {
    /// Runs until the connection ends, or all handles are dropped; returns the reason. Requests that wait for an answer
    /// fail then.
    pub(super) async fn run(&mut self) -> String {
        let why = loop {
            match self.step().await {
                Ok(()) => {}
                Err(why) => break why,
            }
        };
        self.inboxes.clear();
        self.requests.clear();
        self.orders.close();
        self.transport.end(why)
    }

    /// Other addresses of its cluster.
    pub(super) fn servers(&self) -> &[String] {
        self.transport.servers()
    }

    async fn step(&mut self) -> Result<(), String> {
        while let Some(operation) = self.transport.next()? {
            self.take(operation)?;
        }
        let is_pinged = self.pinged.is_some_and(|pinged| pinged >= self.transport.heard);
        let due = self.transport.heard + if is_pinged { SILENCE_LIMIT } else { PING_AFTER };
        let has_room = self.transport.has_room();
        tokio::select! {
            exchanged = self.transport.exchange(true) => exchanged?,
            order = self.orders.recv(), if has_room => match order {
                Some(order) => self.carry_out(order),
                None => return Err("it is no longer needed".into()),
            },
            () = sleep_until(due) => {
                if is_pinged {
                    return Err(format!("the server was silent for {} s", SILENCE_LIMIT.as_secs()));
                }
                self.transport.out.extend_from_slice(PING);
                self.pinged = Some(Instant::now());
                self.forget_unwanted();
            }
        }
        Ok(())
    }

    fn take(&mut self, operation: Operation) -> Result<(), String> {
        match operation {
            Operation::Message(message) if message.sid == ANSWERS => self.answer(message),
            Operation::Message(message) => {
                let sid = message.sid;
                let Some(inbox) = self.inboxes.get(&sid) else { return Ok(()) };
                if inbox.try_send(message).is_err() {
                    self.unsubscribe(sid); // nobody takes the messages, or too slowly: the reader sees the end of the inbox
                }
            }
            // The receiver sees that no answer came.
            Operation::TooLarge { sid, .. } => self.unsubscribe(sid),
            Operation::Ping => self.transport.out.extend_from_slice(PONG),
            Operation::Info(info) => self.transport.info = *info,
            // The server has ended the subscription, and does not begin it again when it gives the permission back.
            Operation::Error(words) if is_subscription_refused(&words) => return Err(NO_ANSWERS.into()),
            Operation::Error(words) => self.refused(words),
            Operation::Pong | Operation::Ok => {}
        }
        Ok(())
    }

    fn answer(&mut self, message: Delivered) {
        let token = message.subject.rsplit(|byte| *byte == b'.').next().unwrap_or_default();
        let token = std::str::from_utf8(token).ok().and_then(|token| token.parse().ok());
        let Some((_, done)) = token.and_then(|token: u64| self.requests.remove(&token)) else { return };
        let nobody = message.payload.is_empty()
            && message.headers.as_ref().is_some_and(|fields| fields.starts_with(b"NATS/1.0 503"));
        let _ = done.send(if nobody { Err(Failure::NoResponders) } else { Ok(message) });
    }

    fn refused(&mut self, words: String) {
        let subject = words.split_once("Permissions Violation for Publish to ").and_then(|(_, quoted)| {
            serde_json::Deserializer::from_str(quoted).into_iter::<String>().next()?.ok()
        });
        match subject {
            Some(subject) => {
                let meant: Vec<u64> = self
                    .requests
                    .iter()
                    .filter(|(_, (to, _))| *to == subject)
                    .map(|(token, _)| *token)
                    .collect();
                for token in meant {
                    if let Some((_, done)) = self.requests.remove(&token) {
                        let _ = done.send(Err(Failure::Denied(words.clone())));
                    }
                }
                tracing::debug!(%words, "NATS refuses a request");
            }
            None => self.transport.report(words),
        }
    }

    fn carry_out(&mut self, order: Order) {
        match order {
            Order::Subscribe { sid, subject, inbox } => {
                wire::write_subscribe(&mut self.transport.out, &subject, sid);
                self.inboxes.insert(sid, inbox);
            }
            Order::Unsubscribe(sid) => self.unsubscribe(sid),
            Order::Send(message, reply) => self.send(&message, &reply),
            Order::Request(message, done) => {
                self.last_request += 1;
                if self.last_request.is_multiple_of(256) {
                    self.forget_unwanted();
                }
                let reply = format!("{}.r.{}", self.prefix, self.last_request);
                self.send(&message, &reply);
                self.requests.insert(self.last_request, (message.subject, done));
            }
        }
    }

    fn send(&mut self, message: &Outgoing, reply: &str) {
        let Outgoing { subject, fields, payload } = message;
        wire::write_request(&mut self.transport.out, subject, reply, fields, payload);
    }

    fn unsubscribe(&mut self, sid: u64) {
        if self.inboxes.remove(&sid).is_some() {
            wire::write_unsubscribe(&mut self.transport.out, sid);
        }
    }

    /// Forgets requests and inboxes whose receivers are gone.
    fn forget_unwanted(&mut self) {
        self.requests.retain(|_, (_, done)| !done.is_closed());
        let unwanted: Vec<u64> =
            self.inboxes.iter().filter(|(_, inbox)| inbox.is_closed()).map(|(sid, _)| *sid).collect();
        unwanted.into_iter().for_each(|sid| self.unsubscribe(sid));
    }
}
