//! `topicgate check`: explains what the configuration would do, and warns if this machine cannot carry it. It refuses
//! whatever a start would refuse, with the same message and exit code. It does not test whether the addresses are free.

use std::fmt::Write as _;

use super::Failure;
use super::machine::Machine;
use crate::app::server;
use crate::config::{Config, Sources};

/// The page that is printed.
pub(crate) fn page(sources: &Sources) -> Result<String, Failure> {
    let config = Config::load(sources)?;
    // This runtime never runs, so that nothing connects.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::Failed(format!("cannot start: {error}")))?;
    let within = runtime.enter();
    server::check(config.clone())?;
    drop(within);
    let mut page = config.explain();
    for warning in Machine::inspect().warnings(&config) {
        let _ = writeln!(page, "warning: {warning}"); // writing to a String does not fail
    }
    Ok(page)
}
