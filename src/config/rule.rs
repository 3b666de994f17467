//! From a `[[topics]]` table to a [`Rule`]: the part of `parse.rs` that is about topics.

use std::time::Duration;

use super::parse::{Check, GIB, LONGEST, bytes};
use super::raw::{RawField, RawReplay, RawRule};
use super::{Access, BrokerKind, Field, Limits, Replay, Rule, Source};
use crate::topic::Filter;

impl Check<'_> {
    /// `None` only if there is no usable `match`, which is then reported.
    pub(super) fn rule(
        &mut self,
        index: usize,
        raw: RawRule,
        kind: Option<BrokerKind>,
        separator: char,
        limits: &Limits,
    ) -> Option<Rule> {
        let path = |key: &str| format!("topics.{index}.{key}");
        let default = Rule::everything();
        let source = self.word(&path("source"), raw.source, default.source, &[("pubsub", Source::Pubsub)]);
        let read = self.access(&path("read"), raw.read);
        let publish = self.access(&path("publish"), raw.publish);
        let id = self.field(&path("id"), raw.id, default.id);
        let event_type = self.field(&path("type"), raw.kind, default.kind);
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
            Some(BrokerKind::Redis) => Some(separator),
            Some(BrokerKind::Memory) | None => None,
        };
        if let Some(separator) = separator.filter(|c| *c != '/' && text.contains(*c)) {
            let meant = text.replace(separator, "/");
            self.refuse(
                &path("match"),
                format!(
                    "{text:?} has the broker's own separator {separator:?}; write / between segments: {meant}"
                ),
            );
            return None;
        }
        match Filter::parse(&text, limits.topic_length) {
            Ok(filter) => Some(Rule { filter, source, read, publish, id, kind: event_type, replay }),
            Err(error) => {
                self.refuse(&path("match"), format!("{text:?}: {error}"));
                None
            }
        }
    }

    fn access(&mut self, path: &str, given: Option<String>) -> Access {
        match given.as_deref() {
            Some(later @ ("token" | "granted")) => {
                self.refuse(
                    path,
                    format!("\"{later}\" is not in this version; write \"anyone\" or \"nobody\""),
                );
                Access::Nobody
            }
            _ => self.word(
                path,
                given,
                Access::Nobody,
                &[("anyone", Access::Anyone), ("nobody", Access::Nobody)],
            ),
        }
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
fn is_token(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    !name.is_empty() && name.chars().all(allowed)
}

/// RFC 6901. The empty pointer, the whole payload, is refused: it names no field.
fn is_pointer(text: &str) -> bool {
    let escapes = text.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
    text.starts_with('/') && escapes
}
