//! Who asks, and what they may. A request's credentials become a [`Caller`]; the rules of the configuration say what a
//! caller may do (`config`), and nothing here knows logs, streams or sockets.

use std::sync::Arc;
use std::time::SystemTime;

use crate::topic::Filter;

/// One who has shown who they are: by a token, or by what the backend answered for them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller {
    /// The token's `sub`, or the one that the backend named.
    pub subject: Option<Arc<str>>,
    /// What they were granted to read. Each pattern stands for itself: two do not add up to a wider one.
    pub subscribe: Vec<Filter>,
    /// What they were granted to publish to.
    pub publish: Vec<Filter>,
    /// When what they may ends. Their streams end with it.
    pub expires: Option<SystemTime>,
}
