//! The quotas of clients: the streams and topics of an address, the streams of a token's subject, the bytes that an
//! address publishes at once, how fast it opens streams, requests new topics and publishes, and the rate of its replay,
//! from memory and from the broker.
//!
//! One lock protects all of it. It is taken when a stream opens and ends, for each publish request, and for each batch
//! of a replay; live delivery never takes it. It knows no HTTP: `http::client` determines the addresses.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use super::bucket::{Bucket, Rate};
use super::clock::{Clock, Millis};
use super::handle::ReaderHandle;
use crate::config::Limits;
use crate::net::address::counted_as;
use crate::protocol::codes::CloseCode;

/// The most addresses without a stream that are remembered, until their buckets are full again: for seconds. Beyond it,
/// new addresses are refused, because their limits could not be enforced.
const IDLE_ADDRESSES: usize = 100_000;

/// One address may use one part in this many of `limits.bodies`.
const BODIES_SHARE: usize = 8;

/// The bytes that a fetch counts at least: it costs the broker a search, even if it returns nothing.
const FETCH: usize = 16 * 1024;

/// A kind of request for the broker's stored messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoredRead {
    /// Fetching a range. Paced like replay, by its bytes.
    Fetch,
    /// Finding where a stream begins. Paced like new topics, so that a client that has fetched much can still
    /// reconnect.
    Locate,
}

/// The usage of all clients, and their limits.
#[derive(Debug)]
pub struct Clients {
    clock: Clock,
    /// Uses the standard library's seeded hash, because clients choose both keys.
    counts: Mutex<Counts>,
}

/// The limits of each client.
#[derive(Debug)]
struct Shares {
    streams_per_address: usize,
    topics_per_address: usize,
    streams_per_subject: usize,
    opens: Rate,
    new_topics: Rate,
    publishes: Rate,
    resume_bytes: Rate,
    bodies: usize,
    bodies_per_address: usize,
    max_addresses: usize,
}

impl Shares {
    fn of(limits: &Limits) -> Self {
        let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        // A single message with its request head must fit.
        let largest = size(limits.message.saturating_add(limits.head));
        let bodies_per_address = (size(limits.bodies) / BODIES_SHARE).max(largest);
        Shares {
            streams_per_address: limits.streams_per_address,
            topics_per_address: limits.topics_per_address,
            streams_per_subject: limits.streams_per_subject,
            opens: Rate::per_second(limits.opens_per_second as u64),
            new_topics: Rate::per_second(limits.new_topics_per_second as u64),
            publishes: Rate::per_second(limits.publishes_per_second as u64),
            bodies: size(limits.bodies).max(bodies_per_address),
            bodies_per_address,
            resume_bytes: Rate::per_second(limits.resume_bytes),
            max_addresses: limits.streams.saturating_add(IDLE_ADDRESSES),
        }
    }
}

#[derive(Debug)]
struct Counts {
    shares: Shares,
    addresses: HashMap<IpAddr, Address>,
    /// Streams of each subject that has any.
    subjects: HashMap<Arc<str>, usize>,
    /// Bytes of all publish requests in progress.
    bodies: usize,
}

#[derive(Debug, Default)]
struct Address {
    streams: usize,
    topics: usize,
    /// Bytes of its publish requests in progress.
    bodies: usize,
    opens: Bucket,
    new_topics: Bucket,
    publishes: Bucket,
    replays: Bucket,
    /// Fetches from the broker for it.
    fetches: Bucket,
    lookups: Bucket,
}

impl Address {
    fn is_forgettable(&self, now: Millis) -> bool {
        let Address { opens, new_topics, publishes, replays, fetches, lookups, .. } = self;
        let buckets = [opens, new_topics, publishes, replays, fetches, lookups];
        self.streams == 0 && self.bodies == 0 && buckets.iter().all(|bucket| bucket.is_full(now))
    }
}

/// The usage of the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaUsage {
    /// Addresses that are remembered.
    pub addresses: usize,
    /// Subjects with a stream.
    pub subjects: usize,
    /// Streams of the address with the most.
    pub most_of_address: usize,
    /// Topics and patterns of the address with the most.
    pub most_topics_of_address: usize,
    /// Streams of the subject with the most.
    pub most_of_subject: usize,
    /// Bytes of publish requests in progress.
    pub bodies: usize,
}

impl Clients {
    /// Empty quotas with these limits.
    pub fn new(limits: &Limits, clock: Clock) -> Arc<Self> {
        let (addresses, subjects) = (HashMap::new(), HashMap::new());
        let counts = Counts { shares: Shares::of(limits), addresses, subjects, bodies: 0 };
        Arc::new(Clients { clock, counts: Mutex::new(counts) })
    }

