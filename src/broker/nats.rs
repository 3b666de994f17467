//! NATS: core publish/subscribe, over async-nats.
//!
//! It is a loop of sessions. A session is one connection with a client of its own; async-nats is kept from reconnecting
//! inside it, because a connection that comes back on its own leaves no place in the stream of messages where the gap
//! could stand. Each session connects, subscribes to every filter, has that confirmed, tells [`Event::Lost`] and
//! [`Event::Up`], and only then lets messages through. When it ends, what had arrived is delivered, [`Event::Down`] is
//! told, and the next server is tried.
//!
//! Not here: JetStream, positions, replay. A server in lame-duck mode is left when it closes the connection: core NATS
//! loses what is published in between either way.

mod settings;

use std::collections::{HashMap, HashSet, VecDeque};
use std::future::Future;
use std::pin::pin;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::header::{HeaderMap, HeaderName, HeaderValue};
use async_nats::{Client, ReconnectToServer, ServerAddr, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

pub(super) use self::settings::Settings;
use super::{BrokerError, Command, Event, Headers, Message};
use crate::topic::{Filter, Topic};

/// Time for a connection, handshakes included, to one address of a server.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);

/// Time for all addresses of a server, name resolution included.
const OPEN_LIMIT: Duration = Duration::from_secs(8);

/// async-nats gives a connection up at the third PING without an answer: 12 s, within the contract's 15.
const PING_INTERVAL: Duration = Duration::from_secs(4);

/// Time for the server to confirm a batch; beyond it the connection counts as broken.
const CONFIRM_LIMIT: Duration = Duration::from_secs(5);

/// The longest pause before a new attempt.
const RETRY_LIMIT: Duration = Duration::from_secs(1);

/// Messages of one subscription that wait while the event channel is full; beyond either bound the newest are dropped.
const QUEUE_MESSAGES: usize = 64 * 1024;

/// The same in bytes.
const QUEUE_BYTES: usize = 64 * 1024 * 1024;

/// Messages that async-nats may hold for one subscription. The forwarder takes them off at once, so that this is never
/// met unless the whole process is starved; then the session is ended. Filled lazily.
const SUBSCRIPTION_CAPACITY: usize = 512 * 1024;

/// What stands for async-nats' report that it dropped a message.
const OVERRUN: &str = "messages came in faster than the process could take them";

/// Commands (and filters, at the start of a session) that share one confirmation. async-nats reports errors through a
/// channel of 128 that drops what does not fit; a batch whose every command is refused must fit into half of it.
const BATCH: usize = 64;

/// Connects, and stays connected, until the command channel or the event channel closes.
pub(super) async fn run(settings: Settings, commands: mpsc::Receiver<Command>, events: mpsc::Sender<Event>) {
    // `None` tells that one of the channels has closed; then there is nobody left to tell anything.
    let _ = Nats { settings, commands, events, filters: HashSet::new() }.run().await;
}

struct Nats {
    settings: Settings,
    commands: mpsc::Receiver<Command>,
    events: mpsc::Sender<Event>,
    /// What is subscribed as far as our callers know: confirmed, and to be subscribed again by every session.
    filters: HashSet<Filter>,
}

impl Nats {
    async fn run(&mut self) -> Option<()> {
        let mut server = fastrand::usize(..self.settings.len());
        let mut attempts = 0;
        let mut was_up = false;
        let mut told = None;
        loop {
            let why = match self.open(server, was_up).await? {
                Ok(mut session) => {
                    (was_up, told) = (true, None);
                    let start = Instant::now();
                    let why = self.serve(&mut session).await?;
                    if start.elapsed() > RETRY_LIMIT {
                        attempts = 0; // but not for a server that takes us in only to throw us out
                    }
                    // What async-nats had taken off the socket is still delivered, and stands before `Down`.
                    let ended = session.finish();
                    self.away_while("the connection was lost", ended).await?;
                    why
                }
                Err(why) => why,
            };
            if told.as_ref() != Some(&why) {
                self.tell(Event::Down { why: why.clone() }).await?;
                told = Some(why.clone());
            }
            self.away_while(&why, sleep(pause(attempts))).await?;
            attempts += 1;
            server += 1;
        }
    }

    /// Connects, subscribes to everything and tells so. `Ok(Err)` is why it failed.
    async fn open(&mut self, server: usize, was_up: bool) -> Option<Result<Session, String>> {
        let (address, options) = match self.settings.server(server) {
            Ok(target) => target,
            Err(why) => return Some(Err(why)),
        };
        let wanted: Vec<Filter> = self.filters.iter().cloned().collect();
        let opening = async {
            let mut session = timeout(OPEN_LIMIT, Session::connect(address, options))
                .await
                .map_err(|_| "connecting took too long".to_owned())??;
            let mut subscribers = Vec::with_capacity(wanted.len());
            let mut refused = HashMap::new();
            for filters in wanted.chunks(BATCH) {
                let enqueue = async {
                    for filter in filters {
                        subscribers.push((filter.clone(), session.subscriber(filter).await?));
                    }
                    session.confirm().await
                };
                let verdict = timeout(CONFIRM_LIMIT, enqueue).await.map_err(|_| unconfirmed())??;
                if let Some(why) = verdict.doubt {
                    return Err(why);
                }
                refused.extend(verdict.subscriptions);
            }
            Ok((session, subscribers, refused))
        };
        let (mut session, subscribers, refused) = match self.away_while("it is connecting", opening).await? {
            Ok(opened) => opened,
            Err(why) => return Some(Err(why)),
        };
        for (filter, _) in &subscribers {
            if let Some(why) = refused.get(&subject(filter))
                && self.filters.remove(filter)
            {
                self.tell(Event::Refused { filter: filter.clone(), why: why.clone() }).await?;
            }
        }
        if was_up {
            // After every subscription is whole again and before the first message of this session.
            let why = "the connection was lost and made anew".to_owned();
            self.tell(Event::Lost { filter: None, why }).await?;
        }
        self.tell(Event::Up).await?;
        for (filter, subscriber) in subscribers {
            // Not those that were refused, or unsubscribed in the meantime; dropping the subscriber unsubscribes.
            if self.filters.contains(&filter) {
                session.forward(filter, subscriber, &self.events);
            }
        }
        Some(Ok(session))
    }

    /// Serves commands until the session ends; tells why it did.
    async fn serve(&mut self, session: &mut Session) -> Option<String> {
        // A refusal goes through here rather than straight into the event channel: while that is full, commands must
        // still be answered, since whoever drains it may be waiting for an answer.
        let mut outbox: VecDeque<Event> = VecDeque::new();
        let events = self.events.clone();
        loop {
            let mut batch = Vec::with_capacity(BATCH);
            tokio::select! {
                taken = self.commands.recv_many(&mut batch, BATCH) => {
                    if taken == 0 {
                        return None;
                    }
                    if let Err(why) = self.batch(session, batch).await {
                        return Some(why);
                    }
                }
                message = session.sentinel.next() => match message {
                    Some(_) => {} // nothing is ever delivered there
                    None => return Some(session.ended().await),
                },
                Some(words) = session.errors.recv() => {
                    session.note(&words, &mut Verdict::default());
                    if session.overrun {
                        return Some(OVERRUN.into());
                    }
                }
                permit = events.reserve(), if !outbox.is_empty() => {
                    if let (Ok(permit), Some(event)) = (permit, outbox.pop_front()) {
                        permit.send(event);
                    }
                }
                () = events.closed() => return None,
            }
            for (filter, why) in session.withdrawn.drain(..) {
                if self.filters.remove(&filter) {
                    outbox.push_back(Event::Refused { filter, why });
                }
            }
        }
    }

    /// Carries out a batch and answers it after one confirmation. An error is why the session is broken.
    async fn batch(&mut self, session: &mut Session, batch: Vec<Command>) -> Result<(), String> {
        let mut asked = Vec::with_capacity(batch.len());
        let mut waiting = VecDeque::from(batch);
        let work = async {
            // Each stays in `waiting` until it has been carried out, so that an interruption leaves none unanswered.
            while let Some(command) = waiting.front() {
                let outcome = match command {
                    Command::Subscribe { filter, .. } => {
                        if !unspeakable(filter.as_str()) && !session.forwarders.contains_key(filter) {
                            let subscriber = session.subscriber(filter).await?;
                            session.forward(filter.clone(), subscriber, &self.events);
                        }
                        if unspeakable(filter.as_str()) {
                            Err(BrokerError::Refused(DOT.into()))
                        } else {
                            Ok(subject(filter))
                        }
                    }
                    Command::Unsubscribe { filter } => {
                        self.filters.remove(filter);
                        session.unsubscribe(filter).await;
                        Ok(String::new())
                    }
                    Command::Publish { topic, payload, headers, .. } => {
                        session.publish(topic, payload.clone(), headers).await
                    }
                };
                let (filter, done) = match waiting.pop_front() {
                    Some(Command::Subscribe { filter, done }) => (Some(filter), done),
                    Some(Command::Publish { done, .. }) => (None, done),
                    Some(Command::Unsubscribe { .. }) | None => continue,
                };
                match outcome {
                    Ok(subject) => asked.push(Asked { subject, filter, done }),
                    Err(error) => drop(done.send(Err(error))),
                }
            }
            if asked.is_empty() { Ok(Verdict::default()) } else { session.confirm().await }
        };
        let outcome = match timeout(CONFIRM_LIMIT, work).await {
            Ok(outcome) => outcome,
            Err(_) => Err(unconfirmed()),
        };
        let verdict = match outcome {
            Ok(verdict) => verdict,
            Err(why) => {
                for Asked { done, .. } in asked {
                    let _ = done.send(Err(BrokerError::Away(why.clone())));
                }
                for command in waiting {
                    self.answer_away(command, &why);
                }
                return Err(why);
            }
        };
        for Asked { subject, filter, done } in asked {
            let refusals = if filter.is_some() { &verdict.subscriptions } else { &verdict.publications };
            let answer = match (refusals.get(&subject), &verdict.doubt) {
                (Some(why), _) => Err(BrokerError::Refused(why.clone())),
                (None, Some(why)) if !filter.as_ref().is_some_and(|filter| self.filters.contains(filter)) => {
                    Err(BrokerError::Away(why.clone()))
                }
                (None, _) => Ok(()),
            };
            if let Some(filter) = filter {
                if answer.is_err() {
                    self.filters.remove(&filter);
                    session.unsubscribe(&filter).await;
                } else if session.forwarders.contains_key(&filter) {
                    self.filters.insert(filter); // unless the same batch has ended it again
                }
            }
            let _ = done.send(answer);
        }
        Ok(())
    }

    /// Tells an event, answering commands while the channel is full.
    async fn tell(&mut self, event: Event) -> Option<()> {
        let events = self.events.clone();
        let sent =
            self.away_while("its events are not taken", async move { events.send(event).await }).await?;
        sent.ok()
    }

    /// Answers commands until `work` is done. `None` once one of the channels has closed.
    async fn away_while<T>(&mut self, why: &str, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        let events = self.events.clone();
        loop {
            tokio::select! {
                result = &mut work => return Some(result),
                command = self.commands.recv() => self.answer_away(command?, why),
                () = events.closed() => return None,
            }
        }
    }

    fn answer_away(&mut self, command: Command, why: &str) {
        match command {
            Command::Subscribe { done, .. } | Command::Publish { done, .. } => {
                let _ = done.send(Err(BrokerError::Away(why.to_owned())));
            }
            Command::Unsubscribe { filter } => {
                self.filters.remove(&filter);
            }
        }
    }
}

/// A command that was passed on and waits for its confirmation.
struct Asked {
    subject: String,
    /// What it subscribes to; `None` if it publishes.
    filter: Option<Filter>,
    done: oneshot::Sender<Result<(), BrokerError>>,
}

/// What the server said about a batch.
#[derive(Default)]
struct Verdict {
    /// Subjects that may not be subscribed to, and the server's words.
    subscriptions: HashMap<String, String>,
    /// Subjects that may not be published on.
    publications: HashMap<String, String>,
    /// Why nobody can say which subscriptions were refused.
    doubt: Option<String>,
    /// The barrier has been answered: everything sent before it has been processed.
    complete: bool,
}

/// One connection.
struct Session {
    client: Client,
    /// Lines of `-ERR` from the server, in the order sent.
    errors: mpsc::Receiver<String>,
    /// A subscription that gets nothing; its end is the end of the connection. It is the last barrier.
    sentinel: Subscriber,
    /// The subject of every barrier.
    barrier: String,
    /// One task a subscribed filter.
    forwarders: HashMap<Filter, JoinHandle<()>>,
    /// The same filters by their subjects, in which the server speaks.
    subjects: HashMap<String, Filter>,
    /// Filters that the server has ended on its own.
    withdrawn: Vec<(Filter, String)>,
    /// The last error, for the reason of the end.
    last: Option<String>,
    /// async-nats has dropped a message, so that this session cannot say any more where something is missing.
    overrun: bool,
}

impl Session {
    async fn connect(address: ServerAddr, options: async_nats::ConnectOptions) -> Result<Self, String> {
        let (error, errors) = mpsc::channel(1024);
        // async-nats always tries to reconnect. It is allowed one attempt, and that one is sent to a port where nothing
        // can listen: it fails at once, the connection's task ends, and every subscription ends once it is drained.
        let dead = ServerAddr::from_str("nats://127.0.0.1:0").map_err(|error| error.to_string())?;
        let pool = vec![address.clone(), dead.clone()];
        let connected = AtomicBool::new(false);
        let client = options
            .name("topicgate")
            .connection_timeout(CONNECT_LIMIT)
            .ping_interval(PING_INTERVAL)
            .subscription_capacity(SUBSCRIPTION_CAPACITY)
            .ignore_discovered_servers()
            .retain_servers_order()
            .max_reconnects(1)
            .reconnect_to_server_callback(move |_, _| {
                let addr = if connected.swap(true, Ordering::Relaxed) { &dead } else { &address };
                let target = ReconnectToServer { addr: addr.clone(), delay: Some(Duration::ZERO) };
                std::future::ready(Some(target))
            })
            .event_callback(move |event| {
                let words = match event {
                    async_nats::Event::ServerError(error) => Some(error.to_string()),
                    async_nats::Event::SlowConsumer(_) => Some(OVERRUN.to_owned()),
                    _ => None,
                };
                let error = error.clone();
                async move {
                    if let Some(words) = words {
                        let _ = error.send(words).await;
                    }
                }
            })
            .connect(pool)
            .await
            .map_err(|error| error.to_string())?;
        let barrier = format!("{}.>.confirm", client.new_inbox());
        let sentinel = client.subscribe(barrier.clone()).await.map_err(|error| error.to_string())?;
        let mut session = Session {
            client,
            errors,
            sentinel,
            barrier,
            forwarders: HashMap::new(),
            subjects: HashMap::new(),
            withdrawn: Vec::new(),
            last: None,
            overrun: false,
        };
        timeout(CONFIRM_LIMIT, session.answered()).await.map_err(|_| unconfirmed())??;
        Ok(session)
    }

    /// Waits until the server has processed everything that was sent before.
    ///
    /// `flush` only empties our own buffer, and async-nats keeps PONG to itself. So a subject that no server accepts is
    /// subscribed to (`>` before the last token). The server takes the lines of one connection in order and answers
    /// this one, by the protocol, with one `-ERR` that keeps the connection open: `Invalid Subject`, or a permissions
    /// violation that names it. Unlike an echoed message it needs no permission, and it comes through the same channel
    /// as the refusals before it, so that none can still be under way.
    async fn confirm(&mut self) -> Result<Verdict, String> {
        self.sentinel = self.client.subscribe(self.barrier.clone()).await.map_err(|_| self.epitaph())?;
        self.answered().await
    }

    async fn answered(&mut self) -> Result<Verdict, String> {
        let mut verdict = Verdict::default();
        while !verdict.complete {
            tokio::select! {
                Some(words) = self.errors.recv() => self.note(&words, &mut verdict),
                None = self.sentinel.next() => return Err(self.ended().await),
            }
            if self.overrun {
                return Err(OVERRUN.into());
            }
        }
        Ok(verdict)
    }

    /// Takes in one line of `-ERR`.
    fn note(&mut self, words: &str, verdict: &mut Verdict) {
        if words == OVERRUN {
            self.overrun = true;
            return;
        }
        let words = words.strip_prefix("nats: ").unwrap_or(words);
        if words.eq_ignore_ascii_case("invalid subject") {
            verdict.complete = true;
        } else if let Some(quoted) = words.strip_prefix("Permissions Violation for Subscription to ") {
            let Some(subject) = unquote(quoted) else {
                verdict.doubt = Some(words.to_owned());
                return;
            };
            if subject == self.barrier {
                verdict.complete = true;
            } else {
                if let Some(filter) = self.subjects.remove(&subject) {
                    if let Some(task) = self.forwarders.remove(&filter) {
                        task.abort();
                    }
                    self.withdrawn.push((filter, words.to_owned()));
                }
                verdict.subscriptions.insert(subject, words.to_owned());
            }
        } else if let Some(quoted) = words.strip_prefix("Permissions Violation for Publish to ") {
            match unquote(quoted) {
                Some(subject) => drop(verdict.publications.insert(subject, words.to_owned())),
                None => verdict.doubt = Some(words.to_owned()),
            }
        } else {
            tracing::warn!(%words, "NATS reports an error");
            self.last = Some(words.to_owned());
            if words.to_ascii_lowercase().starts_with("maximum subscriptions") {
                // It names no subject, and the barrier is refused in the same words.
                verdict.doubt = Some(words.to_owned());
                verdict.complete = true;
            }
        }
    }

    async fn subscriber(&self, filter: &Filter) -> Result<Subscriber, String> {
        self.client.subscribe(subject(filter)).await.map_err(|_| self.epitaph())
    }

    fn forward(&mut self, filter: Filter, subscriber: Subscriber, events: &mpsc::Sender<Event>) {
        self.subjects.insert(subject(&filter), filter.clone());
        let task = forward(filter.clone(), subscriber, events.clone());
        self.forwarders.insert(filter, tokio::spawn(task));
    }

    /// Ends a subscription. Once this returns, nothing more of it comes.
    async fn unsubscribe(&mut self, filter: &Filter) {
        self.subjects.remove(&subject(filter));
        if let Some(task) = self.forwarders.remove(filter) {
            // Dropping the subscriber enqueues UNSUB (from a task of its own should the queue be full, and again at the
            // next message that finds it gone). Waiting for the end of the task keeps a message it holds from coming
            // after those of a new subscription of the same filter.
            task.abort();
            let _ = task.await;
        }
    }

    async fn publish(&self, topic: &Topic, payload: Bytes, headers: &Headers) -> Result<String, BrokerError> {
        if unspeakable(topic.as_str()) {
            return Err(BrokerError::Refused(DOT.into()));
        }
        let subject = topic.to_subject('.');
        let published = if headers.is_empty() {
            self.client.publish(subject.clone(), payload).await
        } else {
            let mut fields = HeaderMap::new();
            for (name, value) in headers.iter() {
                let bad = |error: String| BrokerError::Refused(format!("the header field {name:?}: {error}"));
                let key = HeaderName::from_str(name).map_err(|error| bad(error.to_string()))?;
                let value = HeaderValue::from_str(value).map_err(|error| bad(error.to_string()))?;
                fields.append(key, value);
            }
            self.client.publish_with_headers(subject.clone(), fields, payload).await
        };
        match published {
            Ok(()) => Ok(subject),
            Err(error) if error.kind() == async_nats::PublishErrorKind::Send => {
                Err(BrokerError::Away(self.epitaph()))
            }
            Err(error) => Err(BrokerError::Refused(error.to_string())),
        }
    }

    /// Takes in what the server still said before the connection ended, for that is often why. async-nats' side of the
    /// channel closes once the connection's task is gone, which it is by now.
    async fn ended(&mut self) -> String {
        while let Ok(Some(words)) = timeout(Duration::from_secs(1), self.errors.recv()).await {
            self.note(&words, &mut Verdict::default());
        }
        self.epitaph()
    }

    /// Why the connection ended, as far as anyone said.
    fn epitaph(&self) -> String {
        self.last.clone().unwrap_or_else(|| "the connection was lost".into())
    }

    /// Lets the forwarders deliver what has arrived, and ends. They end by themselves once the connection has. If it has
    /// not (it confirmed nothing in time, or was overrun), they are given up, and [`Event::Lost`] of the next session speaks for them.
    fn finish(mut self) -> impl Future<Output = ()> {
        let ended = matches!(self.sentinel.next().now_or_never(), Some(None));
        async move {
            for (_, task) in self.forwarders.drain() {
                if !ended {
                    task.abort();
                }
                let _ = task.await;
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // A subscriber keeps the connection open, so that none may outlive its session.
        for task in self.forwarders.values() {
            task.abort();
        }
    }
}

/// Hands the messages of one subscription on until the connection ends.
///
/// They are taken from async-nats as they come, whether or not the event channel has room: it would drop what it cannot
/// place and report so on a channel that drops as well, without the place and at the cost of the refusals that share
/// that channel. Here what does not fit leaves its mark exactly where it is missing.
async fn forward(filter: Filter, mut subscriber: Subscriber, events: mpsc::Sender<Event>) {
    let mut queue = Queue::default();
    loop {
        // Chosen at random when both can go on: neither may starve the other.
        tokio::select! {
            message = subscriber.next() => {
                let Some(message) = message else { break };
                let Some(event) = read_message(&filter, message, &events) else { continue };
                if queue.events.is_empty() {
                    match events.try_send(Event::Message(event)) {
                        Ok(()) => {}
                        Err(mpsc::error::TrySendError::Full(Event::Message(event))) => queue.push(event),
                        Err(_) => return,
                    }
                } else {
                    queue.push(event);
                }
            }
            permit = events.reserve(), if !queue.events.is_empty() => {
                let (Ok(permit), Some(event)) = (permit, queue.pop()) else { return };
                permit.send(event);
            }
        }
    }
    while let Some(event) = queue.pop() {
        if events.send(event).await.is_err() {
            return;
        }
    }
}

/// What one subscription holds while the event channel is full.
#[derive(Default)]
struct Queue {
    events: VecDeque<Event>,
    bytes: usize,
}

impl Queue {
    /// Takes a message in, or drops it and sees that a loss stands last: after what came before the hole and before
    /// what will come behind it.
    fn push(&mut self, message: Message) {
        let bytes = weight(&message);
        if self.events.len() < QUEUE_MESSAGES && self.bytes + bytes <= QUEUE_BYTES {
            self.bytes += bytes;
            self.events.push_back(Event::Message(message));
        } else if !matches!(self.events.back(), Some(Event::Lost { .. })) {
            let why = "messages came in faster than they were taken".to_owned();
            self.events.push_back(Event::Lost { filter: Some(message.filter), why });
        }
    }

    fn pop(&mut self) -> Option<Event> {
        let event = self.events.pop_front()?;
        if let Event::Message(message) = &event {
            self.bytes -= weight(message);
        }
        Some(event)
    }
}

/// Bytes that a message holds on to, roughly.
fn weight(message: &Message) -> usize {
    let headers: usize = message.headers.iter().map(|(name, value)| name.len() + value.len() + 48).sum();
    size_of::<Event>() + message.topic.as_str().len() + message.payload.len() + headers
}

/// A message as the contract has it; `None` if the filter or the grammar does not match its subject.
fn read_message(
    filter: &Filter,
    message: async_nats::Message,
    events: &mpsc::Sender<Event>,
) -> Option<Message> {
    let Some(topic) = Topic::from_subject(&message.subject, '.') else {
        // For a counter only: not worth waiting for.
        let _ = events.try_send(Event::Unnameable { filter: filter.clone() });
        return None;
    };
    if !filter.matches(&topic) {
        return None; // a reserved subject, which NATS' wildcards match and ours do not
    }
    let headers = message.headers.as_ref().map(read_headers).unwrap_or_default();
    Some(Message { filter: filter.clone(), topic, payload: message.payload, headers })
}

const DOT: &str = "a segment has a dot, which separates segments on NATS";

/// Whether a topic or filter would name another one as a NATS subject.
fn unspeakable(text: &str) -> bool {
    text.contains('.')
}

fn subject(filter: &Filter) -> String {
    filter.to_subject('.', ">")
}

/// The subject at the start of `text`, which the server writes as a Go string; what follows it is dropped. As far as
/// subjects go that is a JSON string, but for what lies beyond 16 bits and is not printable.
fn unquote(text: &str) -> Option<String> {
    serde_json::Deserializer::from_str(text).into_iter().next()?.ok()
}

fn unconfirmed() -> String {
    format!("no confirmation within {} s", CONFIRM_LIMIT.as_secs())
}

/// async-nats keeps fields in a hash map: the order received is lost, so it is by name, the same for every message.
fn read_headers(fields: &HeaderMap) -> Headers {
    let mut sorted: Vec<_> = fields
        .iter()
        .flat_map(|(name, values)| values.iter().map(|value| (name.to_string(), value)))
        .collect();
    sorted.sort_by(|a, b| a.0.cmp(&b.0)); // stable: values of one name keep their order
    let mut headers = Headers::default();
    for (name, value) in sorted {
        headers.insert(name, value.as_str());
    }
    headers
}

/// 25 to 50 ms at first, doubled by each attempt, up to a second; random, so that many gateways do not come at once.
fn pause(attempts: u32) -> Duration {
    let longest = Duration::from_millis(50).saturating_mul(1 << attempts.min(8)).min(RETRY_LIMIT);
    longest.mul_f64(0.5 + 0.5 * fastrand::f64())
}
