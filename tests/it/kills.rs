//! Kill and restart of gateways and broker, in every combination and at random times, under numbered publishers and
//! readers that are cut and move between the gateways. For stored sources, nothing is missing, nothing comes twice and
//! there is no gap. For live sources, there is a gap wherever something is missing. `soak` does the same for hours.
#![cfg(unix)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::common::client::Reader;
use crate::common::clock::Clock;
use crate::common::jetstream::{Admin, store_raw};
use crate::common::nats::{NatsServer, RawPublisher, UNREADABLE};
use crate::common::process::Process;
use crate::common::redis::RedisServer;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Readers at once.
const READERS: usize = 6;

/// How long everything may take to be whole again after the last kill.
const WHOLE: Duration = Duration::from_secs(40);

/// The processes that are killed together, one bit each.
const BROKER: usize = 4;
const RELOAD: usize = 8;
const PAUSE: usize = 16;
const CLOCK: usize = 32;

pub(crate) enum Server {
    Nats(NatsServer),
    Redis(RedisServer),
}

impl Server {
    fn url(&self) -> String {
        match self {
            Server::Nats(server) => server.url(),
            Server::Redis(server) => server.url(),
        }
    }

    async fn kill_and_restart(&mut self, pause: Duration) {
        match self {
            Server::Nats(server) => {
                server.stop();
                sleep(pause).await;
                server.restart();
            }
            Server::Redis(server) => {
                server.stop();
                sleep(pause).await;
                server.restart();
            }
        }
    }

    /// Stops it in its tracks for a while: it is slow, and nothing is lost.
    async fn hold(&self, time: Duration) {
        match self {
            Server::Nats(server) => server.pause(),
            Server::Redis(server) => server.pause(),
        }
        sleep(time).await;
        match self {
            Server::Nats(server) => server.resume(),
            Server::Redis(server) => server.resume(),
        }
    }
}

/// Stores or publishes the next number; says whether the broker has it.
pub(crate) enum Publisher {
    /// Kept: the broker knows a number that it has by its id.
    JetStream(async_nats::Client, u16),
    RedisStream(redis::Client),
    /// Not kept: sent and forgotten, with header fields that cannot be read.
    Nats {
        port: u16,
        connection: Mutex<Option<RawPublisher>>,
    },
    Redis {
        client: redis::Client,
        connection: tokio::sync::Mutex<Option<redis::aio::MultiplexedConnection>>,
    },
}

impl Publisher {
    async fn publish(&self, number: u64) -> bool {
        let second = Duration::from_secs(1);
        let payload = number.to_string();
        match self {
            // Every fourth has header fields that cannot be read.
            Publisher::JetStream(_, port) if number.is_multiple_of(4) => {
                let id = format!("NATS/1.0\r\nNats-Msg-Id: {number}\r\n");
                let block = [id.as_bytes(), b"X: a\rb\xe9\r\n\r\n"].concat();
                let stored = store_raw(*port, "orders.eu", &block, &payload);
                timeout(second, stored).await.unwrap_or(false)
            }
            Publisher::JetStream(client, _) => {
                let mut headers = async_nats::HeaderMap::new();
                headers.insert("Nats-Msg-Id", payload.as_str());
                let asked = client.request_with_headers("orders.eu", headers, payload.clone().into());
                let answer = timeout(second, asked).await;
                answer
                    .is_ok_and(|answer| answer.is_ok_and(|answer| answer.payload.starts_with(b"{\"stream\"")))
            }
            Publisher::RedisStream(client) => {
                // The number is its id too: one that was stored before the answer was lost is not stored twice.
                let id = format!("{}-{}", 1_700_000_000_000 + number / 1000, number % 1000 + 1);
                let stored = async {
                    let mut connection = client.get_multiplexed_async_connection().await?;
                    redis::cmd("XADD")
                        .arg("orders:eu")
                        .arg(id)
                        .arg("data")
                        .arg(&payload)
                        .exec_async(&mut connection)
                        .await
                };
                match timeout(second, stored).await {
                    Ok(Err(error)) => error.to_string().contains("equal or smaller"),
                    stored => stored.is_ok(),
                }
            }
            Publisher::Nats { port, connection } => {
                let mut connection = connection.lock().unwrap();
                if connection.is_none() {
                    *connection = RawPublisher::connect(*port).ok();
                }
                let block = fastrand::choice(UNREADABLE).unwrap();
                let sent = connection.as_mut().map(|one| one.publish("orders.eu", block, payload.as_bytes()));
                if !matches!(sent, Some(Ok(()))) {
                    *connection = None;
                }
                true
            }
            // One connection, so that numbers come in order; and patient, so that a number which fails to go out is one that
            // the gateways have lost their connection over as well.
            Publisher::Redis { client, connection } => {
                let mut connection = connection.lock().await;
                if connection.is_none() {
                    let patient = redis::AsyncConnectionConfig::new()
                        .set_connection_timeout(Some(WHOLE))
                        .set_response_timeout(Some(WHOLE));
                    *connection = client.get_multiplexed_async_connection_with_config(&patient).await.ok();
                }
                if let Some(one) = connection.as_mut() {
                    let sent = redis::cmd("PUBLISH").arg("orders:eu").arg(&payload).exec_async(one).await;
                    if let Err(error) = sent {
                        assert!(!error.is_timeout(), "{number}: {error}");
                        *connection = None;
                    }
                }
                true
            }
        }
    }
}

