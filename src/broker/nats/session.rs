//! One connection to NATS: how it is made and kept from coming back on its own, what the server is asked on it, and what
//! it answers.

use std::collections::HashMap;
use std::future::Future;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::{Client, ReconnectToServer, ServerAddr, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::forward::forward;
use super::headers::write_headers;
use crate::broker::{BrokerError, Event, Headers};
use crate::reason::{LATE, Peer, sentence};
use crate::topic::{Filter, Topic};

/// Time for a connection, handshakes included, to one address of a server.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);

/// async-nats gives a connection up at the third PING without an answer: 12 s, within the contract's 15.
const PING_INTERVAL: Duration = Duration::from_secs(4);

/// Messages that async-nats may hold for one subscription. The forwarder takes them off at once, so that this is never
/// met unless the whole process is starved; then the session is ended. Filled lazily.
const SUBSCRIPTION_CAPACITY: usize = 512 * 1024;

/// Time for the server to confirm a batch; beyond it the connection counts as broken.
pub(super) const CONFIRM_LIMIT: Duration = Duration::from_secs(5);

/// The subject of every barrier ([`Session::confirm`]). Under a name of our own, so that a narrow user can be given
/// `_INBOX.topicgate.>`, where nothing is published: else the server logs an error for every confirmation.
const BARRIER: &str = "_INBOX.topicgate.>.confirm";

/// What stands for async-nats' report that it dropped a message.
pub(super) const OVERRUN: &str = "messages came in faster than the process could take them";

/// What the server said about a batch.
#[derive(Default)]
pub(super) struct Verdict {
    /// Subjects that may not be subscribed to, and the server's words.
    pub(super) subscriptions: HashMap<String, String>,
    /// Subjects that may not be published on.
    pub(super) publications: HashMap<String, String>,
    /// Why nobody can say which subscriptions were refused.
    pub(super) doubt: Option<String>,
    /// The barrier has been answered: everything sent before it has been processed.
    pub(super) complete: bool,
}

/// One connection.
pub(super) struct Session {
    pub(super) client: Client,
    /// Lines of `-ERR` from the server, in the order sent.
    pub(super) errors: mpsc::Receiver<String>,
    /// A subscription that gets nothing; its end is the end of the connection. It is the last barrier.
    pub(super) sentinel: Subscriber,
    /// One task a subscribed filter.
    pub(super) forwarders: HashMap<Filter, JoinHandle<()>>,
    /// The same filters by their subjects, in which the server speaks.
    pub(super) subjects: HashMap<String, Filter>,
    /// Filters that the server has ended on its own.
    pub(super) withdrawn: Vec<(Filter, String)>,
    /// The last error, for the reason of the end.
    pub(super) last: Option<String>,
    /// async-nats has dropped a message, so that this session cannot say any more where something is missing.
    pub(super) overrun: bool,
}

/// Makes a connection that does not come back on its own, and the lines of `-ERR` that the server sends on it.
pub(super) async fn connect(
    address: ServerAddr,
    options: async_nats::ConnectOptions,
) -> Result<(Client, mpsc::Receiver<String>), String> {
    let (error, errors) = mpsc::channel(1024);
    // async-nats always tries to reconnect. It is allowed one attempt, and that one is sent to a port where nothing
    // can listen: it fails at once, the connection's task ends, and every subscription ends once it is drained.
    let dead = ServerAddr::from_str("nats://127.0.0.1:0").map_err(|error| error.to_string())?;
    let pool = vec![address.clone(), dead.clone()];
    let name = name(&address);
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
        .map_err(|error| format!("cannot connect: {name}: {}", sentence(&error.to_string(), Peer::Nats)))?;
    Ok((client, errors))
}

/// That no connection could be made in time.
pub(super) fn late(address: &ServerAddr) -> String {
    format!("cannot connect: {}: {}", name(address), sentence(LATE, Peer::Nats))
}

fn name(address: &ServerAddr) -> String {
    format!("{}:{}", address.host(), address.port())
}

impl Session {
    pub(super) async fn connect(
        address: ServerAddr,
        options: async_nats::ConnectOptions,
    ) -> Result<Self, String> {
        let (client, errors) = connect(address, options).await?;
        let sentinel = client.subscribe(BARRIER).await.map_err(|error| error.to_string())?;
        let mut session = Session {
            client,
            errors,
            sentinel,
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
    pub(super) async fn confirm(&mut self) -> Result<Verdict, String> {
        self.sentinel = self.client.subscribe(BARRIER).await.map_err(|_| self.epitaph())?;
        self.answered().await
    }

    pub(super) async fn answered(&mut self) -> Result<Verdict, String> {
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
    pub(super) fn note(&mut self, words: &str, verdict: &mut Verdict) {
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
            if subject == BARRIER {
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

    pub(super) async fn subscriber(&self, filter: &Filter) -> Result<Subscriber, String> {
        self.client.subscribe(subject(filter)).await.map_err(|_| self.epitaph())
    }

    pub(super) fn forward(&mut self, filter: Filter, subscriber: Subscriber, events: &mpsc::Sender<Event>) {
        self.subjects.insert(subject(&filter), filter.clone());
        let task = forward(filter.clone(), subscriber, events.clone());
        self.forwarders.insert(filter, tokio::spawn(task));
    }

    /// Ends a subscription. Once this returns, nothing more of it comes.
    pub(super) async fn unsubscribe(&mut self, filter: &Filter) {
        self.subjects.remove(&subject(filter));
        if let Some(task) = self.forwarders.remove(filter) {
            // Dropping the subscriber enqueues UNSUB (from a task of its own should the queue be full, and again at the
            // next message that finds it gone). Waiting for the end of the task keeps a message it holds from coming
            // after those of a new subscription of the same filter.
            task.abort();
            let _ = task.await;
        }
    }

    pub(super) async fn publish(
        &self,
        topic: &Topic,
        payload: Bytes,
        headers: &Headers,
    ) -> Result<String, BrokerError> {
        if unspeakable(topic.as_str()) {
            return Err(BrokerError::Refused(DOT.into()));
        }
        let subject = topic.to_subject('.');
        let published = if headers.is_empty() {
            self.client.publish(subject.clone(), payload).await
        } else {
            self.client.publish_with_headers(subject.clone(), write_headers(headers)?, payload).await
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
    pub(super) async fn ended(&mut self) -> String {
        while let Ok(Some(words)) = timeout(Duration::from_secs(1), self.errors.recv()).await {
            self.note(&words, &mut Verdict::default());
        }
        self.epitaph()
    }

    /// Why the connection ended, as far as anyone said.
    pub(super) fn epitaph(&self) -> String {
        self.last.as_ref().map_or("the connection was lost".into(), |words| sentence(words, Peer::Nats))
    }

    /// Lets the forwarders deliver what has arrived, and ends. They end by themselves once the connection has. If it has
    /// not (it confirmed nothing in time, or was overrun), they are given up, and [`Event::Lost`] of the next session speaks for them.
    pub(super) fn finish(mut self) -> impl Future<Output = ()> {
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

pub(super) const DOT: &str = "a segment has a dot, which separates segments on NATS";

/// Whether a topic or filter would name another one as a NATS subject.
pub(super) fn unspeakable(text: &str) -> bool {
    text.contains('.')
}

pub(super) fn subject(filter: &Filter) -> String {
    filter.to_subject('.', ">")
}

/// The subject at the start of `text`, which the server writes as a Go string; what follows it is dropped. As far as
/// subjects go that is a JSON string, but for what lies beyond 16 bits and is not printable.
fn unquote(text: &str) -> Option<String> {
    serde_json::Deserializer::from_str(text).into_iter().next()?.ok()
}

pub(super) fn unconfirmed() -> String {
    format!("no confirmation within {} s", CONFIRM_LIMIT.as_secs())
}
