//! Shard channels in slot migration: they should be subscribed here but are not, because their slot has moved and the
//! new shard is not known yet, or because they have just come from another shard. They are tried again until the server
//! accepts them or their shard is known.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use tokio::time::Instant;

/// How long until a migrating channel is tried again.
const RETRY: Duration = Duration::from_millis(100);

/// The migrating channels of one shard.
pub(crate) struct MigratingChannels {
    channels: BTreeSet<String>,
    /// Channels to which the session that is being established subscribes.
    arriving: BTreeSet<String>,
    /// Channels that are being tried, and have not moved again since.
    tried: BTreeSet<String>,
    retry_at: Instant,
    /// Channels for which an UNSUBSCRIBE is pending: these are not migrating.
    leaving: HashSet<String>,
}

impl MigratingChannels {
    pub(crate) fn new() -> Self {
        MigratingChannels {
            channels: BTreeSet::new(),
            arriving: BTreeSet::new(),
            tried: BTreeSet::new(),
            retry_at: Instant::now(),
            leaving: HashSet::new(),
        }
    }

    /// Called when a session begins that subscribes to all of them.
    pub(crate) fn begin(&mut self) {
        self.arriving.append(&mut self.channels);
        self.leaving.clear();
    }

    /// Called when the session is established. Returns the channels that were migrating and are subscribed now.
    pub(crate) fn arrived(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.arriving)
    }

    /// Adds a migrating channel that may belong here.
    pub(crate) fn enter(&mut self, channel: String) {
        self.channels.insert(channel);
        self.retry_at = Instant::now();
    }

    /// Adds a channel that has just been rejected here.
    pub(crate) fn go_astray(&mut self, channel: String) {
        if self.channels.is_empty() {
            self.retry_at = Instant::now() + RETRY;
        }
        self.tried.remove(&channel);
        self.channels.insert(channel);
    }

    pub(crate) fn remove(&mut self, channel: &str) {
        self.channels.remove(channel);
        self.arriving.remove(channel);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &String> {
        self.channels.iter()
    }

    /// When the channels are tried again; `None` if there are none.
    pub(crate) fn next_at(&self) -> Option<Instant> {
        (!self.channels.is_empty()).then_some(self.retry_at)
    }

    /// The channels to try now.
    pub(crate) fn due(&mut self) -> Vec<String> {
        let now = Instant::now();
        if self.retry_at > now {
            return Vec::new();
        }
        self.retry_at = now + RETRY;
        self.tried.clone_from(&self.channels);
        self.channels.iter().cloned().collect()
    }

    /// Called when the server accepted a channel that was tried. Returns whether it is still subscribed.
    pub(crate) fn has_arrived(&mut self, channel: &str) -> bool {
        self.tried.remove(channel) && self.channels.remove(channel)
    }

    pub(crate) fn retain(&mut self, is_wanted: impl Fn(&str) -> bool) {
        self.channels.retain(|channel| is_wanted(channel));
    }

    /// Records that an UNSUBSCRIBE was sent for these channels.
    pub(crate) fn ask_to_leave<'a>(&mut self, channels: impl Iterator<Item = &'a str>) {
        self.leaving.extend(channels.map(str::to_owned));
    }

    /// Called when the server reports that a channel is unsubscribed. Returns whether we requested that.
    pub(crate) fn was_asked(&mut self, channel: &str) -> bool {
        self.leaving.remove(channel)
    }

    /// Called when all pending UNSUBSCRIBEs have been answered.
    pub(crate) fn all_have_left(&mut self) {
        self.leaving.clear();
    }
}
