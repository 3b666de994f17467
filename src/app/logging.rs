//! Sets up the log: lines of text or JSON on standard error.
//!
//! What is logged anywhere in this crate holds no secret: no URL with user information, no query string, no payload, no
//! header of authorization. Libraries are not written to that rule, so a bare level such as `debug` speaks for this
//! crate alone, and libraries are heard from `warn` on; whoever wants more of them names them (`debug,hyper=debug`).

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
    /// The level is not a filter. Never so for a [`Log`] that came from a configuration.
    #[error("log.level is no filter: {0}")]
    Level(#[from] tracing_subscriber::filter::ParseError),
    /// Logging was set up before.
    #[error("logging was set up before")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// The level of the process, for there is one log.
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
    let _ = LEVEL.set(level); // the first; there was no other
    Ok(())
}

/// Changes the level. Does nothing where [`init`] was not called.
pub fn set_level(log: &Log) {
    // A `Log` that came from a configuration is a filter.
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
    // Later targets of one name win, so what is named takes the place of the bare level.
    // async-nats logs each attempt of ours to connect as an error of its own; broker/nats.rs says what there is to say.
    let base =
        [(env!("CARGO_PKG_NAME"), ours), ("async_nats", LevelFilter::OFF)].into_iter().chain(named.iter());
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
        assert!(!filter.would_enable("async_nats", &Level::ERROR));
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
