//! The stream behind a source: which one it is, what it holds, and what may be missing in it.

use std::time::SystemTime;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::RequestErrorKind;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::{Info, RawMessageErrorKind, RetentionPolicy};
use serde::Deserialize;
use serde_json::json;

use super::held::Held;
use super::link::Api;
use super::names::covers;
use crate::broker::BrokerError;
use crate::config::Source;
use crate::position::Tag;

/// Deleted messages whose numbers are asked for. The server lists all of them or none; with more, each place between two
/// messages counts as one where something may have been.
const HOLES: u64 = 10_000;

/// The name of the stream that a source is read from. One that is not named is the one stream that has `subject`.
pub(super) async fn find(api: &Api, source: &Source, subject: &str) -> Result<String, BrokerError> {
    #[derive(Deserialize)]
    struct Names {
        streams: Option<Vec<String>>,
    }
    match source {
        Source::Kv { bucket, .. } => return Ok(format!("KV_{bucket}")),
        Source::JetStream { stream: Some(name) } => return Ok(name.clone()),
        Source::JetStream { stream: None }
        | Source::Pubsub
        | Source::Sharded
        | Source::RedisStream { .. } => {}
    }
    let names: Names = request(api, "STREAM.NAMES", &json!({ "subject": subject })).await?.map_err(said)?;
    let mut names = names.streams.unwrap_or_default();
    match (names.pop(), names.is_empty()) {
        (Some(name), true) => Ok(name),
        (Some(name), false) => Err(BrokerError::Refused(format!(
            "several streams have subjects of {subject}: {name}, {}; name one: stream = {name:?}",
            names.join(", ")
        ))),
        (None, _) => Err(BrokerError::Refused(format!(
            "no stream has subjects of {subject}; make one (nats stream add ORDERS --subjects {subject:?})"
        ))),
    }
}

/// What the leader says of a stream; `None` if there is none of that name.
pub(super) async fn look(api: &Api, name: &str) -> Result<Option<Info>, BrokerError> {
    info(api, name, false).await
}

