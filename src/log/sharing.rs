//! By what a stream finds the bytes that it shares with others. Every reader has this, so it is small: a body without coding
//! has no window, and a gzip body needs no name.

use super::merged::SetName;
use super::window::Window;
use crate::protocol::gzip::Content;
use crate::protocol::seq::Seq;

/// The content coding of a body, and by what it shares its bytes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Sharing {
    /// Without coding: by the name of its set of logs, if they are several of one sequence.
    BySet(Unaligned),
    /// Gzip: by what the reader has received last. These are the fields of [`Window`].
    ByWindow { cursor: u8, since: Unaligned },
}

/// A number without alignment, so that there is no padding around it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unaligned([u8; 8]);

impl Sharing {
    /// Of a body without coding.
    pub(super) fn by_set(SetName(number): SetName) -> Self {
        Sharing::BySet(number.into())
    }

    /// Of a gzip body of which the reader has received nothing.
    pub(super) fn by_window() -> Self {
        Window::NONE.into()
    }

    pub(super) fn content(self) -> Content {
        match self {
            Sharing::BySet(_) => Content::Identity,
            Sharing::ByWindow { .. } => Content::Gzip,
        }
    }

    pub(super) fn set(self) -> Option<SetName> {
        match self {
            Sharing::BySet(number) => Some(SetName(number.into())),
            Sharing::ByWindow { .. } => None,
        }
    }

    pub(super) fn window(self) -> Window {
        match self {
            Sharing::BySet(_) => Window::NONE,
            Sharing::ByWindow { cursor, since } => Window { cursor, since: Seq::new(since.into()) },
        }
    }

    /// Has no effect on a body without coding.
    pub(super) fn set_window(&mut self, window: Window) {
        if let Sharing::ByWindow { .. } = self {
            *self = window.into();
        }
    }
}

impl From<Window> for Sharing {
    fn from(Window { cursor, since }: Window) -> Self {
        Sharing::ByWindow { cursor, since: since.get().into() }
    }
}

impl From<u64> for Unaligned {
    fn from(number: u64) -> Self {
        Unaligned(number.to_ne_bytes())
    }
}

impl From<Unaligned> for u64 {
    fn from(Unaligned(bytes): Unaligned) -> Self {
        u64::from_ne_bytes(bytes)
    }
}
