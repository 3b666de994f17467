//! `topicgate doctor`: opens streams through the proxies in front of a gateway, as a browser would, and reports what
//! disturbs them. It uses no other interface of the gateway, so it finds what every reader experiences.
//!
//! This file examines how a stream begins. `cors` checks what pages of other origins need, and `watch` what appears
//! only over time.

mod cors;
mod report;
mod watch;

use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{ACCEPT_ENCODING, AGE, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE};
use hyper::{HeaderMap, Method, Response, StatusCode, Version};
use thiserror::Error;
use tokio::time::{Instant, timeout, timeout_at};
use url::Url;

use self::report::{Cause, Report};
use super::Failure;
use super::events::{Event, Item};
use super::http::{self, Client, Versions};
use super::stream::EventStream;
use super::subscribe::{data_of, is_event_stream, word};
use crate::cli::Doctor;
use crate::protocol::gzip;

/// How long an answer or a written event may take to arrive. A gateway waits for its broker for 8 seconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whatever arrives later was held back on the way.
const PROMPT: Duration = Duration::from_secs(1);

/// The encodings that browsers accept.
const ENCODINGS: &str = "gzip, deflate, br, zstd";

/// Parameters that decide which messages a stream carries, from where on, and in which form. With them, the gateway itself
/// leaves out, delays or renames what the checks wait for.
const SELECTING: [&str; 9] =
    ["control", "every", "format", "last", "lastEventID", "lastEventId", "last_event_id", "since", "type"];

/// The state that all checks share.
struct Examination {
    client: Client,
    url: Url,
    /// The URL without the parameters that select, for the checks that read events.
    plain: Url,
    report: Report,
}

/// Examines one URL and prints the findings. The exit code is 0 if nothing disturbs the stream, otherwise 1.
pub(crate) async fn examine(options: Doctor) -> Result<ExitCode, Failure> {
    let client = Client::new(&options.target, Versions::Any)?;
    let url = options.target.url;
    let mut it = Examination { client, plain: url.clone(), url, report: Report::default() };
    if let Some(opened) = it.opening().await {
        it.resume(&opened.id).await;
        drop(opened);
        if let Some(origin) = &options.origin {
            it.cors(origin).await;
        }
        it.watch(options.idle, options.publish).await;
    }
    Ok(it.report.exit_code())
}

/// An open stream.
struct Opened {
    /// Kept open, so that its topic is still held when the next stream opens.
    _stream: EventStream,
    /// The event id from which the next stream can resume.
    id: String,
}

impl Examination {
    /// Examines the head of a stream and its first event. `None` if there is no stream to continue with.
    async fn opening(&mut self) -> Option<Opened> {
        let mut begin = Instant::now();
        let request = self.client.stream(&self.url, "").header(ACCEPT_ENCODING, ENCODINGS);
        let mut response = match timeout(PATIENCE, self.client.send(request, Bytes::new())).await {
            Ok(Ok(response)) => response,
            Ok(Err(why)) => {
                self.report.found("reach", &why, Cause::Unreachable);
                return None;
            }
            Err(_) => {
                self.no_head().await;
                return None;
            }
        };
        let mut head = begin.elapsed();
        if response.status() != StatusCode::OK {
            self.refused(response).await;
            return None;
        }
        if !self.content_type(response.headers()) {
            return None;
        }
        self.version(response.version());
        self.caching(response.headers());
        let is_compressed = self.compression(&mut response).await;
        if self.leaves_out_parameters() || is_compressed {
            // A compressed stream cannot be read here; the other checks use one that is not compressed.
            begin = Instant::now();
            let request = self.client.stream(&self.plain, "").header(ACCEPT_ENCODING, "identity");
            match timeout(PATIENCE, self.client.send(request, Bytes::new())).await {
                Ok(Ok(plain)) if plain.status() != StatusCode::OK => {
                    self.refused(plain).await;
                    return None;
                }
                Ok(Ok(plain)) if !plain.headers().contains_key(CONTENT_ENCODING) => response = plain,
                // The check of the compression has reported it.
                Ok(Ok(_)) if is_compressed => return None,
                Ok(Ok(_)) => {
                    let words = "the answer is encoded although the request accepts only identity";
                    self.report.found("compression", words, Cause::None);
                    return None;
                }
                Ok(Err(why)) => {
                    self.report.found("reach", &format!("the second stream: {why}"), Cause::None);
                    return None;
                }
                Err(_) => {
                    let words = format!("the second stream: no answer within {} s", PATIENCE.as_secs());
                    self.report.found("reach", &words, Cause::Buffering);
                    return None;
                }
            }
            head = begin.elapsed();
        }
        self.first_event(EventStream::new(response.into_body(), ""), head).await
    }

