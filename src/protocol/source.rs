//! Where a rule's messages come from, and where in a message its id and type are found.

/// What feeds a rule's topics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Plain publish/subscribe.
    Pubsub,
    /// Sharded publish/subscribe of a Redis Cluster, one shard channel a topic.
    Sharded,
    /// A stream of NATS JetStream.
    JetStream {
        /// `stream`: its name. `None`: the one that has the subjects of `match`.
        stream: Option<String>,
    },
    /// A bucket of the NATS key-value store.
    Kv {
        /// `bucket`: its name.
        bucket: String,
        /// How many segments of a topic come before the key: those of `match` before its first wildcard.
        prefix: usize,
    },
    /// Redis Streams, one key a topic.
    RedisStream {
        /// `payload`: the field of an entry that is the payload. `None`: all fields, as one JSON object.
        payload: Option<String>,
    },
}

impl Source {
    /// Whether the broker keeps what passes, under numbers of its own.
    pub fn is_stored(&self) -> bool {
        !matches!(self, Source::Pubsub | Source::Sharded)
    }

    /// Whether one subscription of the rule's whole `match` feeds all its topics.
    pub fn is_shared(&self) -> bool {
        matches!(self, Source::JetStream { .. } | Source::Kv { .. })
    }

    /// What each topic is, where the broker knows no patterns over them, so that each is subscribed to alone.
    pub fn only_one_by_one(&self) -> Option<&'static str> {
        match self {
            Source::RedisStream { .. } => Some("Redis Streams"),
            Source::Sharded => Some("shard channels"),
            Source::Pubsub | Source::JetStream { .. } | Source::Kv { .. } => None,
        }
    }
}

/// Where a field of a message is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Field {
    /// In the header field of this name.
    Header(String),
    /// In a JSON payload, at this JSON pointer (RFC 6901).
    Pointer(String),
    /// Nowhere: the rule names no place, and messages of its source have none of their own. So it is on Redis.
    Nowhere,
}
