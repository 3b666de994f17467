//! What publish/subscribe on one connection does: takes commands, hands messages on, and answers what a lost connection leaves
//! behind. How it comes to a connection is in `../redis.rs`.

use std::cell::OnceCell;
use std::collections::{HashMap, VecDeque};
use std::future::{Future, pending};
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::FutureExt;
use futures_util::stream::StreamExt;
use redis::{Client, Msg};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use super::cluster::{Slots, View};
use super::outbox::Outbox;
use super::publisher::{PUBLISH_CAPACITY, Publish, publish_all};
use super::session::{Answer, Change, Heard, Hearing, Request, Session, Sink, answer_of};
use super::shard_channels::HEARD_CAPACITY;
use super::shards::{Left, Routed, Shard};
use super::strays::Strays;
use super::table::{Name, Table};
use super::{ANSWER_LIMIT, BATCH, End, Order, PING_AFTER, SILENCE_LIMIT};
use crate::broker::{BrokerError, Command, Event, Headers, Message};
use crate::topic::{Filter, Topic};

/// See the module.
pub(super) struct Task<C> {
    table: Table,
    commands: mpsc::Receiver<C>,
    outbox: Outbox,
    /// Of a cluster.
    shard: Option<Arc<Shard>>,
    /// Of the cluster, if any node of it will do.
    view: Option<watch::Receiver<View>>,
    /// Unsubscribed while a session was being established that subscribes to them.
    unwanted: Vec<Name>,
    strays: Strays,
}

