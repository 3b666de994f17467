//! Whether the broker's connections are up, for readiness, the console and the log.

/// Whether the broker can be relied on now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upstream {
    /// Connected, and everything is subscribed.
    Up,
    /// So it is but for a part of the topics, and why.
    Partly(String),
    /// Not connected, and why.
    Down(String),
}

/// That of each of its connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstreams {
    /// Of plain publish/subscribe.
    pub pubsub: Upstream,
    /// Of what the broker keeps. Up as long as it is not needed.
    pub stored: Upstream,
    /// Of sharded publish/subscribe. Up as long as it is not needed.
    pub sharded: Upstream,
}

impl Upstreams {
    /// Nothing is connected yet, and what is made when it is first needed is not needed yet.
    pub fn new() -> Self {
        Upstreams {
            pubsub: Upstream::Down("not connected yet".into()),
            stored: Upstream::Up,
            sharded: Upstream::Up,
        }
    }

    /// The worst of them.
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
