//! Reading many keys at once: `XREAD`, and the samples that are made beside it.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, RedisError, Value};
use tokio::time::Instant;

use super::entry::{Entry, EntryId};
use super::sample::Sample;
use crate::broker::BrokerError;
use crate::broker::redis::answers::fault;

/// A key that was sampled so long ago is sampled before what is read of it is told, so that a gap is told in its place.
/// It costs a round to the server, and the first and the last entry once more.
const SAMPLE_AFTER: Duration = Duration::from_millis(250);

/// Keys that are sampled with one answer.
const SAMPLES: usize = 64;

/// A key to read.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) name: Arc<str>,
    /// Read what is after this.
    pub(super) after: EntryId,
    /// When it was sampled last. `None`: it is sampled now, even if nothing is read of it.
    pub(super) sampled: Option<Instant>,
}

/// What was found of a key.
#[derive(Debug)]
pub(super) struct KeyRead {
    pub(super) name: Arc<str>,
    pub(super) entries: Vec<Entry>,
    /// Whether there may be more of them.
    pub(super) is_full: bool,
    /// Made after the entries were read. An error is the server's word on this key.
    pub(super) sample: Option<Result<Sample, BrokerError>>,
}

impl KeyRead {
    fn only(name: Arc<str>, sample: Result<Sample, BrokerError>) -> Self {
        KeyRead { name, entries: Vec::new(), is_full: false, sample: Some(sample) }
    }
}

/// Reads up to `count` entries of each key, once any of them has one or `block` is over, and samples those that are due:
/// after a while, and at once where the answer is full or `is_late`, so that something may well have been trimmed.
pub(super) async fn read(
    mut connection: MultiplexedConnection,
    keys: Vec<Wanted>,
    count: usize,
    block: Option<Duration>,
    is_late: bool,
) -> Result<Vec<KeyRead>, RedisError> {
    let answer = xread(&keys, count, block).query_async(&mut connection).await?;
    let found = parse(&keys, answer).ok_or_else(garbled)?;
    sampled(connection, found, count, is_late).await
}

/// As [`read`], each key for itself: in a cluster, keys of different slots cannot be named together. What the server says of
/// a key that it does not let be read, or does not have, stands where its sample would.
pub(super) async fn read_each(
    mut connection: MultiplexedConnection,
    keys: Vec<Wanted>,
    count: usize,
    is_late: bool,
) -> Result<Vec<KeyRead>, RedisError> {
    let mut pipeline = redis::pipe();
    for key in &keys {
        pipeline.add_command(xread(std::slice::from_ref(key), count, None));
    }
    let answers: Vec<Result<Value, RedisError>> =
        pipeline.ignore_errors().query_async(&mut connection).await?;
    let (mut found, mut refused) = (Vec::with_capacity(keys.len()), Vec::new());
    for (key, answer) in keys.iter().zip(answers) {
        match answer {
            Ok(answer) => found.extend(parse(std::slice::from_ref(key), answer).ok_or_else(garbled)?),
            Err(why) => refused.push(KeyRead::only(key.name.clone(), Err(fault(&why)))),
        }
    }
    let mut found = sampled(connection, found, count, is_late).await?;
    found.extend(refused);
    Ok(found)
}

/// Samples those that are due.
async fn sampled(
    mut connection: MultiplexedConnection,
    found: Vec<(&Wanted, Vec<Entry>)>,
    count: usize,
    is_late: bool,
) -> Result<Vec<KeyRead>, RedisError> {
    let is_due = |wanted: &Wanted, entries: &[Entry]| match wanted.sampled {
        Some(at) => {
            !entries.is_empty() && (is_late || entries.len() >= count || at.elapsed() >= SAMPLE_AFTER)
        }
        None => true,
    };
    let due = found.iter().enumerate().filter(|(_, (wanted, entries))| is_due(wanted, entries));
    let mut due: Vec<_> = due.map(|(index, (wanted, _))| (wanted.sampled, index)).collect();
    due.sort();
    due.truncate(SAMPLES);
    let names = due.iter().map(|(_, index)| &*found[*index].0.name);
    let samples = samples(&mut connection, names).await?;
    let mut sampled: Vec<Option<Result<Sample, BrokerError>>> = found.iter().map(|_| None).collect();
    for ((_, index), sample) in due.into_iter().zip(samples) {
        sampled[index] = Some(sample);
    }
    let found = found.into_iter().zip(sampled);
    let found = found.filter(|((_, entries), sample)| !entries.is_empty() || sample.is_some());
    Ok(found
        .map(|((wanted, entries), sample)| {
            let is_full = entries.len() >= count;
            KeyRead { name: wanted.name.clone(), entries, is_full, sample }
        })
        .collect())
}

