//! The arguments of `doctor`, `sub` and `pub`, which connect to a gateway as any client does.

use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use humantime::parse_duration;
use url::Url;

use crate::config::{Origin, Secret};

/// The URL, and the credentials to use.
#[derive(Debug, Clone, Args)]
pub struct Target {
    /// The URL of a topic, such as http://127.0.0.1:8080/topics/orders/eu
    #[arg(value_name = "URL", value_parser = http_url)]
    pub url: Url,
    /// Send this token, as Authorization: Bearer. Other users of the machine can see a flag. They cannot see a token in
    /// a file, or in the environment variable TOPICGATE_TOKEN, which is used if neither flag is given
    #[arg(long, value_parser = secret, conflicts_with = "token_file")]
    pub token: Option<Secret>,
    /// Send the token in this file
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// A PEM file with certificate authorities to trust in addition to the system's
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
}

/// `topicgate doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    #[command(flatten)]
    #[allow(missing_docs, reason = "the text would become the help of the command")]
    pub target: Target,
    /// How long to watch a silent stream, to find timeouts on the way
    #[arg(long, value_name = "TIME", default_value = "70s", value_parser = parse_duration)]
    pub idle: Duration,
    /// Publish three small messages to the topic, and measure their delay
    #[arg(long)]
    pub publish: bool,
    /// Also check access for a page of this origin, such as https://app.example.com
    #[arg(long, value_parser = origin)]
    pub origin: Option<String>,
}

/// `topicgate sub`.
#[derive(Debug, Args)]
pub struct Subscribe {
    #[command(flatten)]
    #[allow(missing_docs, reason = "the text would become the help of the command")]
    pub target: Target,
    /// Start in the past: 10m, 2026-11-22T18:00:00Z, or all
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Start with this number of past messages of each topic
    #[arg(long, value_name = "MESSAGES")]
    pub last: Option<u64>,
    /// Resume after the event with this id
    #[arg(long, value_name = "ID")]
    pub last_event_id: Option<String>,
    /// Receive messages of these types only, such as price,trade; message stands for messages without a type
    #[arg(long = "type", value_name = "TYPES")]
    pub kind: Option<String>,
    /// Receive messages without their types
    #[arg(long)]
    pub no_events: bool,
    /// Of each topic and type, receive the newest message at most once in this time, such as 500ms
    #[arg(long, value_name = "TIME")]
    pub every: Option<String>,
    /// Print one JSON object per line, for the gateway's own events (stream-open and others) too
    #[arg(long)]
    pub json: bool,
}

/// `topicgate pub`.
#[derive(Debug, Args)]
pub struct Publish {
    #[command(flatten)]
    #[allow(missing_docs, reason = "the text would become the help of the command")]
    pub target: Target,
    /// The message [default: standard input]
    pub message: Option<String>,
    /// The type of the event, which a page listens for by name
    #[arg(long = "type", value_name = "TYPE")]
    pub kind: Option<String>,
    /// The message's own id
    #[arg(long)]
    pub id: Option<String>,
    /// The message ends its topic: readers receive it, and then their streams end
    #[arg(long)]
    pub end: bool,
}

fn http_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    let url = url
        .ok_or("write http:// or https://, a host and a path, such as http://127.0.0.1:8080/topics/orders")?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("a user and a password cannot be used here; use --token".into());
    }
    Ok(url)
}

/// An origin as browsers send it. Any other spelling would be refused by a gateway that admits the page.
fn origin(text: &str) -> Result<String, String> {
    match Origin::parse(text) {
        _ if text == "null" => Ok("null".into()),
        Ok(Origin::Exact(origin)) => Ok(origin),
        Ok(_) => Err("is not the origin of one page; write it as in https://app.example.com".into()),
        Err(problem) => Err(problem),
    }
}

#[allow(clippy::unnecessary_wraps, reason = "what clap asks for")]
fn secret(text: &str) -> Result<Secret, Infallible> {
    Ok(Secret(text.to_owned()))
}
