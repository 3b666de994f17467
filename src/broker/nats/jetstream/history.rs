//! Reads the stored messages of a stream: fetches ranges, and finds positions. It changes nothing.

use std::collections::HashMap;

use super::info::{Config, Info};
use super::names::Names;
use super::page::{First, StreamReader};
use super::raw_message::{Meaning, RawMessage};
use super::stream::Holes;
use crate::broker::{BrokerError, Change, Fetched, Message};
use crate::protocol::seek::{Seek, SeekResult};
use crate::protocol::seq::Seq;
use crate::protocol::source::Source;
use crate::protocol::topic::Filter;

/// The most steps of a binary search among 64-bit numbers, including the steps to the first bounds.
const STEPS: usize = 128;

/// A query for stored messages.
pub(super) struct HistoryQuery {
    pub(super) filter: Filter,
    pub(super) source: Source,
    pub(super) names: Names,
}

impl HistoryQuery {
    fn is_kv(&self) -> bool {
        matches!(self.source, Source::Kv { .. })
    }

    /// The stored messages after `after`, up to `until` at most.
    pub(super) async fn fetch(
        &self,
        stream: &StreamReader<'_>,
        config: &Config,
        after: Seq,
        until: Seq,
    ) -> Result<Fetched, BrokerError> {
        if until <= after {
            return Ok(Fetched {
                through: after,
                gone: None,
                is_hole: false,
                torn: false,
                messages: Vec::new(),
            });
        }
        let mut page = stream.page(after.next()).await?;
        let mut part = match page.messages.last().map(|last| last.number) {
            Some(last) if last >= until => PartialFetch::of(page.messages, until),
            Some(last) if page.more > 0 => PartialFetch::of(page.messages, last),
            last => {
                // The end, according to the replica that answered; the leader knows what a lagging replica does not
                // have yet.
                let missed = stream.next(last.unwrap_or(after).next()).await?;
                match missed.filter(|missed| missed.number <= until) {
                    Some(missed) => {
                        let number = missed.number;
                        page.messages.push(missed);
                        PartialFetch::of(page.messages, number)
                    }
                    None => PartialFetch::of(page.messages, until),
                }
            }
        };
        if self.is_kv() {
            self.values(stream, config, &mut part, after, until).await?;
        } else if !part.is_unbroken(after) {
            let holes = Holes::of(stream.api, stream.name).await?;
            let (holes, _) = holes.ok_or_else(|| BrokerError::Refused("the stream is no more".into()))?;
            part.drop_evicted(&holes, after, until);
            if part.gone.is_none()
                && let Some(hole) = part.hole(&holes, after)
                && !self.is_kept(stream, after).await?
            {
                part.stop_before(hole);
            }
            part.torn = part.gone.is_some_and(|gone| part.hole(&holes, gone).is_some());
        }
        let messages = part.messages.into_iter().filter_map(|held| {
            match held.read(&self.filter, &self.names, &self.source) {
                Meaning::Message(message) => Some(message),
                Meaning::Unnameable | Meaning::Other => None,
            }
        });
        let PartialFetch { through, gone, is_hole, torn, .. } = part;
        Ok(Fetched { through, gone, is_hole, torn, messages: messages.collect() })
    }

    /// Keeps one value for each key that is not deleted, and the deletion of a single key whose older value its reader may
    /// have. A value that was overwritten before it was read is not a loss:
    /// the new value is in this range, in a later one, or among the followed messages.
    async fn values(
        &self,
        stream: &StreamReader<'_>,
        config: &Config,
        part: &mut PartialFetch,
        after: Seq,
        until: Seq,
    ) -> Result<(), BrokerError> {
        let mut last = HashMap::new();
        for held in &part.messages {
            last.insert(held.subject.clone(), held.number);
        }
        if config.max_msgs_per_subject != 1 {
            let subjects: Vec<&str> = last.keys().map(String::as_str).collect();
            let newest =
                if subjects.is_empty() { None } else { Some(stream.last_of(&subjects, until).await?) };
            for held in newest.into_iter().flat_map(|page| page.messages) {
                last.insert(held.subject, held.number);
            }
        }
        let with_deletion = !self.filter.is_pattern() && !after.is_start();
        part.messages.retain(|held| {
            last.get(&held.subject) == Some(&held.number)
                && (with_deletion || held.change(&self.source) == Change::Put)
        });
        Ok(())
    }

    /// Whether nothing of the filter after `after` can have been dropped: limits drop the oldest message of a subject
    /// first, and the stream still has one that is not younger. Works for a single subject only. (A message that is
    /// deleted by its number, or has its own time to live, is meant to be gone.)
    async fn is_kept(&self, stream: &StreamReader<'_>, after: Seq) -> Result<bool, BrokerError> {
        Ok(!self.filter.is_pattern()
            && stream.next(Seq::new(1)).await?.is_some_and(|oldest| oldest.number <= after))
    }

