//! The subcommands of the binary, one file each. Each ends with an exit code. None of them runs a gateway.
//!
//! `check`, `config` and `token` read the configuration as a start would. `doctor`, `sub` and `pub` are clients of a
//! URL and need no configuration.

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

use super::{Command, Options, Settings, Token};
use crate::app::server::BuildError;
use crate::config::{self, Config, ConfigErrors};

/// `EX_USAGE` of sysexits: the configuration or the command line must be corrected first.
pub const BAD_USAGE: u8 = 64;

/// Why a command or a run failed.
#[derive(Debug, Error)]
pub enum Failure {
    /// The configuration is invalid.
    #[error("the configuration cannot be used:\n{0}")]
    Configuration(#[from] ConfigErrors),
    /// A file that the configuration names cannot be used, or a setting can never work.
    #[error("the configuration cannot be used:\n{0}")]
    Settings(String),
    /// The arguments, or the configuration, do not fit the command.
    #[error("{0}")]
    Usage(String),
    /// The command was tried and failed.
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
            // The process that uses the address may release it.
            BuildError::Listen { .. } => Failure::Failed(error.to_string()),
            BuildError::Settings(_) => Failure::Settings(error.to_string()),
        }
    }
}

/// Runs a subcommand.
///
/// # Errors
/// [`Failure`]. A problem that a command is meant to find is an exit code, not an error.
pub fn run(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Check(options) => print(check::page(&options.sources()?)?),
        Command::Config(Settings { schema: true, .. }) => print(config::schema()),
        Command::Config(Settings { init: Some(template), .. }) => print(template.text()),
        Command::Config(settings) => print(Config::load(&settings.options.sources()?)?.origins.0.to_string()),
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
    let runtime = runtime.map_err(|error| Failure::Failed(format!("cannot start: {error}")))?;
    let outcome = runtime.block_on(command);
    // Dropping it would wait for a name lookup, which can take very long.
    runtime.shutdown_background();
    outcome
}

/// Prints the text. A reader that closes the pipe early is not an error.
fn print(text: impl AsRef<[u8]>) -> Result<ExitCode, Failure> {
    let mut out = stdout().lock();
    unless_closed(out.write_all(text.as_ref()).and_then(|()| out.flush()))?;
    Ok(ExitCode::SUCCESS)
}

/// Returns whether standard output is still open. A reader that closes the pipe early is not an error.
///
/// # Errors
/// [`Failure::Failed`]: it could not be written for another reason.
pub fn unless_closed(written: io::Result<()>) -> Result<bool, Failure> {
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::Failed(format!("standard output cannot be written: {error}"))),
    }
}
