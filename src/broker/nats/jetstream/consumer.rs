//! Consumers of our own on a stream: one for each filter that is followed, and short-lived ones where the stream cannot be
//! looked into otherwise. None acknowledges, none is kept: the server forgets one that nobody pulls from.

use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde_json::json;
use tokio::time::timeout;

use super::LIMIT;
use super::link::Api;
use super::request::{request, said};
use crate::broker::BrokerError;

/// How long the server keeps a consumer that nobody pulls from.
const FORGOTTEN: Duration = Duration::from_secs(30);

/// Where a consumer begins.
#[derive(Debug, Clone, Copy)]
pub(super) enum From {
    Number(u64),
    Time(SystemTime),
}

/// A consumer; it is deleted with the value, if the server can be reached.
pub(super) struct Consumer {
    pub(super) api: Api,
    pub(super) stream: String,
    pub(super) name: String,
    state: State,
}

/// How far it is, as the server says.
#[derive(Deserialize)]
pub(super) struct State {
    /// Messages of its subject that it has not delivered.
    pub(super) num_pending: u64,
    pub(super) delivered: Delivered,
}

/// The last message that it has delivered.
#[derive(Deserialize)]
pub(super) struct Delivered {
    pub(super) consumer_seq: u64,
    pub(super) stream_seq: u64,
}

impl Consumer {
    /// Makes one, of one subject or of all that the stream has. Its name begins as all of this process do, so that whoever
    /// lists the consumers of a stream sees whose it is.
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
            "num_replicas": 1, // lost with its server, and made again then from the last number
            "mem_storage": true,
        });
        match from {
            From::Number(number) => {
                config["deliver_policy"] = "by_start_sequence".into();
                config["opt_start_seq"] = number.into();
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

    /// Messages of its subject that were waiting when it was made.
    pub(super) fn waiting(&self) -> u64 {
        self.state.num_pending
    }

    /// The last number before the place where it was made.
    pub(super) fn place(&self) -> u64 {
        self.state.delivered.stream_seq
    }

    /// How far it is now.
    pub(super) async fn look(&self) -> Result<State, BrokerError> {
        let what = format!("CONSUMER.INFO.{}.{}", self.stream, self.name);
        request(&self.api, &what, &json!({})).await?.map_err(said)
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (api, what) = (self.api.clone(), format!("CONSUMER.DELETE.{}.{}", self.stream, self.name));
        runtime.spawn(async move {
            // Best effort: the server forgets it on its own.
            let _ = timeout(LIMIT, request::<serde_json::Value>(&api, &what, &json!({}))).await;
        });
    }
}

/// Bytes to ask for at once: enough for any message that this server takes, else one could never be delivered.
pub(super) fn bytes_at_once(api: &Api, wanted: usize) -> usize {
    // What counts on the server is the message with its subjects.
    wanted.max(api.client.max_payload() + 8 * 1024)
}
