//! The state of channels that are neither simply subscribed nor unsubscribed: a command for them is pending, or they
//! migrate between two shards of a cluster.
//!
//! If the slot of a shard channel has moved and its new shard is unknown, the channel is tried repeatedly, until the
//! server accepts it or its shard is known. `table.rs` says which channels are wanted. This file sends nothing.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use super::table::Name;
use crate::broker::BrokerError;

/// How long to wait before a migrating channel is tried again.
const RETRY: Duration = Duration::from_millis(100);

/// The state of one channel. A channel without a state is subscribed exactly if it is in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ChannelState {
    /// Wanted and not subscribed here, because its slot has moved or it comes from another shard. It will be tried.
    Migrating,
    /// As `Migrating`, and a subscription is pending.
    Tried,
    /// It was `Migrating`, and the connection that is being established subscribes to it.
    Arriving,
    /// No longer wanted. The next change unsubscribes from it.
    Unwanted,
    /// No longer wanted. An UNSUBSCRIBE was sent, and the server has not confirmed it yet.
    Leaving,
}

/// The channels that have a state.
#[derive(Debug, Default)]
pub(super) struct ChannelStates {
    states: HashMap<Name, ChannelState>,
    /// When the migrating channels are tried next. There may be none by then.
    retry_at: Option<Instant>,
}

impl ChannelStates {
    /// Called while a connection is being established that subscribes to all wanted channels and to no others.
    pub(super) fn begin(&mut self) {
        use ChannelState::{Arriving, Leaving, Migrating, Tried, Unwanted};
        self.states.retain(|_, state| match state {
            Migrating | Tried | Arriving => {
                *state = Arriving;
                true
            }
            Unwanted | Leaving => false,
        });
        self.retry_at = None;
    }

    /// Called when the connection is established. Returns the channels that were migrating before it.
    pub(super) fn arrived(&mut self) -> HashSet<Name> {
        let arrived = self.states.extract_if(|_, state| *state == ChannelState::Arriving);
        arrived.map(|(name, _)| name).collect()
    }

    /// Called when a channel has come from another shard.
    pub(super) fn adopt(&mut self, name: Name) {
        self.states.insert(name, ChannelState::Migrating);
        self.retry_at = Some(Instant::now());
    }

    /// Called when the server has reported that it does not serve a channel.
    pub(super) fn go_astray(&mut self, name: Name) {
        self.states.insert(name, ChannelState::Migrating);
        self.retry_at.get_or_insert_with(|| Instant::now() + RETRY);
    }

    /// Called when a channel is no longer wanted and must be unsubscribed.
    pub(super) fn unwanted(&mut self, name: Name) {
        self.states.insert(name, ChannelState::Unwanted);
    }

    /// Called when a channel is no longer wanted and need not be unsubscribed.
    pub(super) fn remove(&mut self, name: &Name) {
        self.states.remove(name);
    }

    /// The channels to unsubscribe from now.
    pub(super) fn take_unwanted(&mut self) -> HashSet<Name> {
        let unwanted = self.states.extract_if(|_, state| *state == ChannelState::Unwanted);
        unwanted.map(|(name, _)| name).collect()
    }

    /// Records that an UNSUBSCRIBE was sent for these channels.
    pub(super) fn leave<'a>(&mut self, names: impl Iterator<Item = &'a Name>) {
        self.states.extend(names.map(|name| (name.clone(), ChannelState::Leaving)));
    }

    /// Called when the server reports that a channel is no longer subscribed. Returns whether an UNSUBSCRIBE was sent.
    pub(super) fn has_left(&mut self, name: &Name) -> bool {
        let is_leaving = self.states.get(name) == Some(&ChannelState::Leaving);
        is_leaving && self.states.remove(name).is_some()
    }

    /// Called when all pending UNSUBSCRIBEs have been answered.
    pub(super) fn all_have_left(&mut self) {
        self.states.retain(|_, state| *state != ChannelState::Leaving);
    }

    /// Whether a channel is wanted and not subscribed. Its messages are dropped until then: once it is subscribed, a loss is
    /// reported.
    pub(super) fn is_migrating(&self, channel: &str) -> bool {
        // Usually no channel has a state.
        !self.states.is_empty()
            && matches!(
                self.states.get(&Name::Channel(channel.to_owned())),
                Some(ChannelState::Migrating | ChannelState::Tried)
            )
    }

    /// When channels are tried next; `None` if there are none.
    pub(super) fn next_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// The wanted channels to try now.
    pub(super) fn due(&mut self, is_wanted: impl Fn(&str) -> bool) -> Vec<Name> {
        let now = Instant::now();
        if self.retry_at.is_none_or(|at| at > now) {
            return Vec::new();
        }
        let mut due = Vec::new();
        self.states.retain(|name, state| {
            if !matches!(state, ChannelState::Migrating | ChannelState::Tried) {
                return true;
            }
            let is_wanted = is_wanted(name.as_str());
            if is_wanted {
                *state = ChannelState::Tried;
                due.push(name.clone());
            }
            is_wanted
        });
        self.retry_at = (!due.is_empty()).then(|| now + RETRY);
        due
    }

    /// Handles the answer for the channels that were tried: `faults` has the failed ones. Returns the channels that are
    /// subscribed now. A channel that the server has dropped again since then is tried again.
    pub(super) fn answered(&mut self, faults: &HashMap<Name, BrokerError>) -> Vec<Name> {
        let mut arrived = Vec::new();
        self.states.retain(|name, state| {
            if *state != ChannelState::Tried {
                return true;
            }
            *state = ChannelState::Migrating;
            let has_failed = faults.contains_key(name);
            if !has_failed {
                arrived.push(name.clone());
            }
            has_failed
        });
        arrived
    }
}
