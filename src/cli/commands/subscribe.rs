//! `topicgate sub`: prints the events of a stream, and resumes when the connection is cut, as an EventSource does.
//! Unlike an EventSource, it also retries after a temporary status.
//!
//! Messages go to standard output, notes about the stream to standard error.

use std::io::{Write as _, stderr, stdout};
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::CONTENT_TYPE;
use serde::Serialize;
use serde_json::Value;
use url::Url;

use super::events::{Event, Item};
use super::http::{self, Client, Versions, printable};
use super::stream::EventStream;
use super::{Failure, unless_closed};
use crate::cli::Subscribe;

/// The reconnection delay if no stream has sent one, as in browsers.
const RETRY: Duration = Duration::from_secs(3);

/// The longest reconnection delay after repeated failures.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Why a connection has ended.
enum Disconnect {
    /// The stream may be opened again. `had`: there was a stream, so the connection works.
    Cut { had: bool, why: String },
    /// The stream must not be opened again, or the output is closed.
    Final,
}

/// Runs until the gateway tells it not to reconnect, or the output is closed.
pub(crate) async fn follow(options: Subscribe) -> Result<ExitCode, Failure> {
    let mut url = options.target.url.clone();
    let last = options.last.map(|last| last.to_string());
    let event = options.no_events.then(|| "none".to_owned());
    let parameters = [
        ("since", &options.since),
        ("last", &last),
        ("type", &options.kind),
        ("event", &event),
        ("every", &options.every),
    ];
    for (name, value) in parameters {
        if let Some(value) = value {
            http::set_parameter(&mut url, name, value);
        }
    }
    let client = Client::new(&options.target, Versions::Http1)?;
    let id = options.last_event_id.unwrap_or_default();
    let mut follower = Follower { client, url, json: options.json, id, retry: RETRY };
    let (mut failures, mut ever) = (0, false);
    loop {
        let why = match follower.open().await? {
            Disconnect::Final => return Ok(ExitCode::SUCCESS),
            Disconnect::Cut { had: false, why } if !ever => return Err(Failure::Failed(why)),
            Disconnect::Cut { had, why } => {
                ever = true;
                failures = if had { 0 } else { failures + 1 };
                why
            }
        };
        // A gateway gives each stream its own delay; it doubles with each failure.
        let wait = follower.retry.saturating_mul(1 << failures.min(6)).min(LONGEST_WAIT.max(follower.retry));
        say(&format!("{why}; reconnecting in {}", humantime::format_duration(to_millis(wait))));
        tokio::time::sleep(wait).await;
    }
}

struct Follower {
    client: Client,
    url: Url,
    json: bool,
    /// The id of the last event.
    id: String,
    retry: Duration,
}

impl Follower {
    /// Opens the stream and prints it to its end.
    async fn open(&mut self) -> Result<Disconnect, Failure> {
        let request = self.client.stream(&self.url, &self.id);
        let response = match self.client.send(request, Bytes::new()).await {
            Ok(response) => response,
            Err(why) => return Ok(Disconnect::Cut { had: false, why }),
        };
        match response.status() {
            StatusCode::OK => {}
            // In the standard, this is the only status that tells an EventSource not to reconnect.
            StatusCode::NO_CONTENT => {
                say("204 No Content: everything was read, and the topic has ended");
                return Ok(Disconnect::Final);
            }
            status if http::passes(status) => {
                return Ok(Disconnect::Cut { had: false, why: http::refusal(response).await });
            }
            _ => return Err(Failure::Failed(http::refusal(response).await)),
        }
        let kind = response.headers().get(CONTENT_TYPE).map_or(&b""[..], |kind| kind.as_bytes());
        if !is_event_stream(kind) {
            let kind = printable(&String::from_utf8_lossy(kind));
            return Err(Failure::Failed(format!(
                "the answer is {kind:?}, not an event stream; is this the URL of a topic?"
            )));
        }
        let mut stream = EventStream::new(response.into_body(), &self.id);
        loop {
            let item = stream.next().await;
            self.retry = stream.retry().unwrap_or(self.retry);
            match item {
                Ok(Some(Item::Comment)) => {}
                Ok(Some(Item::Event(event))) => {
                    self.id.clone_from(&event.id);
                    if !self.show(&event)?
                        || event.kind == "stream-close" && data_of(&event)["reconnect"] == false
                    {
                        return Ok(Disconnect::Final);
                    }
                }
                Ok(None) => return Ok(Disconnect::Cut { had: true, why: "the stream has ended".into() }),
                Err(why) => {
                    return Ok(Disconnect::Cut { had: true, why: format!("the stream was cut: {why}") });
                }
            }
        }
    }

