//! The grants of a token: the patterns in its claims, in our own form and, if switched on, in the forms of Mercure and
//! Centrifugo.

use serde_json::Value;

use crate::config;
use crate::protocol::topic::Filter;

/// How many patterns of a list count. Every topic of a request is compared with each of them.
const MAX_PATTERNS: usize = 256;

/// Where the grants are in the claims, and in which forms they are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Claims {
    /// The JSON pointer of our own claim.
    place: String,
    mercure: bool,
    centrifugo: bool,
    grammar: Grammar,
}

/// How patterns are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grammar {
    /// The broker's separator, which may be used instead of `/`.
    pub separator: Option<char>,
    /// The longest topic, in bytes.
    pub limit: usize,
}

impl Claims {
    pub(super) fn new(settings: &config::Jwt, grammar: Grammar) -> Self {
        Claims {
            place: settings.claim.clone(),
            mercure: settings.mercure,
            centrifugo: settings.centrifugo,
            grammar,
        }
    }

    /// The patterns that may be read, and those that may be published to.
    pub(super) fn grants(&self, claims: &Value) -> (Vec<Filter>, Vec<Filter>) {
        let ours = claims.pointer(&self.place).unwrap_or(&Value::Null);
        let mut subscribe = self.grammar.patterns(&ours["subscribe"]);
        let mut publish = self.grammar.patterns(&ours["publish"]);
        if self.mercure {
            let mercure = &claims["mercure"];
            for (list, grants) in
                [(&mercure["subscribe"], &mut subscribe), (&mercure["publish"], &mut publish)]
            {
                grants.extend(self.grammar.patterns(list));
                // In Mercure, `*` alone selects every topic.
                if list.as_array().is_some_and(|list| list.iter().any(|pattern| pattern == "*")) {
                    grants.push(Filter::everything());
                }
            }
        }
        if self.centrifugo {
            // In Centrifugo, a channel is a name and never a pattern.
            let channels = self.grammar.patterns(&claims["channels"]);
            subscribe.extend(channels.into_iter().filter(|channel| !channel.is_pattern()));
        }
        (subscribe, publish)
    }
}

impl Grammar {
    /// The patterns of a list. A pattern that cannot be parsed grants nothing and does not affect the others. A value
    /// that is not a list grants nothing.
    pub fn patterns(self, list: &Value) -> Vec<Filter> {
        let list = list.as_array().map_or(&[][..], Vec::as_slice);
        if list.len() > MAX_PATTERNS {
            tracing::debug!(patterns = list.len(), "only the first {MAX_PATTERNS} patterns of a grant count");
        }
        let read = |pattern: &Value| {
            let filter = Filter::read(pattern.as_str()?, self.separator, self.limit);
            filter.inspect_err(|why| tracing::debug!(%why, "a pattern in a grant cannot be parsed")).ok()
        };
        list.iter().take(MAX_PATTERNS).filter_map(read).collect()
    }
}
