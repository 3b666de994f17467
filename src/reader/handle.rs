//! What wakes a stream: a new entry in one of its logs, an order to close, or the clock.
//!
//! One small allocation per stream, shared by the stream, its logs, its client's count and the table of streams; so it is
//! also where stands who reads and how far they are, for those who ask from outside. It carries no message: what there
//! is to read stands in the logs.

use super::Reader;
use crate::protocol::codes::CloseCode;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::task::Waker;

use futures_util::task::AtomicWaker;

/// See the module.
#[derive(Debug, Default)]
pub struct ReaderHandle {
    /// Counts the streams of the process, from 1.
    pub id: u64,
    /// Who reads.
    pub reader: Reader,
    /// Since when, in milliseconds of [`super::clock::Clock`].
    pub opened: u64,
    /// Bytes handed out. The stream alone writes it, and `position`.
    sent: AtomicU64,
    /// Up to where it has read, if all its logs are of one sequence; else `u64::MAX`.
    position: AtomicU64,
    waker: AtomicWaker,
    /// The stream has read everything and waits for more. Only then is it woken for an entry: a stream whose socket is
    /// full costs nothing however much is published meanwhile.
    waiting: AtomicBool,
    /// A [`CloseCode`], or 0.
    close: AtomicU8,
    /// When the stream wants to be woken by the clock, in milliseconds of [`super::clock::Clock`].
    due: AtomicU64,
}

impl ReaderHandle {
    /// Of a stream that nothing has happened to yet.
    pub fn new(id: u64, reader: Reader, opened: u64) -> Self {
        ReaderHandle { id, reader, opened, due: AtomicU64::new(u64::MAX), ..ReaderHandle::default() }
    }

    /// Remembers whom to wake.
    pub fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// Announces that the stream will wait for entries. It must look for entries once more after this and before it
    /// sleeps: `swap` orders that look after any [`ReaderHandle::entry`] that came too early to wake it.
    pub fn await_entries(&self) {
        self.waiting.swap(true, Ordering::AcqRel);
    }

    /// Announces that what the stream waits for is no entry, and will be told by [`ReaderHandle::wake`].
    pub fn ignore_entries(&self) {
        self.waiting.store(false, Ordering::Release);
    }

    /// An entry was committed. Returns whether somebody waited for it.
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

    /// Orders the stream to close without reading on, whatever it was ordered before. Returns whether that is news.
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
        CloseCode::ALL.into_iter().find(|known| *known as u8 == code)
    }

    /// The stream handed out so many bytes, and has read up to `position`.
    pub fn advance(&self, bytes: usize, position: u64) {
        self.sent.store(self.sent() + bytes as u64, Ordering::Relaxed);
        self.position.store(position, Ordering::Relaxed);
    }

    /// Bytes handed out so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Up to where the stream has read; `None` if its logs are of several sequences, in which there is no one such place.
    pub fn position(&self) -> Option<u64> {
        Some(self.position.load(Ordering::Relaxed)).filter(|position| *position != u64::MAX)
    }

    /// Asks to be woken by the clock at `due`.
    pub fn wake_at(&self, due: u64) {
        self.due.store(due, Ordering::Relaxed);
    }

    /// The clock: wakes the stream if it asked for a time that has come.
    pub fn tick(&self, now: u64) {
        if self.due.load(Ordering::Relaxed) <= now {
            self.waker.wake();
        }
    }
}