    /// The last message of the topic, according to the leader.
    pub(super) async fn last_message(
        &self,
        stream: &StreamReader<'_>,
    ) -> Result<Option<Message>, BrokerError> {
        let held = stream.last().await?;
        Ok(held.and_then(|held| match held.read(&self.filter, &self.names, &self.source) {
            Meaning::Message(message) => Some(message),
            Meaning::Unnameable | Meaning::Other => None,
        }))
    }

    /// Finds a position. `info` is the leader's.
    pub(super) async fn locate(
        &self,
        stream: &StreamReader<'_>,
        info: &Info,
        seek: Seek,
    ) -> Result<SeekResult, BrokerError> {
        let state = &info.state;
        let oldest = state.first_seq.previous();
        Ok(match seek {
            Seek::After(number) if number > state.last_seq => SeekResult::Unknown(oldest),
            // Its last message says what has changed. Without one, its deletion may have been removed.
            Seek::After(number) if self.is_kv() && !self.filter.is_pattern() => match stream.last().await? {
                Some(_) => SeekResult::At(number),
                None => SeekResult::Evicted(number),
            },
            // A bucket drops old values, which is not a loss.
            Seek::After(number) if number < oldest && !self.is_kv() => SeekResult::Evicted(oldest),
            Seek::After(number) => SeekResult::At(number),
            Seek::Oldest => SeekResult::At(oldest),
            Seek::Since(time) if time > state.last_ts => SeekResult::At(state.last_seq),
            // Purged: at least the last message of that time is gone.
            Seek::Since(_) if state.messages == 0 && !oldest.is_start() && !self.is_kv() => {
                SeekResult::Evicted(oldest)
            }
            Seek::Since(time) if time >= state.first_ts => SeekResult::At(stream.before(time).await?),
            Seek::Since(_) if !oldest.is_start() && !self.is_kv() => SeekResult::Evicted(oldest),
            Seek::Since(_) => SeekResult::At(oldest),
            Seek::Last(count) => SeekResult::At(self.last(stream, info, count as u64).await?),
        })
    }

    /// The number before the last `count` messages, found by a binary search for how many follow a number.
    async fn last(&self, stream: &StreamReader<'_>, info: &Info, count: u64) -> Result<Seq, BrokerError> {
        let oldest = info.state.first_seq.get().max(1);
        // Once `back` is `None`, at least `count` follow from `low` on, and fewer from `high` on.
        let (mut low, mut high) = (oldest, info.state.last_seq.get() + 1);
        if count == 0 {
            return Ok(Seq::new(high - 1));
        }
        // Goes further back until enough follow. In a stream of only these messages, the first guess is right.
        let mut back = Some(count);
        for _ in 0..STEPS {
            let guess = match back {
                Some(back) => high.saturating_sub(back).max(oldest),
                None if low + 1 < high => low + (high - low) / 2,
                None => break,
            };
            match stream.first(Seq::new(guess)).await? {
                Some(First { number, more }) if more + 1 == count => return Ok(number.previous()),
                Some(First { number, more }) if more + 1 > count => (low, back) = (number.get(), None),
                _ if guess == oldest => break, // there are fewer messages
                _ => (high, back) = (guess, back.map(|back| back.saturating_mul(4))),
            }
        }
        Ok(Seq::new(low - 1))
    }
}

/// A range that is being assembled for [`Fetched`].
struct PartialFetch {
    through: Seq,
    gone: Option<Seq>,
    is_hole: bool,
    torn: bool,
    messages: Vec<RawMessage>,
}

impl PartialFetch {
    fn of(mut messages: Vec<RawMessage>, through: Seq) -> Self {
        messages.retain(|held| held.number <= through);
        PartialFetch { through, gone: None, is_hole: false, torn: false, messages }
    }

    /// Whether there is a message for each number after `after`.
    fn is_unbroken(&self, after: Seq) -> bool {
        self.messages.len() as u64 == self.through.distance(after)
    }

    /// Removes the messages that the stream has dropped meanwhile: some were read before that, some were not.
    fn drop_evicted(&mut self, holes: &Holes, after: Seq, until: Seq) {
        let evicted = holes.oldest().previous().min(until);
        if evicted > after {
            self.gone = Some(evicted);
            self.through = self.through.max(evicted);
            self.messages.retain(|held| held.number > evicted);
        }
    }

    /// The first number for which the stream may have lost a message.
    fn hole(&self, holes: &Holes, after: Seq) -> Option<Seq> {
        let numbers = self.messages.iter().map(|held| held.number).chain([self.through.next()]);
        let mut before = after;
        for number in numbers {
            if let Some(hole) = holes.between(before, number) {
                return Some(hole);
            }
            before = number;
        }
        None
    }

    /// Ensures that the hole is at the beginning of a range, because a range can report a loss only there. If messages
    /// come before the hole, they are this range, and the hole begins the next.
    fn stop_before(&mut self, hole: Seq) {
        match self.messages.first() {
            Some(first) if first.number < hole => {
                self.messages.retain(|held| held.number < hole);
                self.through = hole.previous();
            }
            first => {
                self.gone = Some(first.map_or(self.through, |first| first.number.previous()));
                self.is_hole = true;
            }
        }
    }
}
