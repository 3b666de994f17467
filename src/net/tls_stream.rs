//! A TLS connection of a client, on rustls' interface without buffers.
//!
//! `tokio_rustls::TlsStream` never gives back the 4 KiB into which it read the request, which is half of what a reader costs.
//! Here a connection has buffers only while bytes wait in them. What TLS is remains with rustls: this file moves its
//! records between the session and the socket.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::ServerConfig;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Bytes that are read from the socket at once.
const READ: usize = 4096;

/// Encrypted bytes that wait until they are a whole record, or a whole message of the handshake. rustls accepts none that
/// is longer (RFC 8446, section 5.1).
const MAX_INCOMPLETE: usize = 64 * 1024;

/// Bytes that are encrypted before the socket takes the last ones: one record. The rest waits in the log.
const UNSENT: usize = 16 * 1024;

/// A connection whose handshake is done.
pub struct TlsStream {
    socket: TcpStream,
    session: UnbufferedServerConnection,
    /// Received, and not yet a whole record.
    incoming: Vec<u8>,
    /// Decrypted, and not yet read.
    received: Vec<u8>,
    /// Encrypted, and not yet taken by the socket.
    outgoing: Vec<u8>,
    /// The client has said that it sends nothing more.
    is_ended: bool,
    /// We have said so.
    is_closing: bool,
}

/// What the session encrypts once it has processed everything that was received.
enum Output<'a> {
    Nothing,
    Data(&'a [u8]),
    Close,
}

impl TlsStream {
    /// Performs the handshake.
    ///
    /// # Errors
    /// The client breaks the protocol, has nothing in common with us, or leaves. It has been sent the alert that says so.
    pub async fn accept(socket: TcpStream, config: Arc<ServerConfig>) -> io::Result<Self> {
        let session = UnbufferedServerConnection::new(config).map_err(io::Error::other)?;
        let (incoming, received, outgoing) = Default::default();
        let mut stream =
            TlsStream { socket, session, incoming, received, outgoing, is_ended: false, is_closing: false };
        std::future::poll_fn(|cx| stream.poll_handshake(cx)).await?;
        Ok(stream)
    }

