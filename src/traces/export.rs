//! Exports spans to the collector: a bounded queue, and a task that sends batches from it.
//!
//! Nothing waits for the collector. If the queue is full, spans are dropped; if the collector does not take a batch,
//! its spans are lost. Both are counted.

use std::time::Duration;

use async_trait::async_trait;
use http_body_util::Full;
use opentelemetry::Context;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanExporter as _, SpanProcessor};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::metrics::throttle::Throttle;
use crate::metrics::{By, Metrics, SpanResult};
use crate::net::client::Client;
use crate::net::reason::Peer;

/// The most spans that wait for the collector.
const QUEUE: usize = 2048;

/// The most spans of a batch.
const BATCH: usize = 512;

/// How long the first span of a batch waits for more.
const PAUSE: Duration = Duration::from_secs(1);

/// How long the collector may take for a batch, all attempts included.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The largest answer of the collector, in bytes. It says what was rejected, and is short.
const MAX_BODY: usize = 64 * 1024;

/// The sending side of the queue.
#[derive(Debug)]
pub(super) struct Queue {
    spans: mpsc::Sender<SpanData>,
    results: By<SpanResult, Counter>,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.spans.try_send(span).is_err() {
            self.results.inc(SpanResult::Dropped);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// The receiving side of the queue, with the exporter.
#[derive(Debug)]
pub struct Export {
    spans: mpsc::Receiver<SpanData>,
    exporter: SpanExporter,
    results: By<SpanResult, Counter>,
}

/// Creates both sides, for the collector at `endpoint`.
pub(super) fn new(endpoint: &str, metrics: &Metrics) -> Result<(Queue, Export), String> {
    let client = Client::new(Peer::Collector).map_err(|problem| format!("traces.endpoint: {problem}"))?;
    let mut exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(Collector(client))
        .with_endpoint(endpoint)
        .with_protocol(Protocol::HttpBinary)
        .with_timeout(TIMEOUT)
        .build()
        .map_err(|error| format!("traces.endpoint: {error}"))?;
    exporter.set_resource(&super::resource());
    let (sender, spans) = mpsc::channel(QUEUE);
    let results = metrics.spans.clone();
    Ok((Queue { spans: sender, results: results.clone() }, Export { spans, exporter, results }))
}

impl Export {
    /// Sends batches until `stop`, and then the rest.
    pub async fn run(mut self, stop: CancellationToken) {
        let failures = Throttle::default();
        let mut batch = Vec::with_capacity(BATCH);
        while self.next(&mut batch, &stop).await {
            let count = batch.len() as u64;
            match self.exporter.export(std::mem::take(&mut batch)).await {
                Ok(()) => drop(self.results.of(SpanResult::Exported).inc_by(count)),
                Err(error) => {
                    self.results.of(SpanResult::Failed).inc_by(count);
                    if failures.allows() {
                        tracing::warn!(%error, spans = count, "traces.endpoint: the collector did not accept these \
                        spans");
                    }
                }
            }
        }
    }

    /// Fills a batch. Returns whether it has any spans.
    async fn next(&mut self, batch: &mut Vec<SpanData>, stop: &CancellationToken) -> bool {
        stop.run_until_cancelled(self.spans.recv_many(batch, BATCH)).await;
        if batch.len() < BATCH {
            stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await;
        }
        while batch.len() < BATCH
            && let Ok(span) = self.spans.try_recv()
        {
            batch.push(span);
        }
        !batch.is_empty()
    }
}

/// Sends the exporter's requests with our own HTTP client.
#[derive(Debug)]
struct Collector(Client);

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let answer = self.0.ask(request.map(Full::new), TIMEOUT, MAX_BODY).await?;
        let (head, body) = answer.into_parts();
        // The status is the answer, even if the body is lost.
        Ok(Response::from_parts(head, body.unwrap_or_default()))
    }
}
