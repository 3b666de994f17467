//! The proxies of deploy/proxies as child processes, each with its file from there: the test changes only addresses, names,
//! paths and times.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tokio::net::TcpSocket;

use super::client::{self, Reader};
use super::ports::free_port;
use super::{eventually, tls};

/// Which one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Nginx,
    Haproxy,
    Caddy,
    Envoy,
    Traefik,
}

pub const ALL: [Kind; 5] = [Kind::Nginx, Kind::Haproxy, Kind::Caddy, Kind::Envoy, Kind::Traefik];

/// How long the files let a stream be silent, and what the tests make of it: the shortest heartbeat, a second,
/// is to it as the usual one to the minute.
const SILENCE: (&str, &str) = ("60s", "4s");

impl Kind {
    /// Its files, the one that it is started with first.
    fn files(self) -> &'static [&'static str] {
        match self {
            Kind::Nginx => &["nginx.conf"],
            Kind::Haproxy => &["haproxy.cfg", "haproxy-away.http"],
            Kind::Caddy => &["Caddyfile"],
            Kind::Envoy => &["envoy.yaml"],
            Kind::Traefik => &["traefik.yaml", "traefik-routes.yaml"],
        }
    }

    fn text(self) -> String {
        read(self.files()[0])
    }

    /// The lines that topicgate.toml must have according to its file, with the host name of the tests.
    pub fn gateway_toml(self) -> String {
        let text = self.text();
        let lines = text.lines().skip_while(|line| *line != "# topicgate.toml beside it:").skip(1);
        let lines: Vec<&str> = lines.map_while(|line| line.strip_prefix("#   ")).collect();
        assert!(!lines.is_empty(), "{self:?} does not say what topicgate.toml must have");
        lines.join("\n").replace("events.example.com", "localhost") + "\n"
    }

    /// Whether silence ends a stream in it at all.
    pub fn cuts_what_is_silent(self) -> bool {
        match self {
            Kind::Nginx | Kind::Haproxy | Kind::Caddy | Kind::Envoy => true,
            Kind::Traefik => false, // as its file says
        }
    }

    /// What stands in its files, and what the test puts there. The first that fits counts for a place.
    fn own(
        self,
        front: SocketAddr,
        gateways: &[SocketAddr],
        directory: &Path,
    ) -> Vec<(&'static str, String)> {
        let path = |name: &str| directory.join(name).to_str().unwrap().to_owned();
        let (gateway, port) = (gateways[0].to_string(), front.port());
        let mut own = vec![(SILENCE.0, SILENCE.1.to_owned())];
        own.extend(match self {
            Kind::Nginx => vec![
                ("listen 443 ssl", format!("listen {front} ssl")),
                ("/etc/ssl/certs/events.example.com.pem", path("tls.crt")),
                ("/etc/ssl/private/events.example.com.key", path("tls.key")),
                (
                    "127.0.0.1:8080",
                    gateways.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join("; server "),
                ),
                ("events.example.com", "localhost".into()),
            ],
            Kind::Haproxy => vec![
                ("bind :443", format!("bind {front}")),
                ("/etc/haproxy/certs/events.example.com.pem", path("tls.pem")),
                ("/etc/haproxy/haproxy-away.http", path("haproxy-away.http")),
                ("127.0.0.1:8080", gateway),
            ],
            Kind::Caddy => vec![
                (
                    "events.example.com {",
                    format!(
                        "{{\n\tadmin off\n\tauto_https disable_redirects\n}}\n\
                         https://localhost:{port} {{\n\ttls {} {}",
                        path("tls.crt"),
                        path("tls.key")
                    ),
                ),
                ("127.0.0.1:8080", gateway),
            ],
            Kind::Envoy => vec![
                (
                    "{ address: 0.0.0.0, port_value: 443 }",
                    format!("{{ address: 127.0.0.1, port_value: {port} }}"),
                ),
                ("/etc/envoy/certs/events.example.com.pem", path("tls.crt")),
                ("/etc/envoy/certs/events.example.com.key", path("tls.key")),
                (
                    "{ address: 127.0.0.1, port_value: 8080 }",
                    format!("{{ address: 127.0.0.1, port_value: {} }}", gateway.rsplit(':').next().unwrap()),
                ),
                ("events.example.com", "localhost".into()),
            ],
            Kind::Traefik => vec![
                ("\":443\"", format!("\"{front}\"")),
                ("/etc/traefik/traefik-routes.yaml", path("traefik-routes.yaml")),
                ("/etc/traefik/certs/events.example.com.pem", path("tls.crt")),
                ("/etc/traefik/certs/events.example.com.key", path("tls.key")),
                ("127.0.0.1:8080", gateway),
                ("events.example.com", "localhost".into()),
            ],
        });
        own
    }

    fn command(self, directory: &Path) -> Command {
        let file = directory.join(self.files()[0]);
        let mut command = Command::new(self.program());
        match self {
            // One process, so that none is left over when it is killed; and the http { } that the file goes into.
            Kind::Nginx => {
                let place = directory.display();
                let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                    .map(|what| format!("{what}_temp_path {place}/{what};\n"))
                    .concat();
                let main = format!(
                    "daemon off; master_process off; pid {place}/pid; error_log stderr;\nevents {{ worker_connections 4096; }}\n\
                     http {{ access_log off;\n{temporary}include {}; }}\n",
                    file.display()
                );
                fs::write(directory.join("main.conf"), main).unwrap();
                command.arg("-c").arg(directory.join("main.conf"))
            }
            Kind::Haproxy => command.args(["-db", "-f"]).arg(file),
            Kind::Caddy => command.args(["run", "--adapter", "caddyfile", "--config"]).arg(file),
            Kind::Envoy => command.args(["--disable-hot-restart", "--concurrency", "1", "-c"]).arg(file),
            Kind::Traefik => command.arg(format!("--configFile={}", file.display())),
        };
        // The directory of Caddy's state.
        command.env("HOME", directory).env("XDG_DATA_HOME", directory).env("XDG_CONFIG_HOME", directory);
        command
    }

    /// The program of the system, or the one that scripts/tools installed.
    fn program(self) -> PathBuf {
        let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/bin");
        match self {
            Kind::Nginx => installed("nginx"),
            Kind::Haproxy => installed("haproxy"),
            Kind::Caddy => installed("caddy"),
            Kind::Envoy => tools.join("envoy"),
            Kind::Traefik => tools.join("traefik"),
        }
    }
}

