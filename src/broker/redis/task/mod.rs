//! The task of publish/subscribe on one connection: it handles commands, forwards messages, and fails pending commands
//! when the connection is lost. `redis/mod.rs` reconnects, and `moves.rs` handles slot migration in a cluster.

mod moves;

use std::cell::OnceCell;
use std::collections::{HashMap, VecDeque};
use std::future::{Future, pending};
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::FutureExt;
use futures_util::stream::StreamExt;
use redis::{Client, Msg};
use tokio::sync::{mpsc, watch};
use tokio::task::unconstrained;
use tokio::time::{Instant, sleep_until};

use super::cluster::{Slots, View};
use super::migrating::MigratingChannels;
use super::outbox::Outbox;
use super::publisher::{PUBLISH_CAPACITY, Publish, publish_all};
use super::push::{Heard, Hearing};
use super::session::{Answer, Change, Request, Session, Sink, answer_of};
use super::shard_channels::HEARD_CAPACITY;
use super::shards::{Routed, Shard};
use super::table::{Name, Table};
use super::{ANSWER_LIMIT, BATCH, PING_AFTER, SILENCE_LIMIT, SessionEnd, ShardCommand};
use crate::broker::{BrokerError, Command, Event, Message};
use crate::protocol::headers::Headers;
use crate::protocol::topic::{Filter, Topic};

/// The state of the task, which outlives its sessions.
pub(super) struct Task<C> {
    table: Table,
    commands: mpsc::Receiver<C>,
    outbox: Outbox,
    /// The shard, in a cluster.
    shard: Option<Arc<Shard>>,
    /// The view of the cluster, if any node of it will do.
    view: Option<watch::Receiver<View>>,
    /// Names that are no longer in the table, to be unsubscribed with the next change.
    unwanted: Vec<Name>,
    /// The topology by which the shards hold their channels.
    slots: Option<Arc<Slots>>,
    migrating: MigratingChannels,
}

impl<C: Into<ShardCommand>> Task<C> {
    pub(super) fn new(
        shard: Option<Arc<Shard>>,
        view: Option<watch::Receiver<View>>,
        separator: char,
        commands: mpsc::Receiver<C>,
        events: mpsc::Sender<Event>,
    ) -> Self {
        Task {
            table: Table::new(separator),
            commands,
            outbox: Outbox::new(events, shard.clone()),
            shard,
            view,
            unwanted: Vec::new(),
            slots: None,
            migrating: MigratingChannels::new(),
        }
    }

    /// Called before a session is established. Returns the channels and globs to subscribe to.
    pub(super) fn begin(&mut self) -> (Vec<String>, Vec<String>) {
        self.unwanted.clear();
        self.migrating.begin();
        self.table.names()
    }

    /// Records that there is no session; the reason.
    pub(super) fn down(&mut self, why: &str) {
        self.outbox.down(why);
    }

