//! The id and the type that a publisher gives its message. Both come from outside and go into headers and frames, so text
//! that would break these is refused. Also the values that mark a message as the end of its topic.

use std::ops::Deref;

/// The longest publisher id that is accepted. It keeps event ids far below the header limits of proxies.
const MAX_ID: usize = 128;

/// The longest event type that is accepted, in bytes.
const MAX_TYPE: usize = 128;

/// The id that a publisher gave its message: short, visible ASCII, so that a header can return it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublisherId(Box<str>);

impl PublisherId {
    /// `None` if it is not accepted.
    pub fn new(text: impl Into<Box<str>>) -> Option<Self> {
        let text = text.into();
        let fits = (1..=MAX_ID).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
        fits.then_some(PublisherId(text))
    }
}

impl Deref for PublisherId {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

/// The type of an event: short, without line ends or NUL (which would break the field). Publishers may not use our own
/// `stream-` types.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventType(Box<str>);

impl EventType {
    /// The type that a publisher gave its message. `None` if it is not accepted.
    pub fn new(text: impl Into<Box<str>>) -> Option<Self> {
        let text = text.into();
        let fits = (1..=MAX_TYPE).contains(&text.len())
            && !text.bytes().any(|b| matches!(b, b'\r' | b'\n' | b'\0'))
            && !text.starts_with("stream-");
        fits.then_some(EventType(text))
    }

    /// The type of the event for a deleted key.
    pub fn stream_delete() -> Self {
        EventType("stream-delete".into())
    }
}

impl Deref for EventType {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

/// Texts that mean no, in upper or lower case.
const NO: [&str; 6] = ["false", "no", "off", "null", "none", ""];

/// Whether a text means yes: any text except an empty one, a zero, and the words for no. Fields of a Redis Stream are
/// texts, so these words include the usual texts of `false` and `null` in programming languages.
pub fn is_true(text: &str) -> bool {
    let text = text.trim();
    !NO.iter().any(|no| text.eq_ignore_ascii_case(no)) && text.parse() != Ok(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publisher_id_is_one_that_a_header_can_bring_back() {
        let is_publisher_id = |text: &str| PublisherId::new(text).is_some();
        assert!(is_publisher_id("a") && is_publisher_id(&"a".repeat(128)));
        for bad in ["", "a b", "a\n", "a\0", "é", &"a".repeat(129)] {
            assert!(!is_publisher_id(bad), "{bad:?}");
        }
    }

    #[test]
    fn event_types_that_would_break_the_framing_or_pass_for_ours_are_refused() {
        let is_event_type = |text: &str| EventType::new(text).is_some();
        assert!(is_event_type("price") && is_event_type("a:b c") && is_event_type("é"));
        for bad in ["", "message\nevent: admin", "a\rb", "a\0b", "stream-gap", &"a".repeat(129)] {
            assert!(!is_event_type(bad), "{bad:?}");
        }
    }
}
