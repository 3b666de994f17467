//! Pulls messages from a consumer in portions, so that messages that nobody takes stay on the server.

use std::collections::VecDeque;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use serde_json::json;
use tokio::time::{Instant, timeout_at};

use super::client::{Failure, Inbox, Outgoing};
use super::consumer::Consumer;
use super::raw_message::{RawMessage, text};
use crate::broker::nats::headers::{last_field, parse_headers};
use crate::broker::nats::wire;
use crate::protocol::seq::Seq;

/// How long the server keeps a pull request.
const EXPIRES: Duration = Duration::from_secs(30);

/// How often the server sends a heartbeat while there are no messages. After two missing heartbeats, the consumer
/// counts as lost.
const HEARTBEAT: Duration = Duration::from_secs(2);

/// The pull requests of a consumer, and their messages.
pub(super) struct Pull {
    pub(super) consumer: Consumer,
    inbox: Inbox,
    /// The messages and bytes to request at once; more are requested when half of them have arrived.
    messages: usize,
    bytes: usize,
    /// Requested messages and bytes that have not arrived yet.
    due_messages: usize,
    due_bytes: usize,
    /// The delivery up to which messages are requested.
    requested: u64,
    /// The last deliveries of requests that were followed by another one. After these the server may have had nothing to
    /// deliver for, until the next request arrived.
    ends: VecDeque<u64>,
    /// The last request was sent late: everything that was requested before it had arrived. It may take long until another
    /// message comes and shows that some have waited.
    was_late: bool,
    /// A request has ended early since the last message.
    ended_early: bool,
    heard: Instant,
    /// Why no more messages will arrive.
    ended: Option<String>,
}

/// A message that a consumer has delivered.
pub(super) struct Delivered {
    pub(super) message: wire::Delivered,
    pub(super) info: DeliveryInfo,
    /// Its size as the server counts it.
    pub(super) bytes: usize,
    /// Whether it may have waited on the server for a request. Others that waited before it may have been dropped, and
    /// [`DeliveryInfo::pending`] has never counted them.
    pub(super) may_have_waited: bool,
}

impl From<Delivered> for RawMessage {
    fn from(delivered: Delivered) -> Self {
        let Delivered { message, info, .. } = delivered;
        RawMessage {
            subject: text(&message.subject),
            number: info.number,
            time: UNIX_EPOCH + Duration::from_nanos(info.nanos),
            payload: message.payload,
            headers: message.headers.map(|block| parse_headers(&block).headers).unwrap_or_default(),
        }
    }
}

/// The server's metadata of a delivered message, from the subject for its acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DeliveryInfo {
    /// Its number in the stream.
    pub(super) number: Seq,
    /// Its number among the deliveries of the consumer, from 1.
    pub(super) delivery: u64,
    /// When the stream stored it, in nanoseconds since 1970.
    pub(super) nanos: u64,
    /// Messages that the consumer must still deliver.
    pub(super) pending: u64,
}

impl DeliveryInfo {
    /// Reads `$JS.ACK.<stream>.<consumer>.<deliveries>.<number>.<delivery>.<time>.<pending>`, whose newer form has a
    /// domain and an account after `ACK`, and perhaps more at the end.
    pub(super) fn read(reply: &[u8]) -> Option<Self> {
        let tokens: Vec<&str> = std::str::from_utf8(reply).ok()?.split('.').collect();
        if tokens.len() < 9 || tokens[..2] != ["$JS", "ACK"] {
            return None;
        }
        let numbers = if tokens.len() > 9 { tokens.get(7..11)? } else { tokens.get(5..9)? };
        let mut numbers = numbers.iter().map(|text| text.parse::<u64>().ok());
        let mut next = || numbers.next().flatten();
        Some(DeliveryInfo { number: Seq::new(next()?), delivery: next()?, nanos: next()?, pending: next()? })
    }
}

impl Pull {
    /// Starts to pull.
    pub(super) async fn begin(consumer: Consumer, messages: usize, bytes: usize) -> Result<Self, Failure> {
        let inbox = consumer.api.client.inbox().await?;
        let (due_messages, due_bytes, heard) = (0, 0, Instant::now());
        let mut pull = Pull {
            consumer,
            inbox,
            messages,
            bytes,
            due_messages,
            due_bytes,
            requested: 0,
            ends: VecDeque::new(),
            was_late: false,
            ended_early: false,
            heard,
            ended: None,
        };
        pull.ask(true).await?;
        Ok(pull)
    }

    /// The next messages, at least one, as many as have arrived. An error is the reason why no more will arrive.
    pub(super) async fn next(&mut self, most: usize) -> Result<Vec<Delivered>, String> {
        let (mut taken, mut is_idle) = (Vec::new(), false);
        loop {
            if let Some(why) = &self.ended {
                return Err(why.clone());
            }
            let lost = |_| "the connection was lost".to_owned();
            self.ask(is_idle).await.map_err(lost)?;
            is_idle = self.inbox.waiting() == 0;
            // Nothing has been taken yet, so that cancelling loses nothing.
            let arrived = timeout_at(self.heard + 2 * HEARTBEAT + HEARTBEAT / 2, self.inbox.next()).await;
            let Ok(arrived) = arrived else { return Err("the consumer is silent".into()) };
            let mut arrived = Some(arrived.ok_or("the connection was lost")?);
            self.heard = Instant::now();
            while let Some(message) = arrived {
                match self.read(message) {
                    Ok(Some(message)) => taken.push(message),
                    Ok(None) => {}
                    Err(why) => self.ended = Some(why),
                }
                let goes_on = self.ended.is_none() && taken.len() < most;
                arrived = if goes_on { self.inbox.try_next() } else { None };
            }
            if !taken.is_empty() {
                return Ok(taken);
            }
        }
    }

