//! Topics and filters: the grammar of names, what a pattern matches, and which filters cover or overlap each other.
//!
//! A [`Topic`] is a path of segments, `orders/eu/42`. A [`Filter`] is a topic or a pattern: `*` as a whole segment
//! matches one segment, `**` as the last one matches one or more. Both have one canonical form with `/` between the
//! segments; a broker's own separator is translated at the edge ([`Topic::from_subject`], [`Filter::to_subject`]).
//!
//! This file does not know access rules (`config` and `auth` do), nor how a broker writes a wildcard (each broker's
//! files do).

use std::fmt;
use std::sync::Arc;

use thiserror::Error;

/// Characters that are wildcards or globs in NATS or Redis. They are refused with every broker, so that a topic means
/// the same everywhere. `%` is among them because a client that sends it has encoded its topic twice.
const FORBIDDEN: [char; 7] = ['*', '>', '?', '[', ']', '\\', '%'];

/// Why a topic or a pattern was refused. The text is written for the person who sent it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TopicError {
    /// The name is empty.
    #[error("the topic is empty; write one, such as orders/eu")]
    Empty,
    /// Two separators in a row, or one at an end.
    #[error(
        "the topic has an empty segment; write orders/eu, without a separator at either end or twice in a row"
    )]
    EmptySegment,
    /// Longer than the configured limit.
    #[error("the topic is {length} bytes long, but at most {limit} are allowed (limits.topic_length)")]
    TooLong {
        /// Its length in bytes.
        length: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// A control character or white space.
    #[error("the topic has white space or a control character; segments are printable text without spaces")]
    Unprintable,
    /// A wildcard inside a segment, or a character that is a wildcard in a broker.
    #[error(
        "the topic has the character {character:?}, which cannot be part of a segment; {}",
        near.as_ref().map_or_else(|| instead(*character).into(), |near| format!("write {near}"))
    )]
    Forbidden {
        /// The first such character.
        character: char,
        /// The pattern that was probably meant, if a broker writes it this way.
        near: Option<Box<str>>,
    },
    /// `**` before the last segment.
    #[error("** must be the last segment of a pattern; before it, * matches one segment")]
    RestNotLast,
    /// `.` or `..` as a segment, which browsers and proxies resolve away.
    #[error("a segment cannot be . or .., which browsers and proxies resolve before they send the request")]
    Dots,
    /// `%2F` in a URL path: it is unclear whether it separates segments.
    #[error("the topic has an encoded slash; write / between segments")]
    EncodedSlash,
    /// Bytes that are not UTF-8 once decoded.
    #[error("the topic is not UTF-8 once percent-decoded")]
    NotUtf8,
    /// A pattern where a topic was needed.
    #[error("a pattern was sent where a single topic is required; write it without * and **")]
    Pattern,
}

/// What to do about a forbidden character.
fn instead(character: char) -> &'static str {
    match character {
        '%' => "percent-encode the topic once, not twice",
        '\\' => "leave it out",
        _ => "* and ** must be whole segments",
    }
}

/// One topic in canonical form. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Topic(Arc<str>);

impl Topic {
    /// Parses a topic in canonical form (`/` between segments). `limit` is in bytes.
    ///
    /// # Errors
    /// What is wrong with the name, as [`TopicError`]; a pattern is [`TopicError::Pattern`].
    pub fn parse(text: &str, limit: usize) -> Result<Self, TopicError> {
        let filter = Filter::parse(text, limit)?;
        filter.topic().ok_or(TopicError::Pattern)
    }

    /// The topic that a broker's subject or channel names, or `None` if the grammar has no name for it.
    pub fn from_subject(subject: &str, separator: char) -> Option<Self> {
        let translated;
        let text = if separator == '/' {
            subject
        } else if subject.contains('/') {
            return None; // it would become two segments, and could not be translated back
        } else {
            translated = subject.replace(separator, "/");
            &translated
        };
        Topic::parse(text, usize::MAX).ok()
    }

    /// The canonical text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The subject or channel of this topic in a broker with this separator.
    pub fn to_subject(&self, separator: char) -> String {
        self.0.replace('/', separator.encode_utf8(&mut [0; 4]))
    }
}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A topic or a pattern in canonical form. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Filter(Arc<str>);

impl Filter {
    /// `**`: every topic except the reserved ones.
    pub fn everything() -> Self {
        Filter("**".into())
    }

    /// Parses a topic or a pattern in canonical form (`/` between segments). `limit` is in bytes.
    ///
    /// # Errors
    /// What is wrong with the name, as [`TopicError`].
    pub fn parse(text: &str, limit: usize) -> Result<Self, TopicError> {
        if text.is_empty() {
            return Err(TopicError::Empty);
        }
        if text.len() > limit {
            return Err(TopicError::TooLong { length: text.len(), limit });
        }
        let mut segments = text.split('/').peekable();
        while let Some(segment) = segments.next() {
            match segment {
                "" => return Err(TopicError::EmptySegment),
                "." | ".." => return Err(TopicError::Dots),
                "*" => continue,
                "**" if segments.peek().is_none() => continue,
                "**" => return Err(TopicError::RestNotLast),
                _ => {}
            }
            for c in segment.chars() {
                if c.is_control() || c.is_whitespace() || c == '\u{feff}' {
                    return Err(TopicError::Unprintable);
                }
                if FORBIDDEN.contains(&c) {
                    return Err(TopicError::Forbidden { character: c, near: near(text) });
                }
            }
        }
        Ok(Filter(text.into()))
    }

