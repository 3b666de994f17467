//! `source` of a rule, and the keys that belong to a single source.

use super::input::Input;
use super::url::BrokerKind;
use crate::protocol::source::Source;
use crate::protocol::topic::Filter;

/// The values of `source`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Pubsub,
    Sharded,
    JetStream,
    Kv,
    RedisStream,
}

const WORDS: [(&str, Word); 5] = [
    ("pubsub", Word::Pubsub),
    ("sharded-pubsub", Word::Sharded),
    ("jetstream", Word::JetStream),
    ("kv", Word::Kv),
    ("redis-stream", Word::RedisStream),
];

impl Word {
    fn name(self) -> &'static str {
        WORDS.iter().find(|(_, word)| *word == self).map_or("", |(name, _)| name)
    }

    /// The broker that has this source, and how to configure it.
    fn broker(self) -> Option<(BrokerKind, &'static str)> {
        match self {
            Word::Pubsub => None,
            Word::Sharded => Some((
                BrokerKind::Redis,
                "a Redis Cluster; set broker.cluster = true, and broker.url to redis://… of its nodes",
            )),
            Word::JetStream => Some((
                BrokerKind::Nats,
                "NATS; set broker.url to nats://…, or for a Redis Stream write source = \"redis-stream\"",
            )),
            Word::Kv => Some((BrokerKind::Nats, "NATS; set broker.url to nats://…")),
            Word::RedisStream => Some((
                BrokerKind::Redis,
                "Redis; set broker.url to redis://…, or for a stream of NATS write source = \"jetstream\"",
            )),
        }
    }
}

/// Reads `source` of the rule at `path`. `kind` is `None` if `broker.url` names no kind.
pub(super) fn read(
    input: &mut Input<'_>,
    path: &str,
    filter: &Filter,
    kind: Option<BrokerKind>,
    is_cluster: bool,
) -> Source {
    let key = |key: &str| format!("{path}.{key}");
    let word = input.choice(&key("source"), Word::Pubsub, &WORDS);
    let needs_cluster = word == Word::Sharded && !is_cluster && !input.has_failed("broker.cluster");
    if let (Some((wanted, of)), Some(kind)) = (word.broker(), kind)
        && (wanted != kind || needs_cluster)
    {
        input.refuse(&key("source"), format!("is of {of}"));
    }
    for (name, of) in [("stream", Word::JetStream), ("bucket", Word::Kv), ("payload", Word::RedisStream)] {
        if input.is_set(&key(name)) && word != of {
            input.refuse(&key(name), format!("goes with source = {:?} only", of.name()));
        }
    }
    match word {
        Word::Pubsub => Source::Pubsub,
        Word::Sharded => Source::Sharded,
        Word::JetStream => Source::JetStream { stream: name(input, &key("stream")) },
        Word::Kv => {
            let bucket = name(input, &key("bucket")).unwrap_or_else(|| {
                let problem =
                    "is missing; name the bucket that source = \"kv\" reads, as in bucket = \"PRICES\"";
                input.refuse(&key("bucket"), problem);
                String::new()
            });
            let prefix = filter.segments().take_while(|segment| !segment.starts_with('*')).count();
            if !filter.is_pattern() {
                let problem =
                    "names one topic, but the keys of a bucket take the place of a wildcard; write prices/**";
                input.refuse(&key("match"), problem);
            }
            Source::Kv { bucket, prefix }
        }
        Word::RedisStream => {
            let fields: Option<Vec<(&str, String)>> = input.get_if_any(&key("payload"));
            let payload = fields.and_then(|fields| fields.into_iter().next()).map(|(_, field)| field);
            if payload.as_deref() == Some("") {
                input.refuse(&key("payload.field"), "is empty; name a field of an entry");
            }
            Source::RedisStream { payload }
        }
    }
}

/// Refuses `warm` for a source whose topics are subscribed one by one: they are unknown until a reader requests them.
pub(super) fn check_warm(input: &mut Input<'_>, path: &str, source: &Source, filter: &Filter, warm: bool) {
    if let Some(what) = source.only_one_by_one()
        && warm
        && filter.is_pattern()
    {
        let problem = format!(
            "{what} are read one by one, and a pattern cannot be subscribed to as a whole; leave warm out"
        );
        input.refuse(path, problem);
    }
}

/// A name that NATS accepts: it becomes a token of subjects.
fn name(input: &mut Input<'_>, path: &str) -> Option<String> {
    let name: String = input.get_if_any(path)?;
    if name.is_empty() || name.len() > 255 || name.contains([' ', '.', '*', '>', '/', '\\']) {
        let problem = format!(
            "{name:?} is not the name of a stream or bucket; write it as `nats stream ls` or `nats kv ls` shows it"
        );
        input.refuse(path, problem);
    }
    Some(name)
}
