//! The variant in which entries are written to a socket: format, coding and view. Readers that want the same variant
//! share its batches.

use std::borrow::Cow;

use super::message::Format;
use super::{Entry, EntryKind};
use crate::protocol::event_id::EventId;
use crate::protocol::frame::{Coding, Frame};
use crate::protocol::gzip::Content;
use crate::protocol::topic::Filter;
use crate::protocol::view::View;

/// How a reader wants its entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Variant<'a> {
    pub(crate) format: Format,
    pub(crate) coding: Coding,
    /// The content coding of the body. In a gzip body, shared batches are stored or compressed; readers with a view
    /// have none.
    pub(crate) content: Content,
    /// `None`: all messages, unchanged.
    pub(crate) view: Option<&'a View>,
}

impl Variant<'_> {
    /// The variant of events for one reader alone. In a gzip body they are stored by its stream.
    pub(super) fn own(self) -> Self {
        let coding = if self.content == Content::Gzip { Coding::Plain } else { self.coding };
        Variant { coding, content: Content::Identity, ..self }
    }

    /// Whether the view lets `entry` pass.
    pub(super) fn admits(self, entry: &Entry) -> bool {
        self.view.is_none_or(|view| entry.is_in(view))
    }

    /// The event of `entry`, which must be admitted.
    pub(super) fn frame(self, entry: &Entry) -> Cow<'_, Frame> {
        let frame = entry.frame(self.format);
        let untyped = match (self.view, entry.message()) {
            (Some(view), Some(message)) if view.without_types && !message.is_control() => {
                frame.without_type()
            }
            _ => None,
        };
        untyped.map_or(Cow::Borrowed(frame), Cow::Owned)
    }

    /// The same with another id, for a reader of several sequences. `filter` is the filter of the entry's log.
    pub(super) fn frame_with_id(self, entry: &Entry, filter: &Filter, id: &EventId) -> Frame {
        match &entry.kind {
            EntryKind::Message(_) => self.frame(entry).with_id(id),
            EntryKind::Gap(gap) => gap.frame_with_id(filter, id),
        }
    }
}
