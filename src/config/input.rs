//! The values that were set, each in its type and within its bounds. The tables of the configuration are read from it and
//! report their errors to it. It also records the value in force of each key, to be shown.

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
    /// The number of rules. `None`: `topics` was not set.
    rules: Option<usize>,
    /// Keys whose text is empty.
    empty: Vec<String>,
    /// Keys that were set to an unusable value: their absence is not another error.
    failed: BTreeSet<String>,
    errors: Vec<ConfigError>,
    in_force: BTreeMap<String, Option<Given>>,
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
            in_force: BTreeMap::new(),
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

    /// Reports an error of a key whose value cannot be used.
    pub(super) fn fail(&mut self, path: &str, problem: impl Into<String>) {
        self.fail_from(path, self.origin(path), problem);
    }

    /// As [`Input::fail`], with the origin of the value.
    pub(super) fn fail_from(&mut self, path: &str, origin: String, problem: impl Into<String>) {
        self.errors.push(ConfigError::at(path, origin, problem));
        self.failed.insert(path.to_owned());
    }

    /// Accepts an empty text at `path`, where it has a meaning.
    pub(super) fn may_be_empty(&mut self, path: &str) {
        self.empty.retain(|empty| empty != path);
    }

    /// Reports an error of a key, unless it has failed before.
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

    /// The origin of the value at `path`, or of the table around it.
    pub(super) fn origin(&self, path: &str) -> String {
        self.layers.origin(path)
    }

    /// The origin of the value at `path`, if it was set.
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

    /// The value that was set, or the default.
    pub(super) fn get_if_any<T: Typed>(&mut self, path: &str) -> Option<T> {
        let given = self.given.get(path).cloned();
        let given = given.or_else(|| keys::at(path).and_then(|key| key.default_value()));
        self.in_force.insert(path.to_owned(), given.clone());
        given.and_then(T::of)
    }

    /// The value that was set, or the default, of a key that has a default.
    pub(super) fn get<T: Typed + Default>(&mut self, path: &str) -> T {
        self.get_or(path, T::default())
    }

    pub(super) fn address(&mut self, path: &str) -> SocketAddr {
        self.get_or(path, SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// `otherwise` replaces a default that is missing in the table of keys. That would be a bug, which any test that reads
    /// the key shows.
    fn get_or<T: Typed>(&mut self, path: &str, otherwise: T) -> T {
        self.get_if_any(path).unwrap_or_else(|| {
            self.refuse(path, "has no default of its type in the table of keys");
            otherwise
        })
    }

    /// The value for the word that was set, or for the default. The table of keys has refused all other words; a word
    /// that is missing here would be `otherwise`.
    pub(super) fn choice<T: Copy>(&mut self, path: &str, otherwise: T, words: &[(&str, T)]) -> T {
        let word: String = self.get(path);
        words.iter().find(|(name, _)| *name == word).map_or(otherwise, |(_, value)| *value)
    }

    /// Sets the value in force of a key, if it differs from the value that was read. `None`: the key does not matter here.
    pub(super) fn set_in_force(&mut self, path: &str, given: Option<Given>) {
        self.in_force.insert(path.to_owned(), given);
    }

    /// The value in force of a key. `None` if nothing has read it; `Some(None)` if it is not set.
    pub(super) fn in_force(&self, path: &str) -> Option<Option<&Given>> {
        self.in_force.get(path).map(Option::as_ref)
    }

    /// All errors.
    pub(super) fn into_errors(mut self) -> Vec<ConfigError> {
        for path in std::mem::take(&mut self.empty) {
            // Unless there is a more specific error.
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

/// Reads a type from a value.
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
