//! `topicgate check`: what the configuration would do, and whether this machine lets it. What a start would refuse, this
//! refuses, in the same words and with the same exit code; only whether the addresses are free is left to the start.

use std::fmt::Write as _;

use super::Failure;
use super::machine::Machine;
use crate::app::server;
use crate::config::{Config, Sources};

/// The page that is printed.
pub(crate) fn page(sources: &Sources) -> Result<String, Failure> {
    let config = Config::load(sources)?;
    // It never runs, so that nothing which a start would connect to is connected to.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::Failed(format!("cannot begin: {error}")))?;
    let within = runtime.enter();
    server::check(config.clone())?;
    drop(within);
    let mut page = config.explain();
    for warning in Machine::look().warnings(&config) {
        let _ = writeln!(page, "warning: {warning}"); // writing to a String does not fail
    }
    Ok(page)
}
