//! What the binary does other than run the gateway. Each command is a file; each ends in an exit code.
//!
//! `check`, `config` and `token` read the configuration as a start would. `doctor`, `sub` and `pub` are clients: they know
//! a URL, and of the gateway behind it no more than any client does.

mod check;
mod doctor;
mod events;
pub mod health;
mod http;
mod machine;
mod pages;
mod publish;
mod signer;
mod stream;
mod subscribe;
mod token;

use std::io::{self, ErrorKind, Write as _, stdout};
use std::process::ExitCode;

use thiserror::Error;

use super::{Command, Options, Token};
use crate::app::server::BuildError;
use crate::config::{Config, ConfigErrors};

/// `EX_USAGE` of sysexits: trying again will not help until a person has changed something.
pub const BAD_USAGE: u8 = 64;

/// Why a command, or a run, ends without having done what was asked.
#[derive(Debug, Error)]
pub enum Failure {
    /// Nothing can be done with this configuration.
    #[error("the configuration cannot be used:\n{0}")]
    Configuration(#[from] ConfigErrors),
    /// A file that it names cannot be used, or a setting can never work.
    #[error("the configuration cannot be used:\n{0}")]
    Settings(String),
    /// What was typed, or what is configured, cannot do what is asked.
    #[error("{0}")]
    Usage(String),
    /// It was tried.
    #[error("{0}")]
    Failed(String),
}

impl Failure {
    /// [`BAD_USAGE`], or 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Failure::Configuration(_) | Failure::Settings(_) | Failure::Usage(_) => BAD_USAGE,
            Failure::Failed(_) => 1,
        }
    }
}

impl From<BuildError> for Failure {
    fn from(error: BuildError) -> Self {
        match error {
            // Who has the address may let go of it.
            BuildError::Listen { .. } => Failure::Failed(error.to_string()),
            BuildError::Settings(_) => Failure::Settings(error.to_string()),
        }
    }
}

/// Does it.
///
/// # Errors
/// [`Failure`]. That something was found to be wrong, where the command looks for it, is an exit code.
pub fn run(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Check(options) => print(check::page(&options.sources()?)?),
        Command::Config(options) => print(Config::load(&options.sources()?)?.origins.0.to_string()),
        Command::Health(options) => wait(health(options)),
        Command::Completions { shell } => print(pages::completions(shell)),
        Command::Man { command } => print(pages::man(command.as_deref())?),
        Command::Token(Token::Mint(mint)) => wait(token::mint(mint)),
        Command::Token(Token::Inspect(inspect)) => wait(token::inspect(inspect)),
        Command::Doctor(doctor) => wait(doctor::examine(doctor)),
        Command::Sub(subscribe) => wait(subscribe::follow(subscribe)),
        Command::Pub(publish) => wait(publish::publish(publish)),
    }
}

async fn health(options: Options) -> Result<ExitCode, Failure> {
    let config = Config::load(&options.sources()?)?;
    let answer = health::ask(config.admin.listen).await;
    print(answer.map_err(|error| Failure::Failed(error.to_string()))? + "\n")
}

fn wait(command: impl Future<Output = Result<ExitCode, Failure>>) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::Failed(format!("cannot begin: {error}")))?;
    let outcome = runtime.block_on(command);
    // Not by dropping it: that would wait for a look-up of a name, which can take as long as it likes.
    runtime.shutdown_background();
    outcome
}

/// Prints all of it. Whoever reads no further has what they wanted.
fn print(text: impl AsRef<[u8]>) -> Result<ExitCode, Failure> {
    let mut out = stdout().lock();
    unless_closed(out.write_all(text.as_ref()).and_then(|()| out.flush()))?;
    Ok(ExitCode::SUCCESS)
}

/// Whether somebody still reads standard output.
fn unless_closed(written: io::Result<()>) -> Result<bool, Failure> {
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::Failed(format!("standard output cannot be written: {error}"))),
    }
}