    /// Removes the parameters that select, and says so. Returns whether there are any.
    fn leaves_out_parameters(&mut self) -> bool {
        let names = http::remove_parameters(&mut self.plain, &SELECTING);
        if names.is_empty() {
            return false;
        }
        let words = format!(
            "the following checks leave out {}: they look at how a stream arrives, not at what it carries",
            names.join(", ")
        );
        self.report.note("URL", &words, Cause::None);
        true
    }

    async fn first_event(&mut self, mut stream: EventStream, head: Duration) -> Option<Opened> {
        const ABOUT: &str = "first event";
        let begin = Instant::now();
        let first = match timeout(PATIENCE, first_event(&mut stream)).await {
            Ok(Ok(first)) => first,
            Ok(Err(why)) => {
                self.report.found(ABOUT, &why, Cause::TotalTimeout);
                return None;
            }
            Err(_) => {
                let words = format!(
                    "no stream-open within {} s of the head, though the gateway sends both together: events are held \
                    back",
                    PATIENCE.as_secs()
                );
                self.report.found(ABOUT, &words, Cause::Buffering);
                return None;
            }
        };
        let after = begin.elapsed();
        let words = format!(
            "the head arrived after {} ms, stream-open {} ms later",
            head.as_millis(),
            after.as_millis()
        );
        match first.kind.as_str() {
            "stream-open" if after > PROMPT => self.report.found(ABOUT, &words, Cause::Buffering),
            "stream-open" if head > PROMPT => {
                let words = format!("{words}; the broker is slow to confirm, or far away");
                self.report.note(ABOUT, &words, Cause::None);
            }
            "stream-open" => self.report.fine(ABOUT, &words),
            "stream-close" => {
                let words =
                    format!("the gateway refuses streams for now ({})", word(&data_of(&first)["code"]));
                self.report.found(ABOUT, &words, Cause::None);
                return None;
            }
            _ => {
                self.report.found(
                    ABOUT,
                    "the first event is not stream-open; is this topicgate?",
                    Cause::Unreachable,
                );
                return None;
            }
        }
        Some(Opened { _stream: stream, id: first.id })
    }

    /// GET was not answered: either nothing answers there, or a proxy holds the head back until the body ends, which it
    /// never does.
    async fn no_head(&mut self) {
        let request = self.client.request(Method::HEAD, &self.url).header("accept", "text/event-stream");
        let answered = timeout(PATIENCE, self.client.send(request, Bytes::new())).await;
        let seconds = PATIENCE.as_secs();
        match answered {
            Ok(Ok(response)) if response.status() == StatusCode::OK => {
                let words = format!(
                    "HEAD is answered at once, but nothing of a stream arrives within {seconds} s: the stream is held \
                    back"
                );
                self.report.found("buffering", &words, Cause::Buffering);
            }
            _ => self.report.found("reach", &format!("no answer within {seconds} s"), Cause::Unreachable),
        }
    }

    async fn refused(&mut self, response: Response<Incoming>) {
        let cause = match response.status() {
            StatusCode::NO_CONTENT => {
                let words = "204 No Content: the topic has ended, and the cursor in the URL is at its end, so there is no \
                             stream to examine; leave the cursor out, or examine another topic";
                return self.report.note("reach", words, Cause::None);
            }
            StatusCode::MISDIRECTED_REQUEST => Cause::Unreachable,
            status if status.is_server_error() => Cause::Unreachable,
            // The gateway's refusal is about the request.
            _ => Cause::None,
        };
        self.report.found("reach", &http::refusal(response).await, cause);
    }

    fn content_type(&mut self, headers: &HeaderMap) -> bool {
        let kind = headers.get(CONTENT_TYPE).map_or(&b""[..], |kind| kind.as_bytes());
        if is_event_stream(kind) {
            self.report.fine("content type", "text/event-stream");
            return true;
        }
        let kind = String::from_utf8_lossy(kind);
        let words =
            format!("{kind:?} instead of text/event-stream, the only type that an EventSource accepts");
        self.report.found("content type", &words, Cause::Unreachable);
        false
    }

    fn version(&mut self, version: Version) {
        let six = "a browser opens at most six connections to a host";
        match version {
            Version::HTTP_2 => self.report.fine("HTTP version", "2"),
            Version::HTTP_11 if self.url.scheme() == "http" => {
                self.report.fine("HTTP version", &format!("1.1; without TLS {six}"))
            }
            Version::HTTP_11 => {
                self.report.note("HTTP version", &format!("1.1, HTTP/2 is not offered: {six}"), Cause::Http1)
            }
            other => self.report.found("HTTP version", &format!("{other:?}; 1.1 is needed"), Cause::None),
        }
    }