    /// The protocol that was negotiated.
    pub fn alpn(&self) -> Option<&[u8]> {
        self.session.alpn_protocol()
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let processed = self.process(&Output::Nothing);
            ready!(self.poll_outgoing(cx))?;
            processed?;
            if !self.session.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            if self.is_ended || ready!(self.poll_incoming(cx))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// Has the session process what was received, and then encrypt.
    fn process(&mut self, output: &Output<'_>) -> io::Result<()> {
        let mut failed = None;
        loop {
            let UnbufferedStatus { mut discard, state } =
                self.session.process_tls_records(&mut self.incoming);
            let mut is_done = false;
            match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record.map_err(invalid)?;
                        discard += record.discard;
                        self.received.extend_from_slice(record.payload);
                    }
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    append(&mut self.outgoing, 0, |to| data.encode(to))?;
                }
                // It is sent before anything else: what follows is appended to it.
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed) => self.is_ended = true,
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    match output {
                        _ if failed.is_some() => {}
                        Output::Nothing => {}
                        Output::Data(data) => {
                            append(&mut self.outgoing, data.len(), |to| traffic.encrypt(data, to))?;
                        }
                        Output::Close => append(&mut self.outgoing, 0, |to| traffic.queue_close_notify(to))?,
                    }
                    is_done = true;
                }
                Ok(ConnectionState::BlockedHandshake | ConnectionState::Closed) => is_done = true,
                // No early data is accepted.
                Ok(_) => return Err(invalid("an unknown state of the session")),
                // Once more without what is wrong, for the alert that says so.
                Err(error) if failed.is_none() => {
                    failed = Some(error);
                    discard = self.incoming.len();
                }
                Err(_) => is_done = true,
            }
            self.incoming.drain(..discard.min(self.incoming.len()));
            if is_done {
                // Of a session that failed, nothing more is read.
                self.is_ended |= failed.is_some();
                if self.incoming.is_empty() {
                    self.incoming = Vec::new();
                }
                return failed.map_or(Ok(()), |error| Err(invalid(error)));
            }
        }
    }

    /// Reads what the socket has. 0 at its end.
    fn poll_incoming(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.incoming.len() > MAX_INCOMPLETE {
            return Poll::Ready(Err(invalid("a record without an end")));
        }
        loop {
            // Before there is a buffer to read into: most of the time there is nothing.
            ready!(self.socket.poll_read_ready(cx))?;
            let mut bytes = [0; READ];
            match self.socket.try_read(&mut bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(length) => {
                    self.incoming.extend_from_slice(&bytes[..length]);
                    return Poll::Ready(Ok(length));
                }
            }
        }
    }

    /// Sends what is encrypted.
    fn poll_outgoing(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.is_empty() {
            let written = ready!(Pin::new(&mut self.socket).poll_write(cx, &self.outgoing))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            if written == self.outgoing.len() {
                self.outgoing = Vec::new();
            } else {
                self.outgoing.drain(..written);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if !this.received.is_empty() {
                let length = this.received.len().min(buffer.remaining());
                buffer.put_slice(&this.received[..length]);
                if length == this.received.len() {
                    this.received = Vec::new();
                } else {
                    this.received.drain(..length);
                }
                return Poll::Ready(Ok(()));
            }
            if this.is_ended {
                return Poll::Ready(Ok(()));
            }
            if ready!(this.poll_incoming(cx))? == 0 {
                // Without a word before it, anybody on the way may have cut it.
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            let processed = this.process(&Output::Nothing);
            // An alert, or new keys. If the socket is full, they go with what is sent next. A client that takes none of them
            // must not make more of them wait.
            let sent = this.poll_outgoing(cx)?;
            processed?;
            if sent.is_pending() && this.outgoing.len() > 2 * UNSENT && this.received.is_empty() {
                return Poll::Pending;
            }
        }
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        // So there is never more than one record that waits for the socket.
        ready!(self.poll_outgoing(cx))?;
        let bytes = &bytes[..bytes.len().min(UNSENT)];
        self.process(&Output::Data(bytes))?;
        if !bytes.is_empty() && self.outgoing.is_empty() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let _ = self.poll_outgoing(cx)?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_outgoing(cx))?;
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_closing {
            self.is_closing = true;
            self.process(&Output::Close)?;
        }
        ready!(self.poll_outgoing(cx))?;
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

/// Appends what `encode` writes, which is about `expected` bytes.
fn append<E: Into<Encoding>>(
    to: &mut Vec<u8>,
    expected: usize,
    mut encode: impl FnMut(&mut [u8]) -> Result<usize, E>,
) -> io::Result<()> {
    /// More than the frame of a record takes, and a whole alert.
    const FRAME: usize = 64;
    let begin = to.len();
    let mut size = expected + FRAME;
    loop {
        to.resize(begin + size, 0);
        match encode(&mut to[begin..]).map_err(Into::into) {
            Ok(written) => {
                to.truncate(begin + written);
                return Ok(());
            }
            Err(Encoding::Needs(InsufficientSizeError { required_size })) if required_size > size => {
                size = required_size;
            }
            Err(_) => {
                to.truncate(begin);
                return Err(invalid("a record cannot be encoded"));
            }
        }
    }
}

/// Why a record was not encoded.
enum Encoding {
    Needs(InsufficientSizeError),
    Impossible,
}

impl From<EncodeError> for Encoding {
    fn from(error: EncodeError) -> Self {
        match error {
            EncodeError::InsufficientSize(size) => Encoding::Needs(size),
            EncodeError::AlreadyEncoded => Encoding::Impossible,
        }
    }
}

impl From<EncryptError> for Encoding {
    fn from(error: EncryptError) -> Self {
        match error {
            EncryptError::InsufficientSize(size) => Encoding::Needs(size),
            EncryptError::EncryptExhausted => Encoding::Impossible,
        }
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
