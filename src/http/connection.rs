//! One connection: which version of HTTP it speaks, hyper for as long as it is needed, then the hand-over.

use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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

use super::client::ClientAddress;
use super::handoff::{Delivery, Handoff, Stalls};
use super::proxy_protocol;
use crate::config::Proxies;
use crate::reader::clock::Clock;

/// What an HTTP/2 client says first when it knows that we speak it (RFC 9113, section 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Streams on one HTTP/2 connection, ours and those of plain requests.
const HTTP2_STREAMS: u32 = 256;

/// Streams that a client of HTTP/2 may open and reset before we have looked at them. A flood of them ends the connection
/// (CVE-2023-44487).
const HTTP2_RESETS_AT_ONCE: usize = 20;

/// Streams that we may have to reset for a client's mistakes. One that makes more of them is after the work that each
/// costs us (CVE-2025-8671), and its connection ends.
const HTTP2_MISTAKES: usize = 100;

/// Bytes of one request's body, and of all on a connection, that a client of HTTP/2 may send before we have read any.
const HTTP2_RECEIVE_WINDOW: u32 = 64 * 1024;
const HTTP2_RECEIVE_WINDOW_OF_ALL: u32 = 256 * 1024;

/// Bytes that hyper may hold for a stream of HTTP/2 whose client does not take them.
const HTTP2_SEND_BUFFER: usize = 64 * 1024;

/// How long a client is given to close its side when the process is ending.
const CLOSING_PATIENCE: Duration = Duration::from_millis(500);

/// What every connection is held to.
#[derive(Debug, Clone)]
pub(super) struct ConnectionLimits {
    /// Bytes of a request head.
    pub(super) max_head: usize,
    /// Of those that had more.
    pub(super) heads_too_large: Counter,
    /// Time for a request head to arrive, and for a connection to begin one.
    pub(super) head_timeout: Duration,
    /// Time in which a reader must take something.
    pub(super) write_timeout: Duration,
    /// How long it may take until an answer begins, at most.
    pub(super) longest_answer: Duration,
    /// The clock of all streams.
    pub(super) clock: Clock,
    /// Those in front of the listener.
    pub(super) proxies: Proxies,
    /// Cancelled when no further request shall be begun.
    pub(super) closing: CancellationToken,
}

impl ConnectionLimits {
    /// What a connection must send before its first request, or `None` if it does not in the time of a head, leaves, or no
    /// further request shall be begun.
    async fn in_time<T>(&self, read: impl Future<Output = io::Result<T>>) -> Option<T> {
        let read = tokio::time::timeout(self.head_timeout, read);
        self.closing.run_until_cancelled(read).await?.ok()?.ok()
    }
}

/// What is known of the version that a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    /// Agreed on, by ALPN.
    Http1,
    /// Agreed on, by ALPN.
    Http2,
    /// The first bytes will tell.
    Unknown,
}

/// Serves one connection to its end, without TLS. `permit` is held until then.
pub(super) async fn serve_plain<P: Send + Unpin + 'static>(
    mut socket: TcpStream,
    peer: IpAddr,
    router: Router,
    settings: Arc<ConnectionLimits>,
    permit: P,
) {
    if let Some(client) = client(&mut socket, peer, &settings).await {
        serve(socket, Version::Unknown, client, router, settings, permit).await;
    }
}

/// For whom the connection is, or `None` if a proxy that must say so does not.
pub(super) async fn client(
    socket: &mut TcpStream,
    peer: IpAddr,
    settings: &ConnectionLimits,
) -> Option<ClientAddress> {
    settings.in_time(proxy_protocol::client(socket, peer, &settings.proxies)).await
}

