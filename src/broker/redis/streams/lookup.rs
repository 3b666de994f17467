//! One-off commands: fetches of stored entries, seeks, and entries to add.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{RedisError, Value};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::entry::{self, Entry, EntryId};
use super::sample::Sample;
use super::server::ANSWER_LIMIT;
use super::size::EntrySize;
use crate::broker::redis::answers::{fault, is_answer, lost};
use crate::broker::{Acknowledgement, BrokerError, FETCH_BYTES, FETCH_MESSAGES, Fetched, Message};
use crate::protocol::event_id::{entry_event_id, is_before_first, pack_entry_id};
use crate::protocol::headers::Headers;
use crate::protocol::seek::{Seek, SeekResult};
use crate::protocol::seq::Seq;
use crate::protocol::topic::{Filter, Topic};

type Done<T> = oneshot::Sender<Result<T, BrokerError>>;

/// The key and the payload field of a topic.
pub(super) struct KeyOf {
    pub(super) name: String,
    pub(super) topic: Topic,
    /// The field that is the payload.
    pub(super) payload: Option<String>,
}

/// A command for one key.
pub(super) struct Lookup {
    pub(super) key: KeyOf,
    pub(super) what: What,
    /// Whether the connection has failed during it once.
    pub(super) is_repeated: bool,
}

/// The connection failed.
pub(super) struct Broken {
    pub(super) why: String,
    /// The command, if it can be run once more: it only reads, and was not repeated yet.
    pub(super) again: Option<Lookup>,
}

/// The kind of the command.
pub(super) enum What {
    Fetch { after: Seq, until: Seq, done: Done<Fetched> },
    Locate { seek: Seek, done: Done<SeekResult> },
    Last { done: Done<Option<Message>> },
    Publish { payload: Bytes, headers: Headers, done: Done<Acknowledgement> },
}

/// Why a command failed.
enum Fault {
    /// An error of this command only.
    Here(BrokerError),
    /// The connection failed.
    Connection(String),
}

impl From<RedisError> for Fault {
    fn from(why: RedisError) -> Self {
        if is_answer(&why) { Fault::Here(fault(&why)) } else { Fault::Connection(lost(&why)) }
    }
}

impl From<BrokerError> for Fault {
    fn from(why: BrokerError) -> Self {
        Fault::Here(why)
    }
}

impl Lookup {
    /// Runs the command and answers it. Returns the server's error, if there was one.
    ///
    /// # Errors
    /// The connection is no longer usable. A command that can be run once more is not answered yet.
    pub(super) async fn run(
        self,
        connection: MultiplexedConnection,
        size: &EntrySize,
    ) -> Result<Option<BrokerError>, Broken> {
        let Lookup { key, what, is_repeated } = self;
        let (topic, field) = (&key.topic, key.payload.as_deref());
        let lookup = KeyLookup { connection, name: &key.name, size };
        let result = match what {
            What::Fetch { after, until, done } => {
                let answered = answer(done, lookup.fetch(topic, field, after, until)).await;
                answered.map_err(|(why, done)| (why, What::Fetch { after, until, done }))
            }
            What::Locate { seek, done } => {
                let answered = answer(done, lookup.locate(seek)).await;
                answered.map_err(|(why, done)| (why, What::Locate { seek, done }))
            }
            What::Last { done } => {
                let answered = answer(done, lookup.last_message(topic, field)).await;
                answered.map_err(|(why, done)| (why, What::Last { done }))
            }
            What::Publish { payload, headers, done } => {
                let stored = async {
                    let number = lookup.publish(&payload, &headers, field).await?;
                    Ok(Acknowledgement { number, event_id: entry_event_id(number) })
                };
                let answered = answer(done, stored).await;
                answered.map_err(|(why, done)| (why, What::Publish { payload, headers, done }))
            }
        };
        result.map_err(|(why, what)| {
            // The message may have been stored.
            if is_repeated || matches!(what, What::Publish { .. }) {
                what.fail(BrokerError::Away(why.clone()));
                return Broken { why, again: None };
            }
            Broken { why, again: Some(Lookup { key, what, is_repeated: true }) }
        })
    }
}

impl What {
    /// Whether somebody still waits for the answer.
    pub(super) fn is_wanted(&self) -> bool {
        !match self {
            What::Fetch { done, .. } => done.is_closed(),
            What::Locate { done, .. } => done.is_closed(),
            What::Last { done } => done.is_closed(),
            What::Publish { done, .. } => done.is_closed(),
        }
    }

    /// Fails the command without running it.
    pub(super) fn fail(self, why: BrokerError) {
        match self {
            What::Fetch { done, .. } => drop(done.send(Err(why))),
            What::Locate { done, .. } => drop(done.send(Err(why))),
            What::Last { done } => drop(done.send(Err(why))),
            What::Publish { done, .. } => drop(done.send(Err(why))),
        }
    }
}