    /// Parses a topic or a pattern as people write it: they may use the broker's `separator` instead of `/`. `limit` is
    /// in bytes.
    ///
    /// # Errors
    /// What is wrong with the name, as [`TopicError`].
    pub fn read(text: &str, separator: Option<char>, limit: usize) -> Result<Self, TopicError> {
        match separator {
            Some(separator) => Filter::parse(&text.replace(separator, "/"), limit),
            None => Filter::parse(text, limit),
        }
    }

    /// Parses the path of a URL, still percent-encoded. Each segment is decoded once; an encoded slash never separates.
    ///
    /// # Errors
    /// What is wrong with the name, as [`TopicError`].
    pub fn read_path(path: &str, separator: Option<char>, limit: usize) -> Result<Self, TopicError> {
        let mut decoded = String::with_capacity(path.len());
        for (index, segment) in path.split('/').enumerate() {
            if index > 0 {
                decoded.push('/');
            }
            let segment = percent_encoding::percent_decode_str(segment)
                .decode_utf8()
                .map_err(|_| TopicError::NotUtf8)?;
            if segment.contains('/') {
                return Err(TopicError::EncodedSlash);
            }
            decoded.push_str(&segment);
        }
        Filter::read(&decoded, separator, limit)
    }

    /// The canonical text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is a pattern rather than one topic.
    pub fn is_pattern(&self) -> bool {
        self.segments().any(|segment| segment == "*" || segment == "**")
    }

    /// The one topic that this filter names, or `None` if it is a pattern.
    pub fn topic(&self) -> Option<Topic> {
        (!self.is_pattern()).then(|| Topic(self.0.clone()))
    }

    /// The segments, wildcards included.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// Whether the first segment is reserved for a broker, such as `$SYS`.
    pub fn is_reserved(&self) -> bool {
        self.segments().next().is_some_and(is_reserved)
    }

    /// Whether this filter matches `topic`. A wildcard as the first segment matches no reserved segment.
    pub fn matches(&self, topic: &Topic) -> bool {
        covers(&self.0, topic.as_str())
    }

    /// Whether this filter matches every topic that `other` matches.
    pub fn covers(&self, other: &Filter) -> bool {
        covers(&self.0, &other.0)
    }

    /// Whether both filters match some common topic.
    pub fn overlaps(&self, other: &Filter) -> bool {
        overlaps(&self.0, &other.0)
    }

    /// The subject of this filter in a broker with this separator that writes `**` as `rest`. `*` stays.
    pub fn to_subject(&self, separator: char, rest: &str) -> String {
        let mut subject = String::with_capacity(self.0.len());
        for (index, segment) in self.segments().enumerate() {
            if index > 0 {
                subject.push(separator);
            }
            subject.push_str(if segment == "**" { rest } else { segment });
        }
        subject
    }
}

impl From<Topic> for Filter {
    fn from(topic: Topic) -> Self {
        Filter(topic.0)
    }
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The pattern that was probably meant by a broker's notation: `>` for `**`, a broker's separator for `/`, `?` for one
/// segment.
fn near(text: &str) -> Option<Box<str>> {
    let mut meant = Vec::new();
    for segment in text.split('/') {
        // A separator in a segment is part of it, unless it is next to a wildcard.
        let glued =
            [".>", ".*", ":>", ":*", ":?", ">.", "*.", "*:"].iter().any(|pair| segment.contains(pair));
        meant.extend(if glued { segment.split(['.', ':']).collect() } else { vec![segment] });
    }
    let last = meant.len() - 1;
    for (index, segment) in meant.iter_mut().enumerate() {
        match *segment {
            ">" if index == last => *segment = "**",
            "?" | ">" => *segment = "*",
            _ => {}
        }
    }
    let meant = meant.join("/");
    // The suggestion has nothing left to replace, so this does not recurse a third time.
    (meant != text).then(|| Filter::parse(&meant, usize::MAX).ok())?.map(|filter| filter.as_str().into())
}

/// Whether a first segment is reserved for a broker, so that no wildcard matches it. These are families of names rather
/// than a list, because servers add to them: `$` and `_` with a capital letter are NATS' (`$SYS`, `$JS`, `$KV`,
/// `$MQTT`, `_INBOX`, `_R_`, `_GR_`), `__` is Redis' (`__keyspace@0__`, `__keyevent@0__`, `__sentinel__`, `__redis__`).
pub(crate) fn is_reserved(segment: &str) -> bool {
    match segment.as_bytes() {
        [b'$', ..] => true,
        [b'_', next, ..] => *next == b'_' || next.is_ascii_uppercase(),
        _ => false,
    }
}

/// Whether `outer` matches every topic of `inner`. Here, a topic is a pattern without wildcards.
fn covers(outer: &str, inner: &str) -> bool {
    let mut outer = outer.split('/');
    let mut inner = inner.split('/');
    let mut first = true;
    loop {
        match (outer.next(), inner.next()) {
            (None, None) => return true,
            (Some("**"), Some(segment)) => return !(first && is_reserved(segment)),
            (Some("*"), Some(segment)) if segment != "**" => {
                if first && is_reserved(segment) {
                    return false;
                }
            }
            (Some(a), Some(b)) if a == b => {}
            _ => return false,
        }
        first = false;
    }
}

fn overlaps(a: &str, b: &str) -> bool {
    let mut a = a.split('/');
    let mut b = b.split('/');
    let mut first = true;
    loop {
        match (a.next(), b.next()) {
            (None, None) => return true,
            (Some(x), Some(y)) => {
                let wild = |segment| segment == "*" || segment == "**";
                let reserved = first && (is_reserved(x) || is_reserved(y));
                if x != y && (reserved || !(wild(x) || wild(y))) {
                    return false;
                }
                if x == "**" || y == "**" {
                    return true;
                }
            }
            _ => return false,
        }
        first = false;
    }
}

#[cfg(test)]
mod tests;
