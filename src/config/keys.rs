//! The table of keys: the only place that has a key's kind, bounds, default and purpose. Reading, checking, showing and
//! keeping values until a restart all use it. To add a key, add a line here, a field where its table is read, and its
//! line in config/topicgate.toml and docs/configuration.md; tests compare these with this table.

use std::collections::BTreeSet;

use super::key::Kind::{Address, Choice, Flag, List, Named, Path, Secret, Share, Text, Url};
use super::key::{COUNT, DURATION, KIB, Key, Kind, MIB, SECONDS, SIZE, key, millis, seconds, size};

const ACCESS: Kind = Choice(&["anyone", "token", "granted", "nobody"]);
const SOURCE: Kind = Choice(&["pubsub", "sharded-pubsub", "jetstream", "kv", "redis-stream"]);
const ADDRESS: Kind = Choice(&["x-forwarded-for", "forwarded", "proxy-protocol"]);
const ALGORITHM: Kind = Choice(&[
    "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384",
    "EdDSA",
]);
const FIELD: Kind = Named(&["header", "pointer"]);

/// In the order of config/topicgate.toml.
pub(super) const KEYS: &[Key] = &[
    key("listen", Address, "The address and port where browsers connect.")
        .default("127.0.0.1:8080")
        .restart(),
    key(
        "hosts",
        List,
        "Host names that a request may use; empty: any, or only local ones on a local address.",
    )
    .default(""),
    key(
        "base_path",
        Text,
        "The path below which browsers reach the gateway, if a proxy in front does not remove it: /events.",
    ),
    key(
        "demo",
        Flag,
        "Whether the embedded broker is open to everyone on any address, as long as no file, broker, rule or [auth] is set.",
    )
    .default("false"),
    key("drain", DURATION, "The time over which open streams are closed after SIGTERM.").default("10s"),
    key("admin.listen", Address, "The address of the probes, the metrics and the console.")
        .default("127.0.0.1:9090")
        .restart(),
    key("admin.hosts", List, "Further host names that a request for /metrics and the console may use.")
        .default(""),
    key("admin.console", Flag, "Whether to serve the console; not set: only on a local address.").restart(),
    key("broker.url", Url, "The broker: memory:, nats://, tls://, redis://, rediss:// or redis+unix:///.")
        .default("memory:")
        .restart(),
    key("broker.user", Text, "The gateway's user at NATS or Redis.").restart(),
    key("broker.password", Secret, "The password of that user.").restart(),
    key("broker.token", Secret, "NATS: a token, instead of a user.").restart(),
    key("broker.nkey", Secret, "NATS: the seed of an NKey, instead of a user.").restart(),
    key("broker.credentials", Path, "NATS: the path of a .creds file, instead of a user.").restart(),
    key("broker.separator", Text, "Redis: the character that separates the segments of a channel.")
        .default(":")
        .restart(),
    key(
        "broker.sentinel",
        Text,
        "Redis Sentinel: the name of the master that the sentinels in broker.url watch.",
    )
    .restart(),
    key("broker.cluster", Flag, "Redis Cluster: whether broker.url lists nodes of one.")
        .default("false")
        .restart(),
    // A subscriber waits for this time, and for at most eight seconds in total.
    key(
        "broker.settle",
        seconds(0, 5),
        "NATS cluster: how long a subscription may take to reach every server.",
    )
    .default("250ms")
    .restart(),
    key(
        "broker.jetstream.domain",
        Text,
        "NATS: the JetStream domain that has the streams and buckets; not set: the server's own.",
    )
    .restart(),
    key(
        "broker.jetstream.prefix",
        Text,
        "NATS, instead of a domain: the prefix of the JetStream API; not set: $JS.API.",
    )
    .restart(),
    key("broker.tls.ca", Path, "A PEM file with authorities to trust, in addition to those of the system.")
        .restart(),
    key("broker.tls.cert", Path, "The gateway's own certificate, PEM, if the broker requires one.").restart(),
    key("broker.tls.key", Path, "The key of that certificate, PEM.").restart(),
    key("streams.heartbeat", SECONDS, "The silence after which a stream gets a comment.").default("15s"),
    // Below half a second, browsers reconnect in a busy loop; nobody waits for more than an hour.
    key(
        "streams.retry",
        millis(500, 3_600_000),
        "How long readers wait before they reconnect, 50 % to 150 % of this.",
    )
    .default("3s"),
    key("streams.write_timeout", SECONDS, "How long a reader may read nothing before it is cut off.")
        .default("30s"),
    key("streams.max_age", SECONDS, "The age at which a stream is asked to reconnect; not set: never."),
    key(
        "streams.compress",
        Flag,
        "Whether streams are compressed (gzip) for readers that accept it, unless a rule says otherwise.",
    )
    .default("false"),
    key("limits.streams", COUNT, "Streams open at once.").default("10000"),
    key("limits.streams_per_address", COUNT, "Streams open at once per client address; for IPv6, per /64.")
        .default("1000"),
    key("limits.streams_per_subject", COUNT, "Streams open at once per token subject.").default("100"),
    key("limits.opens_per_second", COUNT, "New streams per second and address.").default("100"),
    key("limits.new_topics_per_second", COUNT, "Topics that are not held yet, per second and address.")
        .default("1000"),
    key("limits.publishes_per_second", COUNT, "Published messages per second and address.").default("5000"),
    // With a lower rate, one large message would take minutes.
    key("limits.resume_bytes", size(64 * KIB, 1024 * 1024 * MIB), "Bytes of replay per second and address.")
        .default("8MiB"),
    key("limits.connections", COUNT, "Connections open at once, including streams.")
        .default("12000")
        .restart(),
    key(
        "limits.connections_per_address",
        COUNT,
        "Connections open at once per client address; not set: twice limits.streams_per_address, at least 2000.",
    ),
    key("limits.topics", COUNT, "Topics and patterns held at once.").default("100000"),
    key("limits.topics_per_address", COUNT, "Topics and patterns on all streams of one address together.")
        .default("10000"),
    key("limits.topics_per_stream", COUNT, "Topics and patterns on one stream.").default("100"),
    key("limits.topic_length", COUNT, "Bytes of a topic's name.").default("200"),
    key("limits.message", size(1, 64 * MIB), "Bytes of one message.").default("256KiB"),
    key(
        "limits.bodies",
        size(64 * KIB, 1024 * 1024 * MIB),
        "Bytes of all publish requests that are not answered yet.",
    )
    .default("64MiB"),
    key("limits.buffer", SIZE, "Bytes of all messages that are held for replay.").default("256MiB"),
    // hyper panics on a head buffer under 8 KiB.
    key("limits.head", size(8 * KIB, MIB), "Bytes of a request's head.").default("16KiB"),
    key(
        "limits.head_timeout",
        SECONDS,
        "Time within which a request's head, or a published message, must arrive.",
    )
    .default("10s"),
    key("proxies.trusted", List, "Networks of the proxies in front, which may name the address of a client.")
        .default(""),
    key("proxies.address", ADDRESS, "How these proxies name the address of a client.")
        .default("x-forwarded-for"),
    key("auth.token.cookie", Text, "The name of the cookie that may carry a token.").default("topicgate"),
    key("auth.token.query", Flag, "Whether the query parameter access_token may carry a token.")
        .default("false"),
    key("auth.jwt.secret", Secret, "A secret of at least 32 bytes that is shared with the signer of tokens."),
    key("auth.jwt.public_key", Path, "The path of the public key that checks tokens, PEM."),
    key("auth.jwt.jwks_url", Url, "The URL of the key set (JWKS) that checks tokens."),
    // With more than a day, a withdrawn key would be accepted for too long.
    key("auth.jwt.jwks_refresh", seconds(10, 24 * 3600), "How often the key set is fetched.").default("5m"),
    key("auth.jwt.algorithm", ALGORITHM, "The algorithm of tokens; not set: the usual one of the key."),
    key(
        "auth.jwt.audience",
        List,
        "The audiences of which a token must name one; not set: a token may name none.",
    ),
    key("auth.jwt.issuer", List, "The issuers of which a token must name one; not set: any."),
    // Clocks differ by less, and tokens are valid for much longer.
    key("auth.jwt.leeway", seconds(0, 300), "How far clocks may differ, in whole seconds.").default("30s"),
    key("auth.jwt.claim", Text, "The claim that holds the grants, or a JSON pointer to a nested one.")
        .default("topicgate"),
    key(
        "auth.jwt.until",
        Text,
        "The claim that says until when a stream may last, or a JSON pointer to a nested one; not set: until, beside the \
         grants.",
    ),
    // Tokens cannot be revoked individually, so this is how long one remains usable.
    key(
        "auth.jwt.until_limit",
        DURATION,
        "How long a stream may last by that claim; 0s: no longer than exp.",
    )
    .default("12h"),
    key("auth.jwt.mercure", Flag, "Whether to read Mercure's grants too.").default("false"),
    key("auth.jwt.centrifugo", Flag, "Whether to read Centrifugo's channels too.").default("false"),
    key("auth.forward.url", Url, "The URL of the backend that is asked about callers without a token."),
    key("auth.forward.timeout", millis(100, 60_000), "How long the backend may take to answer.")
        .default("5s"),
    // With more, a caller whose permission was withdrawn would be admitted for too long.
    key(
        "auth.forward.cache",
        seconds(0, 60),
        "How long an answer is reused for the same question; 0s: never.",
    )
    .default("5s"),
    key("auth.forward.concurrency", COUNT, "Questions to the backend at once.").default("64"),
    key("cors.origins", List, "Pages of other origins that may use topicgate.").default(""),
    key("cors.headers", List, "Further request headers that these pages may send.").default(""),
    key("cors.credentials", Flag, "Whether these pages may send cookies and HTTP authentication.")
        .default("false"),
    key("tls.cert", Path, "The certificate for browsers, with its chain, PEM."),
    key("tls.key", Path, "The key of that certificate, PEM."),
    key("log.level", Text, "A level, or a filter such as info,hyper=debug.").default("info"),
    key("log.format", Choice(&["text", "json"]), "Lines of text for people, or JSON for machines.")
        .default("text")
        .restart(),
    key("traces.endpoint", Url, "The URL of the collector, which receives OTLP over HTTP.").restart(),
    key("traces.sample", Share, "The share of the requests that are traced.").default("1.0").restart(),
    key("topics.match", Text, "The topics that this rule decides about: a topic or a pattern."),
    key("topics.source", SOURCE, "What feeds these topics.").default("pubsub").restart(),
    key("topics.stream", Text, "The JetStream stream to read; not set: the one that has these subjects."),
    key("topics.bucket", Text, "The NATS key-value bucket to read."),
    key(
        "topics.payload",
        Named(&["field"]),
        "Redis Streams: the field of an entry that is the payload; not set: all, as JSON.",
    ),
    key("topics.read", ACCESS, "Who may subscribe.").default("nobody"),
    key("topics.publish", ACCESS, "Who may publish.").default("nobody"),
    key("topics.id", FIELD, "Where a message carries its publisher's id; not set: NATS has a header for it."),
    key("topics.type", FIELD, "Where a message carries its event type; not set: on NATS, in Event-Type."),
    key(
        "topics.data",
        Named(&["pointer"]),
        "Where the payload is in a JSON envelope; an empty pointer: the whole JSON value; not set: no envelope.",
    ),
    key(
        "topics.end",
        FIELD,
        "Where a message says that it ends its topic; not set: in Topicgate-End, where messages have headers.",
    ),
    key(
        "topics.compress",
        Flag,
        "Whether streams of these topics are compressed for readers that accept it; not set: streams.compress.",
    ),
    key("topics.replay.messages", COUNT, "Messages of a topic that are held for replay.").default("1000"),
    key(
        "topics.replay.bytes",
        SIZE,
        "Bytes of a topic that are held for replay; not set: limits.message, if that is more.",
    )
    .default("1MiB"),
    key("topics.replay.age", SECONDS, "How long a message is held for replay.").default("5m"),
    key("topics.replay.linger", DURATION, "How long a topic is held after its last reader has left.")
        .default("1m"),
    key("topics.replay.warm", Flag, "Whether to subscribe from the start, without waiting for a reader; jetstream and kv always do.")
        .default("false"),
];

