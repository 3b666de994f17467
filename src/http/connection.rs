//! One connection: detects its HTTP version, serves its requests with hyper, and on HTTP/1 takes the socket back from
//! hyper once a stream has begun (`handoff`).

use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use bytes::{Buf, Bytes, BytesMut};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::budget::Budget;
use super::client::ClientAddress;
use super::handoff::{Delivery, Handoff, Stalls};
use super::open::Open;
use super::proxy_protocol;
use crate::config::Proxies;
use crate::reader::clock::{AtomicMillis, Clock};

/// The first bytes of an HTTP/2 client with prior knowledge (RFC 9113, section 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Streams that an HTTP/2 client may open and reset before we have accepted them. More of them end the connection
/// (CVE-2023-44487).
const HTTP2_RESETS_AT_ONCE: usize = 20;

/// Streams that we reset because of a client's errors. A client that provokes more of them attacks by the work that
/// each costs (CVE-2025-8671), and its connection ends.
const HTTP2_MISTAKES: usize = 100;

/// Bytes that an HTTP/2 client may send before we read: of one request's body, and of all bodies on a connection.
const HTTP2_RECEIVE_WINDOW: u32 = 64 * 1024;
const HTTP2_RECEIVE_WINDOW_OF_ALL: u32 = 256 * 1024;

/// Bytes that hyper buffers for an HTTP/2 stream whose client does not read.
const HTTP2_SEND_BUFFER: usize = 64 * 1024;

/// How long a client has to close its side when the process is shutting down.
const CLOSING_PATIENCE: Duration = Duration::from_millis(500);

/// The limits and timeouts of every connection of a listener.
#[derive(Debug, Clone)]
pub(super) struct ConnectionLimits {
    /// The largest request head, in bytes.
    pub(super) max_head: usize,
    /// Streams of one HTTP/2 connection: event streams and plain requests together.
    pub(super) http2_streams: u32,
    /// Counts heads that were larger.
    pub(super) heads_too_large: Counter,
    /// How long a request head may take to arrive, and how long a connection may wait before it begins one.
    pub(super) head_timeout: Duration,
    /// How long a reader may take no bytes.
    pub(super) write_timeout: Duration,
    /// The longest time until an answer begins.
    pub(super) longest_answer: Duration,
    /// The clock that all streams share.
    pub(super) clock: Clock,
    /// The budget of all its requests.
    pub(super) budget: Budget,
    /// The proxies in front of the listener.
    pub(super) proxies: Proxies,
    /// Cancelled when the listener accepts no further requests.
    pub(super) closing: CancellationToken,
}

impl ConnectionLimits {
    /// Awaits what a connection must send before its first request. `None` if it does not arrive within the head
    /// timeout, the client leaves, or the listener is closing.
    async fn in_time<T>(&self, read: impl Future<Output = io::Result<T>>) -> Option<T> {
        let read = tokio::time::timeout(self.head_timeout, read);
        self.closing.run_until_cancelled(read).await?.ok()?.ok()
    }
}

/// The HTTP version of a connection, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    /// Negotiated by ALPN.
    Http1,
    /// Negotiated by ALPN.
    Http2,
    /// To be detected from the first bytes.
    Unknown,
}

/// Serves one connection to its end, without TLS. `open` is held until then.
pub(super) async fn serve_plain(
    mut socket: TcpStream,
    peer: IpAddr,
    router: Router,
    settings: Arc<ConnectionLimits>,
    mut open: Open,
) {
    if let Some(client) = client(&mut socket, peer, &settings, &mut open).await {
        serve(socket, Version::Unknown, client, router, settings, open).await;
    }
}

/// The client of the connection, or `None` if it must be closed: a proxy that must name the client does not, or the
/// client has reached its limit of connections.
pub(super) async fn client(
    socket: &mut TcpStream,
    peer: IpAddr,
    settings: &ConnectionLimits,
    open: &mut Open,
) -> Option<ClientAddress> {
    let client = settings.in_time(proxy_protocol::client(socket, peer, &settings.proxies)).await?;
    open.is_of(client.0, &settings.proxies).then_some(client)
}

