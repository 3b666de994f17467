//! `[log]`: the level and the format of the log.

use tracing_subscriber::filter::Targets;

use super::error::instead;
use super::input::Input;

/// `[log]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// A level, or a filter such as `info,topicgate=debug`.
    pub level: String,
    /// The format: text for people, or JSON for machines.
    pub format: LogFormat,
}

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One line of text per event.
    Text,
    /// One JSON object per event.
    Json,
}

impl Log {
    pub(super) fn read(input: &mut Input<'_>) -> Self {
        let words = [("text", LogFormat::Text), ("json", LogFormat::Json)];
        Log { level: level(input), format: input.choice("log.format", LogFormat::Text, &words) }
    }
}

/// `EnvFilter` and `Targets` would take a misspelt level for the name of a crate, and log all of that crate or nothing.
/// So levels are checked by name here.
fn level(input: &mut Input<'_>) -> String {
    const KEY: &str = "log.level";
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let level: String = input.get(KEY);
    for directive in level.split(',') {
        let word = directive.rsplit_once('=').map_or(directive, |(_, word)| word).trim().to_lowercase();
        if !LEVELS.contains(&word.as_str()) {
            input.refuse(KEY, format!("{word:?} is not a level;{}", instead(&word, &LEVELS)));
            return level;
        }
    }
    if level.parse::<Targets>().is_err() {
        input.refuse(KEY, format!("{level:?} is no filter; write info, or info,topicgate=debug"));
    }
    level
}