async fn info(api: &Api, name: &str, holes: bool) -> Result<Option<Info>, BrokerError> {
    let question = json!({ "deleted_details": holes });
    match request(api, &format!("STREAM.INFO.{name}"), &question).await? {
        Ok(info) => Ok(Some(info)),
        Err(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => Ok(None),
        Err(error) => Err(said(error)),
    }
}

/// As [`look`], where a stream that is missing or of the wrong kind is refused.
pub(super) async fn expect(api: &Api, name: &str) -> Result<Info, BrokerError> {
    let Some(info) = look(api, name).await? else {
        let how = match name.strip_prefix("KV_") {
            Some(bucket) => format!(
                "no bucket {bucket:?}; set `bucket` to one that there is, or make it: nats kv add {bucket}"
            ),
            None => format!(
                "no stream {name:?}; set `stream` to one that there is, or make it: nats stream add {name}"
            ),
        };
        return Err(BrokerError::Refused(format!("there is {how}")));
    };
    if info.config.retention == RetentionPolicy::Limits {
        Ok(info)
    } else {
        // A consumer of ours would take messages away from those whom they are for.
        Err(BrokerError::Refused(format!(
            "the stream {name:?} drops messages once they are consumed; its retention must be limits"
        )))
    }
}

/// Names the history: a stream that was deleted and made again has another time of creation.
pub(super) fn tag(info: &Info) -> Tag {
    Tag::of(&[info.config.name.as_bytes(), &info.created.unix_timestamp_nanos().to_be_bytes()])
}

/// When the leader's message of this number was stored; `None` if there is none.
pub(super) async fn message_time(
    api: &Api,
    name: &str,
    number: u64,
) -> Result<Option<SystemTime>, BrokerError> {
    let stream = api.context.get_stream_no_info(name).await;
    let stream = stream.map_err(|error| BrokerError::Refused(error.to_string()))?;
    match stream.get_raw_message(number).await {
        Ok(message) => Ok(Some(message.time.into())),
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(BrokerError::Away(error.to_string())),
    }
}

/// The next message of `subject` from the number `first` on, as the leader has it: it knows of every message that was
/// confirmed to anyone, and a replica may lag.
pub(super) async fn next_of(
    api: &Api,
    name: &str,
    subject: &str,
    first: u64,
) -> Result<Option<Held>, BrokerError> {
    let stream = api.context.get_stream_no_info(name).await;
    let stream = stream.map_err(|error| BrokerError::Refused(error.to_string()))?;
    match stream.raw_message_builder().sequence(first).next_by_subject(subject).send().await {
        Ok(message) => Ok(Some(Held::from_leader(message))),
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(BrokerError::Away(error.to_string())),
    }
}

/// Whether every message of the stream is one of `subject`.
pub(super) fn is_whole(info: &Info, subject: &str) -> bool {
    let config = &info.config;
    let elsewhere =
        config.mirror.is_some() || config.sources.as_ref().is_some_and(|sources| !sources.is_empty());
    !elsewhere && !config.subjects.is_empty() && config.subjects.iter().all(|own| covers(subject, own))
}

/// The numbers of a stream that it holds no message for.
pub(super) struct Holes {
    /// The first message that is held; all before it are gone.
    first: u64,
    /// Later ones, in order. `None`: there are too many to list.
    single: Option<Vec<u64>>,
}

impl Holes {
    /// Asks the leader; also whether every message of the stream is one of `subject`.
    pub(super) async fn of(
        api: &Api,
        name: &str,
        subject: &str,
    ) -> Result<Option<(Self, bool)>, BrokerError> {
        let Some(mut info) = look(api, name).await? else { return Ok(None) };
        let single = match info.state.deleted_count.unwrap_or(0) {
            0 => Some(Vec::new()),
            1..=HOLES => {
                let Some(detailed) = self::info(api, name, true).await? else { return Ok(None) };
                info = detailed;
                info.state.deleted.take()
            }
            _ => None,
        };
        let whole = is_whole(&info, subject);
        Ok(Some((Holes { first: info.state.first_sequence, single }, whole)))
    }

    /// The first number that is held.
    pub(super) fn oldest(&self) -> u64 {
        self.first
    }

    /// The lowest number above `after` and below `before` that may be one.
    pub(super) fn between(&self, after: u64, before: u64) -> Option<u64> {
        let next = after.checked_add(1).filter(|next| *next < before)?;
        if next < self.first {
            return Some(next);
        }
        match &self.single {
            Some(single) => single.get(single.partition_point(|hole| *hole < next)).copied(),
            None => Some(next),
        }
        .filter(|hole| *hole < before)
    }
}

/// Asks the JetStream API. The inner error is the server's answer.
pub(super) async fn request<T: serde::de::DeserializeOwned>(
    api: &Api,
    what: &str,
    question: &serde_json::Value,
) -> Result<Result<T, async_nats::jetstream::Error>, BrokerError> {
    match api.context.request(what.to_owned(), question).await {
        Ok(Response::Ok(answer)) => Ok(Ok(answer)),
        Ok(Response::Err { error }) => Ok(Err(error)),
        Err(error) => Err(BrokerError::Away(match error.kind() {
            RequestErrorKind::NoResponders => {
                "no server answers for JetStream; is it enabled there (nats-server -js)?".into()
            }
            RequestErrorKind::TimedOut => format!(
                "no answer to {what} in time; the server says nothing either where the user may not ask that"
            ),
            RequestErrorKind::InvalidSubject | RequestErrorKind::Other => format!("{what}: {error}"),
        })),
    }
}

/// What an answer of the API means to whoever asked.
pub(super) fn said(error: async_nats::jetstream::Error) -> BrokerError {
    let never = [ErrorCode::JETSTREAM_NOT_ENABLED, ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT];
    let words = error.to_string();
    if error.code() >= 500 && !never.contains(&error.error_code()) {
        BrokerError::Away(words) // no leader for now, or out of resources
    } else {
        BrokerError::Refused(words)
    }
}
