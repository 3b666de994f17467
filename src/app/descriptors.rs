//! File descriptors: limits the public connections so that descriptors remain for the admin listener, the broker and
//! files. A gateway with too many readers therefore still answers its probes.

use rustix::process::{Resource, getrlimit};

use crate::config::Config;
use crate::http::ADMIN_CONNECTIONS;

/// Descriptors that are not for incoming connections: connections to the broker, the key set and the trace collector,
/// listeners, files, and those of the runtime.
const OTHERS: u64 = 64;

/// Descriptors that the process needs in addition to the connections of the public listener.
pub(crate) fn spare(config: &Config) -> u64 {
    let questions = config.auth.forward.as_ref().map_or(0, |forward| forward.concurrency);
    ADMIN_CONNECTIONS as u64 + OTHERS + questions as u64
}

/// How many connections the public listener may have: `limits.connections`, or as many as the system allows without the
/// spare ones. Logs a warning if that is less.
pub(crate) fn connections(config: &Config) -> usize {
    let wanted = config.limits.connections;
    let Some(allowed) = getrlimit(Resource::Nofile).current else { return wanted };
    let most = usize::try_from(at_most(allowed, spare(config))).unwrap_or(usize::MAX);
    if most < wanted {
        tracing::warn!(
            allowed,
            connections = most,
            "limits.connections = {wanted} is more than the system's limit on open files allows; this number of \
             connections is accepted, and the other descriptors are kept for probes and the broker"
        );
    }
    wanted.min(most)
}

/// The connections that `allowed` descriptors permit. If there are very few, half of them are spared.
fn at_most(allowed: u64, spare: u64) -> u64 {
    allowed.saturating_sub(spare).max(allowed / 2).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_descriptors_are_kept_in_reserve_even_if_few_are_allowed() {
        for (allowed, spare, expected) in [(65_536, 128, 65_408), (256, 128, 128), (64, 128, 32), (0, 128, 1)]
        {
            assert_eq!(at_most(allowed, spare), expected, "{allowed}");
        }
    }
}