    /// Whether messages may have waited on the server without a sign of it, and may be gone.
    pub(super) fn may_have_missed(&self) -> bool {
        self.was_late || self.due_messages == 0
    }

    /// Called when everything was delivered, and it is known what has waited and is gone.
    pub(super) fn caught_up(&mut self) {
        self.was_late = false;
    }

    /// Requests more, if half of the requested messages have arrived. `is_idle`: nothing was to be read until now, so the
    /// request is not late.
    async fn ask(&mut self, is_idle: bool) -> Result<(), Failure> {
        if self.due_messages > self.messages / 2 && self.due_bytes > self.bytes / 2 {
            return Ok(());
        }
        self.was_late |= !is_idle && self.inbox.waiting() >= self.due_messages;
        let messages = self.messages.saturating_sub(self.due_messages).max(1);
        let bytes = self.bytes.saturating_sub(self.due_bytes).max(self.bytes / 2);
        let (Consumer { api, stream, name, .. }, nanos) =
            (&self.consumer, |time: Duration| time.as_nanos() as u64);
        let question = json!({
            "batch": messages, "max_bytes": bytes, "expires": nanos(EXPIRES), "idle_heartbeat": nanos(HEARTBEAT),
        });
        let message = Outgoing {
            subject: api.subject(&format!("CONSUMER.MSG.NEXT.{stream}.{name}")),
            fields: Vec::new(),
            payload: question.to_string().into(),
        };
        api.client.send(message, &self.inbox).await?;
        (self.due_messages, self.due_bytes) = (self.due_messages + messages, self.due_bytes + bytes);
        self.ends.push_back(self.requested);
        self.requested += messages as u64;
        Ok(())
    }

    /// Reads a message, or a status of the server. An error is the reason why no more will arrive.
    fn read(&mut self, message: wire::Delivered) -> Result<Option<Delivered>, String> {
        let reply = message.reply.as_deref().unwrap_or_default();
        if let Some(info) = DeliveryInfo::read(reply) {
            let fields = message.headers.as_ref().map_or(0, Bytes::len);
            let bytes = message.subject.len() + reply.len() + fields + message.payload.len();
            self.due_messages = self.due_messages.saturating_sub(1);
            self.due_bytes = if self.due_messages == 0 { 0 } else { self.due_bytes.saturating_sub(bytes) };
            let may_have_waited = self.may_have_waited(info.delivery);
            return Ok(Some(Delivered { message, info, bytes, may_have_waited }));
        }
        let block = message.headers.as_deref().unwrap_or_default();
        let said = parse_headers(block);
        let left = |name| last_field(block, name).and_then(|text| text.parse::<usize>().ok());
        match (said.status, left("Nats-Pending-Messages"), left("Nats-Pending-Bytes")) {
            (Some(100), ..) => {}
            // A request has ended; its remaining messages will not arrive.
            (Some(404 | 408 | 409), Some(messages), Some(bytes)) if !is_end(&said.description) => {
                self.due_messages = self.due_messages.saturating_sub(messages);
                self.due_bytes = self.due_bytes.saturating_sub(bytes);
                self.requested = self.requested.saturating_sub(messages as u64);
                self.ends.iter_mut().for_each(|end| *end = end.saturating_sub(messages as u64));
                self.ended_early = true;
            }
            (status, ..) => {
                let status = status.map_or_else(String::new, |status| status.to_string());
                return Err(format!("the server ended it: {status} {}", said.description));
            }
        }
        Ok(None)
    }

    /// Whether this delivery is the first one after a request has ended.
    fn may_have_waited(&mut self, delivery: u64) -> bool {
        let mut waited = std::mem::take(&mut self.ended_early);
        while self.ends.front().is_some_and(|end| *end < delivery) {
            self.ends.pop_front();
            waited = true;
        }
        self.was_late &= !self.ends.is_empty();
        waited
    }
}

/// Whether the consumer has ended, not only one request.
fn is_end(description: &str) -> bool {
    ["Consumer Deleted", "Server Shutdown", "Leadership Change", "Consumer is push based"]
        .iter()
        .any(|end| description.eq_ignore_ascii_case(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delivery_information_is_read_in_both_forms() {
        let info = Some(DeliveryInfo {
            number: Seq::new(7),
            delivery: 3,
            nanos: 1_700_000_000_000_000_001,
            pending: 9,
        });
        assert_eq!(DeliveryInfo::read(b"$JS.ACK.S.C.1.7.3.1700000000000000001.9"), info);
        assert_eq!(DeliveryInfo::read(b"$JS.ACK.D.H.S.C.1.7.3.1700000000000000001.9"), info);
        assert_eq!(DeliveryInfo::read(b"$JS.ACK.D.H.S.C.1.7.3.1700000000000000001.9.x"), info);
        for reply in [&b""[..], b"_INBOX.a", b"$JS.ACK.S.C.1.7.3.x.9", b"$JS.ACK.S.C.1.7.3.9", b"\xff"] {
            assert_eq!(DeliveryInfo::read(reply), None);
        }
    }
}
