//! `redis-server`s that are one cluster, on loopback: masters that share the slots, each with replicas. It is assembled and
//! changed with the commands that `redis-cli --cluster` sends.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, FromRedisValue, RedisResult, ServerErrorKind, Value,
};
use tokio::time::sleep;

use super::redis::RedisServer;
use super::{LIMIT, eventually, found};

/// How many slots a cluster has.
const SLOTS: usize = 16384;

/// A master that is gone is replaced within two seconds or so, by a replica however long that has heard
/// nothing. Meanwhile the slots of the others are served, and nobody changes sides unasked.
const SETTINGS: [&str; 5] = [
    "cluster-node-timeout 1000",
    "cluster-replica-validity-factor 0",
    "cluster-require-full-coverage no",
    "cluster-allow-replica-migration no",
    "repl-diskless-sync-delay 0",
];

/// How long a node may take to answer one command.
pub const ANSWER: Duration = Duration::from_secs(2);

/// Nodes are known by their places in `nodes`: first the masters, then the replicas of the first of them, and
/// so on. That is what they are in the beginning; they keep their places when they change parts.
pub struct RedisCluster {
    pub nodes: Vec<RedisServer>,
    masters: usize,
    ids: Vec<String>,
    /// The part of a URL before `@`.
    login: String,
    /// The port of the node that writers do not talk to, or 0.
    shunned: Arc<AtomicU16>,
}

/// A slot that is on its way from one master to another.
pub struct Move {
    slot: u16,
    from: usize,
    to: usize,
}

impl RedisCluster {
    /// Starts `masters` masters with `replicas` replicas each, and waits until all agree.
    pub async fn start(masters: usize, replicas: usize) -> Self {
        Self::start_with(masters, replicas, &[]).await
    }

    /// With lines added to the configuration of every node.
    pub async fn start_with(masters: usize, replicas: usize, lines: &[&str]) -> Self {
        let mut cluster = Self::absent(masters, replicas, lines);
        cluster.launch().await;
        cluster
    }

    /// One that is not there yet; [`RedisCluster::launch`] makes it.
    pub fn absent(masters: usize, replicas: usize, lines: &[&str]) -> Self {
        let node = |_| RedisServer::node(&[&SETTINGS, lines].concat());
        let nodes = (0..masters * (1 + replicas)).map(node).collect();
        let password = lines.iter().find_map(|line| line.strip_prefix("requirepass "));
        let login = password.map(|password| format!(":{password}@")).unwrap_or_default();
        RedisCluster { nodes, masters, ids: Vec::new(), login, shunned: Arc::default() }
    }

    /// Starts the nodes and makes them a cluster; waits until it is whole.
    pub async fn launch(&mut self) {
        let share = |master: usize| SLOTS * master / self.masters;
        for index in 0..self.nodes.len() {
            self.nodes[index].restart();
            let id = self.tell(index, "CLUSTER MYID").await;
            self.ids.push(id);
            // Two of the same epoch would have to find out who gives way.
            self.tell::<()>(index, &format!("CLUSTER SET-CONFIG-EPOCH {}", index + 1)).await;
            if index < self.masters {
                let (first, last) = (share(index), share(index + 1) - 1);
                self.tell::<()>(index, &format!("CLUSTER ADDSLOTSRANGE {first} {last}")).await;
            }
            // Each to each: to hear of the others takes longer.
            for other in &self.nodes[..index] {
                self.tell::<()>(index, &format!("CLUSTER MEET 127.0.0.1 {}", other.port())).await;
            }
        }
        for replica in self.masters..self.nodes.len() {
            let each = self.nodes.len() / self.masters - 1;
            let master = &self.ids[(replica - self.masters) / each];
            self.tell::<()>(replica, &format!("CLUSTER REPLICATE {master}")).await;
        }
        self.whole().await;
    }

    /// All nodes, as `broker.url` names them.
    pub fn url(&self) -> String {
        self.nodes.iter().map(RedisServer::url).collect::<Vec<_>>().join(",")
    }

    /// A connection to a node.
    pub async fn connect(&self, node: usize) -> MultiplexedConnection {
        self.try_connect(node).await.unwrap()
    }

    async fn try_connect(&self, node: usize) -> RedisResult<MultiplexedConnection> {
        connect(&format!("redis://{}127.0.0.1:{}", self.login, self.nodes[node].port())).await
    }

