//! A message on its way into a stream: sent to the subject of its topic, and confirmed by the stream with its number.

use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::LIMIT;
use super::client::{Failure, Outgoing};
use super::found::{Found, Publishing};
use super::link::Api;
use super::request::read;
use crate::broker::BrokerError;
use crate::broker::nats::wire::{Delivered, header_block};
use crate::protocol::headers::Headers;
use crate::protocol::source::Source;
use crate::protocol::topic::Topic;

/// A message that is to be stored.
pub(super) struct Publication {
    pub(super) topic: Topic,
    pub(super) source: Source,
    pub(super) payload: Bytes,
    pub(super) headers: Headers,
}

/// A message that was sent and waits for the stream to confirm it.
pub(super) struct Sent {
    api: Api,
    source: Source,
    topic: Topic,
    answer: oneshot::Receiver<Result<Delivered, Failure>>,
}

impl Publication {
    /// Sends it to a stream that is known.
    pub(super) async fn send(self, api: Api, known: &Publishing) -> Result<Sent, BrokerError> {
        let Publication { topic, source, payload, mut headers } = self;
        let subject = known.subject(&source, &topic)?;
        if let Some(expected) = &known.expected {
            headers.insert("Nats-Expected-Stream", expected.as_str());
        }
        let fields = header_block(&headers).map_err(BrokerError::Refused)?;
        let (bytes, most) = (fields.len() + payload.len(), api.client.max_payload());
        if bytes > most {
            // The server would end the connection.
            return Err(BrokerError::Refused(format!(
                "the message has {bytes} bytes with its header fields, and the server takes at most {most}"
            )));
        }
        let sending = timeout(LIMIT, api.client.asked(Outgoing { subject, fields, payload })).await;
        let late = |_| BrokerError::Away("the connection takes nothing more".into());
        let answer =
            sending.map_err(late)?.map_err(|_| BrokerError::Away("the connection was lost".into()))?;
        Ok(Sent { api, source, topic, answer })
    }

    /// Sends it to a stream that is still to be found, and waits until it is confirmed.
    pub(super) async fn find_and_send(self, api: Api) -> Result<u64, BrokerError> {
        let found = Found::of(&api, &self.source, self.topic.as_str(), None).await?;
        let known = found.publishing(&self.source);
        self.send(api, &known).await?.acknowledged().await
    }
}

impl Sent {
    /// Waits until the stream has stored it; its number there.
    pub(super) async fn acknowledged(self) -> Result<u64, BrokerError> {
        #[derive(Deserialize)]
        struct Stored {
            seq: u64,
        }
        let late =
            |_| BrokerError::Away(format!("the stream confirmed nothing within {} s", LIMIT.as_secs()));
        match timeout(LIMIT, self.answer).await.map_err(late)?.unwrap_or(Err(Failure::Lost)) {
            Ok(answer) => match read::<Stored>(&answer.payload) {
                Ok(Ok(stored)) => Ok(stored.seq),
                Ok(Err(error)) => Err(BrokerError::Refused(error.description)),
                Err(error) => {
                    Err(BrokerError::Refused(format!("what took the message is no stream: {error}")))
                }
            },
            Err(Failure::Denied(words)) => Err(BrokerError::Refused(words)),
            Err(Failure::Lost) => Err(BrokerError::Away("the connection was lost".into())),
            Err(Failure::NoResponders) => {
                // Nobody takes it: there is no such stream, or it has no leader for now.
                let found = Found::of(&self.api, &self.source, self.topic.as_str(), None).await?;
                let stream = found.info.config.name;
                Err(BrokerError::Away(format!("the stream {stream:?} takes nothing now")))
            }
        }
    }
}
