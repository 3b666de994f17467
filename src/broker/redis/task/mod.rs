//! Publish/subscribe on one connection: forwards messages, and keeps the connection. `commands.rs` handles commands,
//! `moves.rs` the channels that migrate between the shards of a cluster.

mod commands;
mod moves;

use std::cell::OnceCell;
use std::collections::VecDeque;
use std::future::pending;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::FutureExt;
use futures_util::stream::StreamExt;
use redis::{Client, Msg};
use tokio::sync::{mpsc, watch};
use tokio::task::unconstrained;
use tokio::time::{Instant, sleep_until};

use super::channel_states::ChannelStates;
use super::cluster::{Slots, View};
use super::context::Context;
use super::publisher::{PUBLISH_CAPACITY, Publish, publish_all};
use super::push::{Heard, Hearing};
use super::session::{Answer, Change, Request, Session, Sink, answer_of, establish};
use super::shard_channels::HEARD_CAPACITY;
use super::table::Name;
use super::{ANSWER_LIMIT, BATCH, PING_AFTER, SILENCE_LIMIT, SessionEnd, ShardCommand};
use crate::broker::reconnect::Connect;
use crate::broker::sink::EventSink;
use crate::broker::{BrokerError, Message};
use crate::protocol::headers::Headers;
use crate::protocol::topic::{Filter, Topic};

/// The state of the task, which outlives its sessions.
pub(super) struct Task<C> {
    context: Context<C>,
    /// The view of the cluster, if any node of it will do.
    view: Option<watch::Receiver<View>>,
    /// The table of slots by which the shards of a cluster hold their channels.
    slots: Option<Arc<Slots>>,
    channels: ChannelStates,
    /// Why the previous session ended, which is the reason of a possible loss. `None` before the first.
    before: Option<String>,
}

/// A session in progress.
struct Service {
    sink: Sink,
    stream: Hearing,
    publisher: mpsc::Sender<Publish>,
    /// Commands that were received and not run yet.
    queue: VecDeque<ShardCommand>,
    /// The pending request to the server.
    request: Option<Request>,
    /// When the server last sent anything, and when it last answered.
    heard: Instant,
    answered: Instant,
}

impl<C: Into<ShardCommand>> Connect for Task<C> {
    type Session = (Client, Session);
    type Command = C;

    async fn connect(&mut self, why: Option<&str>) -> Option<Result<(Client, Session), String>> {
        self.channels.begin();
        let (channels, globs) = self.context.table.names();
        let (servers, is_shard) = (self.context.servers.clone(), self.context.is_shard());
        let establishing = async move {
            let client = servers.find().await.map_err(SessionEnd::Unreachable)?;
            let session = establish(&client, is_shard, channels, globs).await?;
            Ok((client, session))
        };
        let established: Result<_, SessionEnd> = match why {
            // The first commands wait until the first attempt to connect has ended.
            None => establishing.await,
            Some(why) => self.while_down(establishing, why).await?,
        };
        Some(established.map_err(|end| end.to_string()))
    }

    /// Serves one session from its first event to its end, and fails its pending commands.
    async fn serve(&mut self, (client, session): (Client, Session)) -> Option<String> {
        let mut service = self.begin(&client, session);
        let end = self.work(&mut service).await;
        while let Some(Some(chunk)) = service.stream.next().now_or_never() {
            self.hear(chunk);
        }
        let why = end.to_string();
        for (filter, name, done) in service.request.into_iter().flat_map(|request| request.change.waiting) {
            self.context.table.remove(&name, &filter);
            let _ = done.send(Err(BrokerError::Away(why.clone())));
        }
        for order in service.queue {
            self.answer_order_away(order, &why);
        }
        self.before = Some(why.clone());
        (!matches!(end, SessionEnd::Stopped)).then_some(why)
    }

    fn down(&mut self, why: &str) {
        if self.context.is_shard() && !self.context.is_down {
            let all = self.context.table.channels.values().map(|(filter, _)| filter.clone()).collect();
            self.context.sink.interrupted(all);
        }
        self.context.down(why);
    }

