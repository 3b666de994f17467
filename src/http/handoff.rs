//! The hand-over of a connection from hyper. On HTTP/1, once the response head has been flushed, the gateway takes the
//! socket back from hyper and writes to it directly. An idle reader then costs a twentieth of the memory of a hyper
//! body, and a delivery is one `write`.
//!
//! The hand-over is safe only when hyper has nothing left to write. hyper first polls [`StreamBody`] after it has put
//! the head into its buffer, and it flushes its transport only when that buffer is empty. So a flush of the transport
//! after the first poll of the body ([`Handoff::flushed`]) means that the head has been written.
//!
//! HTTP/2 has no such moment: there, hyper writes the stream's bytes as a body.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http_body::Frame;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::protocol::codes::HttpVersion;
use crate::protocol::frame::{Coding, LAST_CHUNK};
use crate::reader::clock::{AtomicMillis, Millis};
use crate::stream::Stream;

/// Bytes that a client may send after its request. A browser sends none. They are read, to notice the end of the
/// connection, and discarded.
const MAX_STRAY_BYTES: u32 = 64 * 1024;

/// The place where a stream waits for its socket. There is one per HTTP/1 connection, in the extensions of its
/// requests.
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

    /// Takes the stream, once hyper has nothing left to write.
    pub(super) fn take(&self) -> Option<(Stream, Coding)> {
        if self.0.flushed.load(Ordering::Relaxed) { self.0.stream.lock().take() } else { None }
    }
}

/// The times since when streams of this connection have had bytes that the client has not taken. Without them, an
/// HTTP/2 client that opens no window would never be noticed, because hyper does not poll the body then.
#[derive(Debug, Clone, Default)]
pub(super) struct Stalls(Arc<Mutex<slab::Slab<Arc<AtomicMillis>>>>);

impl Stalls {
    /// Adds a stream, or a read that waits, until it is dropped.
    pub(super) fn enter(&self) -> Stall {
        let offered: Arc<AtomicMillis> = Arc::default();
        let key = self.0.lock().insert(offered.clone());
        Stall { stalls: self.clone(), key, offered }
    }

    /// Whether the connection has no stream.
    pub(super) fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }

    /// Whether the client has taken nothing from some stream for `timeout`.
    pub(super) fn stalled(&self, now: Millis, timeout: Duration) -> bool {
        self.0.lock().iter().any(|(_, offered)| is_stalled(offered, now, timeout))
    }
}

fn is_stalled(offered: &AtomicMillis, now: Millis, timeout: Duration) -> bool {
    offered.load().is_some_and(|offered| now.since(offered) > timeout)
}

/// The body of a stream's response.
#[derive(Debug)]
pub(super) struct StreamBody {
    stream: Option<Stream>,
    coding: Coding,
    handoff: Option<Handoff>,
    stall: Option<Stall>,
}

/// A stream among the [`Stalls`] of its connection.
#[derive(Debug)]
pub(super) struct Stall {
    stalls: Stalls,
    key: usize,
    /// The time of the oldest bytes that the client has not taken, if there are any.
    offered: Arc<AtomicMillis>,
}

impl Drop for Stall {
    fn drop(&mut self) {
        self.stalls.0.lock().try_remove(self.key);
    }
}

impl StreamBody {
    /// Creates the body. On HTTP/1 its stream is handed over through `handoff`.
    pub(super) fn new(
        stream: Stream,
        handoff: Option<Handoff>,
        stalls: Option<Stalls>,
        http: HttpVersion,
    ) -> Self {
        let coding = if http == HttpVersion::Http11 { Coding::Chunked } else { Coding::Plain };
        let stall = stalls.as_ref().map(Stalls::enter);
        StreamBody { stream: Some(stream), coding, handoff, stall }
    }
}

/// If the client has been stalled for the timeout when the body is dropped, the stream ends as `slow`, whoever drops
/// it.
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
            return Poll::Pending; // the connection is about to be handed over
        }
        let Some(stream) = &mut this.stream else { return Poll::Ready(None) };
        if let Some(stall) = &this.stall {
            stall.offered.store(None);
        }
        // On HTTP/2, hyper frames the body.
        let next = ready!(stream.poll_next(cx, Coding::Plain));
        if let Some(stall) = &this.stall {
            stall.offered.store(Some(stream.now()));
        }
        Poll::Ready(next.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// A stream on its socket, until one of them ends. This is all the memory of an idle reader: one more machine word, and
/// its task takes 512 bytes instead of 384.
#[derive(Debug)]
pub(super) struct Delivery<I, P> {
    socket: I,
    stream: Stream,
    coding: Coding,
    /// Bytes from the stream that the socket has not taken yet. An event that has begun is completed from here, even if
    /// the log evicts it.
    pending: Bytes,
    /// Since when the socket has taken nothing.
    blocked_since: Option<Millis>,
    stray_bytes: u32,
    ended: bool,
    /// Held for as long as the connection is open.
    _permit: P,
}

impl<I: AsyncRead + AsyncWrite + Unpin, P: Unpin> Delivery<I, P> {
    /// Takes over the socket, right after the response head.
    pub(super) fn new(socket: I, stream: Stream, coding: Coding, permit: P) -> Self {
        Delivery {
            socket,
            stream,
            coding,
            pending: Bytes::new(),
            blocked_since: None,
            stray_bytes: 0,
            ended: false,
            _permit: permit,
        }
    }

    /// With `TCP_USER_TIMEOUT`, the system gives up a peer that acknowledges nothing, or opens no window, at about the
    /// time we would. In both cases the reader was too slow.
    fn broken(&mut self, error: &io::Error) {
        if error.kind() == io::ErrorKind::TimedOut {
            self.stream.give_up();
        }
    }

    /// Writes what is pending and flushes it, because TLS buffers what the socket below it does not take.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.pending.is_empty() {
            let written = ready!(Pin::new(&mut self.socket).poll_write(cx, &self.pending))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.pending.advance(written);
            self.blocked_since = None;
        }
        ready!(Pin::new(&mut self.socket).poll_flush(cx))?;
        if self.ended {
            // The close message of TLS may find the socket full, too.
            ready!(Pin::new(&mut self.socket).poll_shutdown(cx))?;
        }
        self.blocked_since = None;
        Poll::Ready(Ok(()))
    }

    /// Whether the client has closed its side. Like hyper and every proxy, we treat that as the end of the connection.
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
                Poll::Ready(Ok(())) => self.stray_bytes += buffer.filled().len() as u32, // at most 512
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
                    let since = *this.blocked_since.get_or_insert(now);
                    let deadline = since.after(this.stream.write_timeout());
                    if now >= deadline {
                        this.stream.give_up();
                        return Poll::Ready(());
                    }
                    // Entries do not wake a stream whose socket is full; only the socket or the clock does.
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

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::Delivery;
    use crate::http::open::Open;

    #[test]
    #[cfg(target_pointer_width = "64")]
    fn a_delivery_task_stays_within_its_size_class() {
        // tokio adds 96 bytes, and 8 for the stage of the task.
        assert!(
            size_of::<Delivery<TcpStream, Open>>() <= 384 - 96 - 8,
            "{}",
            size_of::<Delivery<TcpStream, Open>>()
        );
    }
}