    /// Answers commands as `Away` until `work` is done; `None` if the task must end.
    pub(super) async fn while_down<F: Future>(&mut self, work: F, why: &str) -> Option<F::Output> {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Some(done),
                order = self.commands.recv() => self.answer_away(order?.into(), why),
                room = self.outbox.room(), if self.outbox.is_pending() => {
                    if !room {
                        return None;
                    }
                    self.outbox.flush();
                }
            }
        }
    }

    /// Answers a command while there is no connection.
    fn answer_away(&mut self, order: ShardCommand, why: &str) {
        match order {
            ShardCommand::Command(Command::Unsubscribe { filter }) => self.unsubscribe(&filter),
            ShardCommand::Command(command) => command.fail(BrokerError::Away(why.into())),
            ShardCommand::Release { slots, left } => self.leave(slots, left, &[]),
            ShardCommand::Adopt(entering) => self.enter(entering.held),
        }
    }

    /// Removes a filter from the table; the next change unsubscribes its name.
    fn unsubscribe(&mut self, filter: &Filter) {
        self.outbox.forget(filter);
        if let Ok(name) = self.table.name(filter)
            && self.table.remove(&name, filter)
        {
            self.migrating.remove(name.as_str());
            self.unwanted.push(name);
        }
    }

    /// Serves one session from its first event to its end, and fails its pending commands.
    pub(super) async fn serve(
        &mut self,
        client: &Client,
        session: Session,
        before: Option<&str>,
    ) -> SessionEnd {
        let Session { sink, mut stream, held, refused, migrating } = session;
        for (name, why) in refused {
            for filter in self.table.remove_name(&name) {
                self.outbox.refused(filter, &why);
            }
        }
        let lost = self.lost_before(before);
        // Filters that were added meanwhile are not subscribed.
        let moving = self.migrating.iter().filter_map(|channel| self.table.channels.get(channel));
        self.outbox.up(lost, moving.map(|(filter, _)| filter.clone()).collect());
        migrating.into_iter().for_each(|channel| self.go_astray(channel));
        for message in held {
            self.route(&message);
        }
        // Each session has its own publishing connection: the last session's would fail the first PUBLISH of this one.
        let (publisher, publishes) = mpsc::channel(PUBLISH_CAPACITY);
        let publish = if self.shard.is_some() { "SPUBLISH" } else { "PUBLISH" };
        tokio::spawn(publish_all(client.clone(), publish, publishes, self.shard.clone()));

        let mut queue = VecDeque::new();
        let unsubscribe = self.unwanted.drain(..).collect();
        let mut request = Some(self.request(&sink, Change { unsubscribe, ..Change::default() }));
        let end = self.session(&sink, &mut stream, &publisher, &mut queue, &mut request).await;

        while let Some(Some(chunk)) = stream.next().now_or_never() {
            self.hear(chunk);
        }
        let why = end.to_string();
        for (filter, name, done) in request.into_iter().flat_map(|request| request.change.waiting) {
            self.table.remove(&name, &filter);
            let _ = done.send(Err(BrokerError::Away(why.clone())));
        }
        for order in queue {
            self.answer_away(order, &why);
        }
        end
    }

    /// The messages that may be missing when a session begins; `before` is the reason why the previous one ended.
    fn lost_before(&mut self, before: Option<&str>) -> Option<(Option<Vec<Filter>>, String)> {
        let why = |why| format!("the connection to Redis was lost: {why}");
        if self.shard.is_none() {
            return before.map(|before| (None, why(before)));
        }
        let arrived = self.migrating.arrived();
        let concerned = self.table.channels.iter();
        let concerned = concerned.filter(|(channel, _)| before.is_some() || arrived.contains(*channel));
        let concerned: Vec<Filter> = concerned.map(|(_, (filter, _))| filter.clone()).collect();
        let why = before.map_or("its slot has moved".into(), why);
        (!concerned.is_empty()).then_some((Some(concerned), why))
    }

    async fn session(
        &mut self,
        sink: &Sink,
        stream: &mut Hearing,
        publisher: &mpsc::Sender<Publish>,
        queue: &mut VecDeque<ShardCommand>,
        request: &mut Option<Request>,
    ) -> SessionEnd {
        let mut batch = Vec::new();
        let departed = self.view.as_ref().map_or(0, |view| view.borrow().departed);
        let mut heard = Instant::now();
        let mut answered = heard;
        let mut timer = pin!(sleep_until(heard + PING_AFTER));
        loop {
            if request.is_none() {
                *request = self.advance(sink, publisher, queue);
            }
            let deadline = match request {
                Some(request) => (request.sent.max(heard) + SILENCE_LIMIT).min(request.sent + ANSWER_LIMIT),
                None => self.migrating.next_at().into_iter().fold(answered + PING_AFTER, Instant::min),
            };
            if timer.deadline() != deadline {
                timer.as_mut().reset(deadline);
            }
            let idle = request.is_none();
            let is_room = if self.shard.is_some() { queue.len() < BATCH } else { idle && queue.is_empty() };
            tokio::select! {
                chunk = stream.next() => {
                    let Some(chunk) = chunk else { return SessionEnd::Closed };
                    heard = Instant::now();
                    self.hear(chunk);
                    if self.outbox.is_closed() {
                        return SessionEnd::Stopped;
                    }
                }
                answer = answer_of(request) => {
                    answered = Instant::now();
                    if self.shard.is_some() {
                        // Messages that the server sent before the answer have arrived by now.
                        for _ in 0..=HEARD_CAPACITY / BATCH {
                            // Without tokio's budget for a task, which would end this loop early.
                            let Some(Some(chunk)) = unconstrained(stream.next()).now_or_never() else { break };
                            self.hear(chunk);
                        }
                        self.migrating.all_have_left();
                    }
                    let change = request.take().map(|request| request.change).unwrap_or_default();
                    if !self.answer(change, answer) {
                        return SessionEnd::Closed;
                    }
                }
                taken = self.commands.recv_many(&mut batch, BATCH), if is_room => {
                    if taken == 0 {
                        return SessionEnd::Stopped;
                    }
                    queue.extend(batch.drain(..).map(Into::into));
                    let waiting = request.as_ref().map(|request| request.change.waiting.as_slice());
                    self.carry_over(queue, waiting.unwrap_or_default());
                }
                // While a PUBLISH at the head of the queue has no room (see `advance`), the commands after it wait too.
                permit = publisher.reserve(), if idle && !queue.is_empty() => drop(permit),
                () = &mut timer => {
                    if request.is_some() {
                        return SessionEnd::Silent;
                    }
                    // Otherwise migrating channels are due.
                    if answered + PING_AFTER <= Instant::now() {
                        *request = Some(Request::ping(sink));
                    }
                }
                () = departure(&mut self.view, departed) => return SessionEnd::Departed,
                room = self.outbox.room(), if self.outbox.is_pending() => {
                    if !room {
                        return SessionEnd::Stopped;
                    }
                    self.outbox.flush();
                }
            }
        }
    }

    /// Handles the pushes of the server.
    fn hear(&mut self, chunk: Vec<Heard>) {
        for heard in chunk {
            match heard {
                Heard::Message(message) => self.route(&message),
                Heard::Unsubscribed(channel) if self.migrating.was_asked(&channel) => {}
                Heard::Unsubscribed(channel) => self.go_astray(channel),
            }
        }
    }

    fn request(&mut self, sink: &Sink, change: Change) -> Request {
        if self.shard.is_some() {
            self.migrating.ask_to_leave(change.unsubscribe.iter().map(Name::as_str));
        }
        Request::change(sink, change)
    }

    /// Answers the subscriptions of a change. `false` if the connection failed.
    fn answer(&mut self, change: Change, answer: Answer) -> bool {
        let closed = answer.is_err();
        let faults: HashMap<Name, BrokerError> = answer.unwrap_or_default().into_iter().collect();
        if faults.values().any(|fault| matches!(fault, BrokerError::Away(_))) {
            self.refresh_topology();
        }
        for (filter, name, done) in change.waiting {
            let mut result = if closed {
                Err(BrokerError::Away(SessionEnd::Closed.to_string()))
            } else {
                faults.get(&name).cloned().map_or(Ok(()), Err)
            };
            if result.is_err() {
                self.table.remove(&name, &filter);
                self.outbox.forget(&filter);
            } else if self
                .shard
                .as_ref()
                .zip(self.slots.as_ref())
                .is_some_and(|(shard, slots)| shard.has_lost(slots, name.as_str()))
            {
                self.unsubscribe(&filter);
                result = Err(BrokerError::Away("its slot has moved".into()));
            }
            let _ = done.send(result);
        }
        if !closed {
            self.answer_strays(change.migrating, &faults);
        }
        !closed
    }

    /// Handles commands of the queue until one needs the server, or a PUBLISH has no room.
    fn advance(
        &mut self,
        sink: &Sink,
        publisher: &mpsc::Sender<Publish>,
        queue: &mut VecDeque<ShardCommand>,
    ) -> Option<Request> {
        let mut change = Change { unsubscribe: self.unwanted.drain(..).collect(), ..Change::default() };
        while let Some(order) = queue.pop_front() {
            match order {
                ShardCommand::Command(Command::Subscribe { filter, done }) => {
                    let name = match self.table.name(&filter) {
                        Ok(name) => name,
                        Err(refused) => {
                            let _ = done.send(Err(refused));
                            continue;
                        }
                    };
                    if change.unsubscribe.contains(&name) {
                        queue.push_front(Command::Subscribe { filter, done }.into());
                        break;
                    }
                    // In the table before it is requested: its first messages can overtake the confirmation here.
                    let known = self.table.contains(&name);
                    if self.table.insert(&name, filter.clone()) {
                        self.outbox.forget(&filter);
                    }
                    if known && !change.subscribe.contains(&name) {
                        let _ = done.send(Ok(()));
                    } else {
                        change.subscribe.insert(name.clone());
                        change.waiting.push((filter, name, done));
                    }
                }
                ShardCommand::Command(Command::Unsubscribe { filter }) => {
                    let Ok(name) = self.table.name(&filter) else { continue };
                    if change.subscribe.contains(&name) {
                        queue.push_front(Command::Unsubscribe { filter }.into());
                        break;
                    }
                    self.outbox.forget(&filter);
                    if self.table.remove(&name, &filter) {
                        self.migrating.remove(name.as_str());
                        change.unsubscribe.insert(name);
                    }
                }
                ShardCommand::Command(Command::Publish { topic, payload, headers, done }) => {
                    if !change.is_empty() {
                        // After the subscriptions that were sent before it, which would otherwise miss it.
                        queue.push_front(Command::Publish { topic, payload, headers, done }.into());
                        break;
                    }
                    if let Err(refused) = self.publishable(&topic, &headers) {
                        let _ = done.send(Err(refused));
                        continue;
                    }
                    match publisher.try_reserve() {
                        Ok(permit) => {
                            permit.send(Publish {
                                channel: topic.to_subject(self.table.separator),
                                payload,
                                done,
                            });
                        }
                        Err(mpsc::error::TrySendError::Full(())) => {
                            queue.push_front(Command::Publish { topic, payload, headers, done }.into());
                            break;
                        }
                        Err(mpsc::error::TrySendError::Closed(())) => {
                            let _ = done.send(Err(BrokerError::Away("the publisher has stopped".into())));
                        }
                    }
                }
                ShardCommand::Release { .. } | ShardCommand::Adopt(_) => {} // handled when they arrived
            }
        }
        self.migrating.retain(|channel| self.table.channels.contains_key(channel));
        change.migrating = self.migrating.due();
        change.subscribe.extend(change.migrating.iter().cloned().map(Name::Channel));
        (!change.is_empty()).then(|| self.request(sink, change))
    }

    fn publishable(&self, topic: &Topic, headers: &Headers) -> Result<(), BrokerError> {
        if !headers.is_empty() {
            let why = "Redis messages have no header fields; put their values into the payload";
            return Err(BrokerError::Refused(why.into()));
        }
        self.table.name(&Filter::from(topic.clone())).map(drop)
    }

    /// Forwards a message to every filter of its channel or glob that matches it.
    fn route(&mut self, message: &Msg) {
        let payload = OnceCell::new();
        let payload = || payload.get_or_init(|| Bytes::copy_from_slice(message.get_payload_bytes())).clone();
        let message_of = |filter: &Filter, topic: &Topic| Message {
            filter: filter.clone(),
            topic: topic.clone(),
            payload: payload(),
            headers: Headers::default(),
            stored: None,
        };
        if !message.from_pattern() {
            if let Some((filter, topic)) = self.table.channels.get(message.get_channel_name()) {
                self.outbox.forward(filter, || message_of(filter, topic));
            }
            return;
        }
        let Ok(glob) = message.get_pattern::<String>() else { return };
        let Some(filters) = self.table.globs.get(&glob) else { return };
        let Some(topic) = Topic::from_subject(message.get_channel_name(), self.table.separator) else {
            filters.iter().for_each(|filter| self.outbox.unnameable(filter));
            return;
        };
        for filter in filters.iter().filter(|filter| filter.matches(&topic)) {
            self.outbox.forward(filter, || message_of(filter, &topic));
        }
    }
}

/// Waits until more masters than `departed` have left the cluster; for ever if there is no cluster.
async fn departure(view: &mut Option<watch::Receiver<View>>, departed: u64) {
    if let Some(view) = view
        && view.wait_for(|view| view.departed > departed).await.is_ok()
    {
        return;
    }
    pending().await
}