    /// Has a node do something, again while it cannot: it may have to hear of others first.
    async fn tell<T: FromRedisValue>(&self, node: usize, words: &str) -> T {
        let begin = Instant::now();
        loop {
            let answer = match self.try_connect(node).await {
                Ok(mut connection) => command(words).query_async(&mut connection).await,
                Err(why) => Err(why),
            };
            match answer {
                Ok(answer) => return answer,
                Err(why) => assert!(begin.elapsed() < LIMIT, "{words}: {why}"),
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// A publisher.
    pub fn writer(&self) -> Writer {
        let seeds = self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
        let (login, shunned) = (self.login.clone(), self.shunned.clone());
        Writer { seeds, login, shunned, connections: HashMap::new(), owners: HashMap::new() }
    }

    /// From here on no writer talks to this node. A master that was replaced without hearing of it, as when
    /// it was paused, goes on confirming for a moment what is then lost.
    pub fn shun(&self, node: Option<usize>) {
        self.shunned.store(node.map_or(0, |node| self.nodes[node].port()), Ordering::Relaxed);
    }

    /// Waits until every node runs, finds everyone well, and agrees with the others on who serves what; and
    /// every replica is in step.
    pub async fn whole(&self) {
        eventually("the cluster is whole", async || self.is_whole().await.unwrap_or(false)).await;
    }

    async fn is_whole(&self) -> RedisResult<bool> {
        let mut parts: Option<Vec<Part>> = None;
        for node in 0..self.nodes.len() {
            let mut connection = self.try_connect(node).await?;
            let info: String = command("CLUSTER INFO").query_async(&mut connection).await?;
            let replication: String = command("INFO replication").query_async(&mut connection).await?;
            let is_well = info.contains("cluster_state:ok")
                && info.contains(&format!("cluster_slots_ok:{SLOTS}\r"))
                && (replication.contains("role:master") || replication.contains("master_link_status:up"));
            let members = self.members(node).await?;
            let masters = members.iter().filter(|member| member.part.master.is_none()).count();
            let is_all = members.len() == self.nodes.len() && masters == self.masters;
            if !is_well || !is_all || members.iter().any(|member| !member.is_well) {
                return Ok(false);
            }
            let mut seen: Vec<Part> = members.into_iter().map(|member| member.part).collect();
            seen.sort_by(|one, other| one.id.cmp(&other.id));
            if *parts.get_or_insert_with(|| seen.clone()) != seen {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The view of one node of the whole cluster.
    async fn members(&self, node: usize) -> RedisResult<Vec<Member>> {
        let mut connection = self.try_connect(node).await?;
        let lines: String = command("CLUSTER NODES").query_async(&mut connection).await?;
        Ok(lines.lines().map(Member::read).collect())
    }

    /// The running nodes, each with its report about itself.
    async fn own_words(&self) -> Vec<(usize, Member)> {
        let mut all = Vec::new();
        for node in (0..self.nodes.len()).filter(|node| self.nodes[*node].is_running()) {
            let members = self.members(node).await.unwrap_or_default();
            all.extend(members.into_iter().find(|member| member.is_myself).map(|member| (node, member)));
        }
        all
    }

    /// The slot of a key.
    pub async fn slot(&self, key: &str) -> u16 {
        let node = self.nodes.iter().position(RedisServer::is_running).unwrap();
        self.tell(node, &format!("CLUSTER KEYSLOT {key}")).await
    }

    /// The node that serves a key. Of several that say so, it is the one that took it last.
    pub async fn owner(&self, key: &str) -> usize {
        let slot = self.slot(key).await;
        found("somebody serves the key", LIMIT, async || {
            let mut all = self.own_words().await;
            all.retain(|(_, member)| member.part.serves(slot));
            all.iter().max_by_key(|(_, member)| member.epoch).map(|(node, _)| *node)
        })
        .await
    }

    /// The masters that serve something.
    pub async fn masters(&self) -> Vec<usize> {
        let all = self.own_words().await;
        all.iter().filter(|(_, member)| !member.part.slots.is_empty()).map(|(node, _)| *node).collect()
    }

    /// A replica of a master that runs.
    pub async fn replica_of(&self, master: usize) -> usize {
        found("the master has a replica", LIMIT, async || {
            let id = Some(&self.ids[master]);
            self.own_words()
                .await
                .iter()
                .find(|(_, member)| member.part.master.as_ref() == id)
                .map(|found| found.0)
        })
        .await
    }

    /// `count` topics that begin with `prefix` and whose keys a node serves.
    pub async fn topics(&self, prefix: &str, node: usize, count: usize) -> Vec<String> {
        let members = self.members(node).await.unwrap();
        let part = &members.iter().find(|member| member.is_myself).unwrap().part;
        let mut connection = self.connect(node).await;
        let mut topics = Vec::new();
        for hundred in 0.. {
            let candidates: Vec<_> = (0..100).map(|n| format!("{prefix}{}", hundred * 100 + n)).collect();
            let mut pipeline = redis::pipe();
            for topic in &candidates {
                pipeline.cmd("CLUSTER").arg("KEYSLOT").arg(key_of(topic));
            }
            let slots: Vec<u16> = pipeline.query_async(&mut connection).await.unwrap();
            let found = candidates.into_iter().zip(slots).filter(|(_, slot)| part.serves(*slot));
            topics.extend(found.map(|(topic, _)| topic));
            if topics.len() >= count {
                break;
            }
        }
        topics.truncate(count);
        topics
    }

    /// A topic for each master, in their order.
    pub async fn topic_each(&self, prefix: &str) -> Vec<String> {
        let mut topics = Vec::new();
        for master in 0..self.masters {
            topics.extend(self.topics(prefix, master, 1).await);
        }
        topics
    }

    /// Waits until a replica has all that its master has.
    pub async fn in_step(&self, master: usize, replica: usize) {
        let offset = async |node, name: &str| {
            let info: String = self.tell(node, "INFO replication").await;
            info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::to_owned)
        };
        eventually("the replica is in step", async || {
            let has = offset(replica, "slave_repl_offset").await;
            has.is_some() && has == offset(master, "master_repl_offset").await
        })
        .await;
    }

    /// Waits until a replica is a master, and every running node knows it.
    pub async fn promoted(&self, replica: usize) {
        eventually("the replica is promoted", async || self.is_promoted(replica).await).await;
    }

    async fn is_promoted(&self, replica: usize) -> bool {
        for node in 0..self.nodes.len() {
            let Ok(members) = self.members(node).await else { continue };
            let it = members.iter().find(|member| member.part.id == self.ids[replica]);
            if it.is_none_or(|it| it.part.slots.is_empty()) {
                return false;
            }
        }
        true
    }

    /// Makes a replica take the place of its master, which then follows it. Soon after another failover of
    /// the same shard the others do not let it: then it is asked again.
    pub async fn fail_over(&self, replica: usize) {
        let mut asked: Option<Instant> = None;
        eventually("the replica is promoted", async || {
            if asked.is_none_or(|asked| asked.elapsed() > ANSWER) {
                asked = Some(Instant::now());
                if let Ok(mut connection) = self.try_connect(replica).await {
                    let _ = command("CLUSTER FAILOVER").exec_async(&mut connection).await;
                }
            }
            self.is_promoted(replica).await
        })
        .await;
    }

    /// Moves the slot of a key and all that is in it.
    pub async fn move_slot(&self, key: &str, to: usize) {
        let moving = self.begin_move(key, to).await;
        self.finish_move(moving).await;
    }

    /// From here on, keys that its master does not have are requested from the other one.
    pub async fn begin_move(&self, key: &str, to: usize) -> Move {
        let (slot, from) = (self.slot(key).await, self.owner(key).await);
        assert_ne!(from, to, "it is there already");
        let [here, there] = [from, to].map(|node| &self.ids[node]);
        self.tell::<()>(to, &format!("CLUSTER SETSLOT {slot} IMPORTING {here}")).await;
        self.tell::<()>(from, &format!("CLUSTER SETSLOT {slot} MIGRATING {there}")).await;
        Move { slot, from, to }
    }

    /// Migrates the keys of the slot. It still belongs to the old master, which redirects clients.
    pub async fn carry_keys(&self, moving: &Move) {
        let Move { slot, from, to } = *moving;
        let auth = self.login.strip_prefix(':').and_then(|login| login.strip_suffix('@'));
        let auth = auth.map(|password| format!(" AUTH {password}")).unwrap_or_default();
        loop {
            let keys: Vec<String> = self.tell(from, &format!("CLUSTER GETKEYSINSLOT {slot} 100")).await;
            if keys.is_empty() {
                return;
            }
            let (port, keys) = (self.nodes[to].port(), keys.join(" "));
            // An empty word where one key would stand.
            let words = format!("MIGRATE 127.0.0.1 {port}  0 5000{auth} KEYS {keys}");
            self.tell::<String>(from, &words).await;
        }
    }

    /// Migrates the remaining keys, and announces that the slot has moved.
    pub async fn finish_move(&self, moving: Move) {
        self.carry_keys(&moving).await;
        let Move { slot, from, to } = moving;
        let others = self.masters().await.into_iter().filter(|master| ![from, to].contains(master));
        // The new master first: before it takes the slot, the old one would send clients to somebody who
        // sends them back.
        for node in [to, from].into_iter().chain(others) {
            self.tell::<()>(node, &format!("CLUSTER SETSLOT {slot} NODE {}", self.ids[to])).await;
        }
    }

    /// Gives the slots of a node to the first of the others, and takes it out of the cluster, as `redis-cli
    /// --cluster del-node` does. There are three nodes.
    pub async fn take_out(&self, node: usize, others: [usize; 2]) {
        let share = |master: usize| SLOTS * master / self.masters;
        let (first, last) = (share(node), share(node + 1) - 1);
        for each in [node, others[0], others[1]] {
            self.tell::<()>(each, &format!("CLUSTER DELSLOTSRANGE {first} {last}")).await;
        }
        self.tell::<()>(others[0], &format!("CLUSTER ADDSLOTSRANGE {first} {last}")).await;
        self.tell::<redis::Value>(others[0], "CLUSTER BUMPEPOCH").await;
        for other in others {
            self.tell::<()>(other, &format!("CLUSTER FORGET {}", self.ids[node])).await;
        }
        self.tell::<()>(node, "CLUSTER RESET SOFT").await;
    }

    /// How many clients a node has; replicas are none.
    pub async fn clients(&self, node: usize) -> usize {
        let mut count = 0;
        for kind in ["normal", "pubsub"] {
            let list: String = self.tell(node, &format!("CLIENT LIST TYPE {kind}")).await;
            count += list.lines().filter(|line| !line.is_empty()).count();
        }
        count
    }
}

/// The role of a node: the slots that it serves, or its master.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    id: String,
    master: Option<String>,
    slots: Vec<RangeInclusive<u16>>,
}

impl Part {
    fn serves(&self, slot: u16) -> bool {
        self.slots.iter().any(|slots| slots.contains(&slot))
    }
}

/// A node as one of them sees it: a line of `CLUSTER NODES`.
struct Member {
    part: Part,
    is_myself: bool,
    is_well: bool,
    epoch: u64,
}

impl Member {
    fn read(line: &str) -> Self {
        let words: Vec<&str> = line.split(' ').collect();
        let [id, address, flags, master, _, _, epoch, link, slots @ ..] = &words[..] else {
            panic!("{line}")
        };
        let flags: Vec<&str> = flags.split(',').collect();
        let is_ill = ["fail", "fail?", "handshake", "noaddr"].iter().any(|ill| flags.contains(ill));
        // Migrating slots are in brackets.
        let slots = slots.iter().filter(|slots| !slots.starts_with('[')).map(|slots| {
            let (first, last) = slots.split_once('-').unwrap_or((slots, slots));
            first.parse().unwrap()..=last.parse().unwrap()
        });
        let master = (*master != "-").then(|| (*master).to_owned());
        Member {
            part: Part { id: (*id).to_owned(), master, slots: slots.collect() },
            is_myself: flags.contains(&"myself"),
            // A node does not know its own address before somebody has called it by it.
            is_well: !is_ill && *link == "connected" && !address.starts_with(':'),
            epoch: epoch.parse().unwrap(),
        }
    }
}

/// Somebody who writes, as a client of a cluster does: sends a command to the node that has the key, and
/// follows to wherever that one points.
#[derive(Clone)]
pub struct Writer {
    seeds: Vec<String>,
    login: String,
    shunned: Arc<AtomicU16>,
    connections: HashMap<String, MultiplexedConnection>,
    /// The master that had a key when it was last written.
    owners: HashMap<String, String>,
}

impl Writer {
    /// Adds an entry whose field `n` is the payload; its id.
    pub async fn xadd(&mut self, topic: &str, payload: impl ToString) -> String {
        let key = key_of(topic);
        let mut command = redis::cmd("XADD");
        command.arg(&key).arg("*").arg("n").arg(payload.to_string());
        self.send(&key, &command).await
    }

    /// Publishes within the shard of the topic.
    pub async fn spublish(&mut self, topic: &str, payload: impl ToString) {
        let key = key_of(topic);
        let mut command = redis::cmd("SPUBLISH");
        command.arg(&key).arg(payload.to_string());
        self.send::<i64>(&key, &command).await;
    }

    /// As [`Writer::spublish`], once; whether the master itself has it. A replica takes it as well, and hands
    /// it to the master over the bus, which may lose it or be late.
    pub async fn try_spublish(&mut self, topic: &str, payload: impl ToString) -> RedisResult<bool> {
        let key = key_of(topic);
        let mut command = redis::cmd("SPUBLISH");
        command.arg(&key).arg(payload.to_string());
        let heard: i64 = self.try_send(&key, &command).await?;
        // Subscribers are connected to the master.
        if heard > 0 {
            return Ok(true);
        }
        let taker = self.owners[&key].clone();
        let role = self.send_to::<Value>(&taker, false, &redis::cmd("ROLE")).await;
        let is_master = role.is_ok_and(|role| format!("{role:?}").contains("master"));
        if !is_master {
            self.owners.remove(&key);
        }
        Ok(is_master)
    }

    /// Until it is done. If a connection breaks meanwhile, it may be done twice.
    pub async fn send<T: FromRedisValue>(&mut self, key: &str, command: &Cmd) -> T {
        let begin = Instant::now();
        loop {
            match self.try_send(key, command).await {
                Ok(answer) => return answer,
                Err(why) => assert!(begin.elapsed() < LIMIT, "{key}: {why}"),
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// As [`Writer::send`], once. An I/O error leaves open whether it is done; with any other it is not.
    pub async fn try_send<T: FromRedisValue>(&mut self, key: &str, command: &Cmd) -> RedisResult<T> {
        let mut address = match self.owners.get(key) {
            Some(owner) => owner.clone(),
            None => {
                let seed = fastrand::choice(&self.seeds).unwrap().clone();
                // An old connection that breaks would leave open whether the command was done.
                self.connections.remove(&seed);
                seed
            }
        };
        let mut asks = false;
        // A slot that is being moved may send back and forth for a moment.
        for _ in 0..100 {
            let why = match self.send_to(&address, asks, command).await {
                Ok(answer) => {
                    if !asks {
                        self.owners.insert(key.to_owned(), address);
                    }
                    return Ok(answer);
                }
                Err(why) => why,
            };
            if why.is_unrecoverable_error() {
                self.connections.remove(&address);
            }
            let Some((there, _)) = why.redirect_node() else {
                self.owners.remove(key);
                return Err(why);
            };
            asks = why.kind() == ErrorKind::Server(ServerErrorKind::Ask);
            address = there.to_owned();
        }
        Err((ErrorKind::Client, "sent from node to node").into())
    }

    async fn send_to<T: FromRedisValue>(
        &mut self,
        address: &str,
        asks: bool,
        command: &Cmd,
    ) -> RedisResult<T> {
        if address.ends_with(&format!(":{}", self.shunned.load(Ordering::Relaxed))) {
            return Err((ErrorKind::Client, "shunned").into());
        }
        if !self.connections.contains_key(address) {
            let connection = connect(&format!("redis://{}{address}", self.login)).await;
            let connection = connection
                .map_err(|why| (ErrorKind::Client, "cannot connect", format!("{address}: {why}")))?;
            self.connections.insert(address.to_owned(), connection);
        }
        let connection = self.connections.get_mut(address).unwrap();
        if asks {
            redis::cmd("ASKING").exec_async(connection).await?;
        }
        command.query_async(connection).await
    }
}

/// The key or channel of a topic.
pub fn key_of(topic: &str) -> String {
    topic.replace('/', ":")
}

/// A command, of which each word is an argument.
fn command(words: &str) -> Cmd {
    let mut command = Cmd::new();
    words.split(' ').for_each(|word| _ = command.arg(word));
    command
}

async fn connect(url: &str) -> RedisResult<MultiplexedConnection> {
    let settings = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(Duration::from_secs(1)))
        .set_response_timeout(Some(ANSWER));
    Client::open(url)?.get_multiplexed_async_connection_with_config(&settings).await
}
