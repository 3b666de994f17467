use super::*;

fn filter(text: &str) -> Filter {
    Filter::parse(text, 200).unwrap()
}

fn forbidden(character: char) -> TopicError {
    TopicError::Forbidden { character, near: None }
}

fn topic(text: &str) -> Topic {
    Topic::parse(text, 200).unwrap()
}

#[test]
fn a_pattern_in_the_way_of_a_broker_is_refused_with_the_one_that_is_meant() {
    for (separator, text, meant) in [
        ('.', "orders.>", "orders/**"),
        ('.', ">", "**"),
        ('.', "orders.*.>", "orders/*/**"),
        ('.', "orders:*", "orders/*"),
        ('.', "orders.>.eu", "orders/*/eu"),
        (':', "orders.>", "orders/**"),
        (':', "orders.*", "orders/*"),
        (':', "orders.*.eu", "orders/*/eu"),
        (':', "orders:>", "orders/**"),
        (':', "orders:?", "orders/*"),
        ('/', "orders.>", "orders/**"),
        ('/', "orders:*", "orders/*"),
        ('/', "v1.2/>", "v1.2/**"),
    ] {
        let error = Filter::read(text, Some(separator), 200).unwrap_err().to_string();
        assert!(error.ends_with(&format!("; write {meant}")), "{text}: {error}");
        filter(meant);
    }
    for text in ["orders*", "news[a-z]", "a/b?", "a>"] {
        let error = Filter::read(text, Some('.'), 200).unwrap_err().to_string();
        assert!(error.ends_with("; * and ** must be whole segments"), "{text}: {error}");
    }
    let error = Filter::read("%3E", Some('.'), 200).unwrap_err().to_string();
    assert!(error.ends_with("; percent-encode the topic once, not twice"), "{error}");
}

#[test]
fn the_grammar_refuses_characters_that_a_broker_would_interpret() {
    for (text, error) in [
        ("", TopicError::Empty),
        ("a//b", TopicError::EmptySegment),
        ("/a", TopicError::EmptySegment),
        ("a/", TopicError::EmptySegment),
        ("a b", TopicError::Unprintable),
        ("a\tb", TopicError::Unprintable),
        ("a\0b", TopicError::Unprintable),
        ("a\r\nPUB x 1\r\ny", TopicError::Unprintable),
        ("a\u{a0}b", TopicError::Unprintable),
        ("orders*", forbidden('*')),
        ("orders/>", TopicError::Forbidden { character: '>', near: Some("orders/**".into()) }),
        ("news[a-z]", forbidden('[')),
        ("news?", forbidden('?')),
        ("a\\b", forbidden('\\')),
        ("%2e%2e", forbidden('%')),
        ("**/a", TopicError::RestNotLast),
        ("../etc", TopicError::Dots),
        ("a/./b", TopicError::Dots),
    ] {
        assert_eq!(Filter::parse(text, 200), Err(error), "{text:?}");
    }
    let long = "a".repeat(201);
    assert_eq!(Filter::parse(&long, 200), Err(TopicError::TooLong { length: 201, limit: 200 }));
    assert_eq!(Topic::parse("a/*", 200), Err(TopicError::Pattern));
    assert!(Filter::parse("commandes/été/42", 200).is_ok());
}

#[test]
fn a_path_is_decoded_once_and_may_use_the_brokers_separator() {
    let read = |path| Filter::read_path(path, Some('.'), 200);
    assert_eq!(read("orders.eu/42"), Ok(filter("orders/eu/42")));
    assert_eq!(read("%6frders/%C3%A9t%C3%A9"), Ok(filter("orders/été")));
    assert_eq!(read("a%2Fb"), Err(TopicError::EncodedSlash));
    assert_eq!(read("%252e%252e"), Err(forbidden('%')));
    assert_eq!(read("%zz"), Err(forbidden('%')));
    assert_eq!(read("%ff%fe"), Err(TopicError::NotUtf8));
    assert_eq!(read("%c0%ae"), Err(TopicError::NotUtf8));
    assert_eq!(read(".."), Err(TopicError::EmptySegment));
    assert_eq!(Filter::read_path("a.b", None, 200), Ok(filter("a.b")));
}

#[test]
fn wildcards_match_one_segment_or_the_rest() {
    assert!(filter("orders/*").matches(&topic("orders/eu")));
    assert!(!filter("orders/*").matches(&topic("orders/eu/42")));
    assert!(!filter("orders/*").matches(&topic("orders")));
    assert!(filter("orders/**").matches(&topic("orders/eu/42")));
    assert!(!filter("orders/**").matches(&topic("orders")));
    assert!(filter("*/eu/*").matches(&topic("orders/eu/42")));
    assert!(filter("**").matches(&topic("orders")));
}

