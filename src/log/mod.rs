//! Topic logs: one structure for live delivery and for replay.
//!
//! A log holds the newest entries of one filter, each encoded once, in the order of its sequence: the sequence of the
//! process, or of the stored source. A gap is an entry too, so every reader receives it in its place. Reading past
//! evicted entries is an outcome of its own ([`Item::Evicted`]), never a jump. For a stored source, older messages are
//! backfilled from the broker ([`backfill`]).
//!
//! One writer appends ([`Registry`], on behalf of ingest); any number of readers read at their own positions. Logs know
//! no brokers, no HTTP and no configuration.

mod backfill;
mod batch;
mod batch_cache;
mod batches;
mod by_topic;
mod compression;
mod compressors;
mod cursor;
mod cursors;
mod end;
mod ended;
mod entry;
mod feeds;
mod fields;
mod inspect;
mod json;
mod merge;
mod merged;
pub mod message;
mod newest;
mod newest_batch;
mod numbering;
mod paced;
mod readers;
mod registry;
mod rounds;
mod rows;
mod sharing;
mod start;
mod start_ids;
#[cfg(test)]
mod tests;
mod time;
mod topic_log;
mod variant;
mod window;

pub use self::backfill::{BACKFILL_CAPACITY, BackfillRequest, RangeExtent};
pub use self::batch::{Batch, Read};
pub use self::cursors::Cursors;
pub use self::ended::may_begin_at_ends;
use self::entry::Item;
pub use self::entry::{Bounds, BufferUsage, Entry, EntryKind, Gap, StoredPosition};
pub use self::feeds::FeedNews;
pub use self::inspect::{Lag, LogState};
pub use self::registry::{Idle, Lease, LeaseError, ReaderProgress, Registry, Subscription};
pub use self::rows::Rows;
pub use self::start::{Opened, seeks_needed};
pub use self::topic_log::TopicLog;

/// The largest batch, in bytes. It is small, because a stalled reader keeps its batch in memory, and large enough that
/// the cost of a write call does not matter.
const BATCH_BYTES: usize = 64 * 1024;
