//! Sets up logging: lines of text or JSON on standard error.
//!
//! This crate logs no secrets: no URL with user information, no query string, no payload, no `Authorization`. Libraries
//! do not follow that rule. So a bare level such as `debug` applies to this crate only, and libraries log from `warn`.
//! To get more from a library, name it (`debug,hyper=debug`).

use std::io::{self, IsTerminal as _};
use std::sync::OnceLock;

use thiserror::Error;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, Registry, fmt};

use crate::config::{Log, LogFormat};

/// Why logging cannot be set up.
#[derive(Debug, Error)]
pub enum LoggingError {
    /// The level is not a valid filter. This cannot happen with a [`Log`] that comes from a configuration.
    #[error("log.level is not a valid filter: {0}")]
    Level(#[from] tracing_subscriber::filter::ParseError),
    /// Logging has already been set up.
    #[error("logging has already been set up")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// The level of the process, which has a single log.
static LEVEL: OnceLock<Handle<Targets, Registry>> = OnceLock::new();

/// Sets up logging for the whole process. Call it once.
///
/// # Errors
/// See [`LoggingError`].
pub fn init(log: &Log) -> Result<(), LoggingError> {
    let (filter, level) = reload::Layer::new(filter(&log.level)?);
    let lines = fmt::layer().with_writer(io::stderr);
    let lines = match log.format {
        LogFormat::Text => lines.with_ansi(io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(lines.with_filter(filter)).try_init()?;
    let _ = LEVEL.set(level); // the first call; it cannot be set already
    Ok(())
}

/// Changes the level. Does nothing if [`init`] was not called.
pub fn set_level(log: &Log) {
    // The level of a `Log` from a configuration is a valid filter.
    if let (Some(level), Ok(filter)) = (LEVEL.get(), filter(&log.level)) {
        let _ = level.reload(filter); // fails only if the log is gone
    }
}

fn filter(level: &str) -> Result<Targets, tracing_subscriber::filter::ParseError> {
    let mut ours = None;
    let mut named = vec![];
    for directive in level.split(',').map(str::trim) {
        match directive.parse::<LevelFilter>() {
            Ok(level) => ours = Some(level),
            Err(_) => named.push(directive),
        }
    }
    let ours = ours.unwrap_or(LevelFilter::INFO);
    let named: Targets = named.join(",").parse()?;
    // Later targets of the same name win, so a named target overrides the bare level.
    let base = [(env!("CARGO_PKG_NAME"), ours)].into_iter().chain(named.iter());
    Ok(Targets::new().with_default(ours.min(LevelFilter::WARN)).with_targets(base.collect::<Vec<_>>()))
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn a_bare_level_speaks_for_this_crate_and_libraries_warn() {
        let filter = filter("debug").unwrap();
        assert!(filter.would_enable("topicgate::http", &Level::DEBUG));
        assert!(!filter.would_enable("hyper", &Level::INFO));
        assert!(filter.would_enable("hyper", &Level::WARN));
    }

    #[test]
    fn a_named_target_has_its_own_level() {
        let filter = filter("warn,topicgate::http=trace,hyper=debug").unwrap();
        assert!(filter.would_enable("topicgate::http", &Level::TRACE));
        assert!(!filter.would_enable("topicgate::log", &Level::INFO));
        assert!(filter.would_enable("hyper", &Level::DEBUG));
    }

    #[test]
    fn off_is_off_for_everyone() {
        assert!(!filter("off").unwrap().would_enable("hyper", &Level::ERROR));
    }
}