#[test]
fn a_wildcard_matches_nothing_that_a_broker_reserves() {
    for reserved in [
        "$SYS/ACCOUNT",
        "$JS/API",
        "_INBOX/abc",
        "_R_/abc",
        "_GR_/C1/abc",
        "_STAN/x",
        "__keyspace@0__:x",
        "__sentinel__/hello",
        "__sentinel__:hello",
        "__redis__/invalidate",
        "__",
    ] {
        assert!(filter(reserved).is_reserved() && filter(reserved).matches(&topic(reserved)), "{reserved}");
        assert!(!filter("**").matches(&topic(reserved)), "{reserved}");
        assert!(!filter("*/**").matches(&topic(reserved)), "{reserved}");
        assert!(!filter("**").covers(&filter(reserved)), "{reserved}");
        assert!(!filter("**").overlaps(&filter(reserved)), "{reserved}");
    }
    for open in ["_", "_drafts/a", "_9", "a/__sentinel__", "a/$SYS", "_é"] {
        assert!(filter("**").matches(&topic(open)) && !filter(open).is_reserved(), "{open}");
    }
    assert!(filter("$SYS/**").matches(&topic("$SYS/ACCOUNT")));
    assert!(filter("$SYS/*").covers(&filter("$SYS/ACCOUNT")));
}

#[test]
fn subjects_translate_both_ways() {
    assert_eq!(Topic::from_subject("orders.eu.42", '.'), Some(topic("orders/eu/42")));
    assert_eq!(topic("orders/eu/42").to_subject(':'), "orders:eu:42");
    assert_eq!(Topic::from_subject("a/b:c", ':'), None);
    assert_eq!(Topic::from_subject("orders..eu", '.'), None);
    assert_eq!(filter("orders/*/**").to_subject('.', ">"), "orders.*.>");
    assert_eq!(filter("orders/**").to_subject(':', "*"), "orders:*");
}

/// Every path of up to `depth` segments out of `words`.
fn paths(words: &[&'static str], depth: usize) -> Vec<Vec<&'static str>> {
    let mut all: Vec<Vec<&str>> = vec![];
    let mut layer = vec![vec![]];
    for _ in 0..depth {
        let longer =
            |path: &Vec<&'static str>| words.iter().map(|word| [&path[..], &[word]].concat()).collect();
        layer = layer.iter().flat_map::<Vec<_>, _>(longer).collect();
        all.extend_from_slice(&layer);
    }
    all
}

/// What a pattern matches, as docs/protocol.md defines it.
fn model(pattern: &[&str], topic: &[&str]) -> bool {
    let reserved = topic[0].starts_with('$') && pattern[0] != topic[0];
    let rest = pattern.last() == Some(&"**");
    let fixed = pattern.len() - usize::from(rest);
    let long_enough = if rest { topic.len() > fixed } else { topic.len() == fixed };
    let same = |(wanted, segment): (&&str, &&str)| *wanted == "*" || wanted == segment;
    !reserved && long_enough && pattern[..fixed].iter().zip(topic).all(same)
}

/// Checks every pair of patterns of up to five segments, half a million, instead of a random few. The topics are
/// one segment longer and have a word that no pattern has, so that any two different patterns differ in one of
/// them.
#[test]
fn matches_covers_and_overlaps_agree_with_brute_force_on_every_pair() {
    let topics = paths(&["a", "b", "c", "$S"], 6);
    let parsed: Vec<Topic> = topics.iter().map(|path| topic(&path.join("/"))).collect();
    let mut patterns = paths(&["a", "b", "$S", "*"], 4);
    patterns.extend(patterns.clone().into_iter().map(|path| [&path[..], &["**"]].concat()));
    patterns.push(vec!["**"]);
    // For each pattern, one bit per topic that it matches.
    let sets: Vec<(Filter, Vec<u64>)> = patterns
        .iter()
        .map(|pattern| {
            let filter = filter(&pattern.join("/"));
            let mut set = vec![0; topics.len().div_ceil(64)];
            for (index, (path, topic)) in topics.iter().zip(&parsed).enumerate() {
                let inside = model(pattern, path);
                assert_eq!(filter.matches(topic), inside, "{filter} and {topic}");
                set[index / 64] |= u64::from(inside) << (index % 64);
            }
            (filter, set)
        })
        .collect();
    assert_eq!((topics.len(), sets.len()), (5460, 681));
    for (a, in_a) in &sets {
        for (b, in_b) in &sets {
            let covers = in_a.iter().zip(in_b).all(|(a, b)| b & !a == 0);
            let overlaps = in_a.iter().zip(in_b).any(|(a, b)| a & b != 0);
            assert_eq!((a.covers(b), a.overlaps(b)), (covers, overlaps), "{a} and {b}");
        }
    }
}
