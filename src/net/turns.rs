//! Fair queues: requests of clients for stored messages, or questions to the backend of forward auth, wait here, and
//! client addresses take turns, however many requests one of them has.
//!
//! Each address has its own queue, in order of arrival. The bound applies to all of them together: when it is reached,
//! the address with the most waiting requests gives way. Nothing here knows the broker, the backend or the requests.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::address::counted_as;

/// The queues of all addresses.
#[derive(Debug)]
pub struct Turns<T> {
    queues: HashMap<IpAddr, VecDeque<T>>,
    /// Every address with a waiting item, in the order of their turns.
    order: VecDeque<IpAddr>,
    waiting: usize,
    most: usize,
}

impl<T> Turns<T> {
    /// Empty queues for at most `most` items.
    pub fn new(most: usize) -> Self {
        Turns { queues: HashMap::new(), order: VecDeque::new(), waiting: 0, most }
    }

    /// The number of waiting items.
    pub fn len(&self) -> usize {
        self.waiting
    }

    /// Whether no further item can be added.
    pub fn is_full(&self) -> bool {
        self.waiting >= self.most
    }

    /// Whether no item waits.
    pub fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    /// Adds `item` to the queue of `address`. If the queues are full, returns the item that has to give way: the newest
    /// one of the address with the most, which may be this one.
    pub fn push(&mut self, address: IpAddr, item: T) -> Option<T> {
        let mut displaced = None;
        if self.is_full() {
            let own = self.queues.get(&address).map_or(0, VecDeque::len);
            let longest = self.queues.iter().max_by_key(|(_, queue)| queue.len());
            match longest.map(|(address, queue)| (*address, queue.len())) {
                // Otherwise the two would displace each other over and over.
                Some((other, length)) if length > own + 1 => displaced = self.take(other, VecDeque::pop_back),
                _ => return Some(item),
            }
        }
        let queue = self.queues.entry(address).or_default();
        if queue.is_empty() {
            self.order.push_back(address);
        }
        queue.push_back(item);
        self.waiting += 1;
        displaced
    }

    /// Removes the items that `keep` rejects.
    pub fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        self.queues.values_mut().for_each(|queue| queue.retain(&mut keep));
        self.queues.retain(|_, queue| !queue.is_empty());
        self.order.retain(|address| self.queues.contains_key(address));
        self.waiting = self.queues.values().map(VecDeque::len).sum();
    }

    /// Removes the oldest item of the next address that `may` be served now.
    pub fn pop(&mut self, mut may: impl FnMut(IpAddr) -> bool) -> Option<T> {
        for _ in 0..self.order.len() {
            let address = self.order.pop_front()?;
            self.order.push_back(address);
            if may(address) {
                return self.take(address, VecDeque::pop_front);
            }
        }
        None
    }

    fn take(&mut self, address: IpAddr, which: impl FnOnce(&mut VecDeque<T>) -> Option<T>) -> Option<T> {
        let queue = self.queues.get_mut(&address)?;
        let taken = which(queue)?;
        self.waiting -= 1;
        if queue.is_empty() {
            self.queues.remove(&address);
            self.order.retain(|other| *other != address);
        }
        Some(taken)
    }
}

/// A semaphore whose permits go to addresses in turns.
#[derive(Debug)]
pub struct Permits(Arc<Mutex<Waiting>>);

#[derive(Debug)]
struct Waiting {
    free: usize,
    turns: Turns<oneshot::Sender<Permit>>,
}

/// A permit. Dropping it passes it to the next address.
#[derive(Debug)]
pub struct Permit(Option<Arc<Mutex<Waiting>>>);

impl Permits {
    /// A semaphore with `permits` permits and a queue of at most `waiting`.
    pub fn new(permits: usize, waiting: usize) -> Self {
        Permits(Arc::new(Mutex::new(Waiting { free: permits, turns: Turns::new(waiting) })))
    }

