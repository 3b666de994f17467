//! JetStream consumers of the gateway: one for each followed filter, and short-lived ones to read a stream that does
//! not allow Direct Get. They do not acknowledge and are not durable: the server removes a consumer that nobody pulls
//! from.

use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde_json::json;
use tokio::time::timeout;

use super::LIMIT;
use super::link::Api;
use super::request::{request, said};
use crate::broker::BrokerError;
use crate::protocol::seq::Seq;

/// How long the server keeps a consumer without pulls.
const FORGOTTEN: Duration = Duration::from_secs(30);

/// Where a consumer begins.
#[derive(Debug, Clone, Copy)]
pub(super) enum From {
    Number(Seq),
    Time(SystemTime),
}

/// A consumer. Dropping it deletes it on the server, if possible.
pub(super) struct Consumer {
    pub(super) api: Api,
    pub(super) stream: String,
    pub(super) name: String,
    state: State,
}

/// The progress of a consumer, as the server reports it.
#[derive(Deserialize)]
pub(super) struct State {
    /// Messages of its subject that it has not delivered yet.
    pub(super) num_pending: u64,
    pub(super) delivered: Delivered,
}

/// The last delivered message.
#[derive(Deserialize)]
pub(super) struct Delivered {
    pub(super) consumer_seq: u64,
    pub(super) stream_seq: Seq,
}

impl Consumer {
    /// Creates a consumer of one subject or of the whole stream. All consumers of this process have the same name
    /// prefix, so that an operator can identify them.
    pub(super) async fn create(
        api: &Api,
        stream: &str,
        client: &str,
        subject: Option<&str>,
        from: From,
    ) -> Result<Self, BrokerError> {
        let name = format!("topicgate-{client}-{:08x}", fastrand::u32(..));
        let mut config = json!({
            "name": name,
            "ack_policy": "none",
            "replay_policy": "instant",
            "inactive_threshold": FORGOTTEN.as_nanos() as u64,
            "num_replicas": 1, // lost with its server, and created again after the last number
            "mem_storage": true,
        });
        match from {
            From::Number(number) => {
                config["deliver_policy"] = "by_start_sequence".into();
                config["opt_start_seq"] = number.get().into();
            }
            From::Time(time) => {
                config["deliver_policy"] = "by_start_time".into();
                config["opt_start_time"] = humantime::format_rfc3339_nanos(time).to_string().into();
            }
        }
        let mut what = format!("CONSUMER.CREATE.{stream}.{name}");
        if let Some(subject) = subject {
            config["filter_subject"] = subject.into();
            what = format!("{what}.{subject}");
        }
        let question = json!({ "stream_name": stream, "config": config });
        let state = request(api, &what, &question).await?.map_err(said)?;
        Ok(Consumer { api: api.clone(), stream: stream.to_owned(), name, state })
    }

    /// The number of messages that were waiting when it was created.
    pub(super) fn waiting(&self) -> u64 {
        self.state.num_pending
    }

    /// The last number before the position at which it was created.
    pub(super) fn before(&self) -> Seq {
        self.state.delivered.stream_seq
    }

    /// Its current progress.
    pub(super) async fn state(&self) -> Result<State, BrokerError> {
        let what = format!("CONSUMER.INFO.{}.{}", self.stream, self.name);
        request(&self.api, &what, &json!({})).await?.map_err(said)
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (api, what) = (self.api.clone(), format!("CONSUMER.DELETE.{}.{}", self.stream, self.name));
        runtime.spawn(async move {
            // Best effort: the server removes it on its own.
            let _ = timeout(LIMIT, request::<serde_json::Value>(&api, &what, &json!({}))).await;
        });
    }
}

/// Bytes to request at once: enough for any message that this server accepts, because a larger message could never be
/// delivered.
pub(super) fn bytes_at_once(api: &Api, wanted: usize) -> usize {
    // The server counts the message with its subjects.
    wanted.max(api.client.max_payload() + 8 * 1024)
}
