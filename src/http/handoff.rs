//! From hyper to the socket: on HTTP/1, once the response head is flushed, the connection is taken back from hyper, and
//! what stays of it is the socket and the stream. An idle subscriber then costs a twentieth of what it costs as a hyper
//! body, and a delivery is a `write`.
//!
//! The hand-over is safe only when hyper has nothing left to write. [`StreamBody`] is polled for the first time after
//! the head went into hyper's buffer, and hyper flushes its transport only when that buffer is empty: so a flush of the
//! transport after the first poll of the body ([`Handoff::flushed`]) means that the head is out.
//!
//! HTTP/2 has no such moment: there the body hands the stream's bytes to hyper.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http_body::Frame;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::protocol::codes::HttpVersion;
use crate::protocol::frame::{Coding, LAST_CHUNK};
use crate::stream::Stream;

/// Bytes that a client may send after its request. A browser sends none; what comes is read to see the end of the
/// connection, and thrown away.
const MAX_STRAY_BYTES: usize = 64 * 1024;

/// Later than any time of the clock.
const NOT_BLOCKED: u64 = u64::MAX;

/// Where a stream waits for its socket. One per HTTP/1 connection, known to the requests on it.
#[derive(Debug, Clone, Default)]
pub(super) struct Handoff(Arc<HandoffState>);

#[derive(Debug, Default)]
struct HandoffState {
    stream: Mutex<Option<(Stream, Coding)>>,
    flushed: AtomicBool,
}

impl Handoff {
    /// The transport has been flushed.
    pub(super) fn flushed(&self) {
        self.0.flushed.store(true, Ordering::Relaxed);
    }

    fn offer(&self, stream: Stream, coding: Coding) {
        *self.0.stream.lock() = Some((stream, coding));
        self.0.flushed.store(false, Ordering::Relaxed);
    }

    /// The stream, once hyper has nothing left to write.
    pub(super) fn take(&self) -> Option<(Stream, Coding)> {
        if self.0.flushed.load(Ordering::Relaxed) { self.0.stream.lock().take() } else { None }
    }
}

/// When a stream of this connection last handed out bytes that were not taken yet. Without it a client of HTTP/2 that
/// opens no window would never be noticed: hyper does not poll the body then.
#[derive(Debug, Clone, Default)]
pub(super) struct Stalls(Arc<Mutex<slab::Slab<Arc<AtomicU64>>>>);

impl Stalls {
    /// Whether the connection has no stream.
    pub(super) fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }

    /// Whether some stream has not been taken from since before `now - timeout`. In milliseconds of the clock.
    pub(super) fn stalled(&self, now: u64, timeout: Duration) -> bool {
        self.0.lock().iter().any(|(_, offered)| is_stalled(offered, now, timeout))
    }
}

fn is_stalled(offered: &AtomicU64, now: u64, timeout: Duration) -> bool {
    offered.load(Ordering::Relaxed) < now.saturating_sub(timeout.as_millis() as u64)
}

/// The body of a stream's response.
#[derive(Debug)]
pub(super) struct StreamBody {
    stream: Option<Stream>,
    coding: Coding,
    handoff: Option<Handoff>,
    stall: Option<Stall>,
}

#[derive(Debug)]
struct Stall {
    stalls: Stalls,
    key: usize,
    /// When bytes were handed out last, or `u64::MAX` while they are taken.
    offered: Arc<AtomicU64>,
}

impl Drop for Stall {
    fn drop(&mut self) {
        self.stalls.0.lock().try_remove(self.key);
    }
}

impl StreamBody {
    /// A body that is handed over where it can be.
    pub(super) fn new(
        stream: Stream,
        handoff: Option<Handoff>,
        stalls: Option<Stalls>,
        http: HttpVersion,
    ) -> Self {
        let coding = if http == HttpVersion::Http11 { Coding::Chunked } else { Coding::Plain };
        let stall = stalls.map(|stalls| {
            let offered = Arc::new(AtomicU64::new(u64::MAX));
            let key = stalls.0.lock().insert(offered.clone());
            Stall { stalls, key, offered }
        });
        StreamBody { stream: Some(stream), coding, handoff, stall }
    }
}

/// Dropped while the client had not taken from it for so long, it ends for that reason, whoever dropped it.
impl Drop for StreamBody {
    fn drop(&mut self) {
        if let (Some(stream), Some(stall)) = (&mut self.stream, &self.stall)
            && is_stalled(&stall.offered, stream.now(), stream.write_timeout())
        {
            stream.give_up();
        }
    }
}

