//! The configuration of the streams that are being read. A reader that resumes from far back needs hundreds of pages; it
//! asks for the configuration once a second and not before each page, which would double its round trips. It knows no
//! stream's state, which changes with each message.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use lru::LruCache;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::info::Info;

/// How long a configuration is used. A change of a stream takes this much longer to be noticed by a replay.
const FRESH: Duration = Duration::from_secs(1);

/// The most streams; those that were used least recently are asked for again.
const STREAMS: NonZeroUsize = NonZeroUsize::new(64).unwrap();

/// What servers have said about streams, by their names.
pub(super) struct RecentStreams(Mutex<LruCache<String, (Instant, Arc<Info>)>>);

impl RecentStreams {
    pub(super) fn new() -> Self {
        RecentStreams(Mutex::new(LruCache::new(STREAMS)))
    }

    pub(super) fn get(&self, name: &str) -> Option<Arc<Info>> {
        let mut streams = self.0.lock();
        let (at, info) = streams.get(name)?;
        (at.elapsed() < FRESH).then(|| info.clone())
    }

    pub(super) fn put(&self, info: Arc<Info>) {
        self.0.lock().put(info.config.name.clone(), (Instant::now(), info));
    }
}
