//! Reads many keys at once (`XREAD`), and samples those that are due.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use redis::aio::MultiplexedConnection;
use redis::{Cmd, RedisError, Value};
use tokio::time::Instant;

use super::entry::{Entry, EntryId};
use super::sample::Sample;
use crate::broker::BrokerError;
use crate::broker::redis::answers::{fault, is_answer};

/// If the last sample of a key is older than this, the key is sampled before its entries are sent, so that a gap is
/// sent in its place. It costs a round trip, and the first and the last entry once more.
const SAMPLE_AFTER: Duration = Duration::from_millis(250);

/// A key with at most this many entries is sampled with every answer: a burst may trim most of its own entries, and the
/// answer does not show it. A longer key that is trimmed still fills an answer, and a full answer is sampled anyway. A
/// node of a stream has this many entries by default, and `MAXLEN ~` removes only whole nodes.
const SHORT: u64 = 100;

/// The most keys that are sampled with one request, and the most long ones that are sampled after a read.
const SAMPLES: usize = 64;

/// A key to read.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) name: Arc<str>,
    /// Read entries after this id.
    pub(super) after: EntryId,
    /// When it was sampled last. `None`: it is sampled now, even if it has no entries.
    pub(super) sampled: Option<Instant>,
    /// The number of entries that it had then.
    pub(super) length: u64,
}

impl Wanted {
    fn is_short(&self) -> bool {
        self.length <= SHORT
    }
}

/// The result of reading a key.
#[derive(Debug)]
pub(super) struct KeyRead {
    pub(super) name: Arc<str>,
    pub(super) entries: Vec<Entry>,
    /// Whether there may be more entries.
    pub(super) is_full: bool,
    /// A sample made after the entries were read. An error is the server's error for this key.
    pub(super) sample: Option<Result<Sample, BrokerError>>,
}

impl KeyRead {
    fn only(name: Arc<str>, sample: Result<Sample, BrokerError>) -> Self {
        KeyRead { name, entries: Vec::new(), is_full: false, sample: Some(sample) }
    }
}

/// Reads up to `count` entries of each key, as soon as one has any or `block` is over, and samples those that are due:
/// after a while, and at once if the key is short, the answer full or `is_late`, because entries may well have been
/// trimmed.
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

/// As [`read`], but each key separately, because in a cluster keys of different slots cannot share a command. The
/// server's error for a key that it does not allow or does not have takes the place of its sample.
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

/// Samples the keys that are due.
async fn sampled(
    mut connection: MultiplexedConnection,
    found: Vec<(&Wanted, Vec<Entry>)>,
    count: usize,
    is_late: bool,
) -> Result<Vec<KeyRead>, RedisError> {
    let is_due = |wanted: &Wanted, entries: &[Entry]| match wanted.sampled {
        Some(at) => {
            let is_full = entries.len() >= count;
            !entries.is_empty() && (is_late || is_full || wanted.is_short() || at.elapsed() >= SAMPLE_AFTER)
        }
        None => true,
    };
    let due = found.iter().enumerate().filter(|(_, (wanted, entries))| is_due(wanted, entries));
    let (mut due, mut long): (Vec<usize>, Vec<usize>) =
        due.map(|(index, _)| index).partition(|index| found[*index].0.is_short());
    long.sort_by_key(|index| found[*index].0.sampled);
    long.truncate(SAMPLES);
    due.extend(long);
    let mut sampled: Vec<Option<Result<Sample, BrokerError>>> = found.iter().map(|_| None).collect();
    for part in due.chunks(SAMPLES) {
        let names = part.iter().map(|index| &*found[*index].0.name);
        for (index, sample) in part.iter().zip(samples(&mut connection, names).await?) {
            sampled[*index] = Some(sample);
        }
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

/// Samples keys without reading entries. If there are none, a PING keeps the server from closing the connection because
/// it is idle.
pub(super) async fn sweep(
    mut connection: MultiplexedConnection,
    names: Vec<Arc<str>>,
) -> Result<Vec<KeyRead>, RedisError> {
    if names.is_empty() {
        ping(&mut connection).await?;
    }
    let samples = samples(&mut connection, names.iter().map(|name| &**name)).await?;
    Ok(names.into_iter().zip(samples).map(|(name, sample)| KeyRead::only(name, sample)).collect())
}

/// Sees that the server answers. A restricted ACL may not allow PING: that counts as an answer, too.
pub(super) async fn ping(connection: &mut MultiplexedConnection) -> Result<(), RedisError> {
    let answer = redis::cmd("PING").query_async::<Value>(connection).await;
    answer.map(drop).or_else(|why| if is_answer(&why) { Ok(()) } else { Err(why) })
}

/// Reads each key alone, because one key that the server does not allow fails the whole read. Returns those keys.
pub(super) async fn sift(
    mut connection: MultiplexedConnection,
    names: Vec<Arc<str>>,
) -> Result<Vec<KeyRead>, RedisError> {
    let mut pipeline = redis::pipe();
    for name in &names {
        // Reads after the last entry: the answer is empty, but the server checks the key and the permission.
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

/// Samples the keys, in the order of the names.
async fn samples<'a>(
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

/// As [`samples`], with the server's time if a key has had no entry yet. `None`: it is not known, because `INFO` is not
/// permitted.
pub(super) async fn samples_and_time(
    connection: &mut MultiplexedConnection,
    names: &[&str],
) -> Result<(Vec<Result<Sample, BrokerError>>, Option<SystemTime>), RedisError> {
    let mut samples = samples(connection, names.iter().copied()).await?;
    let is_empty = |sample: &Result<Sample, _>| {
        sample.as_ref().is_ok_and(|sample: &Sample| sample.last == EntryId::ZERO)
    };
    let empty: Vec<usize> = (0..samples.len()).filter(|index| is_empty(&samples[*index])).collect();
    if empty.is_empty() {
        return Ok((samples, None));
    }
    // Sampled again after the time, so that nothing was added in between.
    let mut pipeline = redis::pipe();
    pipeline.cmd("INFO").arg("server");
    empty.iter().for_each(|index| {
        pipeline.add_command(Sample::command(names[*index]));
    });
    let answers: Vec<Result<Value, RedisError>> = pipeline.ignore_errors().query_async(connection).await?;
    let mut answers = answers.into_iter();
    let time = answers.next().and_then(Result::ok).and_then(server_time);
    for (index, answer) in empty.into_iter().zip(answers) {
        samples[index] = Sample::read(answer);
    }
    Ok((samples, time))
}

fn server_time(info: Value) -> Option<SystemTime> {
    let info: String = redis::from_redis_value(info).ok()?;
    let time = info.lines().find_map(|line| line.trim_end().strip_prefix("server_time_usec:"))?;
    Some(SystemTime::UNIX_EPOCH + Duration::from_micros(time.parse().ok()?))
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

/// The server answers in the order of the keys, and omits keys without entries; these are added again here if they must
/// be sampled.
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
