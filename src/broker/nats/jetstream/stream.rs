//! The state of a stream according to its leader: its limits, and the numbers that have no message.

use serde_json::json;

use super::info::Info;
use super::link::Api;
use super::names::covers;
use super::request::{request, said};
use crate::broker::BrokerError;
use crate::protocol::seq::Seq;

/// The most deleted messages whose numbers are requested. The server lists all of them or none; if there are more, any
/// missing number may have been a message.
const HOLES: u64 = 10_000;

/// The leader's information about a stream; `None` if there is none of that name.
pub(super) async fn info(api: &Api, name: &str) -> Result<Option<Info>, BrokerError> {
    read_info(api, name, false).await
}

async fn read_info(api: &Api, name: &str, holes: bool) -> Result<Option<Info>, BrokerError> {
    let question = json!({ "deleted_details": holes });
    match request(api, &format!("STREAM.INFO.{name}"), &question).await? {
        Ok(info) => Ok(Some(info)),
        Err(error) if error.is_no_stream() => Ok(None),
        Err(error) => Err(said(error)),
    }
}

/// Whether `subject` matches every message of the stream.
pub(super) fn is_whole(info: &Info, subject: &str) -> bool {
    let config = &info.config;
    let elsewhere =
        config.mirror.is_some() || !config.sources.is_empty() || config.subject_transform.is_some();
    !elsewhere && !config.subjects.is_empty() && config.subjects.iter().all(|own| covers(subject, own))
}

/// A stream with limits this low drops messages about as fast as they arrive: messages per subject, messages in total,
/// bytes, nanoseconds.
const FEW_OF_SUBJECT: i64 = 256;
const FEW: i64 = 10_000;
const FEW_BYTES: i64 = 16 * 1024 * 1024;
const SHORT: u64 = 10_000_000_000;

/// The setting by which a stream may drop a message as soon as others arrive, before it delivers it to a waiting
/// consumer.
pub(super) fn drops_early(info: &Info) -> Option<&'static str> {
    let config = &info.config;
    [
        ("max_msgs_per_subject", (1..=FEW_OF_SUBJECT).contains(&config.max_msgs_per_subject)),
        ("max_msgs", (1..=FEW).contains(&config.max_msgs)),
        ("max_bytes", (1..=FEW_BYTES).contains(&config.max_bytes)),
        ("max_age", (1..=SHORT).contains(&config.max_age)),
        ("allow_rollup_hdrs", config.allow_rollup_hdrs),
    ]
    .into_iter()
    .find_map(|(setting, is_so)| is_so.then_some(setting))
}

/// The numbers of a stream that have no message.
pub(super) struct Holes {
    /// The first stored message; all before it are gone.
    first: Seq,
    /// Later missing numbers, in order. `None`: there are too many to list.
    single: Option<Vec<Seq>>,
}

impl Holes {
    /// Asks the leader. `None` if the stream was deleted.
    pub(super) async fn of(api: &Api, name: &str) -> Result<Option<(Self, Info)>, BrokerError> {
        let Some(mut info) = info(api, name).await? else { return Ok(None) };
        let single = match info.state.num_deleted {
            0 => Some(Vec::new()),
            1..=HOLES => {
                let Some(detailed) = read_info(api, name, true).await? else { return Ok(None) };
                info = detailed;
                info.state.deleted.take()
            }
            _ => None,
        };
        Ok(Some((Holes { first: info.state.first_seq, single }, info)))
    }

    /// The number of the first stored message.
    pub(super) fn oldest(&self) -> Seq {
        self.first
    }

    /// The lowest number above `after` and below `before` that may be missing.
    pub(super) fn between(&self, after: Seq, before: Seq) -> Option<Seq> {
        let next = Some(after.next()).filter(|next| *next < before)?;
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