impl<C: Into<Order>> Task<C> {
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
            strays: Strays::new(),
        }
    }

    /// Before a session is established: the channels and globs that it is to subscribe to.
    pub(super) fn begin(&mut self) -> (Vec<String>, Vec<String>) {
        self.unwanted.clear();
        self.strays.begin();
        self.table.names()
    }

    /// There is no session, and why.
    pub(super) fn down(&mut self, why: &str) {
        self.outbox.down(why);
    }

    /// Answers commands until `work` is done; `None` if the task is to end.
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

    /// Answers an order without a connection.
    fn answer_away(&mut self, order: Order, why: &str) {
        match order {
            Order::Command(Command::Unsubscribe { filter }) => {
                self.outbox.forget(&filter);
                if let Ok(name) = self.table.name(&filter)
                    && self.table.remove(&name, &filter)
                {
                    self.unwanted.push(name);
                }
            }
            Order::Command(command) => command.fail(BrokerError::Away(why.into())),
            Order::Leave { slots, left } => {
                let held = self.leave(&slots);
                self.unwanted.extend(held.iter().map(|(channel, _)| Name::Channel(channel.clone())));
                self.answer_left(left, held);
            }
            Order::Enter(entering) => self.enter(entering.held),
        }
    }

    /// Gives up the channels that another shard has now.
    fn leave(&mut self, slots: &Slots) -> Vec<(String, Filter)> {
        let Some(shard) = &self.shard else { return Vec::new() };
        let left = self.table.channels.extract_if(|channel, _| shard.has_lost(slots, channel));
        let left: Vec<_> = left.map(|(channel, (filter, _))| (channel, filter)).collect();
        for (channel, filter) in &left {
            self.strays.remove(channel);
            self.outbox.forget(filter);
        }
        left
    }

    fn answer_left(&self, asked: oneshot::Sender<Left<(String, Filter)>>, held: Vec<(String, Filter)>) {
        let _ = asked.send(Left { held, is_whole: false, remaining: self.table.channels.len() });
    }

    /// Takes over channels from another shard.
    fn enter(&mut self, held: Vec<(String, Filter)>) {
        for (channel, filter) in held {
            let name = Name::Channel(channel);
            self.table.insert(&name, filter.clone());
            self.outbox.moving(filter);
            self.unwanted.retain(|unwanted| *unwanted != name);
            self.strays.enter(name.into_string());
        }
    }

    /// The server no longer has a channel, or does not have it yet.
    fn go_astray(&mut self, channel: String) {
        if let Some((filter, _)) = self.table.channels.get(&channel) {
            self.outbox.moving(filter.clone());
            self.strays.go_astray(channel);
            self.look_again();
        }
    }

    fn look_again(&self) {
        self.shard.iter().for_each(|shard| shard.look_again());
    }

    /// Serves one session from its first event to its end, and answers what it leaves behind.
    pub(super) async fn serve(&mut self, client: &Client, session: Session, before: Option<&str>) -> End {
        let Session { sink, mut stream, held, refused, strays } = session;
        for (name, why) in refused {
            for filter in self.table.remove_name(&name) {
                self.outbox.refused(filter, &why);
            }
        }
        let lost = self.lost_before(before);
        // Those that have come in the meantime are not subscribed.
        let moving = self.strays.iter().filter_map(|channel| self.table.channels.get(channel));
        self.outbox.up(lost, moving.map(|(filter, _)| filter.clone()).collect());
        strays.into_iter().for_each(|channel| self.go_astray(channel));
        for message in held {
            self.route(&message);
        }
        // A publishing connection for each session: one of the last session would fail the first publish of this one.
        let (publisher, publishes) = mpsc::channel(PUBLISH_CAPACITY);
        let publish = if self.shard.is_some() { "SPUBLISH" } else { "PUBLISH" };
        tokio::spawn(publish_all(client.clone(), publish, publishes));

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

    /// What may be missing as a session begins; `before` is why the one before it ended.
    fn lost_before(&mut self, before: Option<&str>) -> Option<(Option<Vec<Filter>>, String)> {
        let why = |why| format!("the connection to Redis was lost: {why}");
        if self.shard.is_none() {
            return before.map(|before| (None, why(before)));
        }
        let arrived = self.strays.arrived();
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
        queue: &mut VecDeque<Order>,
        request: &mut Option<Request>,
    ) -> End {
        let mut batch = Vec::new();
        let departed = self.view.as_ref().map(|view| view.borrow().departed);
        let mut departed = departed.unwrap_or_default();
        let mut heard = Instant::now();
        let mut answered = heard;
        let mut timer = pin!(sleep_until(heard + PING_AFTER));
        loop {
            if request.is_none() {
                *request = self.advance(sink, publisher, queue);
            }
            let deadline = match request {
                Some(request) => (request.sent.max(heard) + SILENCE_LIMIT).min(request.sent + ANSWER_LIMIT),
                None => self.strays.next_at().into_iter().fold(answered + PING_AFTER, Instant::min),
            };
            if timer.deadline() != deadline {
                timer.as_mut().reset(deadline);
            }
            let idle = request.is_none();
            tokio::select! {
                chunk = stream.next() => {
                    let Some(chunk) = chunk else { return End::Closed };
                    heard = Instant::now();
                    self.hear(chunk);
                    if self.outbox.is_closed() {
                        return End::Stopped;
                    }
                }
                answer = answer_of(request) => {
                    answered = Instant::now();
                    if self.shard.is_some() {
                        // What the server said before the answer is here by now.
                        for _ in 0..=HEARD_CAPACITY / BATCH {
                            let Some(Some(chunk)) = stream.next().now_or_never() else { break };
                            self.hear(chunk);
                        }
                        self.strays.all_have_left();
                    }
                    let change = request.take().map(|request| request.change).unwrap_or_default();
                    if !self.answer(change, answer) {
                        return End::Closed;
                    }
                }
                taken = self.commands.recv_many(&mut batch, BATCH), if idle && queue.is_empty() => {
                    if taken == 0 {
                        return End::Stopped;
                    }
                    queue.extend(batch.drain(..).map(Into::into));
                }
                // While a publish heads the queue there is no room for it (see `advance`); nor for what is behind it.
                permit = publisher.reserve(), if idle && !queue.is_empty() => drop(permit),
                () = &mut timer => {
                    if request.is_some() {
                        return End::Silent;
                    }
                    // Otherwise it is strays that are due.
                    if answered + PING_AFTER <= Instant::now() {
                        *request = Some(Request::ping(sink));
                    }
                }
                now = next_departure(&mut self.view, departed) => {
                    departed = now;
                    self.outbox.lost_all("a master has left the cluster: what it was given may not have come over");
                }
                room = self.outbox.room(), if self.outbox.is_pending() => {
                    if !room {
                        return End::Stopped;
                    }
                    self.outbox.flush();
                }
            }
        }
    }

    /// Takes what the server said unasked.
    fn hear(&mut self, chunk: Vec<Heard>) {
        for heard in chunk {
            match heard {
                Heard::Message(message) => self.route(&message),
                Heard::Unsubscribed(channel) if self.strays.was_asked(&channel) => {}
                Heard::Unsubscribed(channel) => self.go_astray(channel),
            }
        }
    }

    fn request(&mut self, sink: &Sink, change: Change) -> Request {
        if self.shard.is_some() {
            self.strays.ask_to_leave(change.unsubscribe.iter().map(Name::as_str));
        }
        Request::change(sink, change)
    }

    /// Answers those who waited for a change. `false` if the connection failed.
    fn answer(&mut self, change: Change, answer: Answer) -> bool {
        let closed = answer.is_err();
        let faults: HashMap<Name, BrokerError> = answer.unwrap_or_default().into_iter().collect();
        if faults.values().any(|fault| matches!(fault, BrokerError::Away(_))) {
            self.look_again();
        }
        for (filter, name, done) in change.waiting {
            let result = if closed {
                Err(BrokerError::Away(End::Closed.to_string()))
            } else {
                faults.get(&name).cloned().map_or(Ok(()), Err)
            };
            if result.is_err() {
                self.table.remove(&name, &filter);
                self.outbox.forget(&filter);
            }
            let _ = done.send(result);
        }
        if !closed {
            self.answer_strays(change.strays, &faults);
        }
        !closed
    }

    fn answer_strays(&mut self, channels: Vec<String>, faults: &HashMap<Name, BrokerError>) {
        let mut arrived = Vec::new();
        for channel in channels {
            let name = Name::Channel(channel);
            match faults.get(&name) {
                Some(BrokerError::Away(_)) => {}
                Some(BrokerError::Refused(why)) => {
                    self.strays.remove(name.as_str());
                    for filter in self.table.remove_name(&name) {
                        self.outbox.forget(&filter);
                        self.outbox.refused(filter, why);
                    }
                }
                None => {
                    self.strays.remove(name.as_str());
                    arrived.extend(self.table.channels.get(name.as_str()).map(|(filter, _)| filter.clone()));
                }
            }
        }
        if !arrived.is_empty() {
            self.outbox.arrived(arrived, "its slot has moved");
        }
    }

    /// Takes commands from the queue until the server has to be asked for something, or a publish finds no room.
    fn advance(
        &mut self,
        sink: &Sink,
        publisher: &mpsc::Sender<Publish>,
        queue: &mut VecDeque<Order>,
    ) -> Option<Request> {
        let mut change = Change::default();
        while let Some(order) = queue.pop_front() {
            match order {
                Order::Command(Command::Subscribe { filter, done }) => {
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
                    // In the table before it is asked for: its first messages can overtake the confirmation here.
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
                Order::Command(Command::Unsubscribe { filter }) => {
                    let Ok(name) = self.table.name(&filter) else { continue };
                    if change.subscribe.contains(&name) {
                        queue.push_front(Command::Unsubscribe { filter }.into());
                        break;
                    }
                    self.outbox.forget(&filter);
                    if self.table.remove(&name, &filter) {
                        self.strays.remove(name.as_str());
                        change.unsubscribe.insert(name);
                    }
                }
                Order::Command(Command::Publish { topic, payload, headers, done }) => {
                    if !change.is_empty() {
                        // After the subscriptions sent before it, or they would miss it.
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
                // What is being subscribed to is answered first.
                order @ (Order::Leave { .. } | Order::Enter(_)) if !change.is_empty() => {
                    queue.push_front(order);
                    break;
                }
                Order::Leave { slots, left } => {
                    let held = self.leave(&slots);
                    let names = held.iter().map(|(channel, _)| Name::Channel(channel.clone()));
                    change.unsubscribe.extend(names);
                    self.answer_left(left, held);
                }
                Order::Enter(entering) => self.enter(entering.held),
            }
        }
        change.strays = self.strays.due();
        change.subscribe.extend(change.strays.iter().cloned().map(Name::Channel));
        (!change.is_empty()).then(|| self.request(sink, change))
    }

    fn publishable(&self, topic: &Topic, headers: &Headers) -> Result<(), BrokerError> {
        if !headers.is_empty() {
            let why = "Redis messages have no header fields; put what they carry into the payload";
            return Err(BrokerError::Refused(why.into()));
        }
        self.table.name(&Filter::from(topic.clone())).map(drop)
    }

    /// Hands a message to every filter that it came by and that matches it.
    fn route(&mut self, message: &Msg) {
        let payload = OnceCell::new();
        let payload = || payload.get_or_init(|| Bytes::copy_from_slice(message.get_payload_bytes())).clone();
        let headers = Headers::default;
        if !message.from_pattern() {
            let Some((filter, topic)) = self.table.channels.get(message.get_channel_name()) else { return };
            self.outbox.forward(filter, || Message {
                filter: filter.clone(),
                topic: topic.clone(),
                payload: payload(),
                headers: headers(),
                stored: None,
            });
            return;
        }
        let Ok(glob) = message.get_pattern::<String>() else { return };
        let Some(filters) = self.table.globs.get(&glob) else { return };
        let Some(topic) = Topic::from_subject(message.get_channel_name(), self.table.separator) else {
            filters.iter().for_each(|filter| self.outbox.unnameable(filter));
            return;
        };
        for filter in filters.iter().filter(|filter| filter.matches(&topic)) {
            self.outbox.forward(filter, || Message {
                filter: filter.clone(),
                topic: topic.clone(),
                payload: payload(),
                headers: headers(),
                stored: None,
            });
        }
    }
}

/// Waits until more masters have left the cluster than `departed`; for ever, if there is none.
async fn next_departure(view: &mut Option<watch::Receiver<View>>, departed: u64) -> u64 {
    if let Some(view) = view
        && let Ok(view) = view.wait_for(|view| view.departed > departed).await
    {
        return view.departed;
    }
    pending().await
}