    /// Prints an event. Returns whether the output is still open.
    fn show(&self, event: &Event) -> Result<bool, Failure> {
        match event.kind.as_str() {
            "stream-gap" => {
                let data = data_of(event);
                let (topic, reason) = (word(&data["topic"]), word(&data["reason"]));
                say(&format!("gap: messages of {topic} are missing here ({reason})"));
            }
            "stream-stale" => {
                say(&format!("stale: nothing of {} arrives now", words(&data_of(event)["topics"])))
            }
            "stream-live" => say(&format!("live: {} arrive again", words(&data_of(event)["topics"]))),
            "stream-end" => say(&format!("{} has ended", word(&data_of(event)["topic"]))),
            "stream-close" => say(&format!("closed by the gateway ({})", word(&data_of(event)["code"]))),
            _ => {}
        }
        let mut out = stdout().lock();
        let line = if self.json {
            json(event)
        } else if event.kind.starts_with("stream-") {
            return Ok(true);
        } else {
            plain(event)
        };
        unless_closed(writeln!(out, "{line}").and_then(|()| out.flush()))
    }
}

/// Whether a browser would accept this type as an event stream.
pub(crate) fn is_event_stream(kind: &[u8]) -> bool {
    let essence = kind.split(|b| *b == b';').next().unwrap_or_default();
    essence.trim_ascii().eq_ignore_ascii_case(b"text/event-stream")
}

/// The data of a control event as JSON; null if it cannot be parsed.
pub(crate) fn data_of(event: &Event) -> Value {
    serde_json::from_str(&event.data).unwrap_or_default()
}

/// A string in the data of a control event, made printable.
pub(crate) fn word(value: &Value) -> String {
    printable(value.as_str().unwrap_or("?"))
}

/// Strings in the data of a control event, likewise.
fn words(value: &Value) -> String {
    let all: Vec<String> = value.as_array().into_iter().flatten().map(word).collect();
    all.join(" ")
}

/// An event as text: the id, the type if there is one, and the data, whose further lines are aligned with the first.
fn plain(event: &Event) -> String {
    let mut head = printable(&event.id);
    if event.kind != "message" {
        head = format!("{head} {}", printable(&event.kind));
    }
    let indent = format!("\n{:width$} ", "", width = head.chars().count());
    let lines: Vec<String> = event.data.split('\n').map(printable).collect();
    format!("{head} {}", lines.join(&indent))
}

fn json(event: &Event) -> String {
    #[derive(Serialize)]
    struct Line<'a> {
        id: &'a str,
        event: &'a str,
        data: &'a str,
    }
    let line = Line { id: &event.id, event: &event.kind, data: &event.data };
    let line = serde_json::to_string(&line).unwrap_or_default(); // three texts can be written as JSON
    // It has escaped the characters below U+0020. All others are within its strings.
    let escape = |c: char| match http::controls_a_terminal(c) {
        true => format!("\\u{:04x}", u32::from(c)),
        false => c.to_string(),
    };
    line.chars().map(escape).collect()
}

fn to_millis(span: Duration) -> Duration {
    Duration::from_millis(span.as_millis().try_into().unwrap_or(u64::MAX))
}

fn say(words: &str) {
    let _ = writeln!(stderr(), "topicgate: {words}");
}
