//! `[[topics]]`: a rule.

use super::access::Access;
use super::auth::Auth;
use super::broker::Broker;
use super::input::Input;
use super::limits::Limits;
use super::names::{is_pointer, is_token, not_a_pointer};
use super::replay::Replay;
use super::source;
use super::streams::Streams;
use super::url::BrokerKind;
use super::value::Given;
use crate::protocol::source::{Field, Source};
use crate::protocol::topic::{Filter, TopicError};

/// The header field, or the field of an entry, that marks a message as the end of its topic.
const END: &str = "Topicgate-End";

/// The placeholder that binds a segment of `match` to the caller's subject.
const SUBJECT: &str = "{sub}";

/// The pattern of every topic.
pub(super) const EVERYTHING: &str = "**";

/// `[[topics]]`: one rule.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// `match`: the topics of this rule, with `*` in place of `{sub}`.
    pub filter: Filter,
    /// The index of the segment that must be the caller's subject, because `match` has `{sub}` there.
    pub subject: Option<usize>,
    /// `source`.
    pub source: Source,
    /// `read`: the callers that may subscribe.
    pub read: Access,
    /// `publish`: the callers that may publish.
    pub publish: Access,
    /// `id`: where a message carries its publisher id.
    pub id: Field,
    /// `type`: where a message carries its event type.
    pub kind: Field,
    /// `data`: the JSON pointer to the payload in a message.
    pub data: Option<String>,
    /// `end`: where a message says that it ends its topic.
    pub end: Field,
    /// `compress`, or `streams.compress`: whether its messages may be sent compressed.
    pub compress: bool,
    /// `replay`.
    pub replay: Replay,
}

/// The parts of the configuration that determine which keys a rule may have.
#[derive(Clone, Copy)]
pub(super) struct Around<'a> {
    pub(super) broker: &'a Broker,
    /// `None` if `broker.url` names no kind.
    pub(super) kind: Option<BrokerKind>,
    pub(super) limits: &'a Limits,
    pub(super) streams: &'a Streams,
    pub(super) auth: &'a Auth,
}

impl Rule {
    /// `match`, as written.
    pub fn pattern(&self) -> String {
        let segment = |(index, segment)| if Some(index) == self.subject { SUBJECT } else { segment };
        self.filter.segments().enumerate().map(segment).collect::<Vec<_>>().join("/")
    }

    /// The rules, as written.
    pub(super) fn read_all(input: &mut Input<'_>, around: Around<'_>) -> Vec<Self> {
        let rules = 0..input.rules().unwrap_or_default();
        rules.filter_map(|index| Rule::read(input, &format!("topics.{index}"), around)).collect()
    }

    /// `None` only if `match` is missing or unusable, which is then reported.
    fn read(input: &mut Input<'_>, path: &str, around: Around<'_>) -> Option<Self> {
        if input.has_failed(path) {
            return None;
        }
        let key = |key: &str| format!("{path}.{key}");
        let read = Access::read(input, &key("read"), around.auth);
        let publish = Access::read(input, &key("publish"), around.auth);
        let by_default = |header: &str| match around.kind {
            Some(BrokerKind::Redis) => Field::Nowhere,
            _ => Field::Header(header.into()),
        };
        let id = field(input, &key("id"), by_default("Nats-Msg-Id"));
        let kind = field(input, &key("type"), by_default("Event-Type"));
        let data = data(input, &key("data"));
        let compress = input.get_if_any(&key("compress")).unwrap_or(around.streams.compress);
        input.set_in_force(&key("compress"), Some(Given::Flag(compress)));
        let replay = Replay::read(input, &key("replay"), around.limits);
        let (filter, subject) = pattern(input, &key("match"), around)?;
        if subject.is_some() && (read == Access::Anyone || publish == Access::Anyone) {
            input.refuse(
                &key("match"),
                format!("binds {SUBJECT}, and \"anyone\" has no subject; write read and publish as \"token\" or \"granted\""),
            );
        }
        let source = source::read(input, path, &filter, around.kind, around.broker.cluster);
        let end = match source {
            // A field of the entry; no application uses this name.
            Source::RedisStream { .. } => Field::Header(END.into()),
            _ => by_default(END),
        };
        let end = field(input, &key("end"), end);
        source::check_warm(input, &key("replay.warm"), &source, &filter, replay.warm);
        Some(Rule { filter, subject, source, read, publish, id, kind, data, end, compress, replay })
    }
}

