//! Reads a page of a stream: by Direct Get in batches (ADR-31), which any replica answers, or by a short-lived
//! consumer, if the stream does not allow Direct Get or the server is older than 2.11.
//!
//! A mirror with `mirror_direct`, which the server may set itself, also answers Direct Get requests for its origin. It may
//! have fewer messages, or those of a stream that was replaced. Its answers are recognized by its name and not used.

use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::client::{Failure, Outgoing};
use super::consumer::{Consumer, From, bytes_at_once};
use super::link::Api;
use super::pull::Pull;
use super::raw_message::RawMessage;
use super::recent::RecentStreams;
use super::request::{last_of, next_of};
use crate::broker::nats::headers::{last_field, parse_headers};
use crate::broker::nats::wire::Delivered;
use crate::broker::{BrokerError, FETCH_BYTES, FETCH_MESSAGES};
use crate::protocol::seq::Seq;

/// The most concurrent short-lived consumers. Each is work for the server's leaders.
const CONSUMERS: usize = 8;

/// A stream to read from, and the subject to read.
pub(super) struct StreamReader<'a> {
    pub(super) api: &'a Api,
    pub(super) name: &'a str,
    pub(super) subject: &'a str,
    /// Whether the stream allows Direct Get.
    pub(super) direct: bool,
    pub(super) client: &'a str,
    pub(super) consumers: &'a Semaphore,
    pub(super) recent: &'a RecentStreams,
}

/// A page: messages in the order of their numbers.
pub(super) struct Page {
    pub(super) messages: Vec<RawMessage>,
    /// The number of messages of the subject after these, according to the replica that answered.
    pub(super) more: u64,
}

/// The first message of a subject from some number on.
pub(super) struct First {
    /// Its number, or a lower one from which on it is the first.
    pub(super) number: Seq,
    /// How many messages of the subject follow it.
    pub(super) more: u64,
}

/// The bound on short-lived consumers.
pub(super) fn consumers() -> Semaphore {
    Semaphore::new(CONSUMERS)
}