    fn caching(&mut self, headers: &HeaderMap) {
        let values = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
        let said = values.collect::<Vec<_>>().join(", ");
        if headers.contains_key(AGE) {
            return self.report.found(
                "caching",
                "the answer has an Age header: it comes from a cache",
                Cause::Caching,
            );
        }
        if !said.to_ascii_lowercase().contains("no-store") {
            let words =
                format!("Cache-Control is {said:?}, but a gateway sends no-store: the answer may be cached");
            return self.report.found("caching", &words, Cause::Caching);
        }
        self.report.fine("caching", &said);
    }

    /// Whether the stream is compressed, by whomever.
    async fn compression(&mut self, response: &mut Response<Incoming>) -> bool {
        let coding = response.headers().get(CONTENT_ENCODING).filter(|coding| *coding != "identity").cloned();
        let Some(coding) = coding else {
            self.report.fine("compression", "none");
            return false;
        };
        let begin = timeout(PATIENCE, response.body_mut().frame()).await;
        let begin = begin.ok().flatten().and_then(Result::ok).and_then(|frame| frame.into_data().ok());
        if coding == "gzip" && begin.is_some_and(|begin| gzip::begins_as_a_stream(&begin)) {
            self.report.fine("compression", "gzip, by the gateway, which completes each event");
            return true;
        }
        let words = format!(
            "{:?}: a compressor that does not flush each event holds small events back, and it takes memory for each \
            stream",
            String::from_utf8_lossy(coding.as_bytes())
        );
        self.report.found("compression", &words, Cause::Compression);
        true
    }

    /// Resumes as a browser does.
    async fn resume(&mut self, id: &str) {
        let begun = self.begin(&self.plain, id).await;
        let (mut stream, first) = match begun {
            Ok(begun) => begun,
            Err(Unopened::Ended) => {
                let words = "204 No Content: the topic has ended, and Last-Event-ID is at its end";
                return self.report.fine("resume", words);
            }
            Err(Unopened::Failed(why)) => {
                return self.report.found("resume", &format!("the second stream: {why}"), Cause::None);
            }
        };
        if data_of(&first)["resumed"] == true {
            return self.report.fine("resume", "Last-Event-ID is understood");
        }
        // A gateway that receives a cursor and cannot resume from it says so at once.
        if let Ok(Ok(event)) = timeout(PROMPT, first_event(&mut stream)).await
            && event.kind == "stream-gap"
        {
            let reason = word(&data_of(&event)["reason"]);
            let cause = if reason == "restarted" { Cause::OtherReplica } else { Cause::None };
            let words = format!("the second stream does not resume: stream-gap {reason}");
            return self.report.found("resume", &words, cause);
        }
        let mut url = self.plain.clone();
        http::set_parameter(&mut url, "last_event_id", id);
        let by_query = self.begin(&url, "").await.is_ok_and(|(_, first)| data_of(&first)["resumed"] == true);
        let words = match by_query {
            true => "Last-Event-ID does not reach the gateway; last_event_id in the query does",
            false => "the second stream starts live, without a stream-gap",
        };
        self.report.found("resume", words, Cause::LastEventId);
    }

    /// Opens a stream, and reads its first event, which must be `stream-open`.
    async fn begin(&self, url: &Url, id: &str) -> Result<(EventStream, Event), Unopened> {
        let late = || format!("nothing within {} s", PATIENCE.as_secs());
        let deadline = Instant::now() + PATIENCE;
        let request = self.client.stream(url, id).header(ACCEPT_ENCODING, "identity");
        let answer = timeout_at(deadline, self.client.send(request, Bytes::new())).await;
        let response = answer.map_err(|_| late())??;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NO_CONTENT => return Err(Unopened::Ended),
            _ => return Err(http::refusal(response).await.into()),
        }
        let mut stream = EventStream::new(response.into_body(), id);
        let first = timeout_at(deadline, first_event(&mut stream)).await.map_err(|_| late())??;
        match first.kind.as_str() {
            "stream-open" => Ok((stream, first)),
            "stream-close" => {
                Err(format!("the gateway refuses it for now ({})", word(&data_of(&first)["code"])).into())
            }
            _ => Err("it begins without stream-open".to_owned().into()),
        }
    }
}

/// Why there is no stream.
#[derive(Debug, Error)]
enum Unopened {
    /// The topic has ended, and the cursor is at its end.
    #[error("204 No Content: the topic has ended")]
    Ended,
    /// Anything else, in one line.
    #[error("{0}")]
    Failed(String),
}

impl From<String> for Unopened {
    fn from(why: String) -> Self {
        Unopened::Failed(why)
    }
}

async fn first_event(stream: &mut EventStream) -> Result<Event, String> {
    loop {
        match stream.next().await {
            Ok(Some(Item::Event(event))) => return Ok(event),
            Ok(Some(Item::Comment)) => {}
            Ok(None) => return Err("the stream ended before it began".into()),
            Err(why) => return Err(format!("the stream was cut before it began: {why}")),
        }
    }
}
