//! The feeds of a stream: finds topics that have become stale, because the broker or their part of it is away, or live
//! again. The marks are in the numberings; each cursor records what its reader has received.

use super::cursors::Cursors;
use crate::protocol::topic::Filter;

/// The feeds of a stream whose state differs from what its reader has received.
#[derive(Debug, Default)]
pub struct FeedNews {
    /// The cursors of topics that have become stale.
    stale: Vec<usize>,
    /// The cursors of topics that are live again.
    live: Vec<usize>,
}

impl FeedNews {
    /// Whether topics have become stale.
    pub fn has_stale(&self) -> bool {
        !self.stale.is_empty()
    }

    /// Whether topics are live again.
    pub fn has_live(&self) -> bool {
        !self.live.is_empty()
    }
}

impl Cursors {
    /// Compares the feeds with what the reader has received. Entries that were written to a log before its feed was live
    /// again can be read after this call.
    pub fn feed_news(&self) -> FeedNews {
        let mut news = FeedNews::default();
        for (index, cursor) in self.cursors.iter().enumerate() {
            match (cursor.lease.log().numbering.is_stale(), cursor.told_stale) {
                (true, false) => news.stale.push(index),
                (false, true) => news.live.push(index),
                (true, true) | (false, false) => {}
            }
        }
        news
    }

    /// Records that the reader receives now that these are stale, and returns their topics.
    pub fn take_stale(&mut self, news: &FeedNews) -> Vec<&str> {
        self.tell(&news.stale, true)
    }

    /// Records that the reader receives now that these are live, and returns their topics.
    pub fn take_live(&mut self, news: &FeedNews) -> Vec<&str> {
        self.tell(&news.live, false)
    }

    fn tell(&mut self, indices: &[usize], is_stale: bool) -> Vec<&str> {
        indices.iter().for_each(|index| self.cursors[*index].told_stale = is_stale);
        indices.iter().map(|index| self.cursors[*index].lease.filter().as_str()).collect()
    }

    /// The topics that are stale now.
    pub fn stale(&self) -> impl Iterator<Item = &Filter> {
        let stale = self.cursors.iter().filter(|cursor| cursor.lease.log().numbering.is_stale());
        stale.map(|cursor| cursor.lease.filter())
    }
}
