//! `[streams]`: the behaviour of a stream.

use std::time::Duration;

use super::input::Input;

/// `[streams]`: the behaviour of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Streams {
    /// Silence after which a comment is sent.
    pub heartbeat: Duration,
    /// The mean reconnection delay that clients receive; each stream gets 50 % to 150 % of it.
    pub retry: Duration,
    /// How long a reader may read nothing before its stream is closed.
    pub write_timeout: Duration,
    /// Age at which a stream is asked to reconnect, 90 % to 110 % of it. `None`: never.
    pub max_age: Option<Duration>,
    /// Whether streams may be compressed, unless a rule says otherwise.
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
