//! The servers under test: how each is started, subscribed to and published to. Each gets the settings that the load
//! requires, and otherwise its defaults.

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::history::{self, History};
use crate::load::{Load, Protocol, Stage, Until, Work, http2_requests};
use crate::process::{Server, find_program, version};

/// Where Debian puts nginx' dynamic modules.
const NCHAN: &str = "/usr/lib/nginx/modules/ngx_nchan_module.so";

/// A server under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// The bare loop, subscribed to a nats-server that runs on the load's core.
    Bound,
    /// The gateway, subscribed to a nats-server on the load's core, or reading stored messages of a broker.
    Gateway,
    /// A direct reader of the stored messages of a broker, without a gateway.
    Direct,
    /// The gateway with its embedded broker; messages are published over HTTP.
    Embedded,
    /// axum's `Sse` over a broadcast channel.
    Afternoon,
    /// nginx with nchan.
    Nchan,
    /// nats-server, subscribed to over WebSocket.
    Nats,
}

/// An ability that a scenario needs in addition to one topic on one HTTP/1.1 connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Nothing.
    Nothing,
    /// Several topics on one stream.
    ManyTopics,
    /// Resuming after an id.
    Resume,
    /// HTTP/2 without TLS.
    Http2,
    /// Heartbeats on an idle stream.
    Heartbeat,
    /// Only the newest message, once per interval.
    Interval,
    /// Reading the stored messages of a broker.
    History(History),
    /// The same from JetStream, for many readers at once.
    HistoryForMany,
    /// Compressing a stream once for all readers that accept it.
    Json { compressed: bool },
    /// To take in messages from a broker.
    Ingest,
}

/// The settings with which servers are started.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The gateway's binary.
    pub gateway: PathBuf,
    /// The core of the server under test.
    pub server_core: usize,
    /// The core of the load and of the gateway's broker.
    pub load_core: usize,
    /// The most connections and files that a server may have open.
    pub files: u64,
}

/// A running target.
#[derive(Debug)]
pub struct Running {
    /// The process under test.
    pub server: Server,
    target: Target,
    need: Need,
    subscribe: SocketAddr,
    publish: SocketAddr,
    // Dropped after the server: the gateway's broker, and the directory of logs and configurations.
    _broker: Option<Server>,
    _directory: TempDir,
}

impl Target {
    /// All of them; first those that the others are compared with.
    pub const ALL: [Target; 7] = [
        Target::Bound,
        Target::Direct,
        Target::Gateway,
        Target::Embedded,
        Target::Afternoon,
        Target::Nchan,
        Target::Nats,
    ];

