//! A sample of a stream: its state by `XINFO STREAM`.

use redis::{RedisError, Value};

use super::entry::EntryId;
use crate::broker::BrokerError;
use crate::broker::redis::answers::fault;

/// The state of a stream at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sample {
    /// Whether the key exists.
    pub(super) exists: bool,
    /// The number of entries that it has.
    pub(super) length: u64,
    /// The number of entries ever added.
    pub(super) added: u64,
    /// The last id that was given.
    pub(super) last: EntryId,
    /// The highest id that was deleted with `XDEL`; trimming does not change it.
    pub(super) deleted: EntryId,
    /// The id of its first entry.
    pub(super) first: Option<EntryId>,
}

impl Sample {
    pub(super) fn command(key: &str) -> redis::Cmd {
        let mut command = redis::cmd("XINFO");
        command.arg("STREAM").arg(key);
        command
    }

    /// Parses an answer. A key that does not exist is an empty stream.
    pub(super) fn read(answer: Result<Value, RedisError>) -> Result<Self, BrokerError> {
        let answer = match answer {
            Err(why) if why.code() == Some("ERR") && why.detail() == Some("no such key") => {
                return Ok(Sample::default());
            }
            answer => answer.map_err(|why| fault(&why))?,
        };
        Self::from_value(&answer).ok_or_else(|| {
            let why = "the server does not count the entries added to a stream (entries-added in XINFO STREAM); \
                       use Redis 7.0 or newer";
            BrokerError::Refused(why.into())
        })
    }

    fn from_value(answer: &Value) -> Option<Self> {
        let mut sample = Sample { exists: true, ..Sample::default() };
        let mut counted = false;
        for (name, value) in answer.as_map_iter()? {
            let Value::BulkString(name) = name else { continue };
            match (&name[..], value) {
                (b"length", Value::Int(length)) => sample.length = length.unsigned_abs(),
                (b"entries-added", Value::Int(added)) => {
                    sample.added = added.unsigned_abs();
                    counted = true;
                }
                (b"last-generated-id", id) => sample.last = EntryId::from_value(id)?,
                (b"max-deleted-entry-id", id) => sample.deleted = EntryId::from_value(id)?,
                (b"first-entry", Value::Array(entry)) => {
                    sample.first = entry.first().and_then(EntryId::from_value);
                }
                _ => {}
            }
        }
        counted.then_some(sample)
    }

    /// Whether it still has every entry that was ever added.
    pub(super) fn is_whole(&self) -> bool {
        self.added == self.length
    }
}
