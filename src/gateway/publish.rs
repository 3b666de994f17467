//! Publishes the messages of callers, if a rule allows it.

use std::time::Instant;

use bytes::Bytes;
use thiserror::Error;

use super::{BROKER_TIMEOUT, Gateway};
use crate::auth::access::Verdict;
use crate::auth::{Action, Caller};
use crate::broker::BrokerError;
use crate::config::Rule;
use crate::protocol::headers::Headers;
use crate::protocol::publisher::{EventType, PublisherId};
use crate::protocol::source::Field;
use crate::protocol::topic::Topic;
use crate::traces;

/// Why a message was not published.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PublishError {
    /// No rule allows this caller to publish to this topic.
    #[error("no rule allows you to publish to this topic")]
    NotExposed,
    /// The caller's permission expired meanwhile.
    #[error("your permission has expired")]
    Expired,
    /// The message can never be stored as it is: the reason, and what would be right.
    #[error("{0}")]
    Unfit(String),
    /// The broker did not confirm it.
    #[error(transparent)]
    Broker(BrokerError),
}

/// The attributes that a publisher gives its message.
#[derive(Debug, Default)]
pub struct MessageAttributes {
    /// Its id.
    pub id: Option<PublisherId>,
    /// Its type.
    pub kind: Option<EventType>,
    /// Whether it ends its topic.
    pub ends: bool,
}

impl Gateway {
    /// Publishes a message. Returns once the broker has it.
    ///
    /// # Errors
    /// [`PublishError`].
    pub async fn publish(
        &self,
        topic: &Topic,
        caller: Option<&Caller>,
        payload: Bytes,
        attributes: MessageAttributes,
    ) -> Result<Option<String>, PublishError> {
        let filter = topic.clone().into();
        traces::note_topics([&filter].into_iter());
        let current = self.current();
        let Verdict::Allowed(rule) = current.decide(Action::Publish, &filter, caller) else {
            return Err(PublishError::NotExposed);
        };
        if caller.is_some_and(Caller::is_expired) {
            return Err(PublishError::Expired);
        }
        let has_headers = current.config.broker.has_headers();
        let mut headers = headers_of(rule, has_headers, &attributes).map_err(PublishError::Unfit)?;
        let given = attributes.id.as_deref().map(str::to_owned);
        self.traces.inject(&mut headers);
        let begin = Instant::now();
        let published = async {
            let source = rule.source.clone();
            let stored = self.broker.publish(topic.clone(), source, payload, headers).await?;
            // The id of a stored message is the broker's, whether or not anyone reads it.
            Ok(stored.map(|stored| stored.event_id.into()).or(given))
        };
        let away = || Err(BrokerError::Away("it did not confirm in time".into()));
        tokio::time::timeout(BROKER_TIMEOUT, published)
            .await
            .unwrap_or_else(|_| away())
            .inspect(|_| self.metrics().publish_seconds.observe(begin.elapsed().as_secs_f64()))
            .inspect_err(|error| self.log_failure(topic, error))
            .map_err(|error| match error {
                BrokerError::Unfit(why) => PublishError::Unfit(why),
                error => PublishError::Broker(error),
            })
    }

    /// Logs why the broker did not take a message (throttled).
    fn log_failure(&self, topic: &Topic, error: &BrokerError) {
        let topic = topic.as_str();
        match error {
            BrokerError::Refused(why) => {
                if self.denied.may_log() {
                    tracing::warn!(topic, why, "the broker refused a published message");
                }
            }
            // If the connection works, no other line has the reason.
            BrokerError::Away(why) => {
                if let Some(others) = self.unconfirmed.turn() {
                    tracing::warn!(topic, why, others, "the broker did not confirm a published message");
                }
            }
            BrokerError::Unfit(_) | BrokerError::TooLarge(_) => {}
        }
    }
}

/// The header fields for the attributes of a message; for a Redis Stream, fields of the entry.
///
/// # Errors
/// A message of this rule cannot carry one of them: the reason, and what would be right.
fn headers_of(rule: &Rule, has_headers: bool, attributes: &MessageAttributes) -> Result<Headers, String> {
    let mut headers = Headers::default();
    for (what, field, value) in [
        ("id", &rule.id, attributes.id.as_deref()),
        ("type", &rule.kind, attributes.kind.as_deref()),
        ("end", &rule.end, attributes.ends.then_some("true")),
    ] {
        let Some(value) = value else { continue };
        match field {
            Field::Header(name) if has_headers || rule.source.is_stored() => headers.insert(name, value),
            Field::Pointer(pointer) => {
                return Err(format!(
                    "messages of this topic carry their {what} in the payload, at the JSON pointer {pointer:?}"
                ));
            }
            Field::Nowhere if rule.source.is_stored() => {
                return Err(format!(
                    "the topic's rule has no place for the {what}; name a field of an entry in it, as in \
                     {what} = {{ header = \"{what}\" }}, or a JSON pointer, and put the {what} into the payload"
                ));
            }
            Field::Header(_) | Field::Nowhere => {
                return Err(format!(
                    "this broker's messages have no header fields; name a JSON pointer for the {what} in the \
                     topic's rule, and put it into the payload"
                ));
            }
        }
    }
    Ok(headers)
}