/// `match`: the topics, and the segment that is bound to the caller.
fn pattern(input: &mut Input<'_>, path: &str, around: Around<'_>) -> Option<(Filter, Option<usize>)> {
    let Some(text) = input.get_if_any::<String>(path) else {
        input.refuse(path, "is missing; name the topics that this rule decides, as in \"orders/**\"");
        return None;
    };
    let separator = match around.kind {
        Some(BrokerKind::Nats) => Some('.'),
        Some(BrokerKind::Redis) => Some(around.broker.separator),
        Some(BrokerKind::Memory) | None => None,
    };
    let longest = around.limits.topic_length;
    if let Some(separator) = separator.filter(|c| *c != '/' && text.contains(*c)) {
        let meant = text.replace(separator, "/");
        // It may be a broker's notation of a pattern.
        let meant = match Filter::parse(&meant, longest) {
            Err(TopicError::Forbidden { near: Some(near), .. }) => near.into(),
            _ => meant,
        };
        input.refuse(
            path,
            format!(
                "{text:?} has the broker's own separator {separator:?}; write / between segments: {meant}"
            ),
        );
        return None;
    }
    let (text, subject) = bound(input, path, text);
    // It is never too long: it is the demo's rule.
    let filter = if text == EVERYTHING { Ok(Filter::everything()) } else { Filter::parse(&text, longest) };
    match filter {
        Ok(filter) => Some((filter, subject)),
        Err(error) => {
            input.refuse(path, format!("{text:?}: {error}"));
            None
        }
    }
}

/// The pattern with `*` in place of `{sub}`, and the index of that segment.
fn bound(input: &mut Input<'_>, path: &str, text: String) -> (String, Option<usize>) {
    if !text.contains('{') && !text.contains('}') {
        return (text, None);
    }
    let mut subject = None;
    let mut segments: Vec<&str> = text.split('/').collect();
    for (index, segment) in segments.iter_mut().enumerate() {
        if *segment == SUBJECT && subject.is_none() {
            (subject, *segment) = (Some(index), "*");
        } else if segment.contains(['{', '}']) {
            // As a literal name it would match nothing, and the intended topics would fall to the rules below.
            let problem = format!(
                "{text:?}: only {SUBJECT} may be in braces, once and as a whole segment; write users/{SUBJECT}/**"
            );
            input.refuse(path, problem);
            break;
        }
    }
    (segments.join("/"), subject)
}

/// Where a message carries its id, its type or its end. The default is a NATS header field. Redis messages have no header,
/// and the fields of an entry are named by the application.
fn field(input: &mut Input<'_>, path: &str, default: Field) -> Field {
    input.may_be_empty(&format!("{path}.pointer"));
    let field = match input.get_if_any::<Vec<(&str, String)>>(path).as_deref() {
        None => default,
        Some([("header", header)]) => {
            if !is_token(header) {
                let problem =
                    format!("{header:?} is not the name of a header field; write one as in Nats-Msg-Id");
                input.refuse(&format!("{path}.header"), problem);
            }
            Field::Header(header.clone())
        }
        Some([("pointer", pointer)]) => {
            if !is_pointer(pointer) {
                input.refuse(&format!("{path}.pointer"), not_a_pointer(pointer));
            }
            Field::Pointer(pointer.clone())
        }
        Some(_) => {
            input.refuse(
                path,
                "needs one of header and pointer; write { header = \"X\" } or { pointer = \"/a/b\" }",
            );
            default
        }
    };
    let held = match &field {
        Field::Header(name) => Some(Given::Named(vec![("header", name.clone())])),
        Field::Pointer(pointer) => Some(Given::Named(vec![("pointer", pointer.clone())])),
        Field::Nowhere => None,
    };
    input.set_in_force(path, held);
    field
}

/// The pointer to the payload in a message. The empty pointer is the whole document.
fn data(input: &mut Input<'_>, path: &str) -> Option<String> {
    input.may_be_empty(&format!("{path}.pointer"));
    let places: Option<Vec<(&str, String)>> = input.get_if_any(path);
    let pointer = places.and_then(|places| places.into_iter().next()).map(|(_, pointer)| pointer)?;
    if !is_pointer(&pointer) {
        input.refuse(&format!("{path}.pointer"), not_a_pointer(&pointer));
    }
    Some(pointer)
}
