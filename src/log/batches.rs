//! The batches of a log or a backfill range: one cache for readers of everything, and one for each of the last few
//! views. The caches are apart, so that readers with views of their own do not displace the batches of the others.

use std::collections::VecDeque;
use std::sync::Arc;

use super::batch_cache::{BatchCache, SharedBatch};
use super::newest_batch::NewestBatches;
use super::variant::Variant;
use super::{BufferUsage, Entry};
use crate::protocol::seq::Seq;
use crate::protocol::view::View;

/// The most views for which batches are cached. With more, readers of the others build their own.
const CACHED_VIEWS: usize = 16;

/// The caches.
#[derive(Debug)]
pub(crate) struct Batches {
    plain: BatchCache,
    /// The one that was used last is at the end.
    views: VecDeque<ViewBatches>,
    usage: Arc<BufferUsage>,
}

/// The batches of one view.
#[derive(Debug)]
struct ViewBatches {
    view: View,
    all: BatchCache,
    newest: NewestBatches,
}

impl ViewBatches {
    fn new(view: &View, usage: &Arc<BufferUsage>) -> Self {
        let (all, newest) = (BatchCache::new(usage.clone()), NewestBatches::new(usage.clone()));
        ViewBatches { view: view.clone(), all, newest }
    }
}

impl Batches {
    /// Empty caches.
    pub(crate) fn new(usage: Arc<BufferUsage>) -> Self {
        Batches { plain: BatchCache::new(usage.clone()), views: VecDeque::new(), usage }
    }

    /// The batch of the entries after `position` up to `head`, in that variant.
    pub(crate) fn of(
        &mut self,
        entries: &VecDeque<Arc<Entry>>,
        position: Seq,
        head: Seq,
        variant: Variant<'_>,
    ) -> Option<SharedBatch> {
        let cache = match variant.view {
            None => &mut self.plain,
            Some(view) => &mut self.of_view(view).all,
        };
        cache.of(entries, position, head, variant)
    }

    /// The batches for readers with an interval and that view.
    pub(super) fn newest(&mut self, view: &View) -> &mut NewestBatches {
        &mut self.of_view(view).newest
    }

    fn of_view(&mut self, view: &View) -> &mut ViewBatches {
        let found = self.views.iter().position(|batches| batches.view == *view);
        let batches = found.and_then(|index| self.views.remove(index)).unwrap_or_else(|| {
            if self.views.len() == CACHED_VIEWS {
                self.views.pop_front();
            }
            ViewBatches::new(view, &self.usage)
        });
        self.views.push_back(batches);
        let last = self.views.len() - 1;
        &mut self.views[last]
    }

    /// Drops all batches, and frees the memory.
    pub(crate) fn clear(&mut self) {
        self.plain.clear();
        self.views = VecDeque::new();
    }
}
