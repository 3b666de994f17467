//! The information of a server about a stream: its state, and the part of its configuration that matters to a rule.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer};

use crate::protocol::event_id::Tag;
use crate::protocol::seq::Seq;

/// A stream.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Info {
    pub(super) config: Config,
    #[serde(deserialize_with = "time")]
    created: SystemTime,
    pub(super) state: State,
}

/// The configuration of a stream.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Config {
    pub(super) name: String,
    #[serde(deserialize_with = "list")]
    pub(super) subjects: Vec<String>,
    pub(super) retention: String,
    /// The most messages per subject. Like the other limits, it is unlimited if it is not above 0.
    pub(super) max_msgs_per_subject: i64,
    pub(super) max_msgs: i64,
    pub(super) max_bytes: i64,
    /// In nanoseconds.
    pub(super) max_age: u64,
    /// A message can replace all earlier messages.
    pub(super) allow_rollup_hdrs: bool,
    pub(super) allow_direct: bool,
    /// It sends no confirmations to publishers.
    pub(super) no_ack: bool,
    pub(super) mirror: Option<Origin>,
    #[serde(deserialize_with = "list")]
    pub(super) sources: Vec<Origin>,
    pub(super) subject_transform: Option<Transform>,
}

/// Another stream, whose messages a mirror or an aggregate copies.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Origin {
    pub(super) name: String,
    /// Where it is, if it is in another account or domain.
    pub(super) external: Option<External>,
    #[serde(deserialize_with = "list")]
    pub(super) subject_transforms: Vec<Transform>,
}

/// Another account or domain.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct External {
    /// The prefix of its JetStream API.
    pub(super) api: String,
}

/// Messages are stored under other subjects.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Transform {
    pub(super) src: String,
    pub(super) dest: String,
}

/// The state of a stream.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct State {
    pub(super) messages: u64,
    pub(super) first_seq: Seq,
    pub(super) last_seq: Seq,
    #[serde(deserialize_with = "time")]
    pub(super) first_ts: SystemTime,
    #[serde(deserialize_with = "time")]
    pub(super) last_ts: SystemTime,
    /// How many numbers between the first and the last have no message.
    #[serde(default)]
    pub(super) num_deleted: u64,
    /// These numbers, if requested.
    #[serde(default)]
    pub(super) deleted: Option<Vec<Seq>>,
}

impl Info {
    /// The tag of the stream: a stream that was deleted and created again has another creation time.
    pub(super) fn tag(&self) -> Tag {
        let since = self.created.duration_since(UNIX_EPOCH).unwrap_or_default();
        Tag::of(&[self.config.name.as_bytes(), &(since.as_nanos() as i128).to_be_bytes()])
    }
}

impl Transform {
    /// The subjects that are stored under other ones; all if none is named.
    pub(super) fn from(&self) -> &str {
        if self.src.is_empty() { ">" } else { &self.src }
    }
}

/// Parses a time of the server. A time before 1970 stands for none.
pub(super) fn read_time(text: &str) -> SystemTime {
    humantime::parse_rfc3339(text).unwrap_or(UNIX_EPOCH)
}

fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
    Ok(read_time(&String::deserialize(deserializer)?))
}

/// A list that may be `null`.
fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
