//! The definitions of the command line and its help. `commands` runs the subcommands.

mod client;
pub mod commands;
mod settings;
mod token;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

pub use self::client::{Doctor, Publish, Subscribe, Target};
pub use self::settings::Settings;
pub use self::token::{Inspect, Mint, Token};

use crate::config::{ConfigErrors, Sources};

const EXAMPLES: &str = "\
Examples:
  topicgate
      Run without a configuration: an embedded broker, and every topic is open.
      Then, in two terminals:
        curl -N http://127.0.0.1:8080/topics/hello
        curl -d 'it works' http://127.0.0.1:8080/topics/hello

  topicgate --broker nats://127.0.0.1:4222 --config nats.toml
      Read messages from NATS. With a real broker, no topic is readable until a rule allows it:
        [[topics]]
        match = \"orders/**\"
        read = \"anyone\"

  topicgate --broker redis://127.0.0.1:6379 --config redis.toml
      The same from Redis: the topic orders/eu is the channel orders:eu.

  topicgate check --config nats.toml
      Report the errors in a file, or explain what it would do.

  topicgate doctor https://events.example.com/topics/orders/eu
      Open a stream through the proxies in front of the gateway, and report what disturbs it.

Settings come from built-in defaults, then topicgate.toml in the working directory (or
--config FILE), then environment variables (TOPICGATE_LISTEN, TOPICGATE_LIMITS__STREAMS), then
flags. Later sources override earlier ones. Keep passwords in the environment (TOPICGATE_BROKER__PASSWORD):
other users of the machine can see flags.

Exit codes: 0 success, 1 failed while running, not alive (health) or problems found (doctor), 64 bad configuration or
command line.";

/// The parsed command line.
#[derive(Debug, Parser)]
#[command(
    name = "topicgate",
    version,
    about = "Streams topics of NATS or Redis to browsers over Server-Sent Events.",
    args_conflicts_with_subcommands = true,
    after_help = EXAMPLES
)]
pub struct Cli {
    /// The subcommand; without one, the gateway runs.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The settings to run with.
    #[command(flatten)]
    pub options: Options,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check the configuration, and explain what it would do, without starting anything
    Check(Options),
    /// Print every setting with its origin, as TOML; secrets are masked. Or print a file to begin with, or the schema of
    /// the file
    Config(Settings),
    /// Check at admin.listen whether the gateway with this configuration is alive: one line, and exit code 0 or 1. A
    /// gateway that is not ready, because its broker is away or it drains, is alive
    Health(Options),
    /// Open a stream through the proxies in front of the gateway, and report what disturbs it
    Doctor(Doctor),
    /// Print the events of a stream, and resume it when the connection is cut
    Sub(Subscribe),
    /// Publish a message
    Pub(Publish),
    /// Create a token for the configured key, or explain a token
    #[command(subcommand)]
    Token(Token),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print a manual page, for man -l
    Man {
        /// The command to describe [default: topicgate itself]
        command: Option<String>,
    },
}

/// Flags that override settings.
#[derive(Debug, Clone, Default, Args)]
pub struct Options {
    /// Read this file; it must exist. By default, topicgate.toml in the working directory is read if it exists
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The address for browsers [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<String>,
    /// The address of probes and metrics; never make it public [default: 127.0.0.1:9090]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub admin_listen: Option<String>,
    /// The broker: memory: nats:// tls:// redis:// rediss:// redis+unix:// [default: memory:]
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
    /// Reads the file and the environment, and lays the flags over them.
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
    fn the_command_line_definition_is_valid() {
        Cli::command().debug_assert();
    }
}
