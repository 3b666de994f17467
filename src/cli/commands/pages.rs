//! Completion scripts and manual pages, generated from the definitions of the command line.

use clap::CommandFactory as _;
use clap_complete::Shell;
use clap_mangen::Man;

use super::Failure;
use crate::cli::Cli;

/// A script for the shell to read.
pub(crate) fn completions(shell: Shell) -> Vec<u8> {
    let mut script = vec![];
    clap_complete::generate(shell, &mut Cli::command(), "topicgate", &mut script);
    script
}

/// The manual page of a command, or of topicgate itself, in roff.
pub(crate) fn man(command: Option<&str>) -> Result<Vec<u8>, Failure> {
    let mut topicgate = Cli::command();
    // Gives each command its full name, and the version.
    topicgate.build();
    let about = match command {
        None => topicgate,
        Some(name) => topicgate.find_subcommand(name).cloned().ok_or_else(|| {
            let names: Vec<_> = topicgate.get_subcommands().map(clap::Command::get_name).collect();
            Failure::Usage(format!("there is no command {name:?}; the commands are {}", names.join(", ")))
        })?,
    };
    let mut page = vec![];
    let rendered = Man::new(about.disable_help_subcommand(true)).render(&mut page);
    rendered.map_err(|error| Failure::Failed(format!("the page cannot be made: {error}")))?;
    Ok(page)
}
