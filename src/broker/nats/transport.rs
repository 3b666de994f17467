//! An open connection to a NATS server: it reads and writes bytes, and records the server's `INFO`, the time of its last
//! sign of life, and its last error. It knows no subscriptions and no requests.

use std::io;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::time::Instant;

use super::handshake::{Connection, Socket};
use super::wire::{Info, Operation, Reader};
use crate::metrics::throttle::Throttle;
use crate::net::reason::{Peer, sentence};

/// The most bytes that wait to be sent. Beyond it, commands wait.
const OUT_LIMIT: usize = 256 * 1024;

/// A connection from its handshake to its end.
pub(super) struct Transport {
    read: ReadHalf<Box<dyn Socket>>,
    write: WriteHalf<Box<dyn Socket>>,
    reader: Reader,
    /// Bytes to send.
    pub(super) out: BytesMut,
    /// Whether all written bytes are flushed.
    is_flushed: bool,
    /// The last `INFO`.
    pub(super) info: Info,
    /// When the server last sent anything, or when reading was last paused.
    pub(super) heard: Instant,
    /// The server's last error text, for the reason of the end.
    words: Option<String>,
    /// Limits the log lines that repeat the server's errors.
    reports: Throttle,
}

impl Transport {
    pub(super) fn new(connection: Connection) -> Self {
        let Connection { socket, reader, info } = connection;
        let (read, write) = split(socket);
        Transport {
            read,
            write,
            reader,
            out: BytesMut::new(),
            is_flushed: true,
            info,
            heard: Instant::now(),
            words: None,
            reports: Throttle::default(),
        }
    }

    /// The next operation that has arrived. An error is the reason to end the connection.
    pub(super) fn next(&mut self) -> Result<Option<Operation>, String> {
        self.reader.next().map_err(|error| error.to_string())
    }

    /// Reads some bytes, if `is_reading`, or sends those that wait. Pending for ever if there is neither to do.
    /// Cancel-safe. An error is the reason why the connection has ended.
    pub(super) async fn exchange(&mut self, is_reading: bool) -> Result<(), String> {
        let has_more = !(self.out.is_empty() && self.is_flushed);
        tokio::select! {
            read = self.read.read_buf(self.reader.space()), if is_reading => match read {
                Ok(1..) => self.heard = Instant::now(),
                Ok(0) => return Err("the server closed the connection".into()),
                Err(error) => return Err(format!("the connection was lost: {error}")),
            },
            sent = send(&mut self.write, &mut self.out, &mut self.is_flushed), if has_more => {
                if sent.is_err() {
                    // Data that has arrived is still read: the end of the connection follows it.
                    (self.out, self.is_flushed) = (BytesMut::new(), true);
                }
            }
            else => std::future::pending().await,
        }
        Ok(())
    }

    /// Whether more may be written to `out`.
    pub(super) fn has_room(&self) -> bool {
        self.out.len() < OUT_LIMIT
    }

    /// Logs an error of the server that names no command. If the connection ends, this error is the reason.
    pub(super) fn report(&mut self, words: String) {
        self.log(&words);
        self.words = Some(words);
    }

    /// Logs an error of the server. A publisher can cause the same error repeatedly.
    pub(super) fn log(&self, words: &str) {
        match self.reports.turn() {
            Some(others) => tracing::warn!(words, others, "NATS reports an error"),
            None => tracing::debug!(words, "NATS reports an error"),
        }
    }

    /// Forgets the last error: the connection has survived it.
    pub(super) fn forget_words(&mut self) {
        self.words = None;
    }

    /// The reason of the end: the server's last error, otherwise `why`.
    pub(super) fn end(&mut self, why: String) -> String {
        self.words.take().map_or(why, |words| sentence(&words, Peer::Nats))
    }

    /// Other addresses of its cluster.
    pub(super) fn servers(&self) -> &[String] {
        &self.info.connect_urls
    }
}

/// Sends and flushes the bytes. Cancel-safe.
async fn send(
    write: &mut WriteHalf<Box<dyn Socket>>,
    out: &mut BytesMut,
    is_flushed: &mut bool,
) -> io::Result<()> {
    while !out.is_empty() {
        *is_flushed = false;
        if write.write_buf(out).await? == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
    }
    if out.capacity() > 2 * OUT_LIMIT {
        *out = BytesMut::new();
    }
    write.flush().await?;
    *is_flushed = true;
    Ok(())
}