struct Scene {
    gateways: [Mutex<SocketAddr>; 2],
    /// This many numbers were published.
    published: AtomicU64,
    /// No more will be.
    over: AtomicBool,
    is_kept: bool,
    /// Of the gateways that were killed.
    logs: Mutex<Vec<String>>,
    /// Messages and gaps that all readers received.
    read: AtomicU64,
    gaps: AtomicU64,
    /// The clock of each gateway; the system's if there is none.
    clocks: [Option<Clock>; 2],
    /// How often each thing was done to gateways and broker.
    faults: Mutex<BTreeMap<&'static str, u64>>,
}

impl Scene {
    fn count(&self, fault: &'static str) {
        *self.faults.lock().unwrap().entry(fault).or_default() += 1;
    }

    /// One reader through all of it: checks each event. Ends when it has seen the last number or a gap.
    async fn read(self: Arc<Self>) {
        // Messages of a live source may have been published before the first reader.
        let (mut last_id, mut next, mut told, mut rewound) = (String::new(), 0_u64, !self.is_kept, false);
        let mut cuts = 0;
        loop {
            let address = *self.gateways[fastrand::usize(..2)].lock().unwrap();
            let headers: &[(&str, &str)] = &[("last-event-id", &last_id)];
            let path = "/topics/orders/eu?since=all";
            let headers = if last_id.is_empty() { &[] } else { headers };
            let opened = match tokio::net::TcpStream::connect(address).await {
                Ok(socket) => Reader::try_over(socket, path, headers).await,
                Err(_) => {
                    sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let Ok(mut reader) = opened else { continue };
            // In the end it is left alone.
            let patience = match self.over.load(Ordering::Relaxed) {
                true => Duration::from_secs(5),
                false => Duration::from_millis(fastrand::u64(50..1500)),
            };
            let begin = Instant::now();
            while let Some(left) = patience.checked_sub(begin.elapsed()) {
                let Ok(Ok(Some(event))) = timeout(left, reader.try_next()).await else { break };
                match event.event.as_str() {
                    "stream-open" => {}
                    "stream-close" => break,
                    "stream-gap" => {
                        assert!(
                            !self.is_kept,
                            "a gap though nothing was lost: {event:?} after {next} ({last_id})"
                        );
                        told = true;
                        self.gaps.fetch_add(1, Ordering::Relaxed);
                        rewound |= event.data.contains("restarted") || event.data.contains("unknown_id");
                    }
                    _ => {
                        let number: u64 = event.data.parse().unwrap();
                        assert!(
                            number <= next || told,
                            "LOST IN SILENCE: {number} instead of {next} ({last_id})"
                        );
                        assert!(number >= next || rewound, "TWICE: {number} instead of {next} ({last_id})");
                        (next, told, rewound) = (number + 1, false, false);
                        self.read.fetch_add(1, Ordering::Relaxed);
                    }
                }
                if !event.id.is_empty() {
                    last_id = event.id;
                }
                if self.over.load(Ordering::Relaxed) && next == self.published.load(Ordering::Relaxed) {
                    assert!(cuts > 0, "it was never cut");
                    return;
                }
            }
            cuts += 1;
        }
    }
}

async fn gateway(config: &std::path::Path, clock: Option<&Clock>) -> Process {
    let environment = clock.map(Clock::environment);
    let environment = environment.iter().flatten().map(|(name, value)| (*name, value.as_str()));
    Process::with(&["--config", config.to_str().unwrap()], &environment.collect::<Vec<_>>()).await
}

/// Kills what the bits of `which` say (gateway, gateway, broker), at times of their own, and starts it again; or has
/// gateways reload, holds the broker, or sets the gateways' clocks.
async fn disturb(
    which: usize,
    server: &mut Server,
    gateways: &mut [Option<Process>; 2],
    config: &std::path::Path,
    scene: &Scene,
) {
    let random = || Duration::from_millis(fastrand::u64(0..300));
    let broker = async {
        if which & BROKER != 0 {
            sleep(random()).await;
            server.kill_and_restart(random()).await;
            scene.count("broker killed");
        }
        if which & PAUSE != 0 {
            scene.count("broker held");
            server.hold(random() * 5).await;
        }
    };
    let [one, other] = gateways;
    let of_gateway = async |index: usize, process: &mut Option<Process>| {
        let clock = scene.clocks[index].as_ref();
        if let Some(clock) = clock.filter(|_| which & CLOCK != 0) {
            let most = fastrand::choice([3_000, 3_600_000]).unwrap();
            clock.set(fastrand::i64(-most..=most));
            scene.count("clock set");
        }
        if which & (1 << index) != 0 {
            sleep(random()).await;
            let old = process.take().unwrap();
            scene.logs.lock().unwrap().push(old.log());
            old.kill().await;
            scene.count("gateway killed");
            sleep(random()).await;
            let new = gateway(config, clock).await;
            *scene.gateways[index].lock().unwrap() = new.address;
            *process = Some(new);
        } else if which & RELOAD != 0 {
            sleep(random()).await;
            process.as_ref().unwrap().signal("HUP");
            scene.count("gateway reloaded");
        }
    };
    tokio::join!(broker, of_gateway(0, one), of_gateway(1, other));
}

/// How long it goes on, and with how many readers.
pub(crate) struct Plan {
    pub(crate) name: &'static str,
    pub(crate) readers: usize,
    /// Until when something random is done again and again, also to the gateways' clocks; `None` for every combination of
    /// kills once.
    pub(crate) until: Option<Instant>,
}

/// Prints the progress of a soak, once a minute.
fn report(plan: &Plan, scene: &Scene, gateways: &[Option<Process>; 2]) {
    let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
    let mut line = format!(
        "{:<14} published {}, received {} by {} readers, losses told {}, untold 0;",
        plan.name,
        count(&scene.published),
        count(&scene.read),
        plan.readers,
        count(&scene.gaps)
    );
    for process in gateways.iter().flatten() {
        #[cfg(target_os = "linux")]
        {
            let (memory, files) = (process.resident() >> 20, process.descriptors());
            line += &format!(" a gateway has {memory} MiB and {files} descriptors;");
        }
        assert!(process.runs(), "{line}: it ended:\n{}", process.log());
    }
    println!("{line}");
}

/// The next fault, until the plan is over.
async fn disturb_for_long(
    plan: &Plan,
    until: Instant,
    server: &mut Server,
    gateways: &mut [Option<Process>; 2],
    config: &std::path::Path,
    scene: &Scene,
) {
    let mut reported = Instant::now();
    while Instant::now() < until {
        let mut which = fastrand::usize(1..64);
        // The first gateway lives for a minute or two, the second for a quarter of an hour, so that memory which grows would
        // show.
        for (gateway, rounds) in [(1, 16), (2, 128)] {
            if fastrand::usize(..rounds) != 0 {
                which &= !gateway;
            }
        }
        disturb(which, server, gateways, config, scene).await;
        scene.logs.lock().unwrap().drain(..).for_each(drop);
        sleep(Duration::from_millis(fastrand::u64(500..5000))).await;
        if reported.elapsed() > Duration::from_secs(60) {
            report(plan, scene, gateways);
            reported = Instant::now();
        }
    }
    report(plan, scene, gateways);
    println!("{:<14} {:?}", plan.name, scene.faults.lock().unwrap());
}

pub(crate) async fn nothing_is_lost_in_silence(
    mut server: Server,
    publisher: Publisher,
    rule: &str,
    plan: Plan,
) {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("gateway.toml");
    let rule = format!("[[topics]]\nmatch = \"orders/**\"\nread = \"anyone\"\n{rule}\n");
    let limits = "[limits]\nopens_per_second = 10000\n";
    std::fs::write(&config, format!("broker.url = \"{}\"\n{rule}{limits}", server.url())).unwrap();
    // Only on Linux can a process have a clock of its own.
    let own = cfg!(target_os = "linux") && plan.until.is_some();
    let clocks = [(); 2].map(|()| own.then(|| Clock::ahead_by(fastrand::i64(-3_000..3_000))));
    let [one, other] = clocks.each_ref().map(Option::as_ref);
    let mut gateways = [Some(gateway(&config, one).await), Some(gateway(&config, other).await)];
    let addresses = [0, 1].map(|index: usize| Mutex::new(gateways[index].as_ref().unwrap().address));
    let is_kept = matches!(publisher, Publisher::JetStream(..) | Publisher::RedisStream(_));
    let scene = Arc::new(Scene {
        gateways: addresses,
        published: AtomicU64::new(0),
        over: AtomicBool::new(false),
        is_kept,
        logs: Mutex::default(),
        read: AtomicU64::new(0),
        gaps: AtomicU64::new(0),
        clocks,
        faults: Mutex::default(),
    });
    let pause = Duration::from_millis(if plan.until.is_some() { 20 } else { 2 });
    let stop = Arc::new(AtomicBool::new(false));
    let publishing = {
        let (scene, stop) = (scene.clone(), stop.clone());
        tokio::spawn(async move {
            // One that failed may be stored all the same, so a last one is published again until it has not failed.
            let mut sent = true;
            while !stop.load(Ordering::Relaxed) || !sent {
                sent = publisher.publish(scene.published.load(Ordering::Relaxed)).await;
                if sent {
                    scene.published.fetch_add(1, Ordering::Relaxed);
                }
                sleep(pause).await;
            }
            // What nobody keeps must come while somebody listens: the readers wait for the last.
            scene.over.store(true, Ordering::Relaxed);
            if !scene.is_kept {
                loop {
                    publisher.publish(scene.published.fetch_add(1, Ordering::Relaxed)).await;
                    sleep(Duration::from_millis(300)).await;
                }
            }
        })
    };
    let mut readers = JoinSet::new();
    (0..plan.readers).for_each(|_| _ = readers.spawn(scene.clone().read()));
    if let Some(until) = plan.until {
        disturb_for_long(&plan, until, &mut server, &mut gateways, &config, &scene).await;
    } else {
        let mut combinations: Vec<usize> = (1..8).collect();
        fastrand::shuffle(&mut combinations);
        for which in combinations {
            disturb(which, &mut server, &mut gateways, &config, &scene).await;
            sleep(Duration::from_millis(fastrand::u64(0..700))).await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    let all = async {
        while let Some(reader) = readers.join_next().await {
            if let Err(error) = reader {
                let mut logs = std::mem::take(&mut *scene.logs.lock().unwrap());
                logs.extend(gateways.iter().flatten().map(Process::log));
                panic!("{error}; the gateways said\n{}", logs.join("\n"));
            }
        }
    };
    if timeout(WHOLE, all).await.is_err() {
        let logs: Vec<_> = gateways.iter().flatten().map(Process::log).collect();
        let (left, name, logs) = (readers.len(), plan.name, logs.join("\n"));
        panic!("{name}: {left} readers have not read the last number; the gateways said\n{logs}");
    }
    assert!(scene.published.load(Ordering::Relaxed) > 100, "hardly anything was published");
    publishing.abort();
}

pub(crate) async fn jetstream(plan: Plan) {
    let server = NatsServer::jetstream();
    let admin = Admin::connect(&server.url()).await;
    admin.stream("ORDERS", &["orders.>"], json!({})).await;
    let publisher = Publisher::JetStream(admin.client, server.port());
    nothing_is_lost_in_silence(Server::Nats(server), publisher, "source = \"jetstream\"", plan).await;
}

pub(crate) async fn nats(plan: Plan) {
    let server = NatsServer::start();
    let publisher = Publisher::Nats { port: server.port(), connection: Mutex::default() };
    nothing_is_lost_in_silence(Server::Nats(server), publisher, "", plan).await;
}

pub(crate) async fn redis(plan: Plan) {
    let server = RedisServer::start();
    let client = redis::Client::open(server.url()).unwrap();
    let publisher = Publisher::Redis { client, connection: tokio::sync::Mutex::default() };
    nothing_is_lost_in_silence(Server::Redis(server), publisher, "", plan).await;
}

pub(crate) async fn redis_stream(plan: Plan) {
    let server = RedisServer::start_with(&["appendonly yes", "appendfsync always"]);
    let publisher = Publisher::RedisStream(redis::Client::open(server.url()).unwrap());
    let rule = "source = \"redis-stream\"\npayload = { field = \"data\" }";
    nothing_is_lost_in_silence(Server::Redis(server), publisher, rule, plan).await;
}

/// Every combination of kills, once.
const ONCE: fn(&'static str) -> Plan = |name| Plan { name, readers: READERS, until: None };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_jetstream_message_is_missing_or_comes_twice() {
    jetstream(ONCE("jetstream")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_loss_of_plain_nats_is_reported() {
    nats(ONCE("nats")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_loss_of_plain_redis_is_reported() {
    redis(ONCE("redis")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_redis_stream_message_is_missing_or_comes_twice() {
    redis_stream(ONCE("redis-stream")).await;
}
