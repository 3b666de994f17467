//! `[limits]`: the limits of the process, and of each client.

use std::time::Duration;

use super::input::Input;
use super::value::{Given, bytes};

/// The least value of `limits.connections_per_address` if it is not set.
const LEAST_CONNECTIONS: usize = 2000;

/// `[limits]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Open streams.
    pub streams: usize,
    /// Open streams of one client address; for IPv6, of one /64.
    pub streams_per_address: usize,
    /// Open streams of one token subject.
    pub streams_per_subject: usize,
    /// Streams that one address may open in a second, on average.
    pub opens_per_second: usize,
    /// New topics and patterns that one address may request in a second, on average.
    pub new_topics_per_second: usize,
    /// Messages that one address may publish in a second, on average.
    pub publishes_per_second: usize,
    /// Bytes of replay that one address receives in a second, on average.
    pub resume_bytes: u64,
    /// Open connections, including those of streams.
    pub connections: usize,
    /// Open connections of one client address; for IPv6, of one /64. Connections of trusted proxies do not count.
    pub connections_per_address: usize,
    /// Topics and patterns held at once.
    pub topics: usize,
    /// Topics and patterns on all streams of one address.
    pub topics_per_address: usize,
    /// Topics and patterns on one stream.
    pub topics_per_stream: usize,
    /// Bytes of a topic.
    pub topic_length: usize,
    /// Bytes of a payload, published or received.
    pub message: u64,
    /// Bytes of all publish requests in progress, with the part of their bodies that has arrived.
    pub bodies: u64,
    /// Bytes of all replay buffers together.
    pub buffer: u64,
    /// Bytes of a request head.
    pub head: u64,
    /// Time in which a request head, or a published body, must have arrived.
    pub head_timeout: Duration,
}

impl Limits {
    pub(super) fn read(input: &mut Input<'_>) -> Self {
        let streams_per_address = input.get("limits.streams_per_address");
        let limits = Limits {
            streams: input.get("limits.streams"),
            streams_per_address,
            streams_per_subject: input.get("limits.streams_per_subject"),
            opens_per_second: input.get("limits.opens_per_second"),
            new_topics_per_second: input.get("limits.new_topics_per_second"),
            publishes_per_second: input.get("limits.publishes_per_second"),
            resume_bytes: input.get("limits.resume_bytes"),
            connections: input.get("limits.connections"),
            connections_per_address: connections_per_address(input, streams_per_address),
            topics: input.get("limits.topics"),
            topics_per_address: input.get("limits.topics_per_address"),
            topics_per_stream: input.get("limits.topics_per_stream"),
            topic_length: input.get("limits.topic_length"),
            message: input.get("limits.message"),
            bodies: input.get("limits.bodies"),
            buffer: input.get("limits.buffer"),
            head: input.get("limits.head"),
            head_timeout: input.get("limits.head_timeout"),
        };
        limits.check(input);
        limits
    }

    fn check(&self, input: &mut Input<'_>) {
        if self.buffer < self.message && !input.has_failed("limits.message") {
            input.refuse(
                "limits.buffer",
                format!(
                    "{} does not hold one message of limits.message = {}; write at least that",
                    bytes(self.buffer),
                    bytes(self.message)
                ),
            );
        }
        let [of_address, of_stream] = ["limits.topics_per_address", "limits.topics_per_stream"];
        if self.topics_per_address < self.topics_per_stream && !input.has_failed(of_stream) {
            input.refuse(
                of_address,
                format!(
                    "{} is less than {of_stream} = {}, so that a stream within its own limit could never open; raise the \
                     one or lower the other",
                    self.topics_per_address, self.topics_per_stream
                ),
            );
        }
    }
}

/// If an address may have more streams, it may have the connections for them: on HTTP/1, one for each.
fn connections_per_address(input: &mut Input<'_>, streams: usize) -> usize {
    const KEY: &str = "limits.connections_per_address";
    let connections =
        input.get_if_any(KEY).unwrap_or_else(|| streams.saturating_mul(2).max(LEAST_CONNECTIONS));
    input.set_in_force(KEY, Some(Given::Count(connections)));
    connections
}
