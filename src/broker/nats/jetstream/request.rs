//! Requests to the JetStream API, and the meaning of its errors.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::LIMIT;
use super::client::{Failure, Outgoing};
use super::info::read_time;
use super::link::Api;
use super::raw_message::RawMessage;
use crate::broker::BrokerError;
use crate::broker::nats::headers::parse_headers;
use crate::protocol::seq::Seq;

/// An error of the API.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct ApiError {
    pub(super) code: u64,
    #[serde(default)]
    pub(super) err_code: u64,
    #[serde(default)]
    pub(super) description: String,
}

/// The error codes of the API that matter here.
const NOT_ENABLED: u64 = 10076;
const NOT_ENABLED_FOR_ACCOUNT: u64 = 10039;
const STREAM_NOT_FOUND: u64 = 10059;
const MESSAGE_NOT_FOUND: u64 = 10037;

impl ApiError {
    pub(super) fn is_no_stream(&self) -> bool {
        self.err_code == STREAM_NOT_FOUND
    }
}

/// Sends a request to the JetStream API. The inner error is the server's answer.
pub(super) async fn request<T: DeserializeOwned>(
    api: &Api,
    what: &str,
    question: &Value,
) -> Result<Result<T, ApiError>, BrokerError> {
    let message =
        Outgoing { subject: api.subject(what), fields: Vec::new(), payload: question.to_string().into() };
    let late = |_| BrokerError::Away(format!("no answer to {what} within {} s", LIMIT.as_secs()));
    let answer =
        timeout(LIMIT, api.client.request(message)).await.map_err(late)?.map_err(|error| match error {
            Failure::NoResponders => BrokerError::Away(match api.other() {
                None => "no server answers for JetStream; is it enabled (nats-server -js)?".into(),
                Some(prefix) => format!(
                    "no server answers for JetStream under {prefix}; check broker.jetstream, and that the leaf node is \
                     connected"
                ),
            }),
            Failure::Denied(words) => BrokerError::Refused(words),
            Failure::Lost => BrokerError::Away("the connection was lost".into()),
        })?;
    read(&answer.payload).map_err(|error| BrokerError::Away(format!("{what}: {error}")))
}

/// Parses an answer: the result or an error.
pub(super) fn read<T: DeserializeOwned>(payload: &[u8]) -> serde_json::Result<Result<T, ApiError>> {
    #[derive(Deserialize)]
    struct Answer {
        error: Option<ApiError>,
    }
    match serde_json::from_slice::<Answer>(payload)?.error {
        Some(error) => Ok(Err(error)),
        None => serde_json::from_slice(payload).map(Ok),
    }
}

/// The broker error for an error of the API.
pub(super) fn said(error: ApiError) -> BrokerError {
    let never = [NOT_ENABLED, NOT_ENABLED_FOR_ACCOUNT];
    let ApiError { code, err_code, description } = error;
    if code >= 500 && !never.contains(&err_code) {
        BrokerError::Away(description) // no leader for now, or out of resources
    } else {
        BrokerError::Refused(format!("{description} (JetStream error {err_code})"))
    }
}

/// A message of a stream, according to its leader; `None` if there is none. `question` is a request of
/// `STREAM.MSG.GET`.
pub(super) async fn message(
    api: &Api,
    stream: &str,
    question: &Value,
) -> Result<Option<RawMessage>, BrokerError> {
    #[derive(Deserialize)]
    struct Answer {
        message: Stored,
    }
    #[derive(Deserialize)]
    struct Stored {
        subject: String,
        seq: Seq,
        time: String,
        #[serde(default)]
        hdrs: String,
        #[serde(default)]
        data: String,
    }
    let message = match request::<Answer>(api, &format!("STREAM.MSG.GET.{stream}"), question).await? {
        Ok(answer) => answer.message,
        Err(error) if error.err_code == MESSAGE_NOT_FOUND => return Ok(None),
        Err(error) => return Err(said(error)),
    };
    let bytes = |text: &str| {
        STANDARD.decode(text).map_err(|error| BrokerError::Away(format!("a stored message: {error}")))
    };
    let block = bytes(&message.hdrs)?;
    Ok(Some(RawMessage {
        subject: message.subject,
        number: message.seq,
        time: read_time(&message.time),
        payload: bytes(&message.data)?.into(),
        headers: if block.is_empty() { Default::default() } else { parse_headers(&block).headers },
    }))
}

/// The next message of `subject` from the number `first` on, according to the leader, which knows every confirmed
/// message, while a replica may lag.
pub(super) async fn next_of(
    api: &Api,
    stream: &str,
    subject: &str,
    first: Seq,
) -> Result<Option<RawMessage>, BrokerError> {
    message(api, stream, &json!({ "seq": first, "next_by_subj": subject })).await
}

/// The last message of `subject`, which has no wildcard.
pub(super) async fn last_of(
    api: &Api,
    stream: &str,
    subject: &str,
) -> Result<Option<RawMessage>, BrokerError> {
    message(api, stream, &json!({ "last_by_subj": subject })).await
}
