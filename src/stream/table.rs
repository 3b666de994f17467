//! The table of open streams: it enforces their limit, wakes them by the clock, and closes them.
//!
//! It uses one clock for all streams, because a timer per stream costs memory, and a lock of the runtime at every
//! reset.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use slab::Slab;

use crate::protocol::codes::CloseCode;
use crate::reader::Reader;
use crate::reader::clock::Clock;
use crate::reader::handle::ReaderHandle;
use crate::reader::ticks::Ticks;

/// The open streams by id.
#[derive(Debug)]
pub struct Table {
    limit: AtomicUsize,
    clock: Clock,
    ticks: Ticks,
    streams: Mutex<Streams>,
}

#[derive(Debug, Default)]
struct Streams {
    handles: Slab<Arc<ReaderHandle>>,
    /// The last id that was given.
    last: u64,
}

impl Table {
    /// An empty table for at most `limit` streams.
    pub fn new(limit: usize) -> Arc<Self> {
        let limit = AtomicUsize::new(limit);
        let clock = Clock::start();
        Arc::new(Table { limit, clock, ticks: Ticks::new(clock), streams: Mutex::default() })
    }

    /// Changes the limit. Streams beyond a lower limit stay open.
    pub fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// The clock of all streams.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// The ticks of streams whose readers have an interval.
    pub fn ticks(&self) -> &Ticks {
        &self.ticks
    }

    /// Open streams.
    pub fn len(&self) -> usize {
        self.streams.lock().handles.len()
    }

    /// Whether no stream is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a stream, or returns `None` at the limit.
    pub fn enter(self: &Arc<Self>, reader: Reader) -> Option<Ticket> {
        let opened = self.clock.now();
        let mut streams = self.streams.lock();
        if streams.handles.len() >= self.limit.load(Ordering::Relaxed) {
            return None;
        }
        streams.last += 1;
        let handle = Arc::new(ReaderHandle::new(streams.last, reader, opened));
        if let Some(every) = handle.every() {
            self.ticks.join(every, &handle);
        }
        Some(Ticket { key: streams.handles.insert(handle.clone()), table: self.clone(), handle })
    }

    /// Wakes every stream whose due time has come.
    pub fn tick(&self) {
        let now = self.clock.now();
        for (_, handle) in &self.streams.lock().handles {
            handle.tick(now);
        }
    }

    /// Orders up to `count` streams that are not closing yet to close. Returns their number.
    pub fn close(&self, count: usize, code: CloseCode) -> usize {
        let streams = self.streams.lock();
        let open =
            streams.handles.iter().map(|(_, handle)| handle).filter(|handle| handle.closing().is_none());
        open.take(count).map(|handle| handle.close(code)).count()
    }

    /// The streams that `wanted` selects, in no order.
    pub fn find(&self, wanted: impl Fn(&ReaderHandle) -> bool) -> Vec<Arc<ReaderHandle>> {
        let streams = self.streams.lock();
        let found = streams.handles.iter().map(|(_, handle)| handle).filter(|handle| wanted(handle));
        found.cloned().collect()
    }
}

/// The entry of a stream in the table. Dropping it removes the stream.
#[derive(Debug)]
pub struct Ticket {
    table: Arc<Table>,
    key: usize,
    handle: Arc<ReaderHandle>,
}

impl Ticket {
    /// The stream's handle.
    pub fn handle(&self) -> &Arc<ReaderHandle> {
        &self.handle
    }

    /// The clock of all streams.
    pub fn clock(&self) -> Clock {
        self.table.clock
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(every) = self.handle.every() {
            self.table.ticks.leave(every, self.handle.id);
        }
        let mut streams = self.table.streams.lock();
        streams.handles.try_remove(self.key);
        if streams.handles.is_empty() {
            streams.handles.shrink_to_fit();
        }
    }
}