impl http_body::Body for StreamBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        if let Some(handoff) = &this.handoff {
            if let Some(stream) = this.stream.take() {
                handoff.offer(stream, this.coding);
            }
            return Poll::Pending; // the connection is about to be taken away
        }
        let Some(stream) = &mut this.stream else { return Poll::Ready(None) };
        if let Some(stall) = &this.stall {
            stall.offered.store(u64::MAX, Ordering::Relaxed);
        }
        // Here hyper frames the body, in HTTP/2's own way.
        let next = ready!(stream.poll_next(cx, Coding::Plain));
        if let Some(stall) = &this.stall {
            stall.offered.store(stream.now(), Ordering::Relaxed);
        }
        Poll::Ready(next.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// A stream on its socket, until one of them ends. All that is left of an idle subscriber, thousands of times: a word more
/// here, and its task takes 512 bytes instead of 384.
#[derive(Debug)]
pub(super) struct Delivery<I, P> {
    socket: I,
    stream: Stream,
    coding: Coding,
    /// Handed out by the stream and not yet taken by the socket. An event that was begun is finished from here, whatever
    /// the log evicts.
    pending: Bytes,
    /// Since when the socket has taken nothing, in milliseconds of the clock, or [`NOT_BLOCKED`].
    blocked_since: u64,
    stray_bytes: usize,
    ended: bool,
    /// Held for as long as the connection is open.
    _permit: P,
}

impl<I: AsyncRead + AsyncWrite + Unpin, P: Unpin> Delivery<I, P> {
    /// Takes the socket over, right after the response head.
    pub(super) fn new(socket: I, stream: Stream, coding: Coding, permit: P) -> Self {
        Delivery {
            socket,
            stream,
            coding,
            pending: Bytes::new(),
            blocked_since: NOT_BLOCKED,
            stray_bytes: 0,
            ended: false,
            _permit: permit,
        }
    }

    /// The system gives a peer up that acknowledges nothing, or opens no window, at about the time we would
    /// (`TCP_USER_TIMEOUT`). Which of us is first does not change what it is.
    fn broken(&mut self, error: &io::Error) {
        if error.kind() == io::ErrorKind::TimedOut {
            self.stream.give_up();
        }
    }

    /// Brings what is pending to the socket and through it, since TLS keeps what the socket below does not take.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.pending.is_empty() {
            let written = ready!(Pin::new(&mut self.socket).poll_write(cx, &self.pending))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.pending.advance(written);
            self.blocked_since = NOT_BLOCKED;
        }
        ready!(Pin::new(&mut self.socket).poll_flush(cx))?;
        if self.ended {
            // What TLS says at the end may find the socket full too.
            ready!(Pin::new(&mut self.socket).poll_shutdown(cx))?;
        }
        self.blocked_since = NOT_BLOCKED;
        Poll::Ready(Ok(()))
    }

    /// Whether the client has closed its side. Like hyper, and like every proxy, we take that for the end of both.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> bool {
        let mut bytes = [0; 512];
        loop {
            let mut buffer = ReadBuf::new(&mut bytes);
            match Pin::new(&mut self.socket).poll_read(cx, &mut buffer) {
                Poll::Pending => return false,
                Poll::Ready(Err(error)) => {
                    self.broken(&error);
                    return true;
                }
                Poll::Ready(Ok(())) if buffer.filled().is_empty() => return true,
                Poll::Ready(Ok(())) => self.stray_bytes += buffer.filled().len(),
            }
            if self.stray_bytes > MAX_STRAY_BYTES {
                return true;
            }
        }
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin, P: Unpin> Future for Delivery<I, P> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if this.poll_gone(cx) {
            return Poll::Ready(());
        }
        loop {
            match this.poll_send(cx) {
                Poll::Ready(Ok(())) if this.ended => return Poll::Ready(()),
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    this.broken(&error);
                    return Poll::Ready(());
                }
                Poll::Pending => {
                    let now = this.stream.now();
                    this.blocked_since = this.blocked_since.min(now);
                    let deadline = this.blocked_since + this.stream.write_timeout().as_millis() as u64;
                    if now >= deadline {
                        this.stream.give_up();
                        return Poll::Ready(());
                    }
                    // No entry wakes a stream whose socket is full; the socket does, or the clock.
                    this.stream.wake_at(cx, deadline);
                    return Poll::Pending;
                }
            }
            match ready!(this.stream.poll_next(cx, this.coding)) {
                Some(bytes) => this.pending = bytes,
                None => {
                    this.ended = true;
                    if this.coding == Coding::Chunked {
                        this.pending = Bytes::from_static(LAST_CHUNK);
                    }
                }
            }
        }
    }
}

#[cfg(all(test, target_pointer_width = "64"))]
mod tests {
    use tokio::net::TcpStream;

    use super::Delivery;
    use crate::http::Open;

    #[test]
    fn a_subscriber_stays_within_the_size_class_of_its_task() {
        // What tokio adds is 96 bytes, and 8 for the stage that the task is in.
        assert!(
            size_of::<Delivery<TcpStream, Open>>() <= 384 - 96 - 8,
            "{}",
            size_of::<Delivery<TcpStream, Open>>()
        );
    }
}
