//! The batches of a log or a backfill range: one cache for readers of everything, one for each of the last few views, and one
//! for streams that read other logs too. The caches are apart, so that readers with views of their own do not displace the
//! batches of the others.

use std::collections::VecDeque;
use std::sync::Arc;

use super::batch_cache::{BatchCache, SharedBatch};
use super::merged::{Merged, MergedBatches, Wanted};
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
    /// Of streams of which this log is the first.
    merged: Option<Box<MergedBatches>>,
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
        Batches { plain: BatchCache::new(usage.clone()), views: VecDeque::new(), merged: None, usage }
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

    /// What was merged of this log and others for a stream that wants the same.
    pub(super) fn merged(&self, wanted: &Wanted) -> Option<Merged> {
        self.merged.as_ref()?.find(wanted)
    }

    /// Keeps what was merged.
    pub(super) fn keep_merged(&mut self, merged: Merged) {
        let usage = &self.usage;
        self.merged.get_or_insert_with(|| Box::new(MergedBatches::new(usage.clone()))).keep(merged);
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
        self.merged = None;
    }
}
