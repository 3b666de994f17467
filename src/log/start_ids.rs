//! The client's event id, as each sequence of a stream reads it.
//!
//! A client may change what its stream carries: it opens the new list of topics with its last event id. Then the id may
//! have no position in a sequence that was not in the old list. Such a sequence begins live, without a gap. But an id has no
//! position either in a sequence that has replaced the one that it knows, and there messages may be missing. Where the two
//! cannot be told apart, there is a gap.

use std::sync::Arc;

use smallvec::SmallVec;

use super::registry::Lease;
use crate::protocol::event_id::{COMPONENTS, ParsedEventId, Position, Sequence, is_before_first};
use crate::protocol::seek::{SeekResult, Start};
use crate::protocol::seq::Seq;
use crate::protocol::topic::Filter;

/// The leases of one sequence.
pub(super) struct Group<'a> {
    pub(super) sequence: Arc<Sequence>,
    pub(super) leases: SmallVec<[&'a Lease; 1]>,
}

/// Groups leases by sequence, in the order in which the first of each comes.
pub(super) fn groups<'a>(leases: impl Iterator<Item = &'a Lease>) -> SmallVec<[Group<'a>; 1]> {
    let mut groups: SmallVec<[Group<'a>; 1]> = SmallVec::new();
    for lease in leases {
        match groups.iter_mut().find(|group| Arc::ptr_eq(&group.sequence, lease.sequence())) {
            Some(group) => group.leases.push(lease),
            None => groups
                .push(Group { sequence: lease.sequence().clone(), leases: SmallVec::from_iter([lease]) }),
        }
    }
    groups
}

/// The positions of the client's event id in each group; `None` if the client sent none. `answers` are those of the broker;
/// `None`: it was not asked yet.
pub(super) fn start_ids<'a>(
    start: &'a Start,
    groups: &[Group<'_>],
    answers: Option<&[(Filter, SeekResult)]>,
) -> Vec<Option<ParsedEventId<'a>>> {
    let text = match start {
        Start::After(Some(text)) => text,
        Start::After(None) => return vec![Some(ParsedEventId::Unknown); groups.len()],
        _ => return vec![None; groups.len()],
    };
    let ids = match text.contains('-') || !text.contains(COMPONENTS) {
        true => of_one(text, groups, answers),
        false => of_several(text, groups),
    };
    ids.into_iter().map(Some).collect()
}

/// The positions of the client's event id in each lease, before the broker was asked.
pub(super) fn ids_of_leases<'a>(leases: &[Lease], start: &'a Start) -> Vec<Option<ParsedEventId<'a>>> {
    let groups = groups(leases.iter());
    let ids = start_ids(start, &groups, None);
    let id_of = |lease: &Lease| {
        let group = groups.iter().position(|group| Arc::ptr_eq(&group.sequence, lease.sequence()))?;
        ids[group]
    };
    leases.iter().map(id_of).collect()
}

/// An id of a stream of one sequence.
fn of_one<'a>(
    text: &'a str,
    groups: &[Group<'_>],
    answers: Option<&[(Filter, SeekResult)]>,
) -> Vec<ParsedEventId<'a>> {
    let mut ids: Vec<_> = groups.iter().map(|group| group.sequence.read_event_id(text)).collect();
    // The id of an entry of a Redis Stream does not name its key: it is of the key that has the entry.
    let is_of = |group: &Group<'_>, number| {
        let answers = answers.unwrap_or_default();
        !group.sequence.is_shuffled() || group.leases.iter().all(|lease| has(lease, number, answers))
    };
    let of: Vec<bool> = groups
        .iter()
        .zip(&ids)
        .map(|(group, id)| matches!(id, ParsedEventId::Own { position, .. } if is_of(group, position.number)))
        .collect();
    if of.contains(&true) {
        for ((id, _), group) in ids.iter_mut().zip(&of).zip(groups).filter(|((_, is_of), _)| !**is_of) {
            // Another key may have the entry too: only the broker knows.
            let is_open = answers.is_none() && matches!(id, ParsedEventId::Own { .. });
            // The position in an empty key names no entry: it may be of this key, which has been created since.
            let is_vague = matches!(
                id,
                ParsedEventId::Own { position, .. }
                    if position.number.is_start() || is_before_first(position.number)
            );
            if !is_open && !is_vague && group.leases.iter().all(|lease| lease.has_one_source()) {
                *id = ParsedEventId::Absent;
            }
        }
    }
    ids
}

fn has(lease: &Lease, number: Seq, answers: &[(Filter, SeekResult)]) -> bool {
    match answers.iter().find(|(filter, _)| filter == lease.filter()) {
        Some((_, located)) => matches!(located, SeekResult::At(_)),
        None => lease.log().has(number),
    }
}

/// An id of a stream of several sequences.
fn of_several<'a>(text: &'a str, groups: &[Group<'_>]) -> Vec<ParsedEventId<'a>> {
    let mut parts: Vec<&str> = text.split(COMPONENTS).collect();
    let same_number = parts.len() == groups.len();
    let mut read = |group: &Group<'_>| {
        // Each part once: two rules may read the same stored source, and then have the same tag.
        let found = parts
            .iter()
            .enumerate()
            .find_map(|(index, part)| Some((index, group.sequence.read_component(part)?)))?;
        parts.remove(found.0);
        Some(found.1)
    };
    let found: Vec<Option<Position>> = groups.iter().map(&mut read).collect();
    let knows_some = found.iter().any(Option::is_some);
    let id = |(group, found): (&Group<'_>, Option<Position>)| match found {
        Some(position) => ParsedEventId::Own { position, publisher_id: None },
        None if knows_some && is_absent(group, &parts) => ParsedEventId::Absent,
        // Most likely a position in the sequence that this one has replaced.
        None if same_number => ParsedEventId::Foreign { publisher_id: None },
        None if groups.len() == 1 => group.sequence.read_event_id(text),
        None => ParsedEventId::Unknown,
    };
    groups.iter().zip(found).map(id).collect()
}

/// Whether an id with these other `parts` is of a stream that did not read this sequence, nor the one before it.
fn is_absent(group: &Group<'_>, parts: &[&str]) -> bool {
    let is_before = |part: &&str| {
        let is_other = group.leases.iter().any(|lease| lease.is_followed(part));
        group.sequence.may_have_replaced(part) && (!is_other || group.sequence.has_written(part))
    };
    !parts.iter().any(is_before) && group.leases.iter().all(|lease| lease.has_one_source())
}