/// The key at `path`, which may have the number of a rule in it: `topics.0.match`.
pub(super) fn at(path: &str) -> Option<&'static Key> {
    let rule = path.strip_prefix("topics.").and_then(|rest| rest.split_once('.'));
    let rule = rule.filter(|(index, _)| index.parse::<usize>().is_ok());
    KEYS.iter().find(|key| match rule {
        Some((_, rest)) => key.path.strip_prefix("topics.") == Some(rest),
        None => key.path == path,
    })
}

/// Whether there is a table at `path`, outside of rules.
pub(super) fn is_table(path: &str) -> bool {
    let within = |key: &Key| key.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.'));
    path != "topics" && KEYS.iter().any(within)
}

/// The names of the keys and tables in a table, in their order. The outermost table has no name.
pub(super) fn names(table: &str) -> Vec<&'static str> {
    let mut names: Vec<&str> = KEYS.iter().filter_map(|key| within(key, table)).collect();
    names.dedup();
    names
}

fn within(key: &Key, table: &str) -> Option<&'static str> {
    let rest = match table {
        "" => key.path,
        _ => key.path.strip_prefix(table)?.strip_prefix('.')?,
    };
    Some(rest.split_once('.').map_or(rest, |(name, _)| name))
}

/// Every key and table, dotted, sorted.
pub(super) fn all() -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for key in KEYS {
        let dots = key.path.match_indices('.').map(|(dot, _)| &key.path[..dot]);
        all.extend(dots.chain([key.path]).map(str::to_owned));
        if let Named(names) = key.kind {
            all.extend(names.iter().map(|name| format!("{}.{name}", key.path)));
        }
    }
    all
}