/// Samples keys and reads nothing of them.
pub(super) async fn sweep(
    mut connection: MultiplexedConnection,
    names: Vec<Arc<str>>,
) -> Result<Vec<KeyRead>, RedisError> {
    let samples = samples(&mut connection, names.iter().map(|name| &**name)).await?;
    Ok(names.into_iter().zip(samples).map(|(name, sample)| KeyRead::only(name, sample)).collect())
}

/// Asks for each key alone, since one that the server does not let be read fails all that are read with it. Returns
/// these.
pub(super) async fn sift(
    mut connection: MultiplexedConnection,
    names: Vec<Arc<str>>,
) -> Result<Vec<KeyRead>, RedisError> {
    let mut pipeline = redis::pipe();
    for name in &names {
        // What comes after the last entry: nothing, but the server looks at the key and at who asks.
        pipeline.cmd("XREAD").arg("STREAMS").arg(&**name).arg("$");
    }
    if pipeline.is_empty() {
        return Ok(Vec::new());
    }
    let answers: Vec<Result<Value, RedisError>> =
        pipeline.ignore_errors().query_async(&mut connection).await?;
    let refused = names.into_iter().zip(answers);
    Ok(refused.filter_map(|(name, answer)| Some(KeyRead::only(name, Err(fault(&answer.err()?))))).collect())
}

/// Samples, in the order of the names.
pub(super) async fn samples<'a>(
    connection: &mut MultiplexedConnection,
    names: impl Iterator<Item = &'a str>,
) -> Result<Vec<Result<Sample, BrokerError>>, RedisError> {
    let mut pipeline = redis::pipe();
    names.for_each(|name| {
        pipeline.add_command(Sample::command(name));
    });
    if pipeline.is_empty() {
        return Ok(Vec::new());
    }
    let answers: Vec<Result<Value, RedisError>> = pipeline.ignore_errors().query_async(connection).await?;
    Ok(answers.into_iter().map(Sample::read).collect())
}

fn xread(keys: &[Wanted], count: usize, block: Option<Duration>) -> Cmd {
    let mut command = redis::cmd("XREAD");
    command.arg("COUNT").arg(count);
    if let Some(block) = block {
        command.arg("BLOCK").arg(block.as_millis() as u64);
    }
    command.arg("STREAMS");
    for key in keys {
        command.arg(&*key.name);
    }
    for key in keys {
        command.arg(key.after.to_string());
    }
    command
}

/// Keys are answered in the order in which they were asked; those without an entry are left out, and are put back here
/// if they must be sampled.
fn parse(keys: &[Wanted], answer: Value) -> Option<Vec<(&Wanted, Vec<Entry>)>> {
    let streams: Vec<Option<(Value, Value)>> = match answer {
        Value::Nil => Vec::new(),
        Value::Map(streams) => streams.into_iter().map(Some).collect(), // RESP3
        Value::Array(streams) => streams.into_iter().map(pair).collect(),
        _ => return None,
    };
    let mut streams = streams.into_iter().map(|stream| {
        let (name, entries) = stream?;
        let Value::BulkString(name) = name else { return None };
        Some((name, Entry::list(entries)?))
    });
    let mut found = Vec::new();
    let mut next = streams.next();
    for wanted in keys {
        match next.take() {
            Some(None) => return None,
            Some(Some((name, entries))) if name == wanted.name.as_bytes() => {
                found.push((wanted, entries));
                next = streams.next();
            }
            other => {
                next = other;
                if wanted.sampled.is_none() {
                    found.push((wanted, Vec::new()));
                }
            }
        }
    }
    next.is_none().then_some(found)
}

fn pair(stream: Value) -> Option<(Value, Value)> {
    let Value::Array(parts) = stream else { return None };
    let [name, entries] = <[Value; 2]>::try_from(parts).ok()?;
    Some((name, entries))
}

fn garbled() -> RedisError {
    (redis::ErrorKind::UnexpectedReturnType, "the answer to XREAD is not one of Redis Streams").into()
}
