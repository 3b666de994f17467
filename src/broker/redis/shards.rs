//! Routing in a Redis Cluster: every shard has its own task, the same kind that serves a single server, and a command
//! goes to the shard whose master has the slot. So a shard that is away affects only its own topics.
//!
//! When slots have moved, the old shard releases their subscriptions, and the new one adopts them at the same position
//! and reports what may be missing. This file knows no messages and no connections.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use futures_util::future::join_all;
use tokio::sync::{mpsc, oneshot, watch};

use super::cluster::{Address, Cluster, Slots, View};
use super::servers::Servers;
use super::table::{Name, Table};
use crate::broker::{BrokerError, COMMAND_CAPACITY, Event, Link};
use crate::protocol::topic::Filter;

/// A command to the task of a server. Without a cluster, there are only plain commands.
pub(super) enum ShardCommand<C: Routed> {
    Command(C),
    /// Release the subscriptions that belong to another master now.
    Release {
        slots: Arc<Slots>,
        left: oneshot::Sender<Released<C::Assignment>>,
    },
    /// Adopt subscriptions that another shard released.
    Adopt(Adopted<C::Assignment>),
}

/// The subscriptions that a shard released.
pub(super) struct Released<H> {
    pub(super) held: Vec<H>,
    /// Whether its connection is up, so that everything was read up to this point.
    pub(super) is_whole: bool,
    /// The number of subscriptions that it still has.
    pub(super) remaining: usize,
}

/// The subscriptions that a shard adopts.
pub(super) struct Adopted<H> {
    pub(super) held: Vec<H>,
    /// Why messages may be missing: the old master is gone, and the replica that replaced it may lack the latest ones.
    pub(super) lost: Option<String>,
}

impl<C: Routed> From<C> for ShardCommand<C> {
    fn from(command: C) -> Self {
        ShardCommand::Command(command)
    }
}

/// A command that is routed to the shard of its topic.
pub(super) trait Routed: Sized + Send + 'static {
    /// The subscription that a shard holds.
    type Assignment: Send + 'static;
    /// The error for a pattern.
    const NO_PATTERNS: &'static str;

    fn filter(&self) -> Filter;
    /// A copy of the command, if it ends a subscription.
    fn unsubscribe_again(&self) -> Option<Self>;
    fn fail(self, why: BrokerError);
    /// The key or channel of a subscription.
    fn name_of(held: &Self::Assignment) -> &str;
}

/// The shards that are away, with the reasons.
type Away = Arc<watch::Sender<BTreeMap<Address, String>>>;

/// A master, as its task sees it.
pub(super) struct Shard {
    address: Address,
    cluster: Cluster,
    away: Away,
}

impl Shard {
    /// Whether another master has the key now.
    pub(super) fn has_lost(&self, slots: &Slots, key: &str) -> bool {
        slots.master_of(key).is_some_and(|master| *master != self.address)
    }

    /// Requests a refresh of the topology.
    pub(super) fn refresh_topology(&self) {
        self.cluster.refresh_topology();
    }

    pub(super) fn up(&self) {
        self.away.send_if_modified(|away| away.remove(&self.address).is_some());
    }

    pub(super) fn down(&self, why: &str) {
        self.cluster.refresh_topology();
        self.away
            .send_if_modified(|away| away.insert(self.address.clone(), why.into()).as_deref() != Some(why));
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        self.up();
    }
}

/// Runs until the command channel or the event channel closes. Starts with the first command; `serve` starts the task
/// of a shard.
pub(super) async fn route<C: Routed>(
    cluster: Cluster,
    link: Link,
    separator: char,
    mut commands: mpsc::Receiver<C>,
    events: mpsc::Sender<Event>,
    serve: impl Fn(Servers, Shard, mpsc::Receiver<ShardCommand<C>>),
) {
    let Some(first) = commands.recv().await else { return };
    let (mut view, away) = (cluster.view(), Away::default());
    let mut news = away.subscribe();
    let mut router = Router {
        cluster,
        names: Table::new(separator),
        slots: Arc::default(),
        away,
        shards: HashMap::new(),
        serve,
    };
    let mut first = Some(first);
    let mut last: Option<Standing> = None;
    loop {
        let known = view.borrow_and_update().clone();
        let is_known = known.is_known();
        let View { slots, trouble, .. } = known;
        if let Some(slots) = slots.filter(|slots| *slots != router.slots) {
            router.settle(slots).await;
        }
        if is_known {
            let now = router.standing(trouble.as_deref(), &news.borrow_and_update());
            if last.as_ref() != Some(&now) {
                let event = match now.clone() {
                    Standing::Up => Event::Up(link),
                    Standing::Partly(why) => Event::Partly { link, why },
                    Standing::Down(why) => Event::Down { link, why },
                };
                if events.send(event).await.is_err() {
                    return;
                }
                last = Some(now);
            }
            if let Some(command) = first.take() {
                router.hand_over(command, &trouble).await;
            }
        }
        tokio::select! {
            changed = view.changed() => if changed.is_err() { return },
            _ = news.changed() => {} // its sender is ours
            command = commands.recv(), if is_known => {
                let Some(command) = command else { return };
                router.hand_over(command, &trouble).await;
            }
            () = events.closed() => return,
        }
    }
}

