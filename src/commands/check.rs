//! `topicgate check`: what the configuration would do, and whether this machine lets it.

use std::fmt::Write as _;

use super::Failure;
use super::machine::Machine;
use crate::config::{Config, Sources};

/// The page that is printed.
pub(super) fn page(sources: &Sources) -> Result<String, Failure> {
    let config = Config::load(sources)?;
    let mut page = config.explain();
    for warning in Machine::look().warnings(&config) {
        let _ = writeln!(page, "warning: {warning}"); // writing to a String does not fail
    }
    Ok(page)
}