    /// Changes the limits. A client that exceeds a lower limit keeps what it has.
    pub fn set_limits(&self, limits: &Limits) {
        self.counts.lock().shares = Shares::of(limits);
    }

    /// Counts an attempt of this address to open a stream. To be called before any other work.
    ///
    /// # Errors
    /// The address is too fast, or there are too many addresses to count.
    pub fn admit(&self, address: IpAddr) -> Result<(), CloseCode> {
        let now = self.clock.now();
        let mut counts = self.counts.lock();
        let Counts { shares, addresses, .. } = &mut *counts;
        let entry = entry(addresses, shares.max_addresses, counted_as(address))?;
        if entry.opens.take(1, shares.opens, now) { Ok(()) } else { Err(CloseCode::TooFast) }
    }

    /// Counts `topics` that must be subscribed for this address. An address without debt may request a whole stream's
    /// topics at once, and pays for them afterwards.
    ///
    /// # Errors
    /// The address requests topics too fast, or there are too many addresses to count.
    pub fn ask_for_new_topics(&self, address: IpAddr, topics: usize) -> Result<(), CloseCode> {
        if topics == 0 {
            return Ok(());
        }
        let now = self.clock.now();
        let mut counts = self.counts.lock();
        let Counts { shares, addresses, .. } = &mut *counts;
        let entry = entry(addresses, shares.max_addresses, counted_as(address))?;
        if entry.new_topics.in_debt_until(now).is_some() {
            return Err(CloseCode::TooFast);
        }
        entry.new_topics.owe(topics as u64, shares.new_topics, now);
        Ok(())
    }

    /// How many topics may linger for this address: as many as it may have, minus those that it reads.
    pub fn may_linger(&self, address: IpAddr) -> usize {
        let counts = self.counts.lock();
        let read = counts.addresses.get(&counted_as(address)).map_or(0, |address| address.topics);
        counts.shares.topics_per_address.saturating_sub(read)
    }

    /// Counts an attempt of this address to publish. To be called before any other work.
    ///
    /// # Errors
    /// The address is too fast, or there are too many addresses to count.
    pub fn publish(self: &Arc<Self>, address: IpAddr) -> Result<Publishing, CloseCode> {
        let (now, address) = (self.clock.now(), counted_as(address));
        let mut counts = self.counts.lock();
        let Counts { shares, addresses, .. } = &mut *counts;
        let entry = entry(addresses, shares.max_addresses, address)?;
        if !entry.publishes.take(1, shares.publishes, now) {
            return Err(CloseCode::TooFast);
        }
        Ok(Publishing { clients: self.clone(), address, bytes: 0 })
    }

    /// When this address may request more stored messages, in milliseconds of the clock of all streams; `None`: now.
    pub fn read_due(&self, read: StoredRead, address: IpAddr) -> Option<Millis> {
        let now = self.clock.now();
        let counts = self.counts.lock();
        let address = counts.addresses.get(&counted_as(address))?;
        match read {
            StoredRead::Fetch => address.fetches.in_debt_until(now),
            StoredRead::Locate => address.lookups.in_debt_until(now),
        }
    }

    /// Records that the broker returned `bytes` of stored messages for this address.
    pub fn record_read(&self, read: StoredRead, address: IpAddr, bytes: usize) {
        let now = self.clock.now();
        let mut counts = self.counts.lock();
        let Counts { shares, addresses, .. } = &mut *counts;
        // If there is no room to remember the address, it has no stream and gets none.
        if let Ok(address) = entry(addresses, shares.max_addresses, counted_as(address)) {
            match read {
                StoredRead::Fetch => address.fetches.owe(bytes.max(FETCH) as u64, shares.resume_bytes, now),
                StoredRead::Locate => address.lookups.owe(1, shares.new_topics, now),
            }
        }
    }

    /// The most addresses that may be remembered.
    pub fn max_addresses(&self) -> usize {
        self.counts.lock().shares.max_addresses
    }

    /// Takes a seat for one more stream over `topics` topics. A stream that is refused uses nothing.
    ///
    /// # Errors
    /// The limit that was hit.
    pub fn enter(self: &Arc<Self>, stream: Arc<ReaderHandle>, topics: usize) -> Result<Seat, CloseCode> {
        let subject = stream.reader.subject().cloned();
        let address = counted_as(stream.reader.address);
        let mut counts = self.counts.lock();
        let Counts { shares, addresses, subjects, .. } = &mut *counts;
        let of_subject = subject.as_ref().and_then(|subject| subjects.get(subject));
        if of_subject.is_some_and(|streams| *streams >= shares.streams_per_subject) {
            return Err(CloseCode::TooManySubjectStreams);
        }
        let entry = entry(addresses, shares.max_addresses, address)?;
        if entry.streams >= shares.streams_per_address {
            return Err(CloseCode::TooManyStreams);
        }
        if entry.topics + topics > shares.topics_per_address {
            return Err(CloseCode::TooManyTopics);
        }
        entry.streams += 1;
        entry.topics += topics;
        if let Some(subject) = subject {
            *subjects.entry(subject.clone()).or_default() += 1;
        }
        drop(counts);
        Ok(Seat { clients: self.clone(), stream, topics })
    }