/// Serves one connection to its end, over TCP or over TLS. `open` is held until then.
pub(super) async fn serve<I: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    mut socket: I,
    version: Version,
    client: ClientAddress,
    router: Router,
    settings: Arc<ConnectionLimits>,
    open: Open,
) {
    let Some(Preface { is_http2, bytes }) = settings.in_time(Preface::read(&mut socket)).await else {
        return;
    };
    let is_http2 = match version {
        Version::Http1 => false,
        Version::Http2 if !is_http2 => return, // h2 would wait for ever for the rest of a preface
        Version::Http2 | Version::Unknown => is_http2,
    };
    if is_http2 {
        return serve_http2(Transport::new(socket, bytes, None), client, router, &settings).await;
    }
    let handoff = Handoff::default();
    let transport = Transport::new(socket, bytes, Some(handoff.clone()));
    let served = std::pin::pin!(serve_http1(transport, client, router, handoff, &settings));
    if let Some((socket, stream, coding)) = settings.budget.run(served).await {
        // Spawned as a task of its own, because this task keeps the size of hyper's connection for its whole life.
        tokio::spawn(Delivery::new(socket, stream, coding, open));
    }
}

type Delivered<I> = (I, crate::stream::Stream, crate::protocol::frame::Coding);

/// Serves requests until the connection ends, or one of them becomes a stream, which is returned with its socket.
async fn serve_http1<I: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    transport: Transport<I>,
    client: ClientAddress,
    router: Router,
    handoff: Handoff,
    settings: &ConnectionLimits,
) -> Option<Delivered<I>> {
    let for_requests = handoff.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(client);
        request.extensions_mut().insert(for_requests.clone());
        router.clone().oneshot(request.map(Body::new))
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(settings.head_timeout)
        .max_buf_size(settings.max_head)
        .serve_connection(TokioIo::new(transport), service);
    let mut closing = std::pin::pin!(settings.closing.cancelled());
    let mut is_closing = false;
    let stream = std::future::poll_fn(|cx| {
        if !is_closing && closing.as_mut().poll(cx).is_ready() {
            is_closing = true;
            Pin::new(&mut connection).graceful_shutdown();
        }
        let ended = connection.poll_without_shutdown(cx);
        match (handoff.take(), ended) {
            (Some(stream), _) => Poll::Ready(Ok(stream)),
            (None, Poll::Ready(ended)) => Poll::Ready(Err(ended)), // a client's error, or it left; hyper has answered
            (None, Poll::Pending) => Poll::Pending,
        }
    })
    .await;
    let socket = connection.into_parts().io.into_inner().socket;
    match stream {
        Ok((stream, coding)) => Some((socket, stream, coding)),
        Err(Err(error)) if error.is_timeout() => None,
        Err(ended) => {
            if ended.is_err_and(|error| error.is_parse_too_large()) {
                settings.heads_too_large.inc();
            }
            drop(handoff); // and with it a stream that hyper left there
            let hurry = async {
                settings.closing.cancelled().await;
                tokio::time::sleep(CLOSING_PATIENCE).await;
            };
            tokio::select! {
                _ = tokio::time::timeout(settings.head_timeout, read_off(socket)) => {}
                () = hurry => {} // shutdown does not wait for an idle client
            }
            None
        }
    }
}

/// Closes our side, and discards what the client still sends until it closes its own. If the socket were closed with
/// unread data, the system would send a reset, and a client that is still sending could lose the refusal.
async fn read_off(mut socket: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    socket.shutdown().await?;
    let mut bytes = vec![0; 4096];
    while socket.read(&mut bytes).await? > 0 {}
    Ok(())
}

