//! The `topicgate` binary: reads the command line, hands on to the library, and turns outcomes into exit codes.

use std::error::Error;
use std::io::{Write as _, stderr, stdout};
use std::process::ExitCode;

use clap::Parser as _;
use topicgate::cli::{Cli, Command};
use topicgate::config::Config;
use topicgate::logging;

/// `EX_USAGE` of sysexits: starting again will not help until a person has changed something.
const BAD_CONFIGURATION: u8 = 64;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Also how --help and --version arrive. A closed pipe is no reason to fail.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(BAD_CONFIGURATION) } else { ExitCode::SUCCESS };
        }
    };
    let config = match cli.options.sources().and_then(|sources| Config::load(&sources)) {
        Ok(config) => config,
        Err(errors) => {
            let _ = writeln!(stderr(), "topicgate: the configuration cannot be used:\n{errors}");
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    let outcome = match cli.command {
        Some(Command::Check) => {
            let _ = write!(stdout(), "{}", config.explain());
            return ExitCode::SUCCESS;
        }
        None => run(config),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(stderr(), "topicgate: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(config: Config) -> Result<(), Box<dyn Error>> {
    logging::init(&config.log)?;
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    Err("the gateway is not wired yet".into())
}