    /// Waits for a permit for `address`. `None` if the queue was full, or if another address took the place in it.
    pub async fn acquire(&self, address: IpAddr) -> Option<Permit> {
        let granted = {
            let mut waiting = self.0.lock();
            if waiting.free > 0 {
                waiting.free -= 1;
                return Some(Permit(Some(self.0.clone())));
            }
            if waiting.turns.is_full() {
                waiting.turns.retain(|waits| !waits.is_closed());
            }
            let (grant, granted) = oneshot::channel();
            drop(waiting.turns.push(counted_as(address), grant));
            granted
        };
        granted.await.ok()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        while let Some(permits) = self.0.take() {
            let mut waiting = permits.lock();
            let Some(next) = waiting.turns.pop(|_| true) else {
                waiting.free += 1;
                return;
            };
            drop(waiting);
            // If nobody waits, the permit is returned.
            self.0 = next.send(Permit(Some(permits))).err().and_then(|mut permit| permit.0.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use futures_util::FutureExt as _;
    use proptest::prelude::*;

    use super::*;

    fn address(n: u8) -> IpAddr {
        Ipv4Addr::new(10, 0, 0, n).into()
    }

    #[test]
    fn an_address_with_few_requests_waits_for_one_request_of_each_other_address() {
        let mut turns = Turns::new(100);
        for n in 0..90 {
            assert_eq!(turns.push(address(1), (1, n)), None);
        }
        assert_eq!(turns.push(address(2), (2, 0)), None);
        let served: Vec<_> = std::iter::from_fn(|| turns.pop(|_| true)).take(3).collect();
        assert_eq!(served, [(1, 0), (2, 0), (1, 1)]);
    }

    #[test]
    fn a_request_that_exceeds_its_pace_delays_no_other_and_keeps_its_turn() {
        let mut turns = Turns::new(100);
        for n in 0..2 {
            turns.push(address(1), (1, n));
            turns.push(address(2), (2, n));
        }
        assert_eq!(turns.pop(|it| it != address(1)), Some((2, 0)));
        assert_eq!(turns.pop(|it| it != address(1)), Some((2, 1)));
        assert_eq!(turns.pop(|it| it != address(1)), None);
        assert_eq!((turns.len(), turns.pop(|_| true)), (2, Some((1, 0))));
    }

    #[tokio::test]
    async fn permits_go_in_turns_to_waiting_requests_and_are_returned() {
        let permits = Permits::new(1, 3);
        let held = permits.acquire(address(1)).await.unwrap();
        let mut waiting: Vec<_> =
            [1, 1, 1, 2].into_iter().map(|n| Box::pin(permits.acquire(address(n)))).collect();
        for waits in &mut waiting {
            assert!(
                waits.as_mut().now_or_never().is_none_or(|permit| permit.is_none()),
                "it waits, or gave way"
            );
        }
        let (of_other, gave_way) = (waiting.remove(3), waiting.remove(2));
        assert!(gave_way.await.is_none(), "the newest of the one that has most");
        drop(waiting.remove(0)); // leaves
        drop(held);
        drop(of_other.await.unwrap()); // it is the turn of the other one, after the one that left
        drop(waiting.remove(0).await.unwrap());
        assert!(permits.acquire(address(3)).await.is_some());
    }

    proptest! {
        /// Each step is a request of an address, or a turn.
        #[test]
        fn turns_are_fair_bounded_and_lose_nothing(steps in proptest::collection::vec(0u8..8, 1..400)) {
            const MOST: usize = 12;
            let mut turns = Turns::new(MOST);
            // The expected state: the queue of each address, and the addresses served since its first item was added.
            let mut lines: HashMap<u8, VecDeque<usize>> = HashMap::new();
            let mut passed: HashMap<u8, Vec<u8>> = HashMap::new();
            for (n, step) in steps.into_iter().enumerate() {
                if step < 5 {
                    let before: HashMap<u8, usize> = lines.iter().map(|(a, line)| (*a, line.len())).collect();
                    let longest = before.values().copied().max().unwrap_or_default();
                    lines.entry(step).or_default().push_back(n);
                    passed.entry(step).or_default();
                    if let Some((loser, lost)) = turns.push(address(step), (step, n)) {
                        prop_assert_eq!(before.values().sum::<usize>(), MOST, "there was room");
                        prop_assert_eq!(lines.get_mut(&loser).and_then(VecDeque::pop_back), Some(lost));
                        let own = before.get(&step).copied().unwrap_or_default();
                        let fair = if loser == step { longest <= own + 1 } else { before[&loser] == longest };
                        prop_assert!(fair);
                    }
                } else if let Some((who, which)) = turns.pop(|_| true) {
                    prop_assert_eq!(lines.get_mut(&who).and_then(VecDeque::pop_front), Some(which), "in order");
                    passed.insert(who, vec![]);
                    for (other, others) in passed.iter_mut().filter(|(other, _)| **other != who) {
                        prop_assert!(!others.contains(&who), "{} was served twice while {} waited", who, other);
                        others.push(who);
                    }
                } else {
                    prop_assert!(lines.is_empty());
                }
                lines.retain(|_, line| !line.is_empty());
                passed.retain(|who, _| lines.contains_key(who));
                prop_assert_eq!(turns.len(), lines.values().map(VecDeque::len).sum::<usize>());
                prop_assert!(turns.len() <= MOST);
            }
        }
    }
}
