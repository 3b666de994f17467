//! What a token grants: patterns at a place of its claims, in our own form, and in those of Mercure and Centrifugo where
//! that is switched on.

use serde_json::Value;

use crate::config;
use crate::protocol::topic::Filter;

/// Patterns that are looked at in one list. Every topic of a request is compared with each.
const MAX_PATTERNS: usize = 256;

/// Where grants stand in the claims, and how they are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Claims {
    /// A JSON pointer.
    place: String,
    mercure: bool,
    centrifugo: bool,
    grammar: Grammar,
}

/// How patterns are written here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grammar {
    /// What may stand for `/`: the broker's own separator.
    pub separator: Option<char>,
    /// Bytes of a topic.
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

    /// What may be read and what may be published to.
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
                // There it is a selector of its own, for every topic.
                if list.as_array().is_some_and(|list| list.iter().any(|pattern| pattern == "*")) {
                    grants.push(Filter::everything());
                }
            }
        }
        if self.centrifugo {
            // There a channel is a name and never a pattern.
            let channels = self.grammar.patterns(&claims["channels"]);
            subscribe.extend(channels.into_iter().filter(|channel| !channel.is_pattern()));
        }
        (subscribe, publish)
    }
}

impl Grammar {
    /// The patterns in a list. One that cannot be read grants nothing and takes nothing from the others; what is no list
    /// grants nothing at all.
    pub fn patterns(self, list: &Value) -> Vec<Filter> {
        let list = list.as_array().map_or(&[][..], Vec::as_slice);
        if list.len() > MAX_PATTERNS {
            tracing::debug!(patterns = list.len(), "only the first {MAX_PATTERNS} patterns of a grant count");
        }
        let read = |pattern: &Value| {
            let filter = Filter::read(pattern.as_str()?, self.separator, self.limit);
            filter.inspect_err(|why| tracing::debug!(%why, "a pattern in a grant cannot be read")).ok()
        };
        list.iter().take(MAX_PATTERNS).filter_map(read).collect()
    }
}
