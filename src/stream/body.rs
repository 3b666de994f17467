//! The body of a stream, in its content coding. For a gzip body, the log has shared batches ready to send, and events for
//! this reader alone are stored here.

use bytes::Bytes;

use super::Stream;
use crate::protocol::frame::{self, Coding, Frame};
use crate::protocol::gzip::{self, Checksum, Content, Piece};

impl Stream {
    /// The content coding.
    pub fn content(&self) -> Content {
        self.cursors.content()
    }

    /// Begins the body with these events.
    pub(super) fn begin(&mut self, opening: &Frame, coding: Coding) -> Bytes {
        match self.content() {
            Content::Identity => self.hand_out(opening.bytes(coding), coding),
            Content::Gzip => self.hand_out_piece(gzip::opening(opening.slice(Coding::Plain)), coding),
        }
    }

    /// Encodes events for this reader alone.
    pub(super) fn say(&mut self, events: &Frame, coding: Coding) -> Bytes {
        match self.content() {
            Content::Identity => self.hand_out(events.bytes(coding), coding),
            Content::Gzip => {
                self.cursors.interrupt();
                let events = events.slice(Coding::Plain);
                self.hand_out_piece(gzip::stored(std::iter::once(events), events.len()), coding)
            }
        }
    }

    pub(super) fn heartbeat(&mut self, coding: Coding) -> Bytes {
        let bytes = match self.content() {
            Content::Identity => frame::heartbeat(coding),
            Content::Gzip => {
                self.cursors.interrupt();
                let (bytes, checksum) = gzip::heartbeat(coding);
                self.total.add(checksum);
                bytes
            }
        };
        self.hand_out(bytes, coding)
    }

    /// The bytes of a batch in the body.
    pub(super) fn encode(&mut self, bytes: Bytes, checksum: Option<Checksum>, coding: Coding) -> Bytes {
        if self.content() == Content::Identity {
            return bytes;
        }
        let (bytes, checksum) = match checksum {
            Some(checksum) => (bytes, checksum),
            None => {
                let Piece { frame, checksum } = gzip::stored(std::iter::once(&*bytes), bytes.len());
                (frame.bytes(coding), checksum)
            }
        };
        self.total.add(checksum);
        self.shared.metrics.saved_bytes.inc_by(checksum.length().saturating_sub(bytes.len()) as u64);
        bytes
    }

    /// Ends the body with these events. `begun` says whether anything was sent before them.
    pub(super) fn end(&mut self, goodbye: Frame, begun: bool, coding: Coding) -> Bytes {
        let goodbye = match self.content() {
            Content::Identity => goodbye,
            Content::Gzip => gzip::closing(goodbye.slice(Coding::Plain), self.total, begun),
        };
        self.hand_out(goodbye.bytes(coding), coding)
    }

    fn hand_out_piece(&mut self, piece: Piece, coding: Coding) -> Bytes {
        self.total.add(piece.checksum);
        self.hand_out(piece.frame.bytes(coding), coding)
    }
}