/// The state of all shards.
#[derive(Clone, PartialEq, Eq)]
enum Standing {
    Up,
    Partly(String),
    Down(String),
}

struct Router<C: Routed, S> {
    cluster: Cluster,
    names: Table,
    /// The table by which the shards hold their subscriptions.
    slots: Arc<Slots>,
    away: Away,
    shards: HashMap<Address, mpsc::Sender<ShardCommand<C>>>,
    serve: S,
}

impl<C: Routed, S: Fn(Servers, Shard, mpsc::Receiver<ShardCommand<C>>)> Router<C, S> {
    /// Routes a command to its shard. `trouble` is the reason if the topology is not known.
    async fn hand_over(&mut self, command: C, trouble: &Option<String>) {
        let name = match self.names.name(&command.filter()) {
            Ok(Name::Channel(name)) => name,
            Ok(Name::Glob(_)) => return command.fail(BrokerError::Refused(C::NO_PATTERNS.into())),
            Err(why) => return command.fail(why),
        };
        let slots = self.slots.clone();
        if let Some(master) = slots.master_of(&name) {
            let shard = self.shard(master);
            // A command that ends a subscription must not be dropped. Other commands fail if the queue is full, because
            // waiting would block the other shards. If the task has ended, nobody waits for the answer.
            if command.unsubscribe_again().is_some() {
                let _ = shard.send(ShardCommand::Command(command)).await;
            } else if let Err(mpsc::error::TrySendError::Full(ShardCommand::Command(command))) =
                shard.try_send(ShardCommand::Command(command))
            {
                command.fail(BrokerError::Away(format!("{master} does not keep up with its commands")));
            }
            return;
        }
        // The shard that served it may still hold it.
        for shard in self.shards.values() {
            let Some(unsubscribe) = command.unsubscribe_again() else { break };
            let _ = shard.send(ShardCommand::Command(unsubscribe)).await;
        }
        let nobody = || format!("no node of the cluster serves the slot of {name}");
        command.fail(BrokerError::Away(trouble.clone().unwrap_or_else(nobody)));
    }

    fn standing(&self, trouble: Option<&str>, away: &BTreeMap<Address, String>) -> Standing {
        let why = || away.first_key_value().map(|(address, why)| format!("{address}: {why}"));
        match (trouble.map(str::to_owned), why()) {
            (Some(why), _) => Standing::Down(why),
            (None, None) => Standing::Up,
            (None, Some(why)) if away.len() < self.shards.len() => Standing::Partly(why),
            (None, Some(why)) => Standing::Down(why),
        }
    }

    fn shard(&mut self, address: &Address) -> mpsc::Sender<ShardCommand<C>> {
        if let Some(shard) = self.shards.get(address) {
            return shard.clone();
        }
        let (sender, orders) = mpsc::channel(COMMAND_CAPACITY);
        let shard =
            Shard { address: address.clone(), cluster: self.cluster.clone(), away: self.away.clone() };
        (self.serve)(Servers::Node(self.cluster.clone(), address.clone()), shard, orders);
        self.shards.insert(address.clone(), sender.clone());
        sender
    }

    /// Makes every shard release what belongs to others now, and these adopt it.
    async fn settle(&mut self, slots: Arc<Slots>) {
        let before = std::mem::replace(&mut self.slots, slots.clone());
        let mut moved: BTreeMap<(Address, bool), Vec<C::Assignment>> = BTreeMap::new();
        let mut gone = Vec::new();
        // All at once, because a shard that hangs may take seconds.
        let asking = self.shards.iter().map(async |(address, shard)| {
            let (left, answer) = oneshot::channel();
            let _ = shard.send(ShardCommand::Release { slots: slots.clone(), left }).await;
            (address, answer.await)
        });
        for (address, left) in join_all(asking).await {
            let Ok(left) = left else { continue }; // its task has ended
            // A slot that was migrated brings its keys along; a replica that became the master may lack some.
            let is_master = slots.is_master(address);
            for held in left.held {
                if let Some(home) = slots.master_of(C::name_of(&held)) {
                    let is_lost = !(left.is_whole && (is_master || before.is_master(home)));
                    moved.entry((home.clone(), is_lost)).or_default().push(held);
                }
            }
            if !is_master && left.remaining == 0 {
                gone.push(address.clone());
            }
        }
        for ((home, is_lost), held) in moved {
            let lost = is_lost.then(|| format!("{home} has it now, and may lack messages of the old master"));
            let _ = self.shard(&home).send(ShardCommand::Adopt(Adopted { held, lost })).await;
        }
        for address in gone {
            self.shards.remove(&address);
        }
    }
}
