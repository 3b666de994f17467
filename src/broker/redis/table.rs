//! The subscribed filters, and their channel or glob names in Redis.

use std::collections::HashMap;

use crate::broker::BrokerError;
use crate::protocol::topic::{Filter, Topic};

/// The name of a filter in the server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Name {
    Channel(String),
    Glob(String),
}

impl Name {
    pub(super) fn as_str(&self) -> &str {
        let (Name::Channel(name) | Name::Glob(name)) = self;
        name
    }

    pub(super) fn into_string(self) -> String {
        let (Name::Channel(name) | Name::Glob(name)) = self;
        name
    }
}

/// The subscribed filters, by their names in the server.
pub(super) struct Table {
    pub(super) separator: char,
    pub(super) channels: HashMap<String, (Filter, Topic)>,
    /// `orders/*` and `orders/**` are both `orders:*`, because a glob crosses separators: it is subscribed once, and
    /// each message goes to every filter that matches it.
    pub(super) globs: HashMap<String, Vec<Filter>>,
}

impl Table {
    pub(super) fn new(separator: char) -> Self {
        Table { separator, channels: HashMap::new(), globs: HashMap::new() }
    }

    /// The name of a filter in the server. A filter whose name would be ambiguous is refused.
    pub(super) fn name(&self, filter: &Filter) -> Result<Name, BrokerError> {
        if self.separator != '/' && filter.as_str().contains(self.separator) {
            // Its channel would be translated back to another topic.
            let separator = self.separator;
            return Err(BrokerError::Refused(format!(
                "a segment has the separator {separator:?}; write / instead"
            )));
        }
        let subject = filter.to_subject(self.separator, "*");
        Ok(if filter.is_pattern() { Name::Glob(subject) } else { Name::Channel(subject) })
    }

    pub(super) fn contains(&self, name: &Name) -> bool {
        match name {
            Name::Channel(channel) => self.channels.contains_key(channel),
            Name::Glob(glob) => self.globs.contains_key(glob),
        }
    }

    /// Adds a filter. Returns whether it is new.
    pub(super) fn insert(&mut self, name: &Name, filter: Filter) -> bool {
        match (name, filter.topic()) {
            (Name::Channel(channel), Some(topic)) => {
                self.channels.insert(channel.clone(), (filter, topic)).is_none()
            }
            (Name::Channel(_), None) => false, // name() never returns a channel for a pattern
            (Name::Glob(glob), _) => {
                let filters = self.globs.entry(glob.clone()).or_default();
                let new = !filters.contains(&filter);
                if new {
                    filters.push(filter);
                }
                new
            }
        }
    }

    /// Removes a filter. Returns whether no other filter needs the name.
    pub(super) fn remove(&mut self, name: &Name, filter: &Filter) -> bool {
        match name {
            Name::Channel(channel) => self.channels.remove(channel).is_some(),
            Name::Glob(glob) => {
                let Some(filters) = self.globs.get_mut(glob) else { return false };
                filters.retain(|other| other != filter);
                filters.is_empty() && self.globs.remove(glob).is_some()
            }
        }
    }

    /// Removes every filter of a name.
    pub(super) fn remove_name(&mut self, name: &Name) -> Vec<Filter> {
        match name {
            Name::Channel(channel) => {
                self.channels.remove(channel).map(|(filter, _)| filter).into_iter().collect()
            }
            Name::Glob(glob) => self.globs.remove(glob).unwrap_or_default(),
        }
    }

    /// Every channel and every glob.
    pub(super) fn names(&self) -> (Vec<String>, Vec<String>) {
        (self.channels.keys().cloned().collect(), self.globs.keys().cloned().collect())
    }
}
