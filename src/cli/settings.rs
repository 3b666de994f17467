//! The arguments of `topicgate config`.

use clap::{Args, ValueEnum};

use super::Options;

/// `topicgate config`.
#[derive(Debug, Args)]
pub struct Settings {
    /// Print a commented file to begin with, for this broker
    #[arg(long, value_name = "BROKER", exclusive = true)]
    pub init: Option<Template>,
    /// Print the JSON Schema of the file, with which editors complete and check it
    #[arg(long, exclusive = true)]
    pub schema: bool,
    #[command(flatten)]
    #[allow(missing_docs, reason = "the text would become the help of the command")]
    pub options: Options,
}

/// A broker that there is a file for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Template {
    /// A NATS server
    Nats,
    /// A Redis or Valkey server
    Redis,
}

impl Template {
    /// The file.
    pub fn text(self) -> &'static str {
        match self {
            Template::Nats => include_str!("templates/nats.toml"),
            Template::Redis => include_str!("templates/redis.toml"),
        }
    }
}
