//! Access rules: what the `[[topics]]` rules of the configuration allow a caller to do.
//!
//! The first rule that covers the whole filter decides. But a pattern may include topics of an earlier rule. Then that
//! rule must allow the caller too; otherwise the whole pattern is refused, so that no part of it is left out silently.

use super::{Action, Caller};
use crate::config::{Access, Rule};
use crate::protocol::topic::Filter;

/// The decision of the rules.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Verdict<'a> {
    /// Allowed by this rule.
    Allowed(&'a Rule),
    /// No rule covers it, or the rule admits nobody.
    NotExposed,
    /// Only identified callers may, and the caller is not identified.
    WhoAsks,
    /// None of the caller's grants covers it.
    NotGranted,
    /// The topic belongs to another subject.
    NotTheirs,
}

/// Whether `caller` may do `action` with all of `filter`.
pub fn decide<'a>(
    rules: impl IntoIterator<Item = &'a Rule>,
    action: Action,
    filter: &Filter,
    caller: Option<&Caller>,
) -> Verdict<'a> {
    // The reason against it so far. `NotExposed` takes precedence over the others, so the search continues.
    let mut obstacle = None;
    for rule in rules {
        let decides = rule.filter.covers(filter);
        // A rule covers a single topic or does not touch it.
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
                } else if access == Access::Granted && !caller.is_granted(action, filter) {
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

/// Whether the segment that the rule binds to `{sub}`, if any, is the caller's subject. A wildcard in that place also
/// stands for other subjects and belongs to nobody. A subject that cannot be a segment has no topics.
fn is_theirs(rule: &Rule, filter: &Filter, caller: &Caller) -> bool {
    let Some(index) = rule.subject else { return true };
    let Some(segment) = filter.segments().nth(index) else { return false };
    segment != "*" && segment != "**" && caller.subject.as_deref() == Some(segment)
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;
    use crate::config::Config;
    use crate::protocol::topic::Topic;

    const JWT: &str = "[auth.jwt]\nsecret = \"0123456789abcdef0123456789abcdef\"\n";

    /// Builds rules from patterns and their access.
    fn rules(rules: &[(&str, &str)]) -> Vec<Rule> {
        let rule = |(pattern, read): &(&str, &str)| {
            format!("[[topics]]\nmatch = {pattern:?}\nread = {read:?}\npublish = {read:?}\n")
        };
        let text = JWT.to_owned() + &rules.iter().map(rule).collect::<String>();
        Config::from_toml(&text).unwrap_or_else(|errors| panic!("{errors}\n{text}")).topics
    }

    fn filter(text: &str) -> Filter {
        Filter::parse(text, 200).unwrap()
    }

    fn caller(subject: Option<&str>, grants: &[&str]) -> Caller {
        let subscribe = grants.iter().map(|grant| filter(grant)).collect();
        Caller { subject: subject.map(Into::into), subscribe, ..Caller::default() }
    }

    fn readable(rules: &[Rule], text: &str, caller: Option<&Caller>) -> bool {
        matches!(decide(rules, Action::Subscribe, &filter(text), caller), Verdict::Allowed(_))
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let rules = rules(&[("a/b", "nobody"), ("a/*", "anyone"), ("**", "nobody")]);
        assert!(!readable(&rules, "a/b", None));
        assert!(readable(&rules, "a/c", None));
        assert!(!readable(&rules, "b", None));
        assert_eq!(decide(&rules, Action::Subscribe, &filter("$SYS/x"), None), Verdict::NotExposed);
    }

    #[test]
    fn a_pattern_is_refused_if_a_rule_before_its_own_refuses_a_part_of_it() {
        let me = caller(Some("me"), &["a/**"]);
        for (first, read) in [("a/secret", "nobody"), ("a/secret", "token"), ("a/secret", "granted")] {
            let rules = rules(&[(first, read), ("a/**", "anyone")]);
            assert!(!readable(&rules, "a/*", None), "{read}");
            assert!(readable(&rules, "a/b/*", None), "{read}");
            assert_eq!(readable(&rules, "a/*", Some(&me)), read != "nobody", "{read}");
        }
        // The rule of the inbox also decides about a pattern that includes it.
        let rules = rules(&[("users/{sub}/inbox", "token"), ("users/**", "anyone")]);
        assert!(readable(&rules, "users/me/*", Some(&me)));
        assert!(readable(&rules, "users/you/outbox", None));
        for no in ["users/you/*", "users/*/inbox", "users/**"] {
            assert!(!readable(&rules, no, Some(&me)), "{no}");
        }
    }

    #[test]
    fn a_rule_for_nobody_outweighs_a_missing_token() {
        let rules = rules(&[("a/*", "token"), ("*/secret", "nobody"), ("**", "anyone")]);
        let verdict = |text| decide(&rules, Action::Subscribe, &filter(text), None);
        assert_eq!(verdict("**"), Verdict::NotExposed);
        assert_eq!(verdict("a/secret"), Verdict::WhoAsks);
    }

    #[test]
    fn a_single_grant_must_cover_the_whole_requested_filter() {
        let rules = rules(&[("**", "granted")]);
        let me = caller(None, &["a/*", "a/*/**", "b/c"]);
        for (text, allowed) in [
            ("a/b", true),
            ("a/*", true),
            ("a/*/x", true),
            ("b/c", true),
            ("a/**", false),
            ("b/*", false),
            ("**", false),
        ] {
            assert_eq!(readable(&rules, text, Some(&me)), allowed, "{text}");
        }
        let publish = decide(&rules, Action::Publish, &filter("a/b"), Some(&me));
        assert_eq!(publish, Verdict::NotGranted, "a grant to read is none to publish");
    }

    fn filters() -> impl Strategy<Value = String> {
        let words = proptest::collection::vec(proptest::sample::select(vec!["a", "b", "$S", "*"]), 1..4);
        (words, any::<bool>()).prop_map(|(mut words, rest)| {
            if rest {
                words.push("**");
            }
            words.join("/")
        })
    }

    /// A pattern and its access; a `*` may be replaced by `{sub}`.
    fn matches() -> impl Strategy<Value = (String, &'static str)> {
        let access = proptest::sample::select(vec!["anyone", "token", "granted", "nobody"]);
        (filters(), 0..4_usize, access).prop_map(|(filter, index, access)| {
            let mut segments: Vec<&str> = filter.split('/').collect();
            if access != "anyone" && segments.get(index) == Some(&"*") {
                segments[index] = "{sub}";
            }
            (segments.join("/"), access)
        })
    }

    /// Every topic of up to five segments: longer than any pattern above, so that any two different patterns differ in
    /// some of these topics.
    static UNIVERSE: LazyLock<Vec<Topic>> = LazyLock::new(|| {
        let mut all: Vec<String> = vec![];
        let mut layer = vec![String::new()];
        for _ in 0..5 {
            let longer = |head: &String| ["a", "b", "c", "$S"].map(|word| format!("{head}{word}/"));
            layer = layer.iter().flat_map(longer).collect();
            all.extend(layer.iter().map(|topic| topic.trim_end_matches('/').to_owned()));
        }
        all.iter().map(|topic| Topic::parse(topic, 200).unwrap()).collect()
    });

    /// The expected decision about a single topic, without any reasoning about patterns.
    fn model(rules: &[Rule], topic: &Topic, caller: Option<&Caller>) -> bool {
        let Some(rule) = rules.iter().find(|rule| rule.filter.matches(topic)) else { return false };
        let segment = rule.subject.map(|index| topic.as_str().split('/').nth(index).unwrap());
        let theirs = |caller: &Caller| segment.is_none() || caller.subject.as_deref() == segment;
        match rule.read {
            Access::Anyone => true,
            Access::Nobody => false,
            Access::Token => caller.is_some_and(theirs),
            Access::Granted => caller.is_some_and(|caller| {
                theirs(caller) && caller.subscribe.iter().any(|grant| grant.matches(topic))
            }),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn a_caller_never_reads_a_topic_that_is_not_theirs(
            matches in proptest::collection::vec(matches(), 0..6),
            pattern in filters(),
            subject in proptest::sample::select(vec![None, Some("a"), Some("b"), Some("*"), Some("**"), Some("a/b"), Some("")]),
            grants in proptest::collection::vec(filters(), 0..4),
            known in any::<bool>(),
        ) {
            let matches: Vec<(&str, &str)> = matches.iter().map(|(text, read)| (text.as_str(), *read)).collect();
            let rules = rules(&matches);
            let grants: Vec<&str> = grants.iter().map(String::as_str).collect();
            let caller = caller(subject, &grants);
            let caller = known.then_some(&caller);
            let pattern = filter(&pattern);
            let allowed = readable(&rules, pattern.as_str(), caller);
            for topic in &*UNIVERSE {
                let may = model(&rules, topic, caller);
                let verdict = decide(&rules, Action::Subscribe, &topic.clone().into(), caller);
                prop_assert_eq!(may, matches!(verdict, Verdict::Allowed(_)), "{}", topic);
                if allowed && pattern.matches(topic) {
                    prop_assert!(may, "{} of {}", topic, pattern);
                }
            }
        }
    }
}
