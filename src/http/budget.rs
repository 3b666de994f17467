//! The budget of requests: when thousands of clients connect at once, the readers of open streams have their turns in
//! between. It limits how often the tasks of requests run in a row, not how many requests there are.
//!
//! tokio runs tasks in the order in which they became ready. Thousands of connections that are ready at once would run before
//! the readers of the next message. With the budget, only some of them run; the others wait until the runtime has looked for
//! new messages, and has put the readers of these into its queue.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::yield_now;

/// How often tasks of requests run in a row on each worker of the runtime. A run takes up to a tenth of a millisecond.
const RUNS: usize = 4;

/// The budget of a listener. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Budget(Arc<State>);

#[derive(Debug)]
struct State {
    /// The runs that are left; those who wait for one have their turns in order.
    left: Semaphore,
    /// The runs so far.
    used: AtomicUsize,
    size: usize,
}

impl Budget {
    /// A budget for the workers of the current runtime.
    pub(super) fn new() -> Self {
        let size = RUNS * Handle::current().metrics().num_workers();
        Budget(Arc::new(State { left: Semaphore::new(size), used: AtomicUsize::new(0), size }))
    }

    /// Runs `future` within the budget: each time it is polled counts. It is pinned by the caller, because an `async fn` would
    /// have room for it twice, as its parameter and pinned.
    pub(super) async fn run<F: Future>(&self, mut future: Pin<&mut F>) -> F::Output {
        loop {
            self.take().await;
            let polled = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx)));
            if let Poll::Ready(output) = polled.await {
                return output;
            }
            woken().await;
        }
    }

    async fn take(&self) {
        // The semaphore is never closed.
        if let Ok(run) = self.0.left.acquire().await {
            run.forget();
        }
        if (self.0.used.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(self.0.size) {
            let state = self.0.clone();
            tokio::spawn(async move {
                // The runtime continues here once it has looked for what arrived in the meantime.
                yield_now().await;
                state.left.add_permits(state.size);
            });
        }
    }
}

/// Waits until the task is woken by whatever the future that was polled before waits for.
async fn woken() {
    let mut is_waiting = false;
    poll_fn(|_| if std::mem::replace(&mut is_waiting, true) { Poll::Ready(()) } else { Poll::Pending }).await;
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::Mutex;

    use super::*;

    #[tokio::test]
    async fn a_reader_has_its_turns_between_the_requests_of_a_crowd() {
        let (budget, order) = (Budget::new(), Arc::new(Mutex::new(Vec::new())));
        let record = |what: &'static str| {
            let order = order.clone();
            move || order.lock().unwrap().push(what)
        };
        let mut requests = tokio::task::JoinSet::new();
        for _ in 0..25 * RUNS {
            let (budget, request) = (budget.clone(), record("request"));
            requests.spawn(async move { budget.run(pin!(async move { request() })).await });
        }
        let reads = record("read");
        let reader = tokio::spawn(async move {
            loop {
                reads();
                yield_now().await;
            }
        });
        while requests.join_next().await.is_some() {}
        reader.abort();
        let order = order.lock().unwrap();
        let in_a_row = order.split(|what| *what == "read").map(<[_]>::len).max();
        assert!(in_a_row <= Some(2 * RUNS), "{in_a_row:?} requests between two reads");
        assert_eq!(order.iter().filter(|what| **what == "request").count(), 25 * RUNS);
    }

    #[tokio::test]
    async fn a_request_that_waits_costs_the_others_nothing() {
        let budget = Budget::new();
        let waiting: Vec<_> = (0..10 * RUNS)
            .map(|_| {
                let budget = budget.clone();
                tokio::spawn(async move { budget.run(pin!(std::future::pending::<()>())).await })
            })
            .collect();
        yield_now().await;
        let (done, waits) = tokio::sync::oneshot::channel();
        let other = pin!(async move { waits.await.unwrap() });
        let other = budget.run(other);
        done.send(7).unwrap();
        let answer = tokio::time::timeout(std::time::Duration::from_secs(5), other).await;
        assert_eq!(answer.ok(), Some(7));
        waiting.iter().for_each(tokio::task::JoinHandle::abort);
    }
}
