//! Serves what is asked of the broker's histories: addresses in turn, each no faster than its pace.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::metrics::{Limit, Metrics};
use crate::net::address::counted_as;
use crate::net::turns::Turns;
use crate::reader::quota::{self, Clients};

/// How often it is looked whether an address that has had its pace may be served again.
const PACE_STEP: Duration = Duration::from_millis(20);

/// What is asked of the broker.
pub trait Look: Send + 'static {
    /// What kind of look it is.
    const KIND: quota::Look;

    /// For whom.
    fn address(&self) -> IpAddr;

    /// Whether anyone still waits for it.
    fn is_wanted(&self) -> bool;

    /// Its turn has come. Whether it is to be asked: it may be there by now, or be asked for another address.
    fn begin(&self) -> bool {
        self.is_wanted()
    }
}

/// Serves what is asked for, `at_once` at a time: addresses in turn, each no faster than its pace. `work` returns how many
/// bytes the broker gave. What has no place, or is not wanted any more, is dropped.
pub async fn serve<T: Look, F: Future<Output = usize> + Send + 'static>(
    mut asked: mpsc::Receiver<T>,
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
            && let Some(look) = turns.pop(|address| clients.look_due(T::KIND, address).is_none())
        {
            if look.begin() {
                let (address, clients, work) = (look.address(), clients.clone(), work(look));
                running.spawn(async move { clients.looked(T::KIND, address, work.await) });
            }
        }
        // Whoever is left while there is room to serve them waits for their pace.
        let waits = !turns.is_empty() && running.len() < at_once;
        if waits && !paced {
            metrics.hit(Limit::ResumeBytes);
        }
        paced = waits;
        tokio::select! {
            look = asked.recv() => {
                let Some(look) = look else { return };
                if turns.push(counted_as(look.address()), look).is_some() {
                    metrics.hit(Limit::Lookups);
                }
            }
            Some(_) = running.join_next() => {}
            // What nobody waits for any more takes no place.
            () = tokio::time::sleep(PACE_STEP), if waits => turns.retain(Look::is_wanted),
        }
        // Others add to it too.
        waiting.inc_by(turns.len() as i64 - shown);
        shown = turns.len() as i64;
    }
}
