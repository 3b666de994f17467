//! `[streams]`: the behaviour of a stream.

use std::time::Duration;

use super::input::Input;

/// `[streams]`: the behaviour of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Streams {
    /// Silence after which a comment is sent.
    pub heartbeat: Duration,
    /// Middle of the reconnection delay that clients are told; each stream is told 50 % to 150 % of it.
    pub retry: Duration,
    /// How long a reader may take nothing before its stream is closed.
    pub write_timeout: Duration,
    /// Age at which a stream is asked to reconnect, 90 % to 110 % of it. `None`: never.
    pub max_age: Option<Duration>,
    /// Whether streams may be compressed, where a rule says nothing else.
    pub compress: bool,
}

impl Streams {
    pub(super) fn read(input: &mut Input<'_>) -> Self {
        Streams {
            heartbeat: input.get("streams.heartbeat"),
            retry: input.get("streams.retry"),
            write_timeout: input.get("streams.write_timeout"),
            max_age: input.get_if_any("streams.max_age"),
            compress: input.get("streams.compress"),
        }
    }
}