    /// Forgets addresses that use nothing, and returns the usage. To be called every second.
    pub fn sweep(&self) -> QuotaUsage {
        let now = self.clock.now();
        let mut counts = self.counts.lock();
        let bodies = counts.bodies;
        let Counts { addresses, subjects, .. } = &mut *counts;
        addresses.retain(|_, address| !address.is_forgettable(now));
        if addresses.capacity() > 1024 && addresses.len() * 4 < addresses.capacity() {
            addresses.shrink_to_fit();
        }
        if subjects.capacity() > 1024 && subjects.len() * 4 < subjects.capacity() {
            subjects.shrink_to_fit();
        }
        QuotaUsage {
            addresses: addresses.len(),
            subjects: subjects.len(),
            most_of_address: addresses.values().map(|address| address.streams).max().unwrap_or_default(),
            most_topics_of_address: addresses
                .values()
                .map(|address| address.topics)
                .max()
                .unwrap_or_default(),
            most_of_subject: subjects.values().copied().max().unwrap_or_default(),
            bodies,
        }
    }
}

/// The record of an address, if there is room for it.
fn entry(
    addresses: &mut HashMap<IpAddr, Address>,
    most: usize,
    address: IpAddr,
) -> Result<&mut Address, CloseCode> {
    if addresses.len() >= most && !addresses.contains_key(&address) {
        return Err(CloseCode::Overloaded);
    }
    Ok(addresses.entry(address).or_default())
}

/// A stream's share of its client's quotas. Dropping it releases the share.
#[derive(Debug)]
pub struct Seat {
    clients: Arc<Clients>,
    stream: Arc<ReaderHandle>,
    topics: usize,
}

impl Seat {
    fn address(&self) -> IpAddr {
        counted_as(self.stream.reader.address)
    }

    /// When the address may receive more replay; `None`: now.
    pub fn replay_due(&self) -> Option<Millis> {
        let now = self.clients.clock.now();
        self.clients.counts.lock().addresses.get(&self.address())?.replays.in_debt_until(now)
    }

    /// Records that `bytes` of replay have been sent.
    pub fn replayed(&self, bytes: usize) {
        let now = self.clients.clock.now();
        let mut counts = self.clients.counts.lock();
        let Counts { shares, addresses, .. } = &mut *counts;
        if let Some(address) = addresses.get_mut(&self.address()) {
            address.replays.owe(bytes as u64, shares.resume_bytes, now);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut counts = self.clients.counts.lock();
        let Counts { addresses, subjects, .. } = &mut *counts;
        // An address with a stream is never forgotten.
        if let Some(address) = addresses.get_mut(&self.address()) {
            address.streams -= 1;
            address.topics -= self.topics;
        }
        if let Some(subject) = self.stream.reader.subject()
            && let Some(streams) = subjects.get_mut(subject)
        {
            *streams -= 1;
            if *streams == 0 {
                subjects.remove(subject);
            }
        }
    }
}

/// A publish request in progress, and its memory. Dropping it releases both.
#[derive(Debug)]
pub struct Publishing {
    clients: Arc<Clients>,
    address: IpAddr,
    bytes: usize,
}

impl Publishing {
    /// Counts `bytes` more before the request takes them.
    ///
    /// # Errors
    /// [`CloseCode::TooFast`] if its address would exceed its share, [`CloseCode::Overloaded`] if all together would.
    pub fn grow(&mut self, bytes: usize) -> Result<(), CloseCode> {
        let mut counts = self.clients.counts.lock();
        let Counts { shares, addresses, bodies, .. } = &mut *counts;
        // It holds no bytes yet, and was forgotten.
        let address = entry(addresses, shares.max_addresses, self.address)?;
        if address.bodies.saturating_add(bytes) > shares.bodies_per_address {
            return Err(CloseCode::TooFast);
        }
        if bodies.saturating_add(bytes) > shares.bodies {
            return Err(CloseCode::Overloaded);
        }
        address.bodies += bytes;
        *bodies += bytes;
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Publishing {
    fn drop(&mut self) {
        let mut counts = self.clients.counts.lock();
        counts.bodies -= self.bytes;
        // An address that holds bytes is never forgotten.
        if let Some(address) = counts.addresses.get_mut(&self.address) {
            address.bodies -= self.bytes;
        }
    }
}

#[cfg(test)]
mod tests;
