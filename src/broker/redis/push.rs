//! The pushes that a subscribed connection receives.

use futures_util::stream::BoxStream;
use futures_util::stream::ReadyChunks;
use redis::Msg;

/// A push of the server.
pub(crate) enum Heard {
    Message(Msg),
    /// A shard channel is no longer subscribed: because we requested that, or because its slot has moved.
    Unsubscribed(String),
}

pub(crate) type Hearing = ReadyChunks<BoxStream<'static, Heard>>;
