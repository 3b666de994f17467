//! One key of the configuration, as the table in `keys.rs` describes it. It is only data.

use std::time::Duration;

use self::Kind::{Count, Size};

/// A key.
#[derive(Debug)]
pub(super) struct Key {
    /// The path, with dots; the keys of a rule begin with `topics.`, without the number of the rule.
    pub(super) path: &'static str,
    pub(super) kind: Kind,
    /// The default, as people write it. `None`: not set, or it depends on another setting.
    pub(super) default: Option<&'static str>,
    /// Whether a change takes effect only after a restart.
    pub(super) needs_restart: bool,
    /// Its purpose, in one sentence.
    pub(super) about: &'static str,
}

/// The kind of its value, with its bounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kind {
    Text,
    /// Text that is never shown, and that must not have white space around it.
    Secret,
    /// Text that is shown without a user, a password and a query.
    Url,
    /// The path of a file.
    Path,
    /// An address and a port.
    Address,
    /// A list of texts; as one text, it is separated by commas.
    List,
    /// True or false.
    Flag,
    /// A number from 0 to 1.
    Share,
    Count {
        min: u64,
        max: u64,
    },
    /// Bytes.
    Size {
        min: u64,
        max: u64,
    },
    Duration {
        min: Duration,
        max: Duration,
    },
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A table with one of these keys, whose value is text.
    Named(&'static [&'static str]),
}

pub(super) const KIB: u64 = 1024;
pub(super) const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;

/// The largest duration: more is not useful for any key, and timers overflow far beyond it.
pub(super) const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// The largest count: more is a typing error, and too many for some tables.
pub(super) const COUNT: Kind = Count { min: 1, max: 1_000_000_000 };

/// A size without a maximum.
pub(super) const SIZE: Kind = size(1, 1024 * GIB);

/// A duration that may be zero.
pub(super) const DURATION: Kind = seconds(0, LONGEST.as_secs());

/// A duration of at least a second.
pub(super) const SECONDS: Kind = seconds(1, LONGEST.as_secs());

pub(super) const fn size(min: u64, max: u64) -> Kind {
    Size { min, max }
}

/// The least and the most, in seconds.
pub(super) const fn seconds(min: u64, max: u64) -> Kind {
    millis(min * 1000, max * 1000)
}

/// The least and the most, in milliseconds.
pub(super) const fn millis(min: u64, max: u64) -> Kind {
    Kind::Duration { min: Duration::from_millis(min), max: Duration::from_millis(max) }
}

pub(super) const fn key(path: &'static str, kind: Kind, about: &'static str) -> Key {
    Key { path, kind, default: None, needs_restart: false, about }
}

impl Key {
    pub(super) const fn default(self, default: &'static str) -> Self {
        Key { default: Some(default), ..self }
    }

    /// Whether its value is a list or a table.
    pub(super) fn has_parts(&self) -> bool {
        matches!(self.kind, Kind::List | Kind::Named(_))
    }

    pub(super) const fn restart(self) -> Self {
        Key { needs_restart: true, ..self }
    }
}
