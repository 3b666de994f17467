//! Server-Sent Events: the frames on the wire, and the stream that writes them for one subscriber.

pub mod frame;
pub mod stream;
pub mod table;
