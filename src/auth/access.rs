//! What the rules of the configuration allow to whom.
//!
//! The first rule that covers all of what is asked decides it. But a pattern may touch topics of a rule that comes before:
//! whoever asks must be allowed by that one too, or the whole is refused, rather than a part of it left out.

use super::{Action, Caller};
use crate::config::{Access, Rule};
use crate::topic::Filter;

/// What the rules say.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Verdict<'a> {
    /// Yes, by this rule.
    Allowed(&'a Rule),
    /// Nobody may, or there is no such rule.
    NotExposed,
    /// Nobody may without saying who they are.
    WhoAsks,
    /// None of the caller's grants covers it.
    NotGranted,
    /// It belongs to another subject.
    NotTheirs,
}

/// Whether `caller` may do `action` with all of `filter`.
pub fn decide<'a>(
    rules: &'a [Rule],
    action: Action,
    filter: &Filter,
    caller: Option<&Caller>,
) -> Verdict<'a> {
    // What keeps it from being allowed. That nobody may outweighs all, so the search goes on.
    let mut obstacle = None;
    for rule in rules {
        let decides = rule.filter.covers(filter);
        // One topic is covered by a rule or not touched by it.
        if !decides && !rule.filter.overlaps(filter) {
            continue;
        }
        let access = match action {
            Action::Subscribe => rule.read,
            Action::Publish => rule.publish,
        };
        match (access, caller) {
            (Access::Nobody, _) => return Verdict::NotExposed,
            (Access::Anyone, _) => {}
            (Access::Token | Access::Granted, None) => obstacle = obstacle.or(Some(Verdict::WhoAsks)),
            (access, Some(caller)) => {
                if !is_theirs(rule, filter, caller) {
                    obstacle = obstacle.or(Some(Verdict::NotTheirs));
                } else if access == Access::Granted && !is_granted(action, filter, caller) {
                    obstacle = obstacle.or(Some(Verdict::NotGranted));
                }
            }
        }
        if decides {
            return obstacle.unwrap_or(Verdict::Allowed(rule));
        }
    }
    Verdict::NotExposed
}

/// Whether the segment that the rule binds, if it binds one, is the caller's subject. A wildcard there stands for other
/// subjects as well, and is nobody's; so a subject that is no segment of a topic has none.
fn is_theirs(rule: &Rule, filter: &Filter, caller: &Caller) -> bool {
    let Some(index) = rule.subject else { return true };
    let Some(segment) = filter.segments().nth(index) else { return false };
    segment != "*" && segment != "**" && caller.subject.as_deref() == Some(segment)
}

/// One grant must cover all of it: two are not added up.
fn is_granted(action: Action, filter: &Filter, caller: &Caller) -> bool {
    let grants = match action {
        Action::Subscribe => &caller.subscribe,
        Action::Publish => &caller.publish,
    };
    grants.iter().any(|grant| grant.covers(filter))
}