/// Serves one connection to its end, over TCP or over TLS. `permit` is held until then.
pub(super) async fn serve<I: AsyncRead + AsyncWrite + Send + Unpin + 'static, P: Send + Unpin + 'static>(
    mut socket: I,
    version: Version,
    client: ClientAddress,
    router: Router,
    settings: Arc<ConnectionLimits>,
    permit: P,
) {
    let Some(Preface { is_http2, bytes }) = settings.in_time(Preface::read(&mut socket)).await else {
        return;
    };
    let is_http2 = match version {
        Version::Http1 => false,
        Version::Http2 if !is_http2 => return, // and h2 would wait for the rest of a preface for ever
        Version::Http2 | Version::Unknown => is_http2,
    };
    if is_http2 {
        return serve_http2(Transport::new(socket, bytes, None), client, router, &settings).await;
    }
    let handoff = Handoff::default();
    let transport = Transport::new(socket, bytes, Some(handoff.clone()));
    if let Some((socket, stream, coding)) = serve_http1(transport, client, router, handoff, &settings).await {
        // A task of its own, because this one has the size of hyper's connection for as long as it lives.
        tokio::spawn(Delivery::new(socket, stream, coding, permit));
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
    let mut told = false;
    let stream = std::future::poll_fn(|cx| {
        if !told && closing.as_mut().poll(cx).is_ready() {
            told = true;
            Pin::new(&mut connection).graceful_shutdown();
        }
        let ended = connection.poll_without_shutdown(cx);
        match (handoff.take(), ended) {
            (Some(stream), _) => Poll::Ready(Ok(stream)),
            (None, Poll::Ready(ended)) => Poll::Ready(Err(ended)), // a client's mistake or its leave; hyper has answered
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
            drop(handoff); // with a stream that hyper left in it, if there is one
            let hurry = async {
                settings.closing.cancelled().await;
                tokio::time::sleep(CLOSING_PATIENCE).await;
            };
            tokio::select! {
                _ = tokio::time::timeout(settings.head_timeout, read_off(socket)) => {}
                () = hurry => {} // the end of the process does not wait for a client that is merely idle
            }
            None
        }
    }
}

/// Closes our side, and throws away what the client still sends, until it closes its own. Closed with a part of a
/// request unread, the system would send a reset, which can take a refusal away from a client that is still sending.
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
    let last_request = Arc::new(AtomicU64::new(clock.now()));
    let (for_requests, requested) = (stalls.clone(), last_request.clone());
    let service = service_fn(move |mut request: Request<Incoming>| {
        requested.store(clock.now(), Ordering::Relaxed);
        request.extensions_mut().insert(client);
        request.extensions_mut().insert(for_requests.clone());
        router.clone().oneshot(request.map(Body::new))
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(settings.write_timeout / 2)
        .keep_alive_timeout(settings.write_timeout / 2)
        .max_concurrent_streams(HTTP2_STREAMS)
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
    let mut told = false;
    loop {
        tokio::select! {
            ended = tokio::time::timeout(step, connection.as_mut()) => {
                if ended.is_ok() {
                    return;
                }
            }
            () = settings.closing.cancelled(), if !told => {
                told = true;
                connection.as_mut().graceful_shutdown();
            }
        }
        let now = clock.now();
        // A client that takes nothing on one stream takes the others with it: it comes back for all of them.
        if stalls.stalled(now, settings.write_timeout) {
            return;
        }
        busy = busy.max(last_request.load(Ordering::Relaxed));
        if !stalls.is_empty() {
            busy = now;
        }
        // Nothing asked for and nothing open. HTTP/1 has the same timeout for the next request; here it must be ours,
        // because answering pings is enough for hyper. Whatever is still in work gets its answer.
        let quiet = Duration::from_millis(now.saturating_sub(busy));
        if quiet >= settings.head_timeout {
            connection.as_mut().graceful_shutdown();
        }
        // Nor does it get more time for what it does not take: an answer that waits for a window is no stream of ours, and
        // hyper waits for it as long as the client answers pings.
        if quiet >= settings.head_timeout + settings.write_timeout + settings.longest_answer {
            return;
        }
    }
}

/// The first bytes of a connection, read to tell its version. They are given to hyper again.
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

/// The socket as hyper sees it: with the first bytes once more, and with a note of every flush.
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
