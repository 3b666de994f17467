//! `[topics.replay]`: how much of each topic is held for readers that reconnect.

use std::time::Duration;

use super::input::Input;
use super::limits::Limits;
use super::value::{Given, bytes};

/// `replay`: how much of each topic is held for readers that reconnect. The first bound that is reached counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replay {
    /// Messages.
    pub messages: usize,
    /// Bytes, as held in memory.
    pub bytes: u64,
    /// Age.
    pub age: Duration,
    /// How long a topic is held, and stays subscribed, after its last reader left.
    pub linger: Duration,
    /// Subscribe to `match` from the start, without waiting for a reader.
    pub warm: bool,
}

impl Replay {
    /// `path` is the path of the table, with the number of the rule.
    pub(super) fn read(input: &mut Input<'_>, path: &str, limits: &Limits) -> Self {
        let key = |key: &str| format!("{path}.{key}");
        let size = key("bytes");
        let mut replay = Replay {
            messages: input.get(&key("messages")),
            bytes: input.get(&size),
            age: input.get(&key("age")),
            linger: input.get(&key("linger")),
            warm: input.get(&key("warm")),
        };
        if !input.is_set(&size) {
            // A message of the largest size must fit.
            replay.bytes = replay.bytes.max(limits.message);
            input.set_in_force(&size, Some(Given::Size(replay.bytes)));
        }
        if replay.bytes < limits.message && !input.has_failed("limits.message") {
            let problem = format!(
                "{} does not hold one message of limits.message = {}; raise the one or lower the other",
                bytes(replay.bytes),
                bytes(limits.message)
            );
            input.refuse(&size, problem);
        }
        replay
    }
}
