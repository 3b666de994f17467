//! Pending commands of a session, and their answers: a `PONG` confirms all commands before its `PING`, except those
//! that the server has refused by then.

use std::collections::HashMap;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::{ANSWER_LIMIT, Session, Stage};
use crate::broker::nats::above_max_payload;
use crate::broker::nats::subjects::{filter_of, speakable, subject, unquote};
use crate::broker::nats::table::Table;
use crate::broker::nats::wire::{self, PING};
use crate::broker::sink::EventSink;
use crate::broker::{BrokerError, Command, Event};
use crate::protocol::headers::Headers;
use crate::protocol::topic::{Filter, Topic};

/// The most commands that share one PING.
const BATCH: usize = 256;

/// The commands that one PING confirms.
pub(crate) struct Batch {
    pub(crate) sent: Instant,
    pub(crate) pending: Vec<PendingCommand>,
    /// Refused filters and subjects, with the server's text.
    filters: HashMap<Filter, String>,
    subjects: HashMap<String, String>,
    /// An error that names no subject, so it is unknown what it refused.
    doubt: Option<String>,
}

impl Batch {
    fn new(pending: Vec<PendingCommand>) -> Self {
        let (filters, subjects) = (HashMap::new(), HashMap::new());
        Batch { sent: Instant::now(), pending, filters, subjects, doubt: None }
    }
}

/// A command that waits for its PONG.
pub(crate) struct PendingCommand {
    what: What,
    done: oneshot::Sender<Result<(), BrokerError>>,
}

enum What {
    Subscription(Filter, u64),
    /// The subject that was published to.
    Publication(String),
}

impl PendingCommand {
    /// Confirms the command.
    pub(crate) fn confirm(self, table: &mut Table) {
        let is_there = match &self.what {
            What::Subscription(filter, sid) => table.confirm(filter, *sid),
            What::Publication(_) => true,
        };
        let ended = || BrokerError::Away("the subscription has ended".into());
        let _ = self.done.send(is_there.then_some(()).ok_or_else(ended));
    }

    /// Fails the command. Returns the number of a subscription that ends with it; one that was confirmed before stays.
    pub(crate) fn fail(self, why: BrokerError, table: &mut Table) -> Option<u64> {
        let _ = self.done.send(Err(why));
        match self.what {
            What::Subscription(filter, sid) => table.remove_unconfirmed(&filter, sid).then_some(sid),
            What::Publication(_) => None,
        }
    }
}

impl Session {
    pub(crate) fn ping(&mut self, pending: Vec<PendingCommand>) {
        self.transport.out.extend_from_slice(PING);
        self.batches.push_back(Batch::new(pending));
        self.pinged = Instant::now();
    }

    /// Sends `first` and all other waiting commands, with one PING for all.
    pub(crate) fn carry_out(
        &mut self,
        first: Command,
        table: &mut Table,
        commands: &mut mpsc::Receiver<Command>,
    ) {
        let mut next = Some(first);
        let mut pending = Vec::new();
        while let Some(command) = next {
            match command {
                Command::Subscribe { filter, done } => match self.subscribe(&filter, table) {
                    Ok(sid) => pending.push(PendingCommand { what: What::Subscription(filter, sid), done }),
                    Err(error) => drop(done.send(Err(error))),
                },
                Command::Unsubscribe { filter } => {
                    if let Some(sid) = table.remove(&filter) {
                        wire::write_unsubscribe(&mut self.transport.out, sid);
                    }
                }
                Command::Publish { topic, payload, headers, done } => {
                    match self.publish(&topic, &payload, &headers) {
                        Ok(subject) => {
                            pending.push(PendingCommand { what: What::Publication(subject), done })
                        }
                        Err(error) => drop(done.send(Err(error))),
                    }
                }
            }
            let has_room = pending.len() < BATCH && self.transport.has_room();
            next = if has_room { commands.try_recv().ok() } else { None };
        }
        if !pending.is_empty() {
            self.ping(pending);
        }
    }

    fn subscribe(&mut self, filter: &Filter, table: &mut Table) -> Result<u64, BrokerError> {
        speakable(filter.as_str())?;
        let (sid, is_new) = table.add(filter);
        if is_new {
            wire::write_subscribe(&mut self.transport.out, &subject(filter), sid);
        }
        Ok(sid)
    }

