//! The source of a rule's messages, and where their ids and types are.

/// What feeds a rule's topics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Plain publish/subscribe.
    Pubsub,
    /// Sharded publish/subscribe of a Redis Cluster, one shard channel per topic.
    Sharded,
    /// A JetStream stream.
    JetStream {
        /// The configured name (`stream`). `None`: the stream with the subjects of `match`.
        stream: Option<String>,
    },
    /// A NATS key-value bucket.
    Kv {
        /// The configured name (`bucket`).
        bucket: String,
        /// The number of topic segments before the key: those of `match` before its first wildcard.
        prefix: usize,
    },
    /// Redis Streams, one key per topic.
    RedisStream {
        /// The entry field that is the payload (`payload`). `None`: all fields, as one JSON object.
        payload: Option<String>,
    },
}

impl Source {
    /// Whether the broker stores and numbers the messages.
    pub fn is_stored(&self) -> bool {
        !matches!(self, Source::Pubsub | Source::Sharded)
    }

    /// Whether one subscription to the rule's whole `match` feeds all its topics.
    pub fn is_shared(&self) -> bool {
        matches!(self, Source::JetStream { .. } | Source::Kv { .. })
    }

    /// What the topics are in the broker, if it has no patterns over them, so that each is subscribed alone.
    pub fn only_one_by_one(&self) -> Option<&'static str> {
        match self {
            Source::RedisStream { .. } => Some("Redis Streams"),
            Source::Sharded => Some("shard channels"),
            Source::Pubsub | Source::JetStream { .. } | Source::Kv { .. } => None,
        }
    }
}

/// The place of a field in a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Field {
    /// In the header field of this name.
    Header(String),
    /// In a JSON payload, at this JSON pointer (RFC 6901).
    Pointer(String),
    /// Nowhere: the rule names no place, and the source has no default, as on Redis.
    Nowhere,
}

impl Field {
    /// The JSON pointer, if it is in the payload.
    pub fn pointer(&self) -> Option<&str> {
        match self {
            Field::Pointer(pointer) => Some(pointer),
            Field::Header(_) | Field::Nowhere => None,
        }
    }
}
