//! The view of a reader: which messages of its topics it receives, and how. The query parameters `type`, `event` and
//! `every` make it. Readers with the same view share what is sent to them.

use std::fmt;
use std::time::Duration;

use thiserror::Error;

use super::publisher::EventType;

/// The most types that a request may name.
pub const MAX_TYPES: usize = 32;

/// The type by which a reader selects messages without a type, as in an `EventSource`.
const UNTYPED: &str = "message";

/// The prefix of the gateway's own event types.
const CONTROL: &str = "stream-";

/// The messages that a reader receives, and how. The default is all messages, unchanged.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct View {
    /// The types that pass, sorted, each once. Empty: all.
    types: Vec<Box<str>>,
    /// Whether the `event:` lines of messages are left out.
    pub without_types: bool,
    /// The shortest time between two messages of one topic and type.
    pub every: Option<Interval>,
}

/// Why a view was refused. The text is written for the person who sent it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ViewError {
    /// An empty type, or one that no message can have.
    #[error(
        "type must be a list of event types such as price,trade (at most 128 bytes each, without line ends); \
         message stands for messages without a type"
    )]
    Type,
    /// A type of the gateway's own events.
    #[error("types that begin with stream- are the gateway's own events, which every reader receives")]
    Control,
    /// More types than a request may name.
    #[error("a request may name at most {MAX_TYPES} types")]
    TooManyTypes,
    /// Another value of `event`.
    #[error("event must be none, which leaves the event: lines of messages out")]
    Event,
    /// Not a duration, or out of range.
    #[error("every must be a duration from 100ms to 1min, such as 500ms or 1s")]
    Every,
}

impl View {
    /// Adds the types of a list such as `price,trade`.
    ///
    /// # Errors
    /// A type that no message can have, or too many.
    pub fn add_types(&mut self, list: &str) -> Result<(), ViewError> {
        for text in list.split(',') {
            if text.starts_with(CONTROL) {
                return Err(ViewError::Control);
            }
            let kind = EventType::new(text).ok_or(ViewError::Type)?;
            if let Err(index) = self.types.binary_search_by(|known| (**known).cmp(&kind)) {
                if self.types.len() == MAX_TYPES {
                    return Err(ViewError::TooManyTypes);
                }
                self.types.insert(index, (*kind).into());
            }
        }
        Ok(())
    }

    /// Reads the value of `event`.
    ///
    /// # Errors
    /// It is not `none`.
    pub fn read_event(&mut self, value: &str) -> Result<(), ViewError> {
        self.without_types = value == "none";
        if self.without_types { Ok(()) } else { Err(ViewError::Event) }
    }

    /// Whether it changes nothing.
    pub fn is_all(&self) -> bool {
        *self == View::default()
    }

    /// The types that pass; empty: all.
    pub fn types(&self) -> &[Box<str>] {
        &self.types
    }

    /// Whether a message of that type passes. The gateway's own events always do.
    pub fn admits(&self, kind: Option<&str>) -> bool {
        let kind = kind.unwrap_or(UNTYPED);
        self.types.is_empty()
            || is_control(kind)
            || self.types.binary_search_by(|known| (**known).cmp(kind)).is_ok()
    }
}

/// Whether this is a type of the gateway's own events.
pub fn is_control(kind: &str) -> bool {
    kind.starts_with(CONTROL)
}

/// The time between two messages of one topic and type: a multiple of [`Interval::STEP`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Interval(u16);

impl Interval {
    /// Intervals are rounded up to a multiple of this, so that there are not too many different ones.
    pub const STEP: Duration = Duration::from_millis(50);

    const SHORTEST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(60);

    /// Reads a duration such as `500ms`.
    ///
    /// # Errors
    /// It is not a duration, or out of range.
    pub fn read(value: &str) -> Result<Self, ViewError> {
        let duration = humantime::parse_duration(value).map_err(|_| ViewError::Every)?;
        if !(Self::SHORTEST..=Self::LONGEST).contains(&duration) {
            return Err(ViewError::Every);
        }
        let steps = duration.as_nanos().div_ceil(Self::STEP.as_nanos());
        u16::try_from(steps).map(Interval).map_err(|_| ViewError::Every)
    }

    /// The interval as a time.
    pub fn duration(self) -> Duration {
        Self::STEP * u32::from(self.0)
    }

    /// The interval in milliseconds.
    pub fn as_millis(self) -> u64 {
        self.duration().as_millis() as u64
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.duration()).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(types: &str) -> Result<View, ViewError> {
        let mut view = View::default();
        view.add_types(types).map(|()| view)
    }

    #[test]
    fn a_view_admits_the_types_that_it_names_and_every_control_event() {
        let some = view("trade,price,price,message").unwrap();
        assert_eq!(some.types().len(), 3);
        assert!(some.admits(Some("price")) && some.admits(Some("trade")) && some.admits(None));
        assert!(some.admits(Some("stream-delete")) && !some.admits(Some("pric")));
        assert!(!view("price").unwrap().admits(None));
        assert!(
            View::default().admits(None) && View::default().admits(Some("x")) && View::default().is_all()
        );
        // A publisher may name the type of messages without one.
        assert!(some.admits(Some("message")));
    }

    #[test]
    fn types_that_no_message_can_have_and_too_many_of_them_are_refused() {
        for bad in ["", "a,", ",a", "a\nb", "a\0", &"a".repeat(129)] {
            assert_eq!(view(bad), Err(ViewError::Type), "{bad:?}");
        }
        assert_eq!(view("stream-gap"), Err(ViewError::Control));
        let many = |count: usize| (0..count).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
        assert!(view(&many(MAX_TYPES)).is_ok());
        assert_eq!(view(&many(MAX_TYPES + 1)), Err(ViewError::TooManyTypes));
    }

    #[test]
    fn an_interval_is_from_100ms_to_a_minute_and_rounded_up() {
        let read = |value| Interval::read(value).map(Interval::as_millis);
        for (value, millis) in
            [("100ms", 100), ("101ms", 150), ("500ms", 500), ("1s", 1_000), ("1min", 60_000), ("60s", 60_000)]
        {
            assert_eq!(read(value), Ok(millis), "{value}");
        }
        for bad in ["", "1", "99ms", "0s", "61s", "2min", "-1s", "soon", "99999999999999999999s"] {
            assert_eq!(read(bad), Err(ViewError::Every), "{bad:?}");
        }
        assert_eq!(Interval::read("1s").unwrap().to_string(), "1s");
    }
}
