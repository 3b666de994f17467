//! NATS: core publish/subscribe, over async-nats.
//!
//! It is a loop of sessions. A session is one connection with a client of its own; async-nats is kept from reconnecting
//! inside it, because a connection that comes back on its own leaves no place in the stream of messages where the gap
//! could stand. Each session connects, subscribes to every filter, has that confirmed, tells [`Event::Lost`] and
//! [`Event::Up`], and only then lets messages through. When it ends, what had arrived is delivered, [`Event::Down`] is
//! told, and the next server is tried.
//!
//! Not here: what JetStream keeps (`jetstream.rs`), positions, replay. A server in lame-duck mode is left when it closes
//! the connection: core NATS loses what is published in between either way.

mod forward;
mod headers;
pub(super) mod jetstream;
mod session;
mod settings;

use std::collections::{HashMap, HashSet, VecDeque};
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};

use self::session::{CONFIRM_LIMIT, DOT, OVERRUN, Session, Verdict, late, subject, unconfirmed, unspeakable};
pub(super) use self::settings::Settings;
use super::{BrokerError, Command, Event, Link};
use crate::topic::Filter;

/// Time for all addresses of a server, name resolution included.
const OPEN_LIMIT: Duration = Duration::from_secs(8);

/// The longest pause before a new attempt.
const RETRY_LIMIT: Duration = Duration::from_secs(1);

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
                self.tell(Event::Down { link: Link::Pubsub, why: why.clone() }).await?;
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
            let late = late(&address);
            let mut session =
                timeout(OPEN_LIMIT, Session::connect(address, options)).await.map_err(|_| late)??;
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
            self.tell(Event::Lost { filters: None, why }).await?;
        }
        self.tell(Event::Up(Link::Pubsub)).await?;
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

/// 25 to 50 ms at first, doubled by each attempt, up to a second; random, so that many gateways do not come at once.
fn pause(attempts: u32) -> Duration {
    let longest = Duration::from_millis(50).saturating_mul(1 << attempts.min(8)).min(RETRY_LIMIT);
    longest.mul_f64(0.5 + 0.5 * fastrand::f64())
}