async fn serve_http2<I: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    transport: Transport<I>,
    client: ClientAddress,
    router: Router,
    settings: &ConnectionLimits,
) {
    let clock = settings.clock;
    let stalls = Stalls::default();
    let last_request = Arc::new(AtomicMillis::default());
    let (for_requests, requested) = (stalls.clone(), last_request.clone());
    let service = service_fn(move |mut request: Request<Incoming>| {
        requested.store(Some(clock.now()));
        request.extensions_mut().insert(client);
        request.extensions_mut().insert(for_requests.clone());
        router.clone().oneshot(request.map(Body::new))
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(settings.write_timeout / 2)
        .keep_alive_timeout(settings.write_timeout / 2)
        .max_concurrent_streams(settings.http2_streams)
        .max_pending_accept_reset_streams(HTTP2_RESETS_AT_ONCE)
        .max_local_error_reset_streams(HTTP2_MISTAKES)
        .initial_stream_window_size(HTTP2_RECEIVE_WINDOW)
        .initial_connection_window_size(HTTP2_RECEIVE_WINDOW_OF_ALL)
        .max_header_list_size(u32::try_from(settings.max_head).unwrap_or(u32::MAX))
        .max_send_buf_size(HTTP2_SEND_BUFFER)
        .serve_connection(TokioIo::new(transport), service);
    let mut connection = std::pin::pin!(connection);
    let step = settings.write_timeout.min(settings.head_timeout) / 4;
    let mut busy = clock.now();
    let mut is_closing = false;
    loop {
        tokio::select! {
            ended = tokio::time::timeout(step, connection.as_mut()) => {
                if ended.is_ok() {
                    return;
                }
            }
            () = settings.closing.cancelled(), if !is_closing => {
                is_closing = true;
                connection.as_mut().graceful_shutdown();
            }
        }
        let now = clock.now();
        // If one stream is stalled, the whole connection ends; the client reconnects all its streams.
        if stalls.stalled(now, settings.write_timeout) {
            return;
        }
        busy = busy.max(last_request.load().unwrap_or(busy));
        if !stalls.is_empty() {
            busy = now;
        }
        // No request and no open stream. On HTTP/1, hyper has the same timeout for the next request. On HTTP/2 we must
        // apply it, because hyper is content if the client answers pings. Requests in progress are still answered.
        let quiet = now.since(busy);
        if quiet >= settings.head_timeout {
            connection.as_mut().graceful_shutdown();
        }
        // The same holds for an answer that the client does not read: it waits for a window, it is not an event stream,
        // and hyper would wait for as long as the client answers pings.
        if quiet >= settings.head_timeout + settings.write_timeout + settings.longest_answer {
            return;
        }
    }
}

/// The first bytes of a connection, read to detect its version. hyper receives them again.
struct Preface {
    is_http2: bool,
    bytes: Bytes,
}

impl Preface {
    async fn read(socket: &mut (impl AsyncRead + Unpin)) -> io::Result<Self> {
        let mut bytes = BytesMut::with_capacity(HTTP2_PREFACE.len());
        loop {
            let mut rest = (&mut *socket).take((HTTP2_PREFACE.len() - bytes.len()) as u64);
            if rest.read_buf(&mut bytes).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let is_http2 = bytes == HTTP2_PREFACE;
            if is_http2 || !HTTP2_PREFACE.starts_with(&bytes) {
                return Ok(Preface { is_http2, bytes: bytes.freeze() });
            }
        }
    }
}

/// The socket as hyper sees it: it replays the first bytes, and reports every flush.
struct Transport<I> {
    socket: I,
    first: Bytes,
    handoff: Option<Handoff>,
}

impl<I> Transport<I> {
    fn new(socket: I, first: Bytes, handoff: Option<Handoff>) -> Self {
        Transport { socket, first, handoff }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Transport<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.socket).poll_read(cx, buffer);
        }
        let length = self.first.len().min(buffer.remaining());
        buffer.put_slice(&self.first[..length]);
        self.first.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Transport<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.socket).poll_flush(cx))?;
        if let Some(handoff) = &self.handoff {
            handoff.flushed();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
