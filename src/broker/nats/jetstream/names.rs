//! The names of topics in a stream: subjects, or keys of a key-value bucket.

use crate::broker::BrokerError;
use crate::broker::nats::subjects::{DOT, unspeakable};
use crate::protocol::source::Source;
use crate::protocol::topic::Topic;

/// Translates between topics and subjects of one source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Names {
    /// A topic is a subject.
    Subjects,
    /// A topic is a key of a bucket, after the literal segments of its rule.
    Keys {
        /// The prefix before the key in a subject: `$KV.PRICES.`.
        bucket: String,
        /// The prefix before the key in a topic: `prices/`, or nothing.
        prefix: String,
    },
}

impl Names {
    /// The names of a source. `text` is a topic or filter of it, which shares the literal segments of its rule.
    pub(super) fn of(source: &Source, text: &str) -> Self {
        match source {
            Source::Kv { bucket, prefix } => Names::Keys {
                bucket: format!("$KV.{bucket}."),
                prefix: text.split_inclusive('/').take(*prefix).collect(),
            },
            Source::JetStream { .. } | Source::Pubsub | Source::Sharded | Source::RedisStream { .. } => {
                Names::Subjects
            }
        }
    }

    /// The same for a bucket whose keys are stored under the name of another bucket.
    pub(super) fn stored_as(self, name: &str) -> Self {
        match self {
            Names::Subjects => Names::Subjects,
            Names::Keys { prefix, .. } => Names::Keys { bucket: format!("$KV.{name}."), prefix },
        }
    }

    /// The subject of a filter or a topic in canonical form.
    pub(super) fn subject(&self, text: &str) -> Result<String, BrokerError> {
        if unspeakable(text) {
            return Err(BrokerError::Refused(DOT.into()));
        }
        let (before, rest) = match self {
            Names::Subjects => ("", text),
            Names::Keys { bucket, prefix } => {
                let key = text.strip_prefix(prefix.as_str()).filter(|key| !key.is_empty());
                let missing =
                    || BrokerError::Refused(format!("{text} has no key: it ends before the key begins"));
                (bucket.as_str(), key.ok_or_else(missing)?)
            }
        };
        let mut subject = before.to_owned();
        for (index, segment) in rest.split('/').enumerate() {
            if index > 0 {
                subject.push('.');
            }
            subject.push_str(if segment == "**" { ">" } else { segment });
        }
        Ok(subject)
    }

    /// The topic of a subject; `None` if it is not a valid topic.
    pub(super) fn topic(&self, subject: &str) -> Option<Topic> {
        match self {
            Names::Subjects => Topic::from_subject(subject, '.'),
            Names::Keys { bucket, prefix } => {
                let key = Topic::from_subject(subject.strip_prefix(bucket.as_str())?, '.')?;
                Topic::parse(&format!("{prefix}{key}"), usize::MAX).ok()
            }
        }
    }
}

/// Checks the topic of a new value: other clients of the bucket could not read an invalid key.
pub(super) fn check_key(source: &Source, topic: &Topic) -> Result<(), BrokerError> {
    let Source::Kv { prefix, .. } = source else { return Ok(()) };
    let is_key = |c: char| c.is_ascii_alphanumeric() || "-_=".contains(c);
    if topic.as_str().split('/').skip(*prefix).all(|segment| segment.chars().all(is_key)) {
        Ok(())
    } else {
        let why = "a key of a bucket may only have letters, digits, -, _ and = between its dots";
        Err(BrokerError::Unfit(why.into()))
    }
}

/// Whether `outer` matches every subject that `inner` matches; both in the notation of NATS.
pub(super) fn covers(outer: &str, inner: &str) -> bool {
    let mut outer = outer.split('.');
    let mut inner = inner.split('.');
    loop {
        match (outer.next(), inner.next()) {
            (None, None) => return true,
            (Some(">"), Some(_)) => return true,
            (Some("*"), Some(token)) if token != ">" => {}
            (Some(a), Some(b)) if a == b => {}
            _ => return false,
        }
    }
}

/// Whether both match some common subject; both in the notation of NATS.
pub(super) fn overlap(one: &str, other: &str) -> bool {
    let mut one = one.split('.');
    let mut other = other.split('.');
    loop {
        match (one.next(), other.next()) {
            (None, None) | (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
            (Some(a), Some(b)) if a == "*" || b == "*" || a == b => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bucket(prefix: usize) -> Source {
        Source::Kv { bucket: "PRICES".into(), prefix }
    }

    #[test]
    fn a_bucket_has_its_own_names() {
        let names = Names::of(&bucket(2), "fx/prices/**");
        let subject = |text| names.subject(text).map_err(|_| ());
        assert_eq!(subject("fx/prices/**"), Ok("$KV.PRICES.>".into()));
        assert_eq!(subject("fx/prices/*/bid"), Ok("$KV.PRICES.*.bid".into()));
        assert_eq!(subject("fx/prices/eur"), Ok("$KV.PRICES.eur".into()));
        assert_eq!(subject("fx/prices"), Err(()), "no key");
        assert_eq!(subject("fx/prices/e.r"), Err(()), "a dot would separate");
        let topic = |subject| names.topic(subject).map(|topic| topic.to_string());
        assert_eq!(topic("$KV.PRICES.eur.bid"), Some("fx/prices/eur/bid".into()));
        assert_eq!(topic("$KV.OTHER.eur"), None);
        assert_eq!(topic("$KV.PRICES.a/b"), None, "a slash would separate");
        assert_eq!(Names::of(&bucket(0), "**").subject("**").map_err(|_| ()), Ok("$KV.PRICES.>".into()));
    }

    #[test]
    fn subjects_cover_as_nats_matches() {
        for (outer, inner, expected) in [
            ("orders.>", "orders.>", true),
            ("orders.>", "orders.*.x", true),
            ("orders.>", "orders", false),
            ("orders.*", "orders.>", false),
            ("orders.*", "orders.*", true),
            ("orders.*", "orders.eu", true),
            ("orders.eu", "orders.*", false),
            (">", "orders.eu", true),
        ] {
            assert_eq!(covers(outer, inner), expected, "{outer} over {inner}");
        }
    }

    #[test]
    fn patterns_overlap_if_one_subject_matches_both() {
        for (one, other, expected) in [
            ("orders.>", "orders.eu", true),
            ("orders.*", "*.eu", true),
            ("orders.>", "orders", false),
            ("orders.*", "orders.eu.x", false),
            ("orders.*.x", "orders.>", true),
            ("orders.eu", "orders.us", false),
        ] {
            assert_eq!((overlap(one, other), overlap(other, one)), (expected, expected), "{one} and {other}");
        }
    }

    proptest! {
        #[test]
        fn a_topic_comes_back_from_its_subject(
            segments in prop::collection::vec("[a-zA-Z0-9_=-]{1,8}", 2..6), prefix in 0..2usize,
        ) {
            let topic = Topic::parse(&segments.join("/"), usize::MAX).unwrap();
            for source in [bucket(prefix), Source::JetStream { stream: None }] {
                prop_assert!(check_key(&source, &topic).is_ok());
                let names = Names::of(&source, topic.as_str());
                let subject = names.subject(topic.as_str()).unwrap();
                prop_assert_eq!(names.topic(&subject), Some(topic.clone()));
            }
        }
    }
}
