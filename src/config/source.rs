//! What feeds a rule's topics: `source`, and the keys that go with one source alone.

use super::BrokerKind;
use super::parse::Check;
use crate::protocol::source::Source;
use crate::protocol::topic::Filter;

/// The keys as they were written.
pub(super) struct Written {
    pub(super) source: Option<String>,
    pub(super) stream: Option<String>,
    pub(super) bucket: Option<String>,
    pub(super) payload: Option<String>,
}

/// The words that `source` may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Pubsub,
    Sharded,
    JetStream,
    Kv,
    RedisStream,
}

impl Check<'_> {
    pub(super) fn source(
        &mut self,
        path: &impl Fn(&str) -> String,
        written: Written,
        filter: &Filter,
        kind: Option<BrokerKind>,
        is_cluster: bool,
    ) -> Source {
        let words = [
            ("pubsub", Word::Pubsub),
            ("sharded-pubsub", Word::Sharded),
            ("jetstream", Word::JetStream),
            ("kv", Word::Kv),
            ("redis-stream", Word::RedisStream),
        ];
        let word = self.word(&path("source"), written.source, Word::Pubsub, &words);
        let wanted = match word {
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
        };
        let needs_cluster = word == Word::Sharded && !is_cluster && !self.failed.contains("broker.cluster");
        if let (Some((wanted, of)), Some(kind)) = (wanted, kind)
            && (wanted != kind || needs_cluster)
        {
            self.refuse(&path("source"), format!("is of {of}"));
        }
        for (key, given, of) in [
            ("stream", written.stream.is_some(), Word::JetStream),
            ("bucket", written.bucket.is_some(), Word::Kv),
            ("payload", written.payload.is_some(), Word::RedisStream),
        ] {
            if given && word != of {
                let name = words.iter().find(|(_, word)| *word == of).map_or("", |(name, _)| name);
                self.refuse(&path(key), format!("goes with source = {name:?} only"));
            }
        }
        match word {
            Word::Pubsub => Source::Pubsub,
            Word::Sharded => Source::Sharded,
            Word::JetStream => {
                let stream = written.stream.inspect(|name| self.stream_name(&path("stream"), name));
                Source::JetStream { stream }
            }
            Word::Kv => {
                if let Some(bucket) = &written.bucket {
                    self.stream_name(&path("bucket"), bucket);
                } else {
                    let problem =
                        "is missing; name the bucket that source = \"kv\" reads, as in bucket = \"PRICES\"";
                    self.refuse(&path("bucket"), problem);
                }
                let bucket = written.bucket.unwrap_or_default();
                let prefix = filter.segments().take_while(|segment| !segment.starts_with('*')).count();
                if !filter.is_pattern() {
                    let problem = "names one topic, and a bucket's keys are what its wildcard stands for; write prices/**";
                    self.refuse(&path("match"), problem);
                }
                Source::Kv { bucket, prefix }
            }
            Word::RedisStream => {
                if written.payload.as_deref() == Some("") {
                    self.refuse(&path("payload.field"), "is empty; name a field of an entry");
                }
                Source::RedisStream { payload: written.payload }
            }
        }
    }

    /// What is read one by one is not there before somebody has named it.
    pub(super) fn warm(&mut self, path: &str, source: &Source, filter: &Filter, warm: bool) {
        if let Some(what) = source.only_one_by_one()
            && warm
            && filter.is_pattern()
        {
            let problem = format!(
                "{what} are read one by one, and a pattern cannot be subscribed to as a whole; leave warm out"
            );
            self.refuse(path, problem);
        }
    }

    /// A name as NATS takes it: it becomes a token of subjects.
    fn stream_name(&mut self, path: &str, name: &str) {
        if name.is_empty() || name.len() > 255 || name.contains([' ', '.', '*', '>', '/', '\\']) {
            let problem = format!(
                "{name:?} is not the name of a stream or bucket; write it as `nats stream ls` or `nats kv ls` shows it"
            );
            self.refuse(path, problem);
        }
    }
}
