//! Change notifications (`CLIENT TRACKING`): the server reports each key that was read once, at its next change.
//!
//! The server starts to track a key when it answers a read of it, so no change is missed in between. It also reports a
//! key when it stops tracking it for lack of memory.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::Arc;

use parking_lot::Mutex;
use redis::{PushInfo, PushKind, Value};
use tokio::sync::Notify;

/// The changed keys. Bounded by the number of followed keys.
#[derive(Debug, Default)]
pub(super) struct Changes {
    changed: Mutex<ChangedKeys>,
    news: Notify,
}

#[derive(Debug, Default)]
pub(super) struct ChangedKeys {
    pub(super) keys: HashSet<Vec<u8>>,
    /// Any key may have changed: the server was flushed.
    pub(super) all: bool,
}

impl Changes {
    /// Handles the pushes of a connection.
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
        let mut changed = self.changed.lock();
        for value in data {
            match value {
                Value::Array(keys) => changed.keys.extend(keys.into_iter().filter_map(|key| match key {
                    Value::BulkString(key) => Some(key),
                    _ => None,
                })),
                _ => changed.all = true,
            }
        }
        drop(changed);
        self.news.notify_one();
    }

    /// Takes the keys that were reported since the last call.
    pub(super) fn take(&self) -> ChangedKeys {
        std::mem::take(&mut *self.changed.lock())
    }

    /// Waits until a change is reported. Cancel-safe.
    pub(super) async fn changed(&self) {
        self.news.notified().await;
    }
}
