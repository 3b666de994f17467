//! What is known about the streams that are being read: their configuration, and which of them have a mirror that
//! answers in their place. A reader that resumes from far back needs hundreds of pages; it asks for the configuration once
//! a second and not before each page, which would double its round trips.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use lru::LruCache;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::info::Info;

/// How long a configuration is used. A change of a stream takes this much longer to be noticed by a replay.
const FRESH: Duration = Duration::from_secs(1);

/// How long a stream is read without Direct Get after a mirror has answered for it.
const MIRRORED: Duration = Duration::from_secs(60);

/// The most streams; those that were used least recently are asked for again. The unwrap is
/// evaluated at compile time.
const STREAMS: NonZeroUsize = NonZeroUsize::new(64).unwrap();

/// What servers have said about streams, by their names.
pub(super) struct RecentStreams {
    infos: Mutex<LruCache<String, (Instant, Arc<Info>)>>,
    /// When a mirror last answered for a stream.
    mirrored: Mutex<LruCache<String, Instant>>,
}

impl RecentStreams {
    pub(super) fn new() -> Self {
        RecentStreams {
            infos: Mutex::new(LruCache::new(STREAMS)),
            mirrored: Mutex::new(LruCache::new(STREAMS)),
        }
    }

    /// A mirror has answered for the stream.
    pub(super) fn found_mirror(&self, name: &str) {
        self.mirrored.lock().put(name.to_owned(), Instant::now());
    }

    /// Whether a mirror has answered for the stream lately.
    pub(super) fn is_mirrored(&self, name: &str) -> bool {
        self.mirrored.lock().get(name).is_some_and(|at| at.elapsed() < MIRRORED)
    }

    /// The information about a stream, if it is not too old.
    pub(super) fn get(&self, name: &str) -> Option<Arc<Info>> {
        let mut infos = self.infos.lock();
        let (at, info) = infos.get(name)?;
        (at.elapsed() < FRESH).then(|| info.clone())
    }

    /// Stores the information that a server has just sent.
    pub(super) fn put(&self, info: Arc<Info>) {
        self.infos.lock().put(info.config.name.clone(), (Instant::now(), info));
    }
}
