//! What a connection that subscribes receives, as it comes.

use futures_util::stream::BoxStream;
use futures_util::stream::ReadyChunks;
use redis::Msg;

/// What the server says unasked.
pub(crate) enum Heard {
    Message(Msg),
    /// A shard channel is subscribed no longer: because we asked for that, or its slot has moved.
    Unsubscribed(String),
}

pub(crate) type Hearing = ReadyChunks<BoxStream<'static, Heard>>;
