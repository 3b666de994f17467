//! The keys that a server tells to have changed (`CLIENT TRACKING`): each key that was read, once, when it changes next.
//!
//! The server remembers a key as it answers a read of it, so nothing falls between the two. It tells as well when it forgets
//! a key for want of room.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::Arc;

use parking_lot::Mutex;
use redis::{PushInfo, PushKind, Value};
use tokio::sync::Notify;

/// See the module. Bounded by the keys that are read.
#[derive(Debug, Default)]
pub(super) struct Changes {
    told: Mutex<ChangedKeys>,
    news: Notify,
}

#[derive(Debug, Default)]
pub(super) struct ChangedKeys {
    pub(super) keys: HashSet<Vec<u8>>,
    /// Whatever it was: the server was flushed.
    pub(super) all: bool,
}

impl Changes {
    /// What a connection does with what the server says unasked.
    pub(super) fn listen(
        self: &Arc<Self>,
    ) -> impl Fn(PushInfo) -> Result<(), Infallible> + Send + Sync + 'static {
        let changes = self.clone();
        move |push| {
            if push.kind == PushKind::Invalidate {
                changes.add(push.data);
            }
            Ok(())
        }
    }

    fn add(&self, data: Vec<Value>) {
        let mut told = self.told.lock();
        for value in data {
            match value {
                Value::Array(keys) => told.keys.extend(keys.into_iter().filter_map(|key| match key {
                    Value::BulkString(key) => Some(key),
                    _ => None,
                })),
                _ => told.all = true,
            }
        }
        drop(told);
        self.news.notify_one();
    }

    /// What was told since the last time.
    pub(super) fn take(&self) -> ChangedKeys {
        std::mem::take(&mut *self.told.lock())
    }

    /// Waits until something is told. Safe to drop and call again.
    pub(super) async fn told(&self) {
        self.news.notified().await;
    }
}
