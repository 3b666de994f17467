//! The topic log: the one structure for live delivery and for replay.
//!
//! A log holds the last entries of one filter, each once and encoded, in the order of its sequence: that of the process, or
//! that of the history which the broker keeps. A gap is an entry too, so every reader meets it at its place. Reading past
//! what was evicted is an outcome of its own ([`Item::Evicted`]), never a jump; where the broker keeps the history, it is
//! read from there ([`history`]).
//!
//! One writer appends ([`Registry`], for ingest); any number of readers read at positions of their own. The log knows
//! nothing of brokers, HTTP or configuration.

mod backfill;
mod batch_cache;
mod by_topic;
mod cursor;
mod entry;
mod inspect;
mod lease;
mod merge;
pub mod message;
mod past;
mod readers;
mod registry;
mod start;
#[cfg(test)]
mod tests;
mod time;
mod topic_log;

pub use self::backfill::{BACKFILL_CAPACITY, BackfillRequest};
pub use self::cursor::{Batch, Cursors, Read};
use self::entry::Item;
pub use self::entry::{Bounds, BufferUsage, Entry, EntryKind, Gap};
pub use self::inspect::{Lag, LogState, UpstreamState};
pub use self::lease::{Lease, Subscription};
pub use self::registry::{Due, Idle, LeaseError, ReaderProgress, Registry};
pub use self::start::{Opened, seeks_needed};
pub use self::topic_log::TopicLog;

/// Bytes up to which entries are handed over in one piece. Small, because a reader that stops in the middle of one holds
/// on to it; large enough that a write call is cheap beside what it writes.
const BATCH_BYTES: usize = 64 * 1024;
