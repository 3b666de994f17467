//! The arguments of `topicgate token`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use humantime::parse_duration;

use super::Options;

/// `topicgate token`.
#[derive(Debug, Subcommand)]
pub enum Token {
    /// Create a token that the configured key accepts, for trying things out
    Mint(Mint),
    /// Show the content of a token, and whether the configured key accepts it
    Inspect(Inspect),
}

/// `topicgate token mint`.
#[derive(Debug, Args)]
pub struct Mint {
    /// The subject of the token (sub)
    #[arg(long, value_name = "NAME")]
    pub subject: Option<String>,
    /// Grant read access to this topic or pattern; repeat for several
    #[arg(long, value_name = "TOPIC")]
    pub subscribe: Vec<String>,
    /// Grant publish access to this topic or pattern; repeat for several
    #[arg(long, value_name = "TOPIC")]
    pub publish: Vec<String>,
    /// How long the token is valid
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_duration)]
    pub expires: Duration,
    /// How long a stream that is opened with the token may last, from now [default: as long as the token]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub until: Option<Duration>,
    /// The private key in PEM, if auth.jwt has a public key. A secret needs no file: it is in the configuration
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "the text would become the help of the command")]
    pub options: Options,
}

/// `topicgate token inspect`.
#[derive(Debug, Args)]
pub struct Inspect {
    /// The token [default: standard input]
    pub token: Option<String>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "the text would become the help of the command")]
    pub options: Options,
}