/// Where a program of the system is. Some are in sbin, which a plain user's PATH may lack.
fn installed(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/local/sbin", "/usr/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|file| file.is_file()).unwrap_or_else(|| name.into())
}

fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/proxies").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A proxy that runs, over TLS. Dropped, it is killed.
pub struct Front {
    pub address: SocketAddr,
    pub pair: tls::Pair,
    child: Child,
    _directory: tempfile::TempDir,
}

impl Front {
    /// In front of `gateway`, which must answer. Waits until it does so through the proxy.
    pub async fn start(kind: Kind, gateway: SocketAddr) -> Self {
        Self::before(kind, &[gateway]).await
    }

    /// As [`Front::start`], in front of several; nginx only.
    pub async fn before(kind: Kind, gateways: &[SocketAddr]) -> Self {
        Self::start_changed(kind, gateways, "/topics/up", &[]).await
    }

    /// As [`Front::start`], with these changes of its files, with which the gateway answers at `probe`.
    pub async fn start_changed(
        kind: Kind,
        gateways: &[SocketAddr],
        probe: &str,
        changes: &[(&'static str, &str)],
    ) -> Self {
        assert!(gateways.len() == 1 || kind == Kind::Nginx);
        let directory = tempfile::tempdir().unwrap();
        let pair = tls::Pair::new();
        let place = directory.path();
        fs::write(place.join("tls.crt"), &pair.cert).unwrap();
        fs::write(place.join("tls.key"), &pair.key).unwrap();
        fs::write(place.join("tls.pem"), format!("{}{}", pair.cert, pair.key)).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));

        let mut texts: Vec<String> = kind.files().iter().map(|name| read(name)).collect();
        let changes = changes.iter().map(|(theirs, ours)| (*theirs, (*ours).to_owned()));
        for (theirs, ours) in changes.chain(kind.own(address, gateways, place)) {
            assert!(texts.iter().any(|text| text.contains(theirs)), "no file of {kind:?} has {theirs:?}");
            for text in &mut texts {
                *text = text.replace(theirs, &ours);
            }
        }
        for (name, text) in kind.files().iter().zip(texts) {
            fs::write(place.join(name), text).unwrap();
        }

        let log = place.join("log");
        let output = fs::File::create(&log).unwrap();
        let child = kind
            .command(place)
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap_or_else(|error| panic!("{kind:?} is needed: run scripts/tools ({error})"));
        let mut front = Front { address, pair, child, _directory: directory };
        eventually(&format!("{kind:?} is up"), async || {
            let ended = front.child.try_wait().unwrap();
            assert!(ended.is_none(), "{kind:?} ended: {}", fs::read_to_string(&log).unwrap());
            front.status("HEAD", probe).await == Some(200)
        })
        .await;
        front
    }

    /// The status of an answer over HTTP/1.1, if there is one.
    pub async fn status(&self, method: &str, path: &str) -> Option<u16> {
        let socket = tls::try_connect(self.address, &self.pair, tls::H1).await.ok()?;
        Some(client::request_over(socket, method, path, b"").await.status)
    }

    /// A stream over HTTP/1.1, as an EventSource asks for it, from this address of this machine.
    pub async fn open_from(&self, source: Ipv4Addr, path: &str, headers: &[(&str, &str)]) -> Reader {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((source, 0).into()).unwrap();
        let socket = tls::over(socket.connect(self.address).await.unwrap(), &self.pair).await;
        Reader::over(socket, path, &[&[("accept", "text/event-stream")], headers].concat()).await
    }

    /// As [`Front::open_from`], from wherever.
    pub async fn open(&self, path: &str, headers: &[(&str, &str)]) -> Reader {
        self.open_from(Ipv4Addr::LOCALHOST, path, headers).await
    }

    /// Publishes through the proxy, and insists that it was accepted.
    pub async fn publish(&self, topic: &str, payload: &str) {
        tls::publish(self.address, &self.pair, topic, payload).await;
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
