//! Publishes a message to a stream: sends it to the subject of its topic, and waits for the stream's confirmation with
//! its number.

use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::LIMIT;
use super::client::{Failure, Outgoing};
use super::found::{Found, Publishing};
use super::link::Api;
use super::request::read;
use crate::broker::nats::above_max_payload;
use crate::broker::nats::wire::{Delivered, header_block};
use crate::broker::{Acknowledgement, BrokerError};
use crate::protocol::event_id::{Tag, tagged_event_id};
use crate::protocol::headers::Headers;
use crate::protocol::seq::Seq;
use crate::protocol::source::Source;
use crate::protocol::topic::Topic;

/// Error code of the API: the message is larger than the stream's limit.
const MESSAGE_TOO_LARGE: u64 = 10054;

/// A message to store.
pub(super) struct Publication {
    pub(super) topic: Topic,
    pub(super) source: Source,
    pub(super) payload: Bytes,
    pub(super) headers: Headers,
}

/// A message that was sent and waits for its confirmation.
pub(super) struct Sent {
    api: Api,
    source: Source,
    topic: Topic,
    tag: Tag,
    answer: oneshot::Receiver<Result<Delivered, Failure>>,
}

impl Publication {
    /// Sends the message to a known stream.
    pub(super) async fn send(self, api: Api, known: &Publishing) -> Result<Sent, BrokerError> {
        let Publication { topic, source, payload, mut headers } = self;
        let subject = known.subject(&api, &source, &topic)?;
        if let Some(expected) = &known.expected {
            headers.insert("Nats-Expected-Stream", expected.as_str());
        }
        let fields = header_block(&headers).map_err(BrokerError::Refused)?;
        let (bytes, most) = (fields.len() + payload.len(), api.client.max_payload());
        if bytes > most {
            // For a larger message, the server would end the connection.
            return Err(above_max_payload(bytes, most));
        }
        let sending = timeout(LIMIT, api.client.send_request(Outgoing { subject, fields, payload })).await;
        let late = |_| BrokerError::Away("the connection accepts no more data".into());
        let answer =
            sending.map_err(late)?.map_err(|_| BrokerError::Away("the connection was lost".into()))?;
        Ok(Sent { api, source, topic, tag: known.tag.clone(), answer })
    }

    /// Finds the stream, sends the message, and waits for the confirmation.
    pub(super) async fn find_and_send(self, api: Api) -> Result<Acknowledgement, BrokerError> {
        let found = Found::of(&api, &self.source, self.topic.as_str(), None).await?;
        let known = found.publishing(&self.source);
        self.send(api, &known).await?.acknowledged().await
    }
}

impl Sent {
    /// Waits until the stream has stored the message.
    pub(super) async fn acknowledged(self) -> Result<Acknowledgement, BrokerError> {
        #[derive(Deserialize)]
        struct Stored {
            seq: Seq,
        }
        let late =
            |_| BrokerError::Away(format!("the stream confirmed nothing within {} s", LIMIT.as_secs()));
        match timeout(LIMIT, self.answer).await.map_err(late)?.unwrap_or(Err(Failure::Lost)) {
            Ok(answer) => match read::<Stored>(&answer.payload) {
                // A mirror has the numbers of the stream that takes the message.
                Ok(Ok(Stored { seq: number })) => {
                    Ok(Acknowledgement { number, event_id: tagged_event_id(&self.tag, number) })
                }
                Ok(Err(error)) if error.err_code == MESSAGE_TOO_LARGE => Err(BrokerError::TooLarge(
                    "the message is larger than its stream takes (max_msg_size, or max_value_size of a bucket)".into(),
                )),
                Ok(Err(error)) => Err(BrokerError::Refused(error.description)),
                Err(error) => {
                    Err(BrokerError::Refused(format!("the message was not received by a stream: {error}")))
                }
            },
            Err(Failure::Denied(words)) => Err(BrokerError::Refused(words)),
            Err(Failure::Lost) => Err(BrokerError::Away("the connection was lost".into())),
            Err(Failure::NoResponders) => {
                // The subject has no subscriber: the stream does not exist, takes other subjects, or has no leader now.
                let found = Found::of(&self.api, &self.source, self.topic.as_str(), None).await?;
                let stream = &found.info.config.name;
                Err(match found.no_stream_takes(&self.api).await {
                    Some(why) => BrokerError::Refused(why),
                    None => BrokerError::Away(format!("the stream {stream:?} accepts no messages now")),
                })
            }
        }
    }
}
