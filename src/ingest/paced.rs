//! Runs requests for stored messages: client addresses take turns, each no faster than its pace. It does not know what
//! a request does; `backfill` does.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::metrics::{Limit, Metrics};
use crate::net::address::counted_as;
use crate::net::turns::Turns;
use crate::reader::quota::{self, Clients};

/// How often to check whether an address that has used up its pace may be served again.
const PACE_STEP: Duration = Duration::from_millis(20);

/// A request for the broker's stored messages.
pub trait PacedRequest: Send + 'static {
    /// The kind of the request, which determines its pace.
    const KIND: quota::StoredRead;

    /// The client address that it is for.
    fn address(&self) -> IpAddr;

    /// Whether a reader still waits for it.
    fn is_wanted(&self) -> bool;

    /// Called when its turn has come. Returns whether the broker must be asked: the result may have arrived by now, or
    /// be requested for another address.
    fn begin(&self) -> bool {
        self.is_wanted()
    }
}

/// Runs requests, `at_once` at a time: addresses take turns, each no faster than its pace. `work` returns the bytes
/// that the broker sent. Requests that do not fit into the queue, or that no reader waits for any more, are dropped.
pub async fn serve<T: PacedRequest, F: Future<Output = usize> + Send + 'static>(
    mut requests: mpsc::Receiver<T>,
    most: usize,
    at_once: usize,
    clients: Arc<Clients>,
    metrics: Arc<Metrics>,
    work: impl Fn(T) -> F,
) {
    let mut turns: Turns<T> = Turns::new(most);
    let mut running = JoinSet::new();
    let (waiting, mut shown) = (metrics.limit_used.of(Limit::Lookups), 0);
    let mut paced = false;
    loop {
        while running.len() < at_once
            && let Some(request) = turns.pop(|address| clients.read_due(T::KIND, address).is_none())
        {
            if request.begin() {
                let (address, clients, work) = (request.address(), clients.clone(), work(request));
                running.spawn(async move { clients.record_read(T::KIND, address, work.await) });
            }
        }
        // If there is a free slot, the remaining addresses wait for their pace.
        let waits = !turns.is_empty() && running.len() < at_once;
        if waits && !paced {
            metrics.hit(Limit::ResumeBytes);
        }
        paced = waits;
        tokio::select! {
            request = requests.recv() => {
                let Some(request) = request else { return };
                if turns.push(counted_as(request.address()), request).is_some() {
                    metrics.hit(Limit::Lookups);
                }
            }
            Some(_) = running.join_next() => {}
            // Requests without a waiting reader take no place in the queue.
            () = tokio::time::sleep(PACE_STEP), if waits => turns.retain(PacedRequest::is_wanted),
        }
        // Others add to it too.
        waiting.inc_by(turns.len() as i64 - shown);
        shown = turns.len() as i64;
    }
}