    /// Its name on the command line and in tables.
    pub fn name(self) -> &'static str {
        match self {
            Target::Bound => "bound",
            Target::Direct => "direct",
            Target::Gateway => "topicgate",
            Target::Embedded => "topicgate-embedded",
            Target::Afternoon => "axum-sse",
            Target::Nchan => "nchan",
            Target::Nats => "nats-websocket",
        }
    }

    /// Whether it has the ability that a scenario needs.
    pub fn can(self, need: Need) -> bool {
        match need {
            Need::History(_) => matches!(self, Target::Direct | Target::Gateway),
            Need::HistoryForMany | Need::Json { .. } => self == Target::Gateway,
            Need::Ingest => matches!(self, Target::Bound | Target::Gateway),
            _ if self == Target::Direct => false,
            Need::Nothing => true,
            Need::ManyTopics => self != Target::Afternoon,
            Need::Resume => matches!(self, Target::Gateway | Target::Embedded | Target::Nchan),
            Need::Http2 => {
                matches!(self, Target::Gateway | Target::Embedded | Target::Afternoon | Target::Nchan)
            }
            Need::Heartbeat => self != Target::Bound,
            Need::Interval => matches!(self, Target::Gateway | Target::Embedded),
        }
    }

    /// What must be installed or built to run it, if anything.
    pub fn missing(self, setup: &Setup) -> Option<String> {
        let program = |name: &str| find_program(name).is_none().then(|| format!("{name} is not installed"));
        match self {
            Target::Afternoon => None,
            Target::Direct => program("nats-server").or_else(|| program("redis-server")),
            Target::Embedded => (!setup.gateway.is_file())
                .then(|| format!("no gateway at {}; build it first", setup.gateway.display())),
            Target::Gateway => Target::Embedded.missing(setup).or_else(|| program("nats-server")),
            Target::Bound | Target::Nats => program("nats-server"),
            Target::Nchan => program("nginx").or_else(|| {
                (!fs::exists(NCHAN).unwrap_or(false))
                    .then(|| "nginx has no nchan (Debian: libnginx-mod-nchan)".into())
            }),
        }
    }

    /// Its version, as it prints it.
    pub fn version(self, setup: &Setup) -> String {
        let program = |name: &str, flag: &str| match find_program(name) {
            Some(path) => version(&path, flag),
            None => String::new(),
        };
        match self {
            Target::Bound => "bench/src/bound.rs".into(),
            Target::Direct => {
                let redis = program("redis-server", "--version"); // how it was built follows
                let redis = redis.split(" sha").next().unwrap_or_default();
                format!("bench/src/history.rs; {}; {redis}", program("nats-server", "--version"))
            }
            Target::Afternoon => "bench/src/afternoon.rs, axum 0.8".into(),
            Target::Embedded => version(&setup.gateway, "--version"),
            Target::Gateway => {
                format!("{}; {}", version(&setup.gateway, "--version"), program("nats-server", "--version"))
            }
            Target::Nats => program("nats-server", "--version"),
            Target::Nchan => {
                let package = std::process::Command::new("dpkg-query")
                    .args(["--show", "--showformat=${Version}", "libnginx-mod-nchan"])
                    .output();
                let nchan = package.map(|out| String::from_utf8_lossy(&out.stdout).into_owned());
                format!("{}; nchan {}", program("nginx", "-v"), nchan.unwrap_or_default())
            }
        }
    }

    /// Starts it on its own port.
    pub fn start(self, setup: &Setup, need: Need) -> Result<Running> {
        let directory = tempfile::tempdir()?;
        let path = |name: &str| directory.path().join(name);
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let address = free_address()?;
        let mut publish = address;
        let mut broker = None;
        let own = |what: &str| -> Result<Vec<String>> {
            Ok(vec![text(std::env::current_exe()?), what.into(), address.to_string()])
        };
        if matches!(self, Target::Bound | Target::Direct | Target::Gateway) {
            publish = free_address()?;
            let (name, command) = broker_command(need, publish, directory.path())?;
            broker = Some(Server::start(name, &command, setup.load_core, publish, &path("broker.log"))?);
        }
        let command = match self {
            Target::Bound => [own("bound")?, vec![publish.to_string()]].concat(),
            Target::Afternoon => own("afternoon")?,
            Target::Direct => {
                let Need::History(history) = need else { bail!("there is nothing to read directly") };
                [own("direct")?, vec![publish.to_string(), history.name().to_owned()]].concat()
            }
            Target::Gateway | Target::Embedded => {
                let (url, source) = match need {
                    _ if broker.is_none() => ("memory:".into(), ""),
                    Need::History(History::RedisStream) => (
                        format!("redis://{publish}"),
                        "source = \"redis-stream\"\npayload = { field = \"data\" }",
                    ),
                    Need::History(History::Jetstream) | Need::HistoryForMany => {
                        (format!("nats://{publish}"), "source = \"jetstream\"")
                    }
                    _ => (format!("nats://{publish}"), ""),
                };
                let config = path("topicgate.toml");
                let settings = gateway_config(address, free_address()?, &url, source, setup.files, need);
                fs::write(&config, settings)?;
                vec![text(setup.gateway.clone()), "--config".into(), text(config)]
            }
            Target::Nchan => {
                publish = free_address()?; // a listener of this nginx for HTTP/2 understands nothing else
                let config = path("nginx.conf");
                fs::write(&config, nginx_config(address, publish, directory.path(), need, setup.files))?;
                vec![program("nginx")?, "-p".into(), text(directory.path().into()), "-c".into(), text(config)]
            }
            Target::Nats => {
                publish = free_address()?;
                let config = path("nats.conf");
                fs::write(&config, nats_config(publish, address, need))?;
                vec![program("nats-server")?, "-c".into(), text(config)]
            }
        };
        let server = Server::start(self.name(), &command, setup.server_core, address, &path("server.log"))?;
        if self == Target::Gateway {
            // It listens before it is connected to its broker; until then it refuses streams for now.
            std::thread::sleep(std::time::Duration::from_millis(300));
        }
        Ok(Running {
            server,
            target: self,
            need,
            subscribe: address,
            publish,
            _broker: broker,
            _directory: directory,
        })
    }
}

