//! What was set, each value in its type and within its bounds: the tables of the configuration are read from it, and say
//! through it what is wrong. It also remembers what holds for each key, for those who want to see it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::error::{ConfigError, spell};
use super::keys;
use super::layers::Layers;
use super::secret::Secret;
use super::value::Given;

pub(super) struct Input<'a> {
    layers: &'a Layers,
    given: BTreeMap<String, Given>,
    /// The number of rules that were written. `None`: `topics` was not set.
    rules: Option<usize>,
    /// Texts with nothing in them.
    empty: Vec<String>,
    /// Keys that were set and cannot be used: their absence is no fault of its own.
    failed: BTreeSet<String>,
    errors: Vec<ConfigError>,
    holds: BTreeMap<String, Option<Given>>,
}

/// A type that a key may have.
pub(super) trait Typed: Sized {
    /// `None`: the key is of another kind.
    fn of(given: Given) -> Option<Self>;
}

impl<'a> Input<'a> {
    pub(super) fn new(layers: &'a Layers) -> Self {
        Input {
            layers,
            given: BTreeMap::new(),
            rules: None,
            empty: vec![],
            failed: BTreeSet::new(),
            errors: vec![],
            holds: BTreeMap::new(),
        }
    }

    pub(super) fn set(&mut self, path: String, given: Given) {
        self.given.insert(path, given);
    }

    pub(super) fn set_rules(&mut self, rules: usize) {
        self.rules = Some(rules);
    }

    pub(super) fn set_empty(&mut self, path: String) {
        self.empty.push(path);
    }

    /// Says what is wrong with a key whose value is of no use.
    pub(super) fn fail(&mut self, path: &str, problem: impl Into<String>) {
        self.fail_from(path, self.origin(path), problem);
    }

    /// As [`Input::fail`], with where the value came from.
    pub(super) fn fail_from(&mut self, path: &str, origin: String, problem: impl Into<String>) {
        self.errors.push(ConfigError::at(path, origin, problem));
        self.failed.insert(path.to_owned());
    }

    /// Says what is wrong with a key, unless it failed before.
    /// The text at `path` may be empty: that means something there.
    pub(super) fn may_be_empty(&mut self, path: &str) {
        self.empty.retain(|empty| empty != path);
    }

    pub(super) fn refuse(&mut self, path: &str, problem: impl Into<String>) {
        if !self.has_failed(path) {
            self.errors.push(ConfigError::at(path, self.origin(path), problem));
        }
    }

    pub(super) fn has_failed(&self, path: &str) -> bool {
        self.failed.contains(path)
    }

    /// Whether a key of the table failed, or the table itself.
    pub(super) fn has_failed_within(&self, table: &str) -> bool {
        self.failed.iter().any(|path| is_within(path, table))
    }

    /// Where the value at `path` came from, or the table around it.
    pub(super) fn origin(&self, path: &str) -> String {
        self.layers.origin(path)
    }

    /// Where the value at `path` came from, if it was set.
    pub(super) fn origin_of_set(&self, path: &str) -> Option<String> {
        self.layers.origin_of_set(path)
    }

    pub(super) fn rules(&self) -> Option<usize> {
        self.rules
    }

    pub(super) fn is_set(&self, path: &str) -> bool {
        self.given.contains_key(path)
    }

    /// Whether a key of the table was set.
    pub(super) fn has_table(&self, table: &str) -> bool {
        self.given.keys().any(|path| is_within(path, table))
    }

    /// Whether a key of the table was set, other than `key`.
    pub(super) fn has_table_beside(&self, table: &str, key: &str) -> bool {
        self.given.keys().any(|path| path != key && is_within(path, table))
    }

    /// What was set, or the default.
    pub(super) fn get_if_any<T: Typed>(&mut self, path: &str) -> Option<T> {
        let given = self.given.get(path).cloned();
        let given = given.or_else(|| keys::at(path).and_then(|key| key.default_value()));
        self.holds.insert(path.to_owned(), given.clone());
        given.and_then(T::of)
    }

    /// What was set, or the default, of a key that has one.
    pub(super) fn get<T: Typed + Default>(&mut self, path: &str) -> T {
        self.get_or(path, T::default())
    }

    pub(super) fn address(&mut self, path: &str) -> SocketAddr {
        self.get_or(path, SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// `otherwise` stands in for a default that the table of keys lacks. That is a mistake of this program, which any test
    /// that reads the key shows.
    fn get_or<T: Typed>(&mut self, path: &str, otherwise: T) -> T {
        self.get_if_any(path).unwrap_or_else(|| {
            self.refuse(path, "has no default of its type in the table of keys");
            otherwise
        })
    }

    /// The value of the word that was set, or of the default. The table of keys has refused other words than these; were one
    /// missing here, it would be `otherwise`.
    pub(super) fn choice<T: Copy>(&mut self, path: &str, otherwise: T, words: &[(&str, T)]) -> T {
        let word: String = self.get(path);
        words.iter().find(|(name, _)| *name == word).map_or(otherwise, |(_, value)| *value)
    }

    /// What holds for a key, where its table does not say it as it was read: `None` if the key does not matter here.
    pub(super) fn holds(&mut self, path: &str, given: Option<Given>) {
        self.holds.insert(path.to_owned(), given);
    }

    /// What holds for a key. `None` if nothing asked for it; `Some(None)` if it is not set.
    pub(super) fn held(&self, path: &str) -> Option<Option<&Given>> {
        self.holds.get(path).map(Option::as_ref)
    }

    /// Everything that is wrong.
    pub(super) fn into_errors(mut self) -> Vec<ConfigError> {
        for path in std::mem::take(&mut self.empty) {
            // Unless something more fitting was said.
            if !self.errors.iter().any(|error| error.key == spell(&path)) {
                self.fail(&path, "is empty; write a value, or remove the key");
            }
        }
        self.errors
    }
}

fn is_within(path: &str, table: &str) -> bool {
    path.strip_prefix(table).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Of which values a type is made.
macro_rules! typed {
    ($($type:ty: $given:pat => $value:expr,)*) => {$(
        impl Typed for $type {
            fn of(given: Given) -> Option<Self> {
                if let $given = given { Some($value) } else { None }
            }
        }
    )*};
}

typed! {
    String: Given::Text(text) => text,
    PathBuf: Given::Text(path) => path.into(),
    Secret: Given::Secret(secret) | Given::Url(secret) => secret,
    SocketAddr: Given::Address(address) => address,
    Vec<String>: Given::List(texts) => texts,
    bool: Given::Flag(flag) => flag,
    f64: Given::Share(share) => share,
    usize: Given::Count(count) => count,
    u64: Given::Size(size) => size,
    Duration: Given::Duration(duration) => duration,
    Vec<(&'static str, String)>: Given::Named(fields) => fields,
}
