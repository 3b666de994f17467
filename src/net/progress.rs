//! How far the request on a connection is: whether the connection has carried an answer before, and whether the next one
//! has begun. `client` decides by this whether it sends a request again.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll};

use hyper_util::client::legacy::connect::{Connected, Connection};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The state of one connection. The HTTP client hands it out with its errors.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress(Arc<State>);

#[derive(Debug, Default)]
struct State {
    /// Bytes were received before the last request.
    is_reused: AtomicBool,
    /// Bytes were received since the last request.
    is_answered: AtomicBool,
}

impl Progress {
    /// Whether the connection was used before, and nothing has been received since the last request.
    pub(super) fn is_reused_and_silent(&self) -> bool {
        self.0.is_reused.load(Relaxed) && !self.0.is_answered.load(Relaxed)
    }

    fn sends(&self) {
        if self.0.is_answered.swap(false, Relaxed) {
            self.0.is_reused.store(true, Relaxed);
        }
    }

    fn receives(&self) {
        self.0.is_answered.store(true, Relaxed);
    }
}

/// A connection that records its progress. It is below HTTP and above TLS, so that a handshake does not count.
#[derive(Debug)]
pub(super) struct Watched<S> {
    socket: S,
    progress: Progress,
}

impl<S> Watched<S> {
    pub(super) fn new(socket: S) -> Self {
        Watched { socket, progress: Progress::default() }
    }
}

impl<S: Connection> Connection for Watched<S> {
    fn connected(&self) -> Connected {
        self.socket.connected().extra(self.progress.clone())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.socket).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.progress.receives();
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.progress.sends();
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.progress.sends();
        Pin::new(&mut self.socket).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}
