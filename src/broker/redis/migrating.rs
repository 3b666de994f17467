//! Shard channels that should be subscribed here and are not: their slot has moved, and where to is not known yet, or they have
//! come from another shard just now. They are tried again and again, until the server takes them or their shard is known.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use tokio::time::Instant;

/// A channel that was not where it should be is tried again after this.
const RETRY: Duration = Duration::from_millis(100);

/// See the module.
pub(crate) struct MigratingChannels {
    channels: BTreeSet<String>,
    /// Those to which the session subscribes that is being established.
    arriving: BTreeSet<String>,
    /// Those that are being tried, and have not gone again since.
    tried: BTreeSet<String>,
    retry_at: Instant,
    /// Those that the server was asked to unsubscribe from and has not said so yet: they are no strays.
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

    /// A session is being established that subscribes to all of them.
    pub(crate) fn begin(&mut self) {
        self.arriving.append(&mut self.channels);
        self.leaving.clear();
    }

    /// It is established. Returns those that were strays before, and are none now.
    pub(crate) fn arrived(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.arriving)
    }

    /// A stray that may have its place here.
    pub(crate) fn enter(&mut self, channel: String) {
        self.channels.insert(channel);
        self.retry_at = Instant::now();
    }

    /// A stray that has just been told to have no place here.
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

    /// When they are tried again; `None` if there are none.
    pub(crate) fn next_at(&self) -> Option<Instant> {
        (!self.channels.is_empty()).then_some(self.retry_at)
    }

    /// Those that are to be tried now.
    pub(crate) fn due(&mut self) -> Vec<String> {
        let now = Instant::now();
        if self.retry_at > now {
            return Vec::new();
        }
        self.retry_at = now + RETRY;
        self.tried.clone_from(&self.channels);
        self.channels.iter().cloned().collect()
    }

    /// The server has taken one that was tried. Whether it is there still.
    pub(crate) fn has_arrived(&mut self, channel: &str) -> bool {
        self.tried.remove(channel) && self.channels.remove(channel)
    }

    pub(crate) fn retain(&mut self, is_wanted: impl Fn(&str) -> bool) {
        self.channels.retain(|channel| is_wanted(channel));
    }

    /// The server is asked to unsubscribe from these.
    pub(crate) fn ask_to_leave<'a>(&mut self, channels: impl Iterator<Item = &'a str>) {
        self.leaving.extend(channels.map(str::to_owned));
    }

    /// The server says that a channel is subscribed no longer. Whether it was asked for that.
    pub(crate) fn was_asked(&mut self, channel: &str) -> bool {
        self.leaving.remove(channel)
    }

    /// All that was asked is answered.
    pub(crate) fn all_have_left(&mut self) {
        self.leaving.clear();
    }
}