    fn answer_away(&mut self, command: C, why: &str) {
        self.answer_order_away(command.into(), why);
    }

    fn channels(&mut self) -> (Option<&mut mpsc::Receiver<C>>, &mut EventSink) {
        (Some(&mut self.context.commands), &mut self.context.sink)
    }
}

impl<C: Into<ShardCommand>> Task<C> {
    pub(super) fn new(context: Context<C>) -> Self {
        let view = context.servers.view();
        Task { context, view, slots: None, channels: ChannelStates::default(), before: None }
    }

    /// Reports losses and refusals, and that the connection is up; then forwards the messages that have arrived so far.
    fn begin(&mut self, client: &Client, session: Session) -> Service {
        let Session { sink, stream, held, refused, migrating } = session;
        for (name, why) in refused {
            for filter in self.context.table.remove_name(&name) {
                self.context.sink.refused(filter, why.clone());
            }
        }
        if let Some((filters, why)) = self.lost_before() {
            self.context.sink.lost(filters, why);
        }
        self.context.up();
        if self.context.is_shard() {
            let here = self.context.table.channels.iter().filter(|(channel, _)| !migrating.contains(channel));
            let here = here.map(|(_, (filter, _))| filter.clone()).collect();
            self.context.sink.resumed(here);
        }
        migrating.into_iter().for_each(|channel| self.go_astray(channel));
        for message in held {
            self.route(&message);
        }
        // Each session has its own publishing connection: the previous one would fail the first PUBLISH of this session.
        let (publisher, publishes) = mpsc::channel(PUBLISH_CAPACITY);
        let publish = if self.context.is_shard() { "SPUBLISH" } else { "PUBLISH" };
        tokio::spawn(publish_all(client.clone(), publish, publishes, self.context.shard.clone()));

        let now = Instant::now();
        let change = Change { unsubscribe: self.channels.take_unwanted(), ..Change::default() };
        let request = Some(self.request(&sink, change));
        Service { sink, stream, publisher, queue: VecDeque::new(), request, heard: now, answered: now }
    }

    /// Reports the messages that may be missing when a session begins.
    fn lost_before(&mut self) -> Option<(Option<Vec<Filter>>, String)> {
        let before = self.before.as_deref();
        let why = |why| format!("the connection to Redis was lost: {why}");
        if !self.context.is_shard() {
            return before.map(|before| (None, why(before)));
        }
        let arrived = self.channels.arrived();
        let is_concerned = |channel: &str| {
            before.is_some() || !arrived.is_empty() && arrived.contains(&Name::Channel(channel.to_owned()))
        };
        let concerned = self.context.table.channels.iter().filter(|(channel, _)| is_concerned(channel));
        let concerned: Vec<Filter> = concerned.map(|(_, (filter, _))| filter.clone()).collect();
        let why = before.map_or("its slot has moved".into(), why);
        (!concerned.is_empty()).then_some((Some(concerned), why))
    }