impl StreamReader<'_> {
    /// Whether Direct Get answers in batches here.
    pub(super) fn is_direct(&self) -> bool {
        self.direct && self.api.client.is_at_least(2, 11) && !self.recent.is_mirrored(self.name)
    }

    /// The messages of the subject from the number `first` on, as many as fit into a page.
    pub(super) async fn page(&self, first: Seq) -> Result<Page, BrokerError> {
        let first = first.max(Seq::new(1));
        if self.is_direct() {
            let question = json!({
                "seq": first, "next_by_subj": self.subject, "batch": FETCH_MESSAGES, "max_bytes": FETCH_BYTES,
            });
            if let Some(page) = self.direct(&question).await? {
                return Ok(page);
            }
        }
        let _permit = self.permit().await?;
        let consumer = self.consumer(From::Number(first)).await?;
        let mut page = Page { messages: Vec::new(), more: consumer.waiting() };
        if page.more == 0 {
            return Ok(page);
        }
        let bytes = bytes_at_once(self.api, FETCH_BYTES);
        let away = |why: String| BrokerError::Away(why);
        let lost = |_| away("the connection was lost".into());
        let mut pull = Pull::begin(consumer, FETCH_MESSAGES, bytes).await.map_err(lost)?;
        let mut held = 0;
        while page.more > 0 && page.messages.len() < FETCH_MESSAGES && held < FETCH_BYTES {
            for delivered in pull.next(FETCH_MESSAGES - page.messages.len()).await.map_err(away)? {
                (page.more, held) = (delivered.info.pending, held + delivered.bytes);
                page.messages.push(RawMessage::from(delivered));
            }
        }
        Ok(page)
    }

    /// The first message of the subject from the number `first` on, if there is one.
    pub(super) async fn first(&self, first: Seq) -> Result<Option<First>, BrokerError> {
        let first = first.max(Seq::new(1));
        if self.is_direct() {
            let question = json!({ "seq": first, "next_by_subj": self.subject, "batch": 1 });
            if let Some(page) = self.direct(&question).await? {
                if let Some(message) = page.messages.first() {
                    return Ok(Some(First { number: message.number, more: page.more }));
                }
                // A mirror may have said this, or a replica that lags.
                if self.next(first).await?.is_none() {
                    return Ok(None);
                }
            }
        }
        let _permit = self.permit().await?;
        let consumer = self.consumer(From::Number(first)).await?;
        Ok(consumer.waiting().checked_sub(1).map(|more| First { number: first, more }))
    }

    /// The last number before all messages that were stored at this time or later.
    pub(super) async fn before(&self, time: std::time::SystemTime) -> Result<Seq, BrokerError> {
        let _permit = self.permit().await?;
        let consumer = self.consumer(From::Time(time)).await?;
        Ok(consumer.before())
    }

    /// The next message of the subject from `first` on, according to the leader.
    pub(super) async fn next(&self, first: Seq) -> Result<Option<RawMessage>, BrokerError> {
        next_of(self.api, self.name, self.subject, first).await
    }

    /// The last message of the subject, according to the leader.
    pub(super) async fn last(&self) -> Result<Option<RawMessage>, BrokerError> {
        last_of(self.api, self.name, self.subject).await
    }

    /// The last message of each of these subjects up to the number `until`, as many as fit; requires Direct Get.
    pub(super) async fn last_of(&self, subjects: &[&str], until: Seq) -> Result<Page, BrokerError> {
        let none = Page { messages: Vec::new(), more: 0 };
        if !self.is_direct() {
            return Ok(none);
        }
        let question = json!({ "multi_last": subjects, "up_to_seq": until, "max_bytes": FETCH_BYTES });
        Ok(self.direct(&question).await?.unwrap_or(none))
    }

    async fn permit(&self) -> Result<tokio::sync::SemaphorePermit<'_>, BrokerError> {
        self.consumers.acquire().await.map_err(|error| BrokerError::Away(error.to_string()))
    }

    async fn consumer(&self, from: From) -> Result<Consumer, BrokerError> {
        Consumer::create(self.api, self.name, self.client, Some(self.subject), from).await
    }

    /// One Direct Get request. Its answers arrive one by one in their own inbox; a status ends them. `None`: they are a
    /// mirror's. An answer without a message does not say whose it is.
    async fn direct(&self, question: &Value) -> Result<Option<Page>, BrokerError> {
        let away = |why: &str| BrokerError::Away(format!("Direct Get: {why}"));
        let lost = |error| match error {
            Failure::Denied(words) => BrokerError::Refused(words),
            Failure::Lost | Failure::NoResponders => away("the connection was lost"),
        };
        let client = &self.api.client;
        let mut inbox = client.inbox().await.map_err(lost)?;
        let message = Outgoing {
            subject: self.api.subject(&format!("DIRECT.GET.{}", self.name)),
            fields: Vec::new(),
            payload: question.to_string().into(),
        };
        client.send(message, &inbox).await.map_err(lost)?;
        let mut page = Page { messages: Vec::new(), more: 0 };
        while let Some(answer) = inbox.next().await {
            if let Some((message, pending)) = RawMessage::looked_up(&answer) {
                // One server answers with all messages.
                if page.messages.is_empty() && !self.is_answer_of_stream(&answer) {
                    self.recent.found_mirror(self.name);
                    return Ok(None);
                }
                page.messages.push(message);
                page.more = pending.unwrap_or(1);
                if pending.is_none() {
                    return Ok(Some(page)); // a replica older than 2.11, which always answers with one message
                }
                continue;
            }
            let block = answer.headers.unwrap_or_default();
            let pending = last_field(&block, "Nats-Num-Pending").and_then(|pending| pending.parse().ok());
            page.more = pending.unwrap_or(1);
            let said = parse_headers(&block);
            match said.status {
                Some(204) => return Ok(Some(page)), // the end of the batch
                Some(404) => return Ok(Some(Page { messages: Vec::new(), more: 0 })),
                Some(503) => return Err(away("no replica of the stream answers")),
                status => return Err(away(&format!("{} {}", status.unwrap_or_default(), said.description))),
            }
        }
        Err(away("the connection was lost"))
    }

    fn is_answer_of_stream(&self, answer: &Delivered) -> bool {
        let block = answer.headers.as_deref().unwrap_or_default();
        last_field(block, "Nats-Stream").is_some_and(|name| name == self.name)
    }
}