/// Answers a command. Returns the server's error, if there was one.
///
/// # Errors
/// Why the connection is no longer usable, and the command's receiver, which has no answer yet.
async fn answer<T>(
    done: Done<T>,
    asking: impl Future<Output = Result<T, Fault>>,
) -> Result<Option<BrokerError>, (String, Done<T>)> {
    let silent = || Fault::Connection(format!("no answer within {ANSWER_LIMIT:?}"));
    let result = timeout(ANSWER_LIMIT, asking).await.unwrap_or_else(|_| Err(silent()));
    let (answer, error) = match result {
        Ok(found) => (Ok(found), None),
        Err(Fault::Here(why)) => (Err(why.clone()), Some(why)),
        Err(Fault::Connection(why)) => return Err((why, done)),
    };
    let _ = done.send(answer);
    Ok(error)
}

struct KeyLookup<'a> {
    connection: MultiplexedConnection,
    name: &'a str,
    size: &'a EntrySize,
}

impl KeyLookup<'_> {
    async fn fetch(
        mut self,
        topic: &Topic,
        payload: Option<&str>,
        after: Seq,
        until: Seq,
    ) -> Result<Fetched, Fault> {
        if after >= until {
            let messages = Vec::new();
            return Ok(Fetched { through: until, gone: None, is_hole: false, torn: false, messages });
        }
        let count = self.size.fitting(FETCH_BYTES, FETCH_MESSAGES);
        // In this order: if an entry up to `after` still exists once the range has been read, nothing in the range was
        // trimmed before.
        let mut pipeline = redis::pipe();
        pipeline.add_command(Sample::command(self.name));
        pipeline.add_command(self.range("XRANGE", &exclusive(after), &EntryId::of(until).to_string(), count));
        pipeline.add_command(self.range("XREVRANGE", &EntryId::of(after).to_string(), "-", 1));
        let [sample, range, held] = self.ask(pipeline).await?;
        let sample = Sample::read(sample)?;
        let mut entries = entries(range?)?;
        let is_full = entries.len() == count;
        let is_joined = !entries_of(held)?.is_empty() || after.is_start() && sample.is_whole();
        self.size.learn(entries.iter());

        // Deleted entries (XDEL) are reported once, at the position of the last one: the range ends before it.
        let deleted = sample.deleted.number_at_most().unwrap_or(Seq::MAX);
        let below = entries.partition_point(|entry| entry.id <= sample.deleted);
        let stops = below > 0 && deleted <= until;
        if stops {
            entries.truncate(below);
        }
        let first = entries.first().map(|entry| entry.id);
        let next = first.and_then(EntryId::number_at_most);
        // There are no entries up to here; whether there were any is checked below.
        let empty_to = next.map_or(until, Seq::previous);
        let was_deleted = deleted > after && deleted <= empty_to;
        let was_trimmed = !is_joined && sample.last > EntryId::of(after);
        let mut gone = (empty_to > after && (was_deleted || was_trimmed)).then_some(empty_to);
        let mut is_hole = !was_trimmed;

        let mut messages: Vec<Message> = Vec::with_capacity(entries.len());
        let filter = Filter::from(topic.clone());
        let mut is_cut = false;
        for entry in entries {
            let reached = number_of_last(&messages).or(gone).unwrap_or(after);
            match entry.id.number() {
                Some(number) if number > reached => {
                    messages.push(entry.into_message(number, &filter, topic, payload));
                }
                Some(_) => {} // inside of the reported gap
                None if messages.is_empty() => {
                    let least = if gone.is_none() { reached.next() } else { reached };
                    gone = Some(entry.id.number_at_most().unwrap_or(until).max(least));
                    is_hole = false;
                }
                None => {
                    is_cut = true;
                    break;
                }
            }
        }
        let last = number_of_last(&messages).or(gone);
        let through = match is_full || stops || is_cut {
            true => last.unwrap_or_default().max(after.next()),
            false => until,
        };
        Ok(Fetched { through, gone, is_hole, torn: false, messages })
    }

    async fn locate(mut self, seek: Seek) -> Result<SeekResult, Fault> {
        let sample = Sample::read(Sample::command(self.name).query_async(&mut self.connection).await)?;
        if let Seek::After(number) = seek
            && !is_before_first(number)
            && self.is_of_another_history(number, &sample).await?
        {
            return Ok(SeekResult::Evicted(number));
        }
        let head = sample.last.number_at_most().unwrap_or(Seq::MAX);
        let oldest = sample.first.and_then(EntryId::number_at_most).map_or(head, Seq::previous);
        // Deleted entries (XDEL) in between are reported by the fetch that reaches them.
        let found = |number: Seq| {
            if number >= oldest { SeekResult::At(number) } else { SeekResult::Evicted(oldest) }
        };
        Ok(match seek {
            // The key was empty then, and may have had entries since that were deleted.
            Seek::After(number) if is_before_first(number) => SeekResult::Evicted(oldest),
            Seek::After(number) if number > head => SeekResult::Unknown(oldest),
            // Asked by a gateway that has followed the key since it was empty. A complete stream may be another one than
            // the one that gave a higher number.
            Seek::After(Seq::START) if sample.is_whole() => SeekResult::At(Seq::START),
            Seek::After(number) => found(number),
            Seek::Oldest => SeekResult::At(oldest),
            Seek::Since(time) => match before(time).min(head) {
                // Everything. Right before the first entry of a complete stream, because no other position before it is
                // known to belong to this stream.
                number if sample.is_whole() && number <= oldest => SeekResult::At(oldest),
                number => found(number),
            },
            Seek::Last(0) => SeekResult::At(head),
            Seek::Last(count) => match self.last(count).await? {
                Some(number) => SeekResult::At(number),
                None if sample.is_whole() => SeekResult::At(oldest),
                None => SeekResult::Evicted(oldest),
            },
        })
    }

    async fn last_message(mut self, topic: &Topic, payload: Option<&str>) -> Result<Option<Message>, Fault> {
        let mut pipeline = redis::pipe();
        pipeline.add_command(self.range("XREVRANGE", "+", "-", 1));
        let [found] = self.ask(pipeline).await?;
        let last = entries_of(found)?.into_iter().next();
        Ok(last.and_then(|entry| {
            let number = entry.id.number()?;
            Some(entry.into_message(number, &Filter::from(topic.clone()), topic, payload))
        }))
    }

    /// Whether `number` was given by a server that was replaced by one that lacks the entry. The new server may have
    /// added entries with lower ids, if its clock is behind. If the position is not an entry, or entries after it were
    /// deleted, this remains unknown.
    async fn is_of_another_history(&mut self, number: Seq, sample: &Sample) -> Result<bool, Fault> {
        let id = EntryId::of(number);
        let is_within = sample.first.is_some_and(|first| first < id) && id <= sample.last;
        if !is_within || id.is_last_of_its_millisecond() || sample.deleted >= id {
            return Ok(false);
        }
        let mut pipeline = redis::pipe();
        pipeline.add_command(self.range("XRANGE", &id.to_string(), &id.to_string(), 1));
        let [found] = self.ask(pipeline).await?;
        Ok(entries_of(found)?.is_empty())
    }

    /// The number before the last `wanted` entries; `None` if there are fewer.
    async fn last(&mut self, wanted: usize) -> Result<Option<Seq>, Fault> {
        let (mut end, mut left) = ("+".to_owned(), wanted);
        while left > 0 {
            let count = self.size.fitting(FETCH_BYTES, FETCH_MESSAGES).min(left);
            let mut pipeline = redis::pipe();
            pipeline.add_command(self.range("XREVRANGE", &end, "-", count));
            let [answer] = self.ask(pipeline).await?;
            let entries = entries_of(answer)?;
            self.size.learn(entries.iter());
            let Some(oldest) = entries.last().map(|entry| entry.id) else { return Ok(None) };
            left = left.saturating_sub(entries.len());
            if left == 0 {
                return Ok(Some(oldest.number_at_most().unwrap_or(Seq::MAX).previous()));
            }
            end = format!("({oldest}");
        }
        Ok(None)
    }

    async fn publish(
        mut self,
        payload: &Bytes,
        headers: &Headers,
        field: Option<&str>,
    ) -> Result<Seq, Fault> {
        let mut command = redis::cmd("XADD");
        command.arg(self.name).arg("*");
        for (name, value) in entry::fields(payload, headers, field)? {
            command.arg(name).arg(value);
        }
        let id: Value = command.query_async(&mut self.connection).await?;
        let number = EntryId::from_value(&id).and_then(EntryId::number);
        // It was stored, but at a position that no reader can reach.
        number.ok_or_else(|| {
            BrokerError::Refused("the stream's ids are beyond what an event id can express".into()).into()
        })
    }

    fn range(&self, command: &str, from: &str, to: &str, count: usize) -> redis::Cmd {
        let mut range = redis::cmd(command);
        range.arg(self.name).arg(from).arg(to).arg("COUNT").arg(count);
        range
    }

    async fn ask<const N: usize>(
        &mut self,
        mut pipeline: redis::Pipeline,
    ) -> Result<[Result<Value, RedisError>; N], Fault> {
        let answers: Vec<_> = pipeline.ignore_errors().query_async(&mut self.connection).await?;
        answers.try_into().map_err(|_| garbled())
    }
}

fn garbled() -> Fault {
    Fault::Connection("the server's answer is not one of Redis Streams".into())
}

fn entries(value: Value) -> Result<Vec<Entry>, Fault> {
    Entry::list(value).ok_or_else(garbled)
}

fn entries_of(answer: Result<Value, RedisError>) -> Result<Vec<Entry>, Fault> {
    entries(answer?)
}

fn number_of_last(messages: &[Message]) -> Option<Seq> {
    Some(messages.last()?.stored?.number)
}

/// The start of a range after `number`.
fn exclusive(number: Seq) -> String {
    if number.is_start() { "-".into() } else { format!("({}", EntryId::of(number)) }
}

/// The highest number before a time.
fn before(time: SystemTime) -> Seq {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    pack_entry_id(ms, 0).map_or(Seq::MAX, Seq::previous)
}
