//! Pieces: consecutive entries in one allocation, put together for one reader and kept for the others who come to the
//! same place a moment later. A crowd that is served one by one shares them; each reader building its own would cost the
//! copying and, until the sockets have taken them, the memory of each.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::Usage;
use crate::message::Format;
use crate::sse::frame::Coding;

/// Pieces that a log keeps. With fewer than a crowd goes through at once, each reader would build all of them again.
pub(super) const PIECES: usize = 32;

/// Consecutive entries, as they go to a socket.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) entries: usize,
    pub(super) format: Format,
    pub(super) coding: Coding,
    pub(super) bytes: Bytes,
}

/// Where a reader stands among the pieces that are kept.
#[derive(Debug)]
pub(super) enum Place {
    /// At the beginning of this one.
    Kept(Piece),
    /// Outside of all: it builds one, no further than `until`, where the next begins.
    Free { until: u64 },
    /// Inside of one: it builds what leads to its end, `until`. From there on it shares.
    Within { until: u64 },
}

/// The pieces of one log, oldest first. Those of one format and coding never overlap. They count among the bytes of all
/// logs, and go with the next sweep.
#[derive(Debug)]
pub(super) struct Pieces {
    kept: VecDeque<Piece>,
    usage: Arc<Usage>,
}

impl Pieces {
    /// None yet.
    pub(super) fn new(usage: Arc<Usage>) -> Self {
        Pieces { kept: VecDeque::new(), usage }
    }

    /// Where a reader whose next entry is `first` stands; it reads no further than `head`.
    pub(super) fn find(&self, first: u64, head: u64, format: Format, coding: Coding) -> Place {
        let (mut until, mut within) = (head, false);
        for piece in self.kept.iter().rev().filter(|piece| (piece.format, piece.coding) == (format, coding)) {
            if piece.first == first {
                return Place::Kept(piece.clone());
            }
            if piece.first > first {
                until = until.min(piece.first - 1);
            } else if piece.last >= first {
                (until, within) = (until.min(piece.last), true);
            }
        }
        if within { Place::Within { until } } else { Place::Free { until } }
    }

    /// Keeps one more, in place of the oldest if there are too many.
    pub(super) fn keep(&mut self, piece: Piece) {
        self.usage.0.fetch_add(piece.bytes.len(), Ordering::Relaxed);
        self.kept.push_back(piece);
        if self.kept.len() > PIECES
            && let Some(oldest) = self.kept.pop_front()
        {
            self.usage.0.fetch_sub(oldest.bytes.len(), Ordering::Relaxed);
        }
    }

    /// Gives all up, and the memory.
    pub(super) fn clear(&mut self) {
        let bytes: usize = std::mem::take(&mut self.kept).iter().map(|piece| piece.bytes.len()).sum();
        self.usage.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Pieces {
    fn drop(&mut self) {
        self.clear();
    }
}
