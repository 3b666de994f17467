//! What wakes a stream: a new entry in one of its logs, an order to close, or the clock.
//!
//! One small allocation per stream, shared by the stream, its logs and the table of streams. It carries no data: what
//! there is to read stands in the logs. Whom it wakes stands here, since a log is where one looks for those who read it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::task::Waker;

use futures_util::task::AtomicWaker;

use crate::auth::Caller;

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
    /// What is in force since a reload does not let the reader in, or no longer trusts who said that it may.
    Revoked = 15,
}

impl CloseCode {
    /// Every code, for metrics that show zero before the first one.
    pub const ALL: [CloseCode; 15] = [
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
            CloseCode::Revoked => "revoked",
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Signal {
    waker: AtomicWaker,
    /// The stream has read everything and waits for more. Only then is it woken for an entry: a stream whose socket is
    /// full costs nothing however much is published meanwhile.
    waiting: AtomicBool,
    /// A [`CloseCode`], or 0.
    close: AtomicU8,
    /// When the stream wants to be woken by the clock, in milliseconds of [`crate::sse::table::Clock`].
    due: AtomicU64,
    /// Who reads, where the rules had to know that.
    caller: Option<Arc<Caller>>,
}

impl Signal {
    /// For a stream that `caller` reads.
    pub fn of(caller: Option<Arc<Caller>>) -> Self {
        Signal { caller, ..Signal::default() }
    }

    /// Who reads, where the rules had to know that.
    pub fn caller(&self) -> Option<&Caller> {
        self.caller.as_deref()
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

#[cfg(all(test, target_pointer_width = "64"))]
mod tests {
    use super::Signal;

    #[test]
    fn a_signal_stays_within_its_size_class() {
        // An `Arc` adds 16 bytes; after 64 the allocator gives 80.
        assert!(size_of::<Signal>() <= 64 - 16, "{}", size_of::<Signal>());
    }
}
