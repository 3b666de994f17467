//! Compressed pieces: what the readers of a log receive in gzip bodies, deflated once for all of them.
//!
//! A log with many readers has a compressor for each format. The first reader that needs the next piece makes it, and the
//! pieces follow each other without a hole. A piece refers to the pieces before it, up to the compressor's last restart,
//! so only a reader that has received exactly these bytes since then can use it. The other readers receive the same
//! entries stored (`batch_cache`), and share the pieces again after the next restart.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::batch_cache::{BatchCache, Part, SharedBatch};
use super::compressors::Compressors;
use super::message::Format;
use super::variant::Variant;
use super::{BATCH_BYTES, BufferUsage, Entry};
use crate::protocol::frame::{Coding, Frame};
use crate::protocol::gzip::{self, Checksum, Deflater};
use crate::protocol::seq::Seq;

/// The most bytes that are compressed as one piece, or one entry. Readers who need the same piece wait for it.
pub(super) const PIECE_BYTES: usize = 16 * 1024;

/// The compressor restarts after this many bytes or entries, so that readers who have joined can share its pieces.
const RUN_BYTES: usize = 32 * 1024;
const RUN_ENTRIES: usize = 64;

/// If the reader that makes a piece could not read on from the last restart, the compressor restarts for it, but not
/// before this many entries or after a pause: one such reader must not take the history from a crowd.
const SHORT_RUN_ENTRIES: usize = 16;
const PAUSE: Duration = Duration::from_secs(1);

/// The most pieces that are kept, and their bytes. Readers that are further behind receive stored blocks.
const KEPT_PIECES: usize = 256;
const KEPT_BYTES: usize = 256 * 1024;

/// A compressor without work is kept for this many sweeps, so that its history lasts while messages are rare.
const IDLE_SWEEPS: u32 = 60;

/// The compression of one log, for each format.
#[derive(Debug, Default)]
pub(super) struct Compression([Track; 2]);

impl Compression {
    pub(super) fn of(&mut self, format: Format) -> &mut Track {
        match format {
            Format::Raw => &mut self.0[0],
            Format::CloudEvents => &mut self.0[1],
        }
    }

    /// Drops pieces that are old, and compressors that do not pay. `appended` counts the entries of the log.
    pub(super) fn sweep(&mut self, appended: u32, usage: &BufferUsage) {
        self.0.iter_mut().for_each(|track| track.sweep(appended, &usage.compressors));
    }

    /// Drops everything. The compressors come back with the next messages.
    pub(super) fn clear(&mut self) {
        *self = Compression::default();
    }
}

/// The compression of one log in one format.
#[derive(Debug, Default)]
pub(super) struct Track {
    /// Entries delivered to readers of gzip bodies since the last sweep, all together.
    delivered: u64,
    /// How many entries the log had appended by then.
    swept: u32,
    /// It found no place for a compressor since then.
    refused: bool,
    pub(super) compressor: Option<Box<Compressor>>,
}

impl Track {
    /// Counts entries that were delivered to one reader.
    pub(super) fn delivered(&mut self, entries: usize) {
        self.delivered += entries as u64;
    }

    /// Creates a compressor if that pays. `appended` counts the entries of the log.
    pub(super) fn compress_for_a_crowd(&mut self, appended: u32, usage: &Arc<BufferUsage>) {
        let new = u64::from(appended.wrapping_sub(self.swept));
        let pays = new > 0 && usage.compressors.is_crowd(self.delivered, new);
        if self.compressor.is_some() || self.refused || !pays {
            return;
        }
        if usage.compressors.take() {
            self.compressor = Some(Box::new(Compressor::new(usage.clone())));
        } else {
            self.refused = true;
        }
    }

    fn sweep(&mut self, appended: u32, compressors: &Compressors) {
        let delivered = std::mem::take(&mut self.delivered);
        let new = u64::from(appended.wrapping_sub(std::mem::replace(&mut self.swept, appended)));
        if std::mem::take(&mut self.refused) {
            compressors.want(delivered);
        }
        let Some(compressor) = &mut self.compressor else { return };
        compressor.forget_pieces();
        compressor.idle = if new == 0 { compressor.idle + 1 } else { 0 };
        // Half of a crowd is enough to stay, so that a compressor does not come and go.
        let is_crowd = compressors.is_crowd(delivered * 2, new) && compressor.idle < IDLE_SWEEPS;
        if !is_crowd || compressors.must_give_way(delivered) {
            self.compressor = None;
        }
    }
}

/// Consecutive entries, compressed.
#[derive(Debug)]
struct CompressedPiece {
    /// A reader is at the beginning of the piece from this number on, up to `first`.
    after: Seq,
    first: Seq,
    last: Seq,
    /// The first entry since the compressor's restart.
    run: Seq,
    entries: usize,
    time: SystemTime,
    frame: Frame,
    checksum: Checksum,
}

impl Part for CompressedPiece {
    fn first(&self) -> Seq {
        self.first
    }

    fn last(&self) -> Seq {
        self.last
    }

    fn batch<'a>(
        first: &'a Self,
        pieces: impl Iterator<Item = &'a Self> + Clone,
        variant: Variant<'_>,
    ) -> (SharedBatch, bool) {
        let Variant { format, coding, content, .. } = variant;
        let (mut length, mut parts, mut entries, mut last) = (0, 0, 0, first.last);
        for piece in pieces.clone() {
            if length >= BATCH_BYTES {
                break;
            }
            length += piece.frame.slice(coding).len();
            (parts, entries, last) = (parts + 1, entries + piece.entries, piece.last);
        }
        let pieces = pieces.take(parts);
        let bytes = if parts == 1 {
            first.frame.bytes(coding)
        } else {
            let mut joined = Vec::with_capacity(length);
            pieces.clone().for_each(|piece| joined.extend_from_slice(piece.frame.slice(coding)));
            joined.into()
        };
        let batch = SharedBatch {
            first: first.first,
            last,
            time: first.time,
            entries,
            left_out: 0,
            ends_left_out: false,
            format,
            coding,
            content,
            bytes,
            checksum: pieces.map(|piece| piece.checksum).reduce(Checksum::and),
            parts,
        };
        (batch, parts > 1)
    }
}

