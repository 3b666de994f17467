//! Translates between NATS subjects and the topics and filters of plain publish/subscribe.

use super::headers::parse_headers;
use super::wire::Delivered;
use crate::broker::{BrokerError, Event, Message};
use crate::protocol::topic::{Filter, Topic};

/// The longest subject: with the rest of its line it fits into the default line limit of a server.
const SUBJECT_LIMIT: usize = 4000;

pub(super) const DOT: &str = "a segment has a dot, which separates segments in NATS";

/// Whether a topic or filter would become another one as a NATS subject.
pub(super) fn unspeakable(text: &str) -> bool {
    text.contains('.')
}

/// A message in the form of the broker contract; `None` if the filter does not match its subject.
pub(super) fn received(filter: &Filter, message: Delivered) -> Option<Event> {
    let topic = match filter.topic() {
        Some(topic) => topic,
        None => {
            let subject = std::str::from_utf8(&message.subject).ok();
            let Some(topic) = subject.and_then(|subject| Topic::from_subject(subject, '.')) else {
                return Some(Event::Unnameable { filter: filter.clone() });
            };
            if !filter.matches(&topic) {
                return None; // a reserved subject: NATS' wildcards match it, ours do not
            }
            topic
        }
    };
    let headers = message.headers.map(|block| parse_headers(&block).headers).unwrap_or_default();
    let (filter, payload) = (filter.clone(), message.payload);
    Some(Event::Message(Message { filter, topic, payload, headers, stored: None }))
}

/// Checks whether a topic or filter can be a subject.
pub(super) fn speakable(text: &str) -> Result<(), BrokerError> {
    if unspeakable(text) {
        return Err(BrokerError::Refused(DOT.into()));
    }
    if text.len() > SUBJECT_LIMIT {
        let why = format!("it has {} bytes, but a NATS subject may have at most {SUBJECT_LIMIT}", text.len());
        return Err(BrokerError::Refused(why));
    }
    Ok(())
}

/// The subject of a filter.
pub(super) fn subject(filter: &Filter) -> String {
    filter.to_subject('.', ">")
}

/// The filter whose quoted subject is at the start of `text`.
pub(super) fn filter_of(text: &str) -> Option<Filter> {
    let subject = unquote(text)?.replace('.', "/");
    let pattern = match subject.strip_suffix('>') {
        Some(rest) => format!("{rest}**"),
        None => subject,
    };
    Filter::parse(&pattern, usize::MAX).ok()
}

/// The subject at the start of `text`, which the server writes as a Go string; the rest is ignored. For subjects this
/// is a JSON string, except for unprintable characters beyond 16 bits.
pub(super) fn unquote(text: &str) -> Option<String> {
    serde_json::Deserializer::from_str(text).into_iter().next()?.ok()
}
