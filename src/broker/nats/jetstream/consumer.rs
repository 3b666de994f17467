//! Consumers of our own on a stream: one for each filter that is followed, and short-lived ones where the stream cannot be
//! looked into otherwise. None acknowledges, none is kept: the server forgets one that nobody pulls from.

use std::time::Duration;

use async_nats::jetstream::consumer::pull::Config;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer};
use async_nats::jetstream::stream::{ConsumerError, ConsumerErrorKind};
use tokio::time::timeout;

use super::LIMIT;
use super::link::Api;
use super::stream::said;
use crate::broker::BrokerError;

/// How long the server keeps a consumer that nobody pulls from.
const FORGOTTEN: Duration = Duration::from_secs(30);

/// A consumer; it is deleted with the value, if the server can be reached.
pub(super) struct Consumer {
    api: Api,
    pull: PullConsumer,
}

impl Consumer {
    /// Makes one. Its name begins as all of this process do, so that whoever lists the consumers of a stream sees whose it
    /// is.
    pub(super) async fn create(
        api: &Api,
        stream: &str,
        client: &str,
        subject: &str,
        from: DeliverPolicy,
    ) -> Result<Self, BrokerError> {
        let config = Config {
            name: Some(format!("topicgate-{client}-{:08x}", fastrand::u32(..))),
            deliver_policy: from,
            ack_policy: AckPolicy::None,
            filter_subject: subject.to_owned(),
            inactive_threshold: FORGOTTEN,
            num_replicas: 1, // lost with its server, and made anew then from the last number
            memory_storage: true,
            ..Config::default()
        };
        let pull = api.context.create_consumer_on_stream(config, stream).await.map_err(refusal)?;
        Ok(Consumer { api: api.clone(), pull })
    }

    /// What to pull from.
    pub(super) fn pull(&self) -> &PullConsumer {
        &self.pull
    }

    /// Messages of its subject that were waiting when it was made.
    pub(super) fn waiting(&self) -> u64 {
        self.pull.cached_info().num_pending
    }

    /// The last number before the place where it was made.
    pub(super) fn place(&self) -> u64 {
        self.pull.cached_info().delivered.stream_sequence
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (context, info) = (self.api.context.clone(), self.pull.cached_info());
        let (stream, name) = (info.stream_name.clone(), info.name.clone());
        runtime.spawn(async move {
            // Best effort: the server forgets it on its own.
            let _ = timeout(LIMIT, context.delete_consumer_from_stream(&name, &stream)).await;
        });
    }
}

/// Bytes to ask for at once: enough for any message that this server takes, else one could never be delivered.
pub(super) fn bytes_at_once(api: &Api, wanted: usize) -> usize {
    // What counts on the server is the message with its subjects.
    wanted.max(api.client.server_info().max_payload + 8 * 1024)
}

fn refusal(error: ConsumerError) -> BrokerError {
    match error.kind() {
        ConsumerErrorKind::JetStream(error) => said(error),
        ConsumerErrorKind::InvalidName | ConsumerErrorKind::InvalidConsumerType => {
            BrokerError::Refused(error.to_string())
        }
        ConsumerErrorKind::TimedOut | ConsumerErrorKind::Request | ConsumerErrorKind::Other => {
            BrokerError::Away(format!("no consumer could be made: {error}"))
        }
    }
}
