//! Channels that are not simply subscribed or not subscribed: on their way to the server, or between two shards of a cluster.
//!
//! A shard channel whose slot has moved, and which no shard is known to have, is tried again and again, until the server takes
//! it or its shard is known. Which channels are wanted is in `table.rs`; this talks to nobody.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use super::table::Name;
use crate::broker::BrokerError;

/// How long until a migrating channel is tried again.
const RETRY: Duration = Duration::from_millis(100);

/// How it stands with one channel. One that has no state is subscribed if it is in the table, and is not if not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ChannelState {
    /// Wanted, and not subscribed here: its slot has moved, or it comes from another shard. To be tried.
    Migrating,
    /// As `Migrating`, and the server is being asked for it.
    Tried,
    /// It was `Migrating`, and the connection that is being made subscribes to it.
    Arriving,
    /// Wanted no longer. The next change unsubscribes from it.
    Unwanted,
    /// Wanted no longer. The server was asked to unsubscribe from it, and has not said that it did.
    Leaving,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct ChannelStates {
    states: HashMap<Name, ChannelState>,
    /// When those that migrate are tried next. There may be none by then.
    retry_at: Option<Instant>,
}

impl ChannelStates {
    /// A connection is being made that subscribes to all that is wanted, and to nothing else.
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

    /// The connection is made. Returns those that migrated before it.
    pub(super) fn arrived(&mut self) -> HashSet<Name> {
        let arrived = self.states.extract_if(|_, state| *state == ChannelState::Arriving);
        arrived.map(|(name, _)| name).collect()
    }

    /// A channel has come from another shard.
    pub(super) fn adopt(&mut self, name: Name) {
        self.states.insert(name, ChannelState::Migrating);
        self.retry_at = Some(Instant::now());
    }

    /// The server has said that a channel has no place there.
    pub(super) fn go_astray(&mut self, name: Name) {
        self.states.insert(name, ChannelState::Migrating);
        self.retry_at.get_or_insert_with(|| Instant::now() + RETRY);
    }

    /// A channel is subscribed no longer, and the server has to be asked for that.
    pub(super) fn unwanted(&mut self, name: Name) {
        self.states.insert(name, ChannelState::Unwanted);
    }

    /// A channel is held no longer, and the server need not be asked for that.
    pub(super) fn remove(&mut self, name: &Name) {
        self.states.remove(name);
    }

    /// Those that are to be unsubscribed from now.
    pub(super) fn take_unwanted(&mut self) -> HashSet<Name> {
        let unwanted = self.states.extract_if(|_, state| *state == ChannelState::Unwanted);
        unwanted.map(|(name, _)| name).collect()
    }

    /// Records that an UNSUBSCRIBE was sent for these channels.
    pub(super) fn leave<'a>(&mut self, names: impl Iterator<Item = &'a Name>) {
        self.states.extend(names.map(|name| (name.clone(), ChannelState::Leaving)));
    }

    /// The server says that a channel is subscribed no longer. Returns whether it was asked for that.
    pub(super) fn has_left(&mut self, name: &Name) -> bool {
        let is_leaving = self.states.get(name) == Some(&ChannelState::Leaving);
        is_leaving && self.states.remove(name).is_some()
    }

    /// Called when all pending UNSUBSCRIBEs have been answered.
    pub(super) fn all_have_left(&mut self) {
        self.states.retain(|_, state| *state != ChannelState::Leaving);
    }

    /// Whether a channel is wanted and not subscribed. What comes of it then is left out: once it is subscribed, a loss is told.
    pub(super) fn is_migrating(&self, channel: &str) -> bool {
        // Hardly ever is there one.
        !self.states.is_empty()
            && matches!(
                self.states.get(&Name::Channel(channel.to_owned())),
                Some(ChannelState::Migrating | ChannelState::Tried)
            )
    }

    /// When something is to be tried; `None` if nothing is.
    pub(super) fn next_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Those that the server is to be asked for now, of those that are wanted.
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

    /// Takes the answer for those that were tried: what was not done is in `faults`. Returns those that are subscribed now. One
    /// that has gone again since is tried again.
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
