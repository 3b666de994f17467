//! The checks that take time: whether messages arrive without delay, and how long a silent stream stays open.

use std::time::Duration;

use bytes::Bytes;
use hyper::{Method, StatusCode};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::report::Cause;
use super::{Examination, PATIENCE, PROMPT};
use crate::cli::commands::events::Item;
use crate::cli::commands::http;
use crate::cli::commands::stream::EventStream;
use crate::cli::commands::subscribe::{data_of, word};

/// The number of messages to publish, and the time between them, which is longer than any delay that is not caused by
/// buffering.
const MESSAGES: usize = 3;
const APART: Duration = Duration::from_millis(500);

/// Heartbeats are at least a second apart; if two arrive closer together, the first was held back.
const BUNCHED: Duration = Duration::from_millis(300);

/// By default, a gateway sends a heartbeat after 15 seconds of silence.
const HEARTBEAT: Duration = Duration::from_secs(20);

impl Examination {
    /// Opens another stream, publishes if asked to, and then watches the silent stream for `idle`.
    pub(crate) async fn watch(&mut self, idle: Duration, publish: bool) {
        let mut stream = match self.begin(&self.plain, "").await {
            Ok((stream, _)) => stream,
            Err(why) => {
                return self.report.found("idle", &format!("the stream to watch: {why}"), Cause::None);
            }
        };
        if !publish || self.messages(&mut stream).await {
            self.silence(&mut stream, idle).await;
        }
    }

    /// Publishes, and measures when the messages arrive. Returns whether the stream is still open.
    async fn messages(&mut self, stream: &mut EventStream) -> bool {
        let mark = fastrand::u64(..);
        let mut longest = Duration::ZERO;
        for number in 1..=MESSAGES {
            sleep(APART).await;
            let message = format!("topicgate doctor {mark:016x} {number}");
            let sent = Instant::now();
            let request = self.client.request(Method::POST, &self.plain);
            let answer = timeout(PATIENCE, self.client.send(request, Bytes::from(message.clone()))).await;
            let refused = match answer {
                Ok(Ok(response)) if response.status() == StatusCode::ACCEPTED => None,
                Ok(Ok(response)) => Some(http::refusal(response).await),
                Ok(Err(why)) => Some(why),
                Err(_) => Some(format!("no answer within {} s", PATIENCE.as_secs())),
            };
            if let Some(why) = refused {
                let words = format!("cannot be measured, because the message was not accepted: {why}");
                self.report.found("delay", &words, Cause::None);
                return true;
            }
            match timeout(PATIENCE, arrival(stream, &message)).await {
                Ok(Arrival::Arrived) => longest = longest.max(sent.elapsed()),
                Ok(Arrival::Closed(code)) => {
                    let words = format!("cannot be measured, because the gateway closed the stream ({code})");
                    self.report.note("delay", &words, Cause::None);
                    return false;
                }
                Ok(Arrival::Cut) => {
                    let words = "the stream ended while messages were sent";
                    self.report.found("delay", words, Cause::None);
                    return false;
                }
                Err(_) => {
                    let words =
                        format!("a message did not arrive within {} s: it is held back", PATIENCE.as_secs());
                    self.report.found("delay", &words, Cause::Buffering);
                    return true;
                }
            }
        }
        let words = format!("{MESSAGES} messages, each {} ms or less after it was sent", longest.as_millis());
        if longest > PROMPT {
            self.report.found("delay", &words, Cause::Buffering);
        } else {
            self.report.fine("delay", &words);
        }
        true
    }

    async fn silence(&mut self, stream: &mut EventStream, idle: Duration) {
        let begin = Instant::now();
        let (mut last, mut longest, mut heartbeats, mut bunched) = (begin, Duration::ZERO, 0_u32, false);
        let mut closed = None;
        let end = loop {
            let Ok(item) = timeout_at(begin + idle, stream.next()).await else { break None };
            let since = last.elapsed();
            match item {
                Ok(Some(item)) => {
                    match item {
                        Item::Comment => {
                            bunched |= heartbeats > 0 && since < BUNCHED;
                            heartbeats += 1;
                        }
                        Item::Event(event) if event.kind == "stream-close" => closed = Some(data_of(&event)),
                        Item::Event(_) => {}
                    }
                    longest = longest.max(since);
                    last = Instant::now();
                }
                Ok(None) => break Some("it ended"),
                Err(_) => break Some("it was cut"),
            }
        };
        let (age, silence) = (seconds(begin.elapsed()), last.elapsed());
        if bunched {
            let words = "several heartbeats arrive at once: they are held back on the way";
            self.report.found("buffering", words, Cause::Buffering);
        }
        match (end, closed) {
            (Some(_), Some(data)) => {
                let words = format!("the gateway closed the stream after {age} s ({})", word(&data["code"]));
                self.report.note("idle", &words, Cause::None)
            }
            (Some(how), None) if heartbeats > 0 && silence < longest => {
                let words = format!(
                    "{how} after {age} s, though there were heartbeats: something limits the total time"
                );
                self.report.found("idle", &words, Cause::TotalTimeout)
            }
            (Some(how), None) => {
                let words =
                    format!("{how} after {} s of silence, before the first heartbeat", seconds(silence));
                self.report.found("idle", &words, Cause::IdleTimeout)
            }
            (None, _) if last != begin => {
                let words = format!(
                    "open for {age} s, with {heartbeats} heartbeats; the longest silence was {} s",
                    seconds(longest.max(silence))
                );
                self.report.fine("idle", &words)
            }
            (None, _) if idle < HEARTBEAT => {
                let words =
                    format!("open for {age} s of silence; with a longer --idle a heartbeat would be seen");
                self.report.note("idle", &words, Cause::None)
            }
            (None, _) => {
                let words = format!(
                    "nothing came for {age} s: heartbeats are held back, or streams.heartbeat of the gateway is longer"
                );
                self.report.found("idle", &words, Cause::Buffering)
            }
        }
    }
}

/// What became of a message that was published.
enum Arrival {
    Arrived,
    /// The gateway closed the stream; its code.
    Closed(String),
    Cut,
}

async fn arrival(stream: &mut EventStream, message: &str) -> Arrival {
    loop {
        match stream.next().await {
            Ok(Some(Item::Event(event))) if event.data == message => return Arrival::Arrived,
            Ok(Some(Item::Event(event))) if event.kind == "stream-close" => {
                return Arrival::Closed(word(&data_of(&event)["code"]));
            }
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => return Arrival::Cut,
        }
    }
}

fn seconds(span: Duration) -> String {
    format!("{:.1}", span.as_secs_f64())
}
