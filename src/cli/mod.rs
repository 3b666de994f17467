//! The command line: what is typed, and the help that is shown. It does nothing itself.

mod client;
pub mod commands;
mod token;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

pub use self::client::{Doctor, Publish, Subscribe, Target};
pub use self::token::{Inspect, Mint, Token};

use crate::config::{ConfigErrors, Sources};

const EXAMPLES: &str = "\
Examples:
  topicgate
      Start with nothing configured: an embedded broker on this machine, every topic open.
      Then, in two terminals:
        curl -N http://127.0.0.1:8080/topics/hello
        curl -d 'it works' http://127.0.0.1:8080/topics/hello

  topicgate --broker nats://127.0.0.1:4222 --config nats.toml
      Messages from NATS. With a real broker nothing is exposed until the file says so:
        [[topics]]
        match = \"orders/**\"
        read = \"anyone\"

  topicgate --broker redis://127.0.0.1:6379 --config redis.toml
      The same from Redis: the topic orders/eu is the channel orders:eu.

  topicgate check --config nats.toml
      Say what is wrong with a file, or in words what it would do.

  topicgate doctor https://events.example.com/topics/orders/eu
      Open a stream through whatever stands before the gateway, and say what is in its way.

Settings come from built-in defaults, then topicgate.toml in the working directory (or
--config FILE), then environment variables (TOPICGATE_LISTEN, TOPICGATE_LIMITS__STREAMS), then
flags; later wins. A password is best kept in the environment (TOPICGATE_BROKER__PASSWORD):
flags can be seen by other users of the machine.

Exit codes: 0 clean, 1 failed while running, not alive (health) or something found (doctor), 64 bad configuration or
command line.";

/// What was typed.
#[derive(Debug, Parser)]
#[command(
    name = "topicgate",
    version,
    about = "Streams topics of NATS or Redis to browsers over Server-Sent Events.",
    args_conflicts_with_subcommands = true,
    after_help = EXAMPLES
)]
pub struct Cli {
    /// What to do; to run, if nothing is named.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Settings to run with.
    #[command(flatten)]
    pub options: Options,
}

/// What to do other than run.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check the configuration and say in words what it would do here, without starting anything
    Check(Options),
    /// Print every setting, and where each comes from, as TOML; secrets are masked
    Config(Options),
    /// Ask the gateway that runs with this configuration, at admin.listen, whether it is alive: exit code 0 or 1, and one
    /// line. One that is not ready, because its broker is away or it drains, is alive
    Health(Options),
    /// Open a stream through whatever stands before the gateway, and say what is in its way
    Doctor(Doctor),
    /// Print the events of a stream, and come back where it was cut
    Sub(Subscribe),
    /// Publish a message
    Pub(Publish),
    /// Make a token for the configured key, or say what is in one
    #[command(subcommand)]
    Token(Token),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print a manual page, for man -l
    Man {
        /// The command that it is about [default: topicgate itself]
        command: Option<String>,
    },
}

/// Flags that set something.
#[derive(Debug, Clone, Default, Args)]
pub struct Options {
    /// Read this file; it must exist. Without it, topicgate.toml in the working directory is read if there is one
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where browsers connect [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<String>,
    /// Where probes and metrics are; never make it public [default: 127.0.0.1:9090]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub admin_listen: Option<String>,
    /// Where messages come from: memory: nats:// tls:// redis:// rediss:// [default: memory:]
    #[arg(long, value_name = "URL")]
    pub broker: Option<String>,
    /// off, error, warn, info, debug or trace; or a filter such as info,hyper=debug [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// text or json [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
}

impl Options {
    /// The flags as a layer over the file and the environment, which are read here.
    ///
    /// # Errors
    /// As [`Sources::gather`].
    pub fn sources(self) -> Result<Sources, ConfigErrors> {
        let flags = [
            ("listen", "--listen", self.listen),
            ("admin.listen", "--admin-listen", self.admin_listen),
            ("broker.url", "--broker", self.broker),
            ("log.level", "--log-level", self.log_level),
            ("log.format", "--log-format", self.log_format),
        ];
        let flags = flags.into_iter().filter_map(|(key, flag, value)| Some((key, flag, value?)));
        Sources::gather(self.config.as_deref(), flags.collect())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