impl Running {
    /// Stores messages of [`history::TOPIC`] in the broker, numbered from 0.
    pub fn fill(&self, history: History, messages: u32) -> Result<()> {
        history.fill(self.publish, messages)
    }

    /// Whether the broker is read directly, without a server in between.
    pub fn is_direct(&self) -> bool {
        self.target == Target::Direct
    }

    /// Reads the history without a load; see [`history::ask`].
    pub fn read_directly(&self, messages: u32) -> Result<u64> {
        history::ask(self.subscribe, messages)
    }

    /// Creates a load for this server.
    pub fn load(&self, work: Work, dense: bool) -> Result<Load> {
        let (publish, protocol) = match (self.target, self.need) {
            (_, Need::History(History::RedisStream)) => (self.subscribe, Protocol::Post("/topics/")),
            (Target::Bound | Target::Direct | Target::Gateway | Target::Nats, _) => {
                (self.publish, Protocol::Nats)
            }
            (Target::Embedded | Target::Afternoon, _) => (self.publish, Protocol::Post("/topics/")),
            (Target::Nchan, _) => (self.publish, Protocol::Post("/pub/")),
        };
        Load::new(self.subscribe, publish, protocol, work, dense)
    }

    /// The steps to open a stream of one topic that begins with the oldest message.
    pub fn stages_from_oldest(&self, topic: &str) -> Vec<Stage> {
        self.stages(&[format!("{topic}?since=all")], None)
    }

    /// The steps to open a stream of `topics`, after the event `cursor` if there is one.
    pub fn stages(&self, topics: &[String], cursor: Option<&str>) -> Vec<Stage> {
        if self.target == Target::Nats {
            return websocket_stages(topics);
        }
        let mut request =
            format!("GET {} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n", self.path(topics));
        if self.need == (Need::Json { compressed: true }) {
            request.push_str("Accept-Encoding: gzip\r\n");
        }
        if let Some(cursor) = cursor {
            // Writing to a String cannot fail.
            let _ = write!(request, "Last-Event-ID: {cursor}\r\n");
        }
        request.push_str("\r\n");
        vec![Stage { send: request.into_bytes(), until: Until::Bytes(b"\r\n\r\n") }]
    }

    /// The steps to open `streams` streams of one topic on one HTTP/2 connection.
    pub fn http2_stages(&self, topic: &str, streams: u32) -> Vec<Stage> {
        let send = http2_requests(&self.path(&[topic.to_owned()]), streams);
        vec![Stage { send, until: Until::Heads(streams) }]
    }

    fn path(&self, topics: &[String]) -> String {
        match (self.target, topics) {
            (Target::Nchan, [topic]) => format!("/sub/{topic}"),
            (Target::Nchan, topics) => format!("/many/{}", topics.join(",")),
            (_, [topic]) => format!("/topics/{topic}"),
            (_, topics) => format!("/topics?topic={}", topics.join("&topic=")),
        }
    }
}

