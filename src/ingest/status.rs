//! The state of the broker's connections, for readiness, the console and the log. Ingest writes it; nothing of delivery
//! depends on it.

/// The state of the broker, or of one of its connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upstream {
    /// Connected, and every filter is subscribed.
    Up,
    /// Connected, except for some of the topics; the reason.
    Partly(String),
    /// Not connected; the reason.
    Down(String),
}

/// The state of each connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstreams {
    /// The connection of plain publish/subscribe.
    pub pubsub: Upstream,
    /// The connection of stored sources. Up as long as it is not needed.
    pub stored: Upstream,
    /// The connections of sharded publish/subscribe. Up as long as they are not needed.
    pub sharded: Upstream,
}

impl Upstreams {
    /// The state at the start: plain publish/subscribe is not connected yet, and the others are not needed yet.
    pub fn new() -> Self {
        Upstreams {
            pubsub: Upstream::Down("not connected yet".into()),
            stored: Upstream::Up,
            sharded: Upstream::Up,
        }
    }

    /// The worst state of all connections.
    pub fn all(&self) -> &Upstream {
        let Upstreams { pubsub, stored, sharded } = self;
        let all = [pubsub, stored, sharded];
        let found = all.into_iter().find(|one| matches!(one, Upstream::Down(_)));
        found.or_else(|| all.into_iter().find(|one| **one != Upstream::Up)).unwrap_or(pubsub)
    }
}

impl Default for Upstreams {
    fn default() -> Self {
        Upstreams::new()
    }
}
