//! From a `[[topics]]` table to a [`Rule`]: the part of `parse.rs` that is about topics.

use std::time::Duration;

use super::parse::{Check, GIB, LONGEST, bytes};
use super::raw::{RawField, RawReplay, RawRule};
use super::source::Written;
use super::{Access, Auth, Broker, BrokerKind, Limits, Replay, Rule};
use crate::protocol::source::Field;
use crate::protocol::topic::{Filter, TopicError};

/// What binds a segment of `match` to the caller's subject.
const SUBJECT: &str = "{sub}";

impl Rule {
    /// `match` as it was written.
    pub fn pattern(&self) -> String {
        let segment = |(index, segment)| if Some(index) == self.subject { SUBJECT } else { segment };
        self.filter.segments().enumerate().map(segment).collect::<Vec<_>>().join("/")
    }
}

impl Check<'_> {
    /// `None` only if there is no usable `match`, which is then reported.
    pub(super) fn rule(
        &mut self,
        index: usize,
        raw: RawRule,
        kind: Option<BrokerKind>,
        broker: &Broker,
        limits: &Limits,
        auth: &Auth,
    ) -> Option<Rule> {
        let path = |key: &str| format!("topics.{index}.{key}");
        let default = Rule::everything();
        // The names of headers are those of NATS. On Redis there is no header, or it is a field of an entry, which is the
        // application's to name.
        let place = |of: Field| if kind == Some(BrokerKind::Redis) { Field::Nowhere } else { of };
        let written = Written {
            source: raw.source,
            stream: raw.stream,
            bucket: raw.bucket,
            payload: raw.payload.field,
        };
        let read = self.access(&path("read"), raw.read, auth);
        let publish = self.access(&path("publish"), raw.publish, auth);
        let id = self.field(&path("id"), raw.id, place(default.id));
        let event_type = self.field(&path("type"), raw.kind, place(default.kind));
        let replay = self.replay(&path("replay"), raw.replay, limits);
        let Some(text) = raw.filter else {
            self.refuse(
                &path("match"),
                "is missing; name the topics that this rule decides, as in \"orders/**\"",
            );
            return None;
        };
        let separator = match kind {
            Some(BrokerKind::Nats) => Some('.'),
            Some(BrokerKind::Redis) => Some(broker.separator),
            Some(BrokerKind::Memory) | None => None,
        };
        if let Some(separator) = separator.filter(|c| *c != '/' && text.contains(*c)) {
            let meant = text.replace(separator, "/");
            // Itself it may be a broker's way to write a pattern.
            let meant = match Filter::parse(&meant, limits.topic_length) {
                Err(TopicError::Forbidden { near: Some(near), .. }) => near.into(),
                _ => meant,
            };
            self.refuse(
                &path("match"),
                format!(
                    "{text:?} has the broker's own separator {separator:?}; write / between segments: {meant}"
                ),
            );
            return None;
        }
        let (text, subject) = self.bound(&path("match"), text);
        if subject.is_some() && (read == Access::Anyone || publish == Access::Anyone) {
            self.refuse(
                &path("match"),
                format!("binds {SUBJECT}, and \"anyone\" has no subject; write read and publish as \"token\" or \"granted\""),
            );
        }
        match Filter::parse(&text, limits.topic_length) {
            Ok(filter) => {
                let source = self.source(&path, written, &filter, kind, broker.cluster);
                self.warm(&path("replay.warm"), &source, &filter, replay.warm);
                Some(Rule { filter, subject, source, read, publish, id, kind: event_type, replay })
            }
            Err(error) => {
                self.refuse(&path("match"), format!("{text:?}: {error}"));
                None
            }
        }
    }

    /// The pattern with `*` in place of `{sub}`, and which segment that is.
    fn bound(&mut self, path: &str, text: String) -> (String, Option<usize>) {
        if !text.contains('{') && !text.contains('}') {
            return (text, None);
        }
        let mut subject = None;
        let mut segments: Vec<&str> = text.split('/').collect();
        for (index, segment) in segments.iter_mut().enumerate() {
            if *segment == SUBJECT && subject.is_none() {
                (subject, *segment) = (Some(index), "*");
            } else if segment.contains(['{', '}']) {
                // Taken for a name it would decide nothing, and leave the topics that were meant to the rules below.
                let problem = format!(
                    "{text:?}: {SUBJECT} is the one thing in braces, a whole segment, and once; write users/{SUBJECT}/**"
                );
                self.refuse(path, problem);
                break;
            }
        }
        (segments.join("/"), subject)
    }

    fn access(&mut self, path: &str, given: Option<String>, auth: &Auth) -> Access {
        let words = [
            ("anyone", Access::Anyone),
            ("token", Access::Token),
            ("granted", Access::Granted),
            ("nobody", Access::Nobody),
        ];
        let access = self.word(path, given, Access::Nobody, &words);
        let unknown = self.failed.iter().any(|path| path.starts_with("auth"));
        if matches!(access, Access::Token | Access::Granted) && !auth.is_configured() && !unknown {
            self.refuse(
                path,
                "asks callers who they are, and nothing says how that is told; set auth.jwt or auth.forward",
            );
        }
        access
    }

    fn field(&mut self, path: &str, given: Option<RawField>, default: Field) -> Field {
        let Some(given) = given else { return default };
        match (given.header, given.pointer) {
            (Some(header), None) => {
                if !is_token(&header) {
                    let problem =
                        format!("{header:?} is not the name of a header field; write one as in Nats-Msg-Id");
                    self.refuse(&format!("{path}.header"), problem);
                }
                Field::Header(header)
            }
            (None, Some(pointer)) => {
                if !is_pointer(&pointer) {
                    let problem = format!(
                        "{pointer:?} is not a JSON pointer; write one as in /data/id (~0 stands for ~, ~1 for /)"
                    );
                    self.refuse(&format!("{path}.pointer"), problem);
                }
                Field::Pointer(pointer)
            }
            _ => {
                self.refuse(
                    path,
                    "needs one of header and pointer; write { header = \"X\" } or { pointer = \"/a/b\" }",
                );
                default
            }
        }
    }

    fn replay(&mut self, path: &str, raw: RawReplay, limits: &Limits) -> Replay {
        let d = Replay::for_messages_of(limits.message);
        let key = |key: &str| format!("{path}.{key}");
        let second = Duration::from_secs(1);
        let replay = Replay {
            messages: self.count(&key("messages"), raw.messages, d.messages),
            bytes: self.size(&key("bytes"), raw.bytes, d.bytes, (1, 1024 * GIB)),
            age: self.duration(&key("age"), raw.age, d.age, second, LONGEST),
            linger: self.duration(&key("linger"), raw.linger, d.linger, Duration::ZERO, LONGEST),
            warm: raw.warm.map_or(d.warm, |switch| switch.0),
        };
        if replay.bytes < limits.message && !self.failed.contains("limits.message") {
            self.refuse(
                &key("bytes"),
                format!(
                    "{} does not hold one message of limits.message = {}; raise the one or lower the other",
                    bytes(replay.bytes),
                    bytes(limits.message)
                ),
            );
        }
        replay
    }
}

/// RFC 9110, the name of a field.
pub(super) fn is_token(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    !name.is_empty() && name.chars().all(allowed)
}

/// RFC 6901. The empty pointer, the whole payload, is refused: it names no field.
pub(super) fn is_pointer(text: &str) -> bool {
    let escapes = text.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
    text.starts_with('/') && escapes
}
