//! What wakes a stream: a new entry in one of its logs, an order to close, or the clock.
//!
//! One small allocation per stream, shared by the stream, its logs, its client's count and the table of streams; so it is
//! also where stands who reads and how far they are, for those who ask from outside. It carries no message: what there
//! is to read stands in the logs.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::task::Waker;

use futures_util::task::AtomicWaker;

use crate::auth::Caller;
use crate::metrics::HttpVersion;

/// Why the server ends a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum CloseCode {
    /// The process is ending.
    Draining = 1,
    /// A limit is reached.
    Overloaded = 2,
    /// The broker is away, so that the stream cannot promise anything.
    Unavailable = 3,
    /// The broker does not let the gateway read this topic.
    Refused = 4,
    /// `streams.max_age` is reached.
    MaxAge = 5,
    /// The reader took nothing for `streams.write_timeout`, or cannot be reached any more. Nothing can be said to it.
    Slow = 6,
    /// The reader left.
    Gone = 7,
    /// What the reader's token, or the backend, granted has ended.
    Expired = 8,
    /// Who may read could not be asked: the backend, or the place of the keys, did not answer.
    AuthUnavailable = 9,
    /// The client's address has as many streams as it may.
    TooManyStreams = 10,
    /// The streams of the client's address have as many topics as they may.
    TooManyTopics = 11,
    /// The token's subject has as many streams as it may.
    TooManySubjectStreams = 12,
    /// The client's address opens streams faster than it may.
    TooFast = 13,
    /// The history that the stream was read from was deleted, or another one has its name.
    Restarted = 14,
    /// Somebody who runs the gateway ended it.
    Closed = 15,
    /// What is in force since a reload does not let the reader in, or no longer trusts who said that it may.
    Revoked = 16,
}

impl CloseCode {
    /// Every code, for metrics that show zero before the first one.
    pub const ALL: [CloseCode; 16] = [
        CloseCode::Draining,
        CloseCode::Overloaded,
        CloseCode::Unavailable,
        CloseCode::Refused,
        CloseCode::MaxAge,
        CloseCode::Slow,
        CloseCode::Gone,
        CloseCode::Expired,
        CloseCode::AuthUnavailable,
        CloseCode::TooManyStreams,
        CloseCode::TooManyTopics,
        CloseCode::TooManySubjectStreams,
        CloseCode::TooFast,
        CloseCode::Restarted,
        CloseCode::Closed,
        CloseCode::Revoked,
    ];

    /// As on the wire, in metrics and in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            CloseCode::Draining => "draining",
            CloseCode::Overloaded => "overloaded",
            CloseCode::Unavailable => "unavailable",
            CloseCode::Refused => "refused",
            CloseCode::MaxAge => "max_age",
            CloseCode::Slow => "slow",
            CloseCode::Gone => "gone",
            CloseCode::Expired => "expired",
            CloseCode::AuthUnavailable => "auth_unavailable",
            CloseCode::TooManyStreams => "too_many_streams",
            CloseCode::TooManyTopics => "too_many_topics",
            CloseCode::TooManySubjectStreams => "too_many_subject_streams",
            CloseCode::TooFast => "too_fast",
            CloseCode::Restarted => "restarted",
            CloseCode::Closed => "closed",
            CloseCode::Revoked => "revoked",
        }
    }
}

/// Who reads a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reader {
    /// Where they come from, as far as it can be believed.
    pub address: IpAddr,
    /// Who they are.
    pub who: Who,
    /// What the stream goes out by.
    pub http: HttpVersion,
}

impl Default for Reader {
    /// Nobody in particular.
    fn default() -> Self {
        Reader { address: Ipv4Addr::UNSPECIFIED.into(), who: Who::Anyone, http: HttpVersion::Http11 }
    }
}

/// Who a reader is, as far as it had to be known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// Whoever they are, the rules did not ask.
    Anyone,
    /// As much of them as their stream is judged by.
    Caller(Arc<Caller>),
    /// One who looks on from the admin listener, where the rules have no part.
    Operator,
}

impl Reader {
    /// The subject of their token, or what the backend calls them.
    pub fn subject(&self) -> Option<&Arc<str>> {
        match &self.who {
            Who::Caller(caller) => caller.subject.as_ref(),
            Who::Anyone | Who::Operator => None,
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Signal {
    /// Counts the streams of the process, from 1.
    pub id: u64,
    /// Who reads.
    pub reader: Reader,
    /// Since when, in milliseconds of [`crate::sse::table::Clock`].
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
    /// When the stream wants to be woken by the clock, in milliseconds of [`crate::sse::table::Clock`].
    due: AtomicU64,
}

impl Signal {
    /// Of a stream that nothing has happened to yet.
    pub fn new(id: u64, reader: Reader, opened: u64) -> Self {
        Signal { id, reader, opened, due: AtomicU64::new(u64::MAX), ..Signal::default() }
    }

    /// Remembers whom to wake.
    pub fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// Announces that the stream will wait for entries. It must look for entries once more after this and before it
    /// sleeps: `swap` orders that look after any [`Signal::entry`] that came too early to wake it.
    pub fn await_entries(&self) {
        self.waiting.swap(true, Ordering::AcqRel);
    }

    /// Announces that what the stream waits for is no entry, and will be told by [`Signal::wake`].
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