/// The steps of a browser that connects to NATS: the WebSocket handshake, then NATS' own protocol. The server's answer to
/// PING confirms the subscriptions. The request names no browser: to browsers the server sends frames of at most 4 KiB,
/// which would cost it more.
fn websocket_stages(topics: &[String]) -> Vec<Stage> {
    let handshake = "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                     Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    let mut text = "CONNECT {\"verbose\":false,\"pedantic\":false,\"protocol\":1}\r\n".to_owned();
    for (index, topic) in topics.iter().enumerate() {
        // Writing to a String cannot fail.
        let _ = write!(text, "SUB {} {}\r\n", topic.replace('/', "."), index + 1);
    }
    text.push_str("PING\r\n");
    // One binary message, masked as required of clients, with a mask that changes nothing.
    let mut frame = vec![0x82, 0x80 | 126];
    frame.extend_from_slice(&(text.len() as u16).to_be_bytes());
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(text.as_bytes());
    vec![
        Stage { send: handshake.as_bytes().to_vec(), until: Until::Bytes(b"\r\n\r\n") },
        Stage { send: frame, until: Until::Bytes(b"PONG\r\n") },
    ]
}

fn program(name: &str) -> Result<String> {
    let path = find_program(name).with_context(|| format!("{name} is not installed"))?;
    Ok(path.to_string_lossy().into_owned())
}

/// A port that was free a moment ago. If another process takes it meanwhile, the start fails and says so.
fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// The command that starts the broker that `need` requires.
fn broker_command(
    need: Need,
    listen: SocketAddr,
    directory: &std::path::Path,
) -> Result<(&'static str, Vec<String>)> {
    let store = directory.display();
    if need == Need::History(History::RedisStream) {
        let words = format!("--bind {} --port {} --dir {store} --save", listen.ip(), listen.port());
        let command = std::iter::once(program("redis-server")?)
            .chain(words.split(' ').map(str::to_owned))
            .chain([String::new()]) // what --save takes for never
            .collect();
        return Ok(("redis-server", command));
    }
    let keeps = if matches!(need, Need::History(_) | Need::HistoryForMany) {
        format!("jetstream {{ store_dir: \"{store}/jetstream\" }}\n")
    } else {
        String::new()
    };
    let config = directory.join("nats.conf");
    fs::write(&config, format!("listen: \"{listen}\"\n{keeps}"))?;
    let config = config.to_string_lossy().into_owned();
    Ok(("nats-server", vec![program("nats-server")?, "-c".into(), config]))
}

fn gateway_config(
    listen: SocketAddr,
    admin: SocketAddr,
    broker: &str,
    source: &str,
    files: u64,
    need: Need,
) -> String {
    // For the plain stream too, to which it is compared: only its readers do not accept compression.
    let compress = matches!(need, Need::Json { .. });
    // The stream is found by its subjects, so the rule must not be wider than they are.
    let pattern = if source.is_empty() { "**" } else { "kept/**" };
    format!(
        r#"listen = "{listen}"
admin.listen = "{admin}"
broker.url = "{broker}"
limits = {{ streams = {files}, connections = {files}, streams_per_address = {files}, topics_per_address = 1000000, new_topics_per_second = 1000000, opens_per_second = {files}, resume_bytes = "1TiB" }}
log.level = "warn"
streams.compress = {compress}
[[topics]]
match = "{pattern}"
{source}
read = "anyone"
publish = "anyone"
replay = {{ messages = 1000, bytes = "4MiB" }}
"#
    )
}

fn nats_config(listen: SocketAddr, websocket: SocketAddr, need: Need) -> String {
    // The load answers no PING, so the server must not wait for an answer.
    let ping = if need == Need::Heartbeat { "15s" } else { "10m" };
    format!(
        "listen: \"{listen}\"\nmax_connections: 100000\nping_interval: \"{ping}\"\nping_max: 100\n\
         websocket {{ listen: \"{websocket}\", no_tls: true }}\n"
    )
}

fn nginx_config(
    listen: SocketAddr,
    publish: SocketAddr,
    directory: &std::path::Path,
    need: Need,
    files: u64,
) -> String {
    let http2 = if need == Need::Http2 { " http2" } else { "" };
    let directory = directory.display();
    let subscriber = "nchan_subscriber eventsource; nchan_channel_id $1;\n\
                      nchan_eventsource_ping_interval 15; nchan_subscriber_first_message newest;";
    format!(
        "daemon off; master_process off; worker_processes 1; pid {directory}/pid; error_log stderr warn;
load_module {NCHAN};
events {{ worker_connections {files}; }}
http {{
  access_log off;
  client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
  keepalive_requests 1000000000; keepalive_timeout 1h; http2_max_concurrent_streams 256;
  nchan_shared_memory_size 1g;
  server {{
    listen {listen}{http2}; listen {publish};
    location ~ ^/sub/(.+)$ {{ {subscriber} }}
    location ~ ^/many/(.+)$ {{ {subscriber} nchan_channel_id_split_delimiter \",\"; }}
    location ~ ^/pub/(.+)$ {{
      nchan_publisher; nchan_channel_id $1; nchan_message_buffer_length 1000; nchan_message_timeout 5m;
    }}
  }}
}}
"
    )
}
