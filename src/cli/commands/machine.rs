//! Compares the file descriptors and the memory of this machine with what the configuration may need, for `check`. Like
//! `config/advice.rs` it only warns, but it reads the system. It changes and refuses nothing.

use std::path::Path;

use bytesize::ByteSize;
use rustix::process::{Resource, getrlimit};

use crate::app::descriptors;
use crate::config::Config;

/// The memory of a stream with its connection, in bytes: the value for HTTP/2 in docs/benchmarks.md, the largest one,
/// with a margin.
const STREAM: u64 = 4 * 1024;

/// The memory of the process before the first stream, in bytes, likewise.
const BASE: u64 = 16 * 1024 * 1024;

/// The limits of this machine. An unknown limit is not checked.
#[derive(Debug)]
pub(crate) struct Machine {
    /// The hard limit, up to which the process raises its own. `None`: no limit.
    descriptors: Option<u64>,
    memory: Option<Memory>,
}

/// The smallest bound on memory, and whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Memory {
    bytes: u64,
    whose: &'static str,
}

impl Machine {
    /// Reads the current limits of this process.
    pub(crate) fn inspect() -> Self {
        let bounds = [
            available().map(|bytes| Memory { bytes, whose: "this machine has" }),
            control_group().map(|bytes| Memory { bytes, whose: "the control group of this process allows" }),
        ];
        Machine {
            descriptors: getrlimit(Resource::Nofile).maximum,
            memory: bounds.into_iter().flatten().min_by_key(|memory| memory.bytes),
        }
    }

    /// One warning for each resource that would run out before the configured limits are reached, with what would be
    /// right.
    pub(crate) fn warnings(&self, config: &Config) -> Vec<String> {
        [self.too_few_descriptors(config), self.too_little_memory(config)].into_iter().flatten().collect()
    }

    fn too_few_descriptors(&self, config: &Config) -> Option<String> {
        let needed = config.limits.connections as u64 + descriptors::spare(config);
        let allowed = self.descriptors.filter(|allowed| *allowed < needed)?;
        Some(format!(
            "{allowed} file descriptors are allowed, but limits.connections = {} takes up to {needed}; raise the \
             hard limit (LimitNOFILE={needed} in a systemd unit, --ulimit nofile={needed} for a container), or \
             lower limits.connections to {}",
            config.limits.connections,
            allowed.saturating_sub(needed - config.limits.connections as u64)
        ))
    }

    fn too_little_memory(&self, config: &Config) -> Option<String> {
        let streams = config.limits.streams as u64 * STREAM;
        let needed = config.limits.buffer.saturating_add(streams).saturating_add(BASE);
        let memory = self.memory.filter(|memory| memory.bytes < needed)?;
        let left = memory.bytes.saturating_sub(streams + BASE);
        let how = if left < config.limits.message {
            "provide that much, or lower limits.streams".to_owned()
        } else {
            format!("provide that much, or lower limits.buffer to {}MiB", left / 1024 / 1024)
        };
        Some(format!(
            "{} {} of memory, but limits.buffer = {} with limits.streams = {} takes up to about {}; {how}",
            memory.whose,
            ByteSize(memory.bytes),
            ByteSize(config.limits.buffer),
            config.limits.streams,
            ByteSize(needed)
        ))
    }
}

/// The memory that the kernel considers available without swapping.
fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?.trim().strip_suffix("kB")?;
    kib.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The smallest limit of the control groups of this process: of version 2 (`0::/path`), or of version 1.
fn control_group() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let limits = groups.lines().filter_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => return None,
        };
        let path = Path::new(path.trim_start_matches('/'));
        // In a container, the path may be the host's, of which only the root is visible.
        let limit =
            |path| std::fs::read_to_string(Path::new(root).join(path).join(file)).ok()?.trim().parse().ok();
        path.ancestors().filter_map(limit).min()
    });
    // If no limit is set, version 1 reports the largest number of pages.
    limits.min().filter(|limit: &u64| *limit < 1 << 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(descriptors: u64, memory: u64, file: &str) -> Vec<String> {
        let memory = Some(Memory { bytes: memory, whose: "this machine has" });
        let machine = Machine { descriptors: Some(descriptors), memory };
        machine.warnings(&Config::from_toml(file).unwrap())
    }

    #[test]
    fn a_limit_that_the_machine_cannot_keep_is_reported_with_a_value_that_works() {
        const PLENTY: u64 = 1 << 40;
        let file = "limits = { streams = 1000, connections = 1000, buffer = \"100MiB\" }";
        assert_eq!(words(1128, PLENTY, file), Vec::<String>::new());
        for (descriptors, memory, phrases) in [
            (1127, PLENTY, ["1127 file descriptors", "LimitNOFILE=1128"]),
            (512, PLENTY, ["512 file descriptors", "lower limits.connections to 384"]),
            (4096, 64 << 20, ["64.0 MiB of memory", "lower limits.buffer to 44MiB"]),
            (4096, 1 << 20, ["1.0 MiB of memory", "lower limits.streams"]),
        ] {
            let words = words(descriptors, memory, file);
            assert_eq!(words.len(), 1, "{words:?}");
            assert!(phrases.iter().all(|phrase| words[0].contains(phrase)), "{words:?}");
        }
    }
}
