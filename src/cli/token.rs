//! What is typed after `token`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use humantime::parse_duration;

use super::Options;

/// `topicgate token`.
#[derive(Debug, Subcommand)]
pub enum Token {
    /// Make a token that the configured key accepts, for trying things out
    Mint(Mint),
    /// Say what is in a token, and whether the configured key accepts it
    Inspect(Inspect),
}

/// `topicgate token mint`.
#[derive(Debug, Args)]
pub struct Mint {
    /// Whom it speaks of, its sub
    #[arg(long, value_name = "NAME")]
    pub subject: Option<String>,
    /// Grant to read this topic or pattern; may be given several times
    #[arg(long, value_name = "TOPIC")]
    pub subscribe: Vec<String>,
    /// Grant to publish to this topic or pattern; may be given several times
    #[arg(long, value_name = "TOPIC")]
    pub publish: Vec<String>,
    /// How long it holds
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_duration)]
    pub expires: Duration,
    /// The private key, PEM, where auth.jwt has a public one. A secret needs no file: it is in the configuration
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "the text would become the help of the command")]
    pub options: Options,
}

/// `topicgate token inspect`.
#[derive(Debug, Args)]
pub struct Inspect {
    /// The token [default: what comes on standard input]
    pub token: Option<String>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "the text would become the help of the command")]
    pub options: Options,
}