    async fn work(&mut self, service: &mut Service) -> SessionEnd {
        let mut batch = Vec::new();
        let departed = self.view.as_ref().map_or(0, |view| view.borrow().departed);
        let mut timer = pin!(sleep_until(service.heard + PING_AFTER));
        loop {
            if service.request.is_none() {
                service.request = self.advance(service);
            }
            let deadline = self.deadline(service);
            if timer.deadline() != deadline {
                timer.as_mut().reset(deadline);
            }
            let (is_idle, queued) = (service.request.is_none(), service.queue.len());
            let is_room = if self.context.is_shard() { queued < BATCH } else { is_idle && queued == 0 };
            tokio::select! {
                chunk = service.stream.next() => {
                    let Some(chunk) = chunk else { return SessionEnd::Closed };
                    service.heard = Instant::now();
                    self.hear(chunk);
                }
                answer = answer_of(&mut service.request) => {
                    if !self.take_answer(service, answer) {
                        return SessionEnd::Closed;
                    }
                }
                taken = self.context.commands.recv_many(&mut batch, BATCH), if is_room => {
                    if taken == 0 {
                        return SessionEnd::Stopped;
                    }
                    service.queue.extend(batch.drain(..).map(Into::into));
                    let waiting = service.request.as_ref().map(|request| request.change.waiting.as_slice());
                    self.carry_over(&mut service.queue, waiting.unwrap_or_default());
                }
                // While a PUBLISH at the head of the queue has no room (see `advance`), the commands after it wait too.
                () = room(&service.publisher), if is_idle && queued > 0 => {}
                () = &mut timer => {
                    if service.request.is_some() {
                        return SessionEnd::Silent;
                    }
                    // Otherwise there are channels to try.
                    if service.answered + PING_AFTER <= Instant::now() {
                        service.request = Some(Request::ping(&service.sink));
                    }
                }
                () = departure(&mut self.view, departed) => return SessionEnd::Departed,
                is_open = self.context.sink.flush() => if !is_open {
                    return SessionEnd::Stopped;
                },
            }
        }
    }

    /// When the server has been silent for too long, or, if no request is pending, when a PING must be sent.
    fn deadline(&self, service: &Service) -> Instant {
        match &service.request {
            Some(Request { sent, .. }) => {
                ((*sent).max(service.heard) + SILENCE_LIMIT).min(*sent + ANSWER_LIMIT)
            }
            None => {
                let ping_at = service.answered + PING_AFTER;
                self.channels.next_at().map_or(ping_at, |retry_at| retry_at.min(ping_at))
            }
        }
    }

    /// Handles the server's answer to the last request. `false` if the connection failed.
    fn take_answer(&mut self, service: &mut Service, answer: Answer) -> bool {
        service.answered = Instant::now();
        if self.context.is_shard() {
            // Messages that the server sent before the answer have arrived by now.
            for _ in 0..=HEARD_CAPACITY / BATCH {
                // Outside of tokio's cooperative budget, which would end this loop early.
                let Some(Some(chunk)) = unconstrained(service.stream.next()).now_or_never() else { break };
                self.hear(chunk);
            }
            self.channels.all_have_left();
        }
        let change = service.request.take().map(|request| request.change).unwrap_or_default();
        self.answer(change, answer)
    }

    /// Handles the pushes of the server.
    fn hear(&mut self, chunk: Vec<Heard>) {
        for heard in chunk {
            match heard {
                Heard::Message(message) => self.route(&message),
                Heard::Unsubscribed(channel) => {
                    let name = Name::Channel(channel);
                    if !self.channels.has_left(&name) {
                        self.go_astray(name.into_string());
                    }
                }
            }
        }
    }

    fn request(&mut self, sink: &Sink, change: Change) -> Request {
        if self.context.is_shard() {
            self.channels.leave(change.unsubscribe.iter());
        }
        Request::change(sink, change)
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
        let (table, sink, channel) =
            (&self.context.table, &mut self.context.sink, message.get_channel_name());
        if !message.from_pattern() {
            if let Some((filter, topic)) = table.channels.get(channel)
                && !self.channels.is_migrating(channel)
            {
                sink.message(filter, || message_of(filter, topic));
            }
            return;
        }
        let Ok(glob) = message.get_pattern::<String>() else { return };
        let Some(filters) = table.globs.get(&glob) else { return };
        let Some(topic) = Topic::from_subject(channel, table.separator) else {
            filters.iter().for_each(|filter| sink.unnameable(filter));
            return;
        };
        for filter in filters.iter().filter(|filter| filter.matches(&topic)) {
            sink.message(filter, || message_of(filter, &topic));
        }
    }
}

/// Waits until there is room for a publish.
async fn room(publisher: &mpsc::Sender<Publish>) {
    let _ = publisher.reserve().await;
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
