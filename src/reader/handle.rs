//! The handle of an open stream. It wakes the stream for a new entry, an order to close, or the clock.
//!
//! It is one small allocation per stream, shared by the stream, its logs, its client's quota and the table of streams.
//! So it also records the client and its progress, for the admin listener. It carries no messages: those are in the
//! logs.

use super::Reader;
use super::clock::{AtomicMillis, Millis};
use crate::protocol::codes::CloseCode;
use crate::protocol::seq::{AtomicOptionSeq, Seq};
use crate::protocol::view::Interval;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::task::Waker;

use futures_util::task::AtomicWaker;

/// The shared handle of one stream.
#[derive(Debug, Default)]
pub struct ReaderHandle {
    /// The id of the stream: streams of the process are numbered from 1.
    pub id: u64,
    /// The client that reads.
    pub reader: Reader,
    /// When the stream was opened.
    pub opened: Millis,
    /// Bytes sent. Only the stream writes this and `position`.
    sent: AtomicU64,
    /// The position up to which it has read, if its logs have one sequence.
    position: AtomicOptionSeq,
    waker: AtomicWaker,
    /// The stream has read everything and waits for more. Only then do entries wake it, so that a stream whose socket
    /// is full costs nothing while messages are published.
    waiting: AtomicBool,
    /// A [`CloseCode`], or 0.
    close: AtomicU8,
    /// When the stream wants to be woken by the clock.
    due: AtomicMillis,
}

impl ReaderHandle {
    /// The handle of a new stream.
    pub fn new(id: u64, reader: Reader, opened: Millis) -> Self {
        ReaderHandle { id, reader, opened, ..ReaderHandle::default() }
    }

    /// The shortest time between two messages of one topic and type, if its reader wants one.
    pub fn every(&self) -> Option<Interval> {
        self.reader.view.as_ref()?.every
    }

    /// Stores the waker.
    pub fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// Announces that the stream will wait for entries. After this call and before it sleeps, it must read once more:
    /// the `swap` orders that read after any [`ReaderHandle::entry`] that came too early to wake it.
    pub fn await_entries(&self) {
        self.waiting.swap(true, Ordering::AcqRel);
    }

    /// Announces that the stream waits for something other than an entry, and will be woken by [`ReaderHandle::wake`].
    pub fn ignore_entries(&self) {
        self.waiting.store(false, Ordering::Release);
    }

    /// Wakes the stream for a new entry, if it waits for entries. Returns whether it did.
    pub fn entry(&self) -> bool {
        let waited = self.waiting.swap(false, Ordering::AcqRel);
        if waited {
            self.waker.wake();
        }
        waited
    }

    /// Wakes the stream, whatever it waits for.
    pub fn wake(&self) {
        self.waker.wake();
    }

    /// Orders the stream to close. The first order counts.
    pub fn close(&self, code: CloseCode) {
        let _ = self.close.compare_exchange(0, code as u8, Ordering::AcqRel, Ordering::Relaxed);
        self.waker.wake();
    }

    /// Orders the stream to close without reading on, even if it was already ordered to close. Returns whether this
    /// changed anything.
    pub fn revoke(&self) -> bool {
        let before = self.close.swap(CloseCode::Revoked as u8, Ordering::AcqRel);
        self.waker.wake();
        before != CloseCode::Revoked as u8
    }

    /// Whether it was ordered to close without reading on.
    pub fn is_revoked(&self) -> bool {
        self.close.load(Ordering::Acquire) == CloseCode::Revoked as u8
    }

    /// The order to close, if there is one.
    pub fn closing(&self) -> Option<CloseCode> {
        let code = self.close.load(Ordering::Acquire);
        CloseCode::from_repr(code)
    }

    /// Records that the stream sent `bytes` and has read up to `position`; `None` as in [`ReaderHandle::position`].
    pub fn advance(&self, bytes: usize, position: Option<Seq>) {
        self.sent.store(self.sent() + bytes as u64, Ordering::Relaxed);
        self.position.store(position);
    }

    /// Bytes sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// The position up to which the stream has read; `None` if its logs have several sequences, where there is no
    /// single position.
    pub fn position(&self) -> Option<Seq> {
        self.position.load()
    }

    /// Asks to be woken by the clock at `due`.
    pub fn wake_at(&self, due: Millis) {
        self.due.store(Some(due));
    }

    /// Called by the clock: wakes the stream if its due time has come.
    pub fn tick(&self, now: Millis) {
        if self.due.load().is_some_and(|due| due <= now) {
            self.waker.wake();
        }
    }
}
