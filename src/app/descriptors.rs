//! File descriptors: how many of them the connections of browsers may take, so that some are left for the admin listener, the
//! broker and whatever else the process opens. A gateway that has too many readers answers its probes all the same.

use rustix::process::{Resource, getrlimit};

use crate::config::Config;
use crate::http::ADMIN_CONNECTIONS;

/// Descriptors beside those of connections from outside: connections to the broker and to whoever publishes keys or takes
/// traces, listeners, files that are read, and what the runtime has.
const OTHERS: u64 = 64;

/// Descriptors that the process needs beside those of the public listener's connections.
pub(crate) fn spare(config: &Config) -> u64 {
    let questions = config.auth.forward.as_ref().map_or(0, |forward| forward.concurrency);
    ADMIN_CONNECTIONS as u64 + OTHERS + questions as u64
}

/// Connections that the public listener may have: `limits.connections`, or as many as the system allows without the spare ones.
/// Said in the log if that is less.
pub(crate) fn connections(config: &Config) -> usize {
    let wanted = config.limits.connections;
    let Some(allowed) = getrlimit(Resource::Nofile).current else { return wanted };
    let most = usize::try_from(at_most(allowed, spare(config))).unwrap_or(usize::MAX);
    if most < wanted {
        tracing::warn!(
            allowed,
            connections = most,
            "limits.connections = {wanted} is more than the open files that the system allows this process; this many \
             connections are accepted, and the rest is kept for probes and the broker"
        );
    }
    wanted.min(most)
}

/// Of so many descriptors. Where there are very few, half are spared.
fn at_most(allowed: u64, spare: u64) -> u64 {
    allowed.saturating_sub(spare).max(allowed / 2).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_descriptors_are_spared_however_few_there_are() {
        for (allowed, spare, expected) in [(65_536, 128, 65_408), (256, 128, 128), (64, 128, 32), (0, 128, 1)]
        {
            assert_eq!(at_most(allowed, spare), expected, "{allowed}");
        }
    }
}
