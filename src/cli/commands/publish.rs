//! `topicgate pub`: publishes one message over HTTP, and prints the gateway's answer.

use std::io::{Read as _, stdin};
use std::process::ExitCode;

use bytes::Bytes;
use bytesize::ByteSize;
use http_body_util::{BodyExt as _, Limited};
use hyper::{Method, StatusCode};

use super::http::{self, Client, Versions, printable};
use super::{Failure, print};
use crate::cli::Publish;

/// The most bytes that are read from standard input: more than any gateway accepts.
const MOST: u64 = 1024 * 1024 * 1024;

/// The most bytes of the answer that are read; a few hundred are needed.
const MAX_ANSWER: usize = 64 * 1024;

/// Reads the message, posts it and waits for the answer.
pub(crate) async fn publish(options: Publish) -> Result<ExitCode, Failure> {
    let mut url = options.target.url.clone();
    let end = options.end.then(|| "true".to_owned());
    for (name, value) in [("type", &options.kind), ("id", &options.id), ("end", &end)] {
        if let Some(value) = value {
            http::set_parameter(&mut url, name, value);
        }
    }
    let payload = match options.message {
        Some(message) => message.into_bytes(),
        None => {
            let mut payload = vec![];
            let read = stdin().take(MOST + 1).read_to_end(&mut payload);
            read.map_err(|error| Failure::Failed(format!("standard input cannot be read: {error}")))?;
            if payload.len() as u64 > MOST {
                return Err(Failure::Failed(format!("standard input has more than {}", ByteSize(MOST))));
            }
            payload
        }
    };
    let client = Client::new(&options.target, Versions::Http1)?;
    let sent = client.send(client.request(Method::POST, &url), Bytes::from(payload)).await;
    let response = sent.map_err(Failure::Failed)?;
    if response.status() != StatusCode::ACCEPTED {
        let again = if http::passes(response.status()) { "; try again" } else { "" };
        return Err(Failure::Failed(format!("not published: {}{again}", http::refusal(response).await)));
    }
    // The message is published, even if the answer's body is lost.
    let answer = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    let answer = answer.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    print(printable(String::from_utf8_lossy(&answer).trim()) + "\n")
}