/// What a reader gets next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Compressed pieces.
    Pieces,
    /// Stored entries up to this number.
    Stored { until: Seq },
    /// A piece that is to be made.
    New,
}

/// The compressor of a log, and its newest pieces.
#[derive(Debug)]
pub(super) struct Compressor {
    deflater: Deflater,
    /// Without a hole between them.
    pieces: VecDeque<CompressedPiece>,
    batches: BatchCache,
    /// The last entry that was compressed; the start before the first.
    end: Seq,
    /// The first entry since the last restart, and what was compressed since then.
    run: Seq,
    run_bytes: usize,
    run_entries: usize,
    /// When the last entry was taken in.
    taken: Option<Instant>,
    /// Bytes of the pieces.
    bytes: usize,
    /// Sweeps without a new entry.
    idle: u32,
    usage: Arc<BufferUsage>,
}

impl Compressor {
    fn new(usage: Arc<BufferUsage>) -> Self {
        usage.add(Deflater::MEMORY);
        Compressor {
            deflater: Deflater::new(),
            pieces: VecDeque::new(),
            batches: BatchCache::new(usage.clone()),
            end: Seq::START,
            run: Seq::START,
            run_bytes: 0,
            run_entries: 0,
            taken: None,
            bytes: 0,
            idle: 0,
            usage,
        }
    }

    /// What a reader at `position` gets next, no further than `head`. It has received every entry after `since`, and
    /// nothing else.
    pub(super) fn next(&self, position: Seq, since: Seq, head: Seq) -> Next {
        if position >= self.end {
            return Next::New;
        }
        let index = self.pieces.partition_point(|piece| piece.last <= position);
        match self.pieces.get(index) {
            None => Next::Stored { until: self.end }, // the pieces were dropped
            Some(oldest) if position < oldest.after => Next::Stored { until: oldest.after },
            Some(piece) if position >= piece.first => Next::Stored { until: piece.last },
            Some(piece) if since < piece.run && piece.last <= head => Next::Pieces,
            Some(_) => {
                let others = self.pieces.range(index..).take_while(|piece| since >= piece.run);
                Next::Stored { until: others.last().map_or(head, |piece| piece.last) }
            }
        }
    }

    /// The pieces after `position` that end by `head`. Only if [`Compressor::next`] says so.
    pub(super) fn read(&mut self, position: Seq, head: Seq, variant: Variant<'_>) -> Option<SharedBatch> {
        self.batches.of(&self.pieces, position, head, variant)
    }

    /// Compresses some entries as one piece, for a reader that has received every entry after `since`. `after` is the
    /// number of the log's last entry before these.
    pub(super) fn add(&mut self, entries: &[Arc<Entry>], after: Seq, since: Seq, format: Format) {
        let ([oldest, ..], [.., newest]) = (entries, entries) else { return };
        let is_next = !self.end.is_start() && after <= self.end;
        if !is_next {
            self.forget_pieces(); // there is a hole between them and this one
        }
        if !is_next || self.must_restart(since, oldest) {
            self.deflater.restart();
            (self.run, self.run_bytes, self.run_entries) = (oldest.sequence, 0, 0);
        }
        let plain = entries.iter().map(|entry| entry.frame(format).slice(Coding::Plain));
        let Ok(gzip::Piece { frame, checksum }) = self.deflater.piece(plain) else {
            // It has no reason to fail. Until the next piece, everything is stored.
            self.deflater = Deflater::new();
            self.forget_pieces();
            self.end = Seq::START;
            return;
        };
        self.run_bytes += checksum.length();
        self.run_entries += entries.len();
        self.end = newest.sequence;
        self.taken = Some(newest.stamp.taken());
        let piece = CompressedPiece {
            after,
            first: oldest.sequence,
            last: newest.sequence,
            run: self.run,
            entries: entries.len(),
            time: oldest.time(),
            frame,
            checksum,
        };
        self.bytes += piece.frame.weight();
        self.usage.add(piece.frame.weight());
        self.pieces.push_back(piece);
        while (self.pieces.len() > KEPT_PIECES || self.bytes > KEPT_BYTES) && self.pieces.len() > 1 {
            self.forget_oldest();
        }
    }

    fn must_restart(&self, since: Seq, next: &Entry) -> bool {
        let is_paused =
            || self.taken.is_some_and(|taken| next.stamp.taken().saturating_duration_since(taken) >= PAUSE);
        self.run_bytes >= RUN_BYTES
            || self.run_entries >= RUN_ENTRIES
            || since >= self.run && (self.run_entries >= SHORT_RUN_ENTRIES || is_paused())
    }

    fn forget_oldest(&mut self) {
        if let Some(piece) = self.pieces.pop_front() {
            self.bytes -= piece.frame.weight();
            self.usage.sub(piece.frame.weight());
        }
    }

    fn forget_pieces(&mut self) {
        self.pieces = VecDeque::new();
        self.usage.sub(std::mem::take(&mut self.bytes));
        self.batches.clear();
    }
}

impl Drop for Compressor {
    fn drop(&mut self) {
        self.usage.sub(self.bytes + Deflater::MEMORY);
        self.usage.compressors.give_back();
    }
}