    fn publish(&mut self, topic: &Topic, payload: &[u8], headers: &Headers) -> Result<String, BrokerError> {
        speakable(topic.as_str())?;
        let fields = wire::header_block(headers).map_err(BrokerError::Refused)?;
        if !fields.is_empty() && !self.transport.info.headers {
            return Err(BrokerError::Refused("the server does not support header fields".into()));
        }
        let (bytes, most) = (fields.len() + payload.len(), self.transport.info.max_payload);
        if bytes > most {
            // For a larger message, the server would end the connection.
            return Err(above_max_payload(bytes, most));
        }
        let subject = topic.to_subject('.');
        wire::write_publish(&mut self.transport.out, &subject, &fields, payload);
        Ok(subject)
    }

    /// Handles an error of the server.
    pub(crate) fn refused(&mut self, words: String, table: &mut Table, sink: &mut EventSink) {
        let batch = self.batches.front_mut();
        if let Some(quoted) = words.strip_prefix("Permissions Violation for Subscription to ") {
            match (filter_of(quoted), batch) {
                (Some(filter), Some(batch)) => drop(batch.filters.insert(filter, words)),
                (Some(filter), None) => self.withdrawn(filter, words, table, sink),
                (None, Some(batch)) => batch.doubt = Some(words),
                (None, None) => self.transport.log(&words),
            }
            return;
        }
        let quoted = words.strip_prefix("Permissions Violation for Publish to ");
        if let (Some(subject), Some(batch)) = (quoted.and_then(unquote), batch) {
            batch.subjects.insert(subject, words);
            return;
        }
        if let Some(batch) = self.batches.front_mut() {
            batch.doubt = Some(words.clone());
        }
        self.transport.report(words);
    }

    /// The server ended a confirmed subscription.
    fn withdrawn(&mut self, filter: Filter, why: String, table: &mut Table, sink: &mut EventSink) {
        if table.remove(&filter).is_some() {
            sink.push(Event::Refused { filter, why });
        }
    }

    /// The server has answered a PING.
    pub(crate) fn answered(&mut self, table: &mut Table, sink: &mut EventSink) -> Result<(), String> {
        let Some(mut batch) = self.batches.pop_front() else { return Ok(()) };
        let settled = self.settled(batch.sent);
        for pending in batch.pending {
            let refusal = match &pending.what {
                What::Subscription(filter, _) => batch.filters.get(filter),
                What::Publication(subject) => batch.subjects.get(subject),
            };
            match (refusal, &batch.doubt) {
                (Some(why), _) => self.fail(pending, BrokerError::Refused(why.clone()), table),
                (None, Some(why)) => self.fail(pending, BrokerError::Away(why.clone()), table),
                (None, None) if self.settle.is_zero() || matches!(pending.what, What::Publication(_)) => {
                    pending.confirm(table);
                }
                (None, None) => self.settling.push_back((settled, pending)),
            }
        }
        for (filter, why) in batch.filters.drain() {
            self.withdrawn(filter, why, table, sink);
        }
        if batch.doubt.is_none() {
            self.transport.forget_words();
        }
        if matches!(self.stage, Stage::Restoring) {
            if let Some(why) = batch.doubt {
                return Err(why);
            }
            self.settle(batch.sent, "the connection was lost and opened again");
        }
        Ok(())
    }

    fn fail(&mut self, pending: PendingCommand, why: BrokerError, table: &mut Table) {
        if let Some(sid) = pending.fail(why, table) {
            wire::write_unsubscribe(&mut self.transport.out, sid);
        }
    }

    /// Fails commands that have waited too long while the connection still delivers messages.
    pub(crate) fn fail_late(&mut self, now: Instant, table: &mut Table) {
        let late: Vec<PendingCommand> = self
            .batches
            .iter_mut()
            .take_while(|batch| batch.sent + ANSWER_LIMIT <= now)
            .flat_map(|batch| std::mem::take(&mut batch.pending))
            .collect();
        for pending in late {
            let why = format!("no confirmation within {} s", ANSWER_LIMIT.as_secs());
            self.fail(pending, BrokerError::Away(why), table);
        }
    }
}
