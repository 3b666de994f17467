//! The settings of NATS connections. They are read and checked at the start, so that an error ends the process and
//! names its key, and read again for every session, so that rotated files are used.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nkeys::KeyPair;
use percent_encoding::percent_decode_str;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, crypto};
use url::Url;

use crate::config::{self, BrokerTls};

/// The most servers of a cluster that are known in addition to `broker.url`.
const DISCOVERED: usize = 64;

/// The port of a server whose URL names none.
const DEFAULT_PORT: u16 = 4222;

/// The servers and logins.
#[derive(Clone)]
pub(in crate::broker) struct Settings {
    servers: Vec<Server>,
    /// How many of them `broker.url` names; the cluster announced the others.
    named: usize,
    tls: BrokerTls,
    /// `broker.settle`.
    pub(super) settle: Duration,
    /// The prefix of the JetStream API: `broker.jetstream`.
    pub(super) jetstream: Arc<str>,
}

/// The address of a server.
#[derive(Clone, PartialEq, Eq)]
struct Address {
    /// Without the brackets of an IPv6 address.
    host: String,
    port: u16,
    /// Whether its scheme requires TLS.
    needs_tls: bool,
}

#[derive(Clone)]
struct Server {
    address: Address,
    login: Login,
    /// The host name in its certificate; the address may be a number.
    host: String,
}

/// The login on one server.
#[derive(Clone)]
enum Login {
    Nobody,
    User { user: String, password: String },
    Token(String),
    Nkey(String),
    Credentials(std::path::PathBuf),
}

/// A server to connect to.
pub(super) struct Target {
    pub(super) host: String,
    pub(super) port: u16,
    /// The host name in its certificate.
    pub(super) tls_host: String,
    pub(super) tls: Arc<ClientConfig>,
    /// Whether TLS is required, whatever the server says.
    pub(super) needs_tls: bool,
    pub(super) proof: Proof,
}

/// The proof of the login.
pub(super) enum Proof {
    Nothing,
    User {
        user: String,
        password: String,
    },
    Token(String),
    /// A key that signs the server's nonce; the user is in the token, if there is one.
    Key {
        pair: Box<KeyPair>,
        jwt: Option<String>,
    },
}

impl Settings {
    /// Reads `[broker]` and every file that it names.
    pub(in crate::broker) fn read(config: &config::Broker) -> Result<Self, String> {
        let common = common_login(config)?;
        let mut servers = Vec::new();
        for text in config.url.0.split(',') {
            let (address, own) = server(text.trim())?;
            let login = match (own, &common) {
                (Login::Nobody, common) => common.clone(),
                (own, Login::Nobody) => own,
                _ => {
                    return Err("broker.url: it has a user, but another key of [broker] also sets one; \
                         keep one"
                        .into());
                }
            };
            servers.push(Server { host: address.host.clone(), address, login });
        }
        let (named, settle) = (servers.len(), config.settle);
        let jetstream = config.jetstream.prefix().into();
        let settings = Settings { named, servers, tls: config.tls.clone(), settle, jetstream };
        tls(&settings.tls)?;
        Ok(settings)
    }

    /// The server to begin with.
    pub(super) fn any(&self) -> usize {
        fastrand::usize(..self.len())
    }

    /// The number of servers; at least one.
    pub(super) fn len(&self) -> usize {
        self.servers.len()
    }

    /// The server `index`, ready to connect to.
    pub(super) fn target(&self, index: usize) -> Result<Target, String> {
        let Server { address, login, host } = &self.servers[index % self.servers.len()];
        let proof = match login.clone() {
            Login::Nobody => Proof::Nothing,
            Login::User { user, password } => Proof::User { user, password },
            Login::Token(token) => Proof::Token(token),
            Login::Nkey(seed) => Proof::Key { pair: key_pair(&seed).map_err(nkey)?, jwt: None },
            Login::Credentials(path) => {
                let text = read(&path, "broker.credentials")?;
                let (jwt, pair) = credentials(&text, &path)?;
                Proof::Key { pair, jwt: Some(jwt) }
            }
        };
        Ok(Target {
            host: address.host.clone(),
            port: address.port,
            tls_host: host.clone(),
            tls: Arc::new(tls(&self.tls)?),
            needs_tls: address.needs_tls || self.tls != BrokerTls::default(),
            proof,
        })
    }

    /// Replaces the announced servers by those that server `index` announces, each as host and port. They use the same
    /// login and scheme as that server, and its name for the certificate if they have only an address.
    pub(super) fn discovered(&mut self, index: usize, addresses: &[String]) {
        let Server { address: like, login, host: name } = self.servers[index % self.servers.len()].clone();
        self.servers.truncate(self.named);
        for address in addresses.iter().take(DISCOVERED) {
            let scheme = if like.needs_tls { "tls" } else { "nats" };
            let parsed = Url::parse(&format!("{scheme}://{address}")).ok();
            if let Some(address) = parsed.as_ref().and_then(Address::of)
                && !self.servers.iter().any(|known| known.address == address)
            {
                let is_number = address.host.parse::<std::net::IpAddr>().is_ok();
                let host = if is_number { name.clone() } else { address.host.clone() };
                self.servers.push(Server { address, login: login.clone(), host });
            }
        }
    }
}

impl Address {
    /// The address in a URL, if it names a host.
    fn of(url: &Url) -> Option<Self> {
        let host = url.host_str().filter(|host| !host.is_empty())?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        Some(Address {
            host: host.to_owned(),
            port: url.port().unwrap_or(DEFAULT_PORT),
            needs_tls: url.scheme() == "tls",
        })
    }
}

/// The login of the keys in addition to `broker.url`, checked.
fn common_login(config: &config::Broker) -> Result<Login, String> {
    let mut logins = Vec::new();
    match (&config.user, &config.password) {
        (Some(user), Some(password)) => {
            logins.push(Login::User { user: user.clone(), password: password.0.clone() });
        }
        (Some(_), None) => return Err("broker.user: set broker.password too".into()),
        (None, Some(_)) => return Err("broker.password: set broker.user too".into()),
        (None, None) => {}
    }
    if let Some(token) = &config.token {
        logins.push(Login::Token(token.0.clone()));
    }
    if let Some(seed) = &config.nkey {
        key_pair(&seed.0).map_err(nkey)?;
        logins.push(Login::Nkey(seed.0.clone()));
    }
    if let Some(path) = &config.credentials {
        let text = read(path, "broker.credentials")?;
        credentials(&text, path)?;
        logins.push(Login::Credentials(path.clone()));
    }
    if logins.len() > 1 {
        return Err("broker: keep one of user and password, token, nkey, credentials; several are set".into());
    }
    Ok(logins.pop().unwrap_or(Login::Nobody))
}

/// The token and the key in a file of credentials. Each is a line of its own between two that begin and end with dashes.
fn credentials(text: &str, path: &Path) -> Result<(String, Box<KeyPair>), String> {
    let is_frame = |line: &str| line.starts_with("---") && line.ends_with("---");
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let mut framed = lines.windows(3).filter(|lines| {
        let is_text = !lines[1].is_empty() && !lines[1].starts_with("---");
        is_frame(lines[0]) && is_text && is_frame(lines[2])
    });
    let (Some(jwt), Some(seed)) = (framed.next(), framed.next()) else {
        return Err(explain("broker.credentials", path, "no token and seed in it"));
    };
    let pair = key_pair(seed[1]).map_err(|why| explain("broker.credentials", path, why))?;
    Ok((jwt[1].to_owned(), pair))
}

fn nkey(why: String) -> String {
    format!("broker.nkey: {why}")
}

fn key_pair(seed: &str) -> Result<Box<KeyPair>, String> {
    let pair = KeyPair::from_seed(seed).map(Box::new);
    pair.map_err(|error| format!("not the seed of an NKey, which starts with SU: {error}"))
}

/// One server of `broker.url`.
fn server(text: &str) -> Result<(Address, Login), String> {
    // The text may have a password, so no message repeats it.
    let url = Url::parse(text).map_err(|error| format!("broker.url: {error}"))?;
    if !matches!(url.scheme(), "nats" | "tls") {
        return Err(format!("broker.url: {}:// is not NATS; write nats:// or tls://", url.scheme()));
    }
    let address = Address::of(&url).ok_or("broker.url: it names no host; write nats://host:4222")?;
    if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
        return Err("broker.url: nothing may follow the port; write nats://host:4222".into());
    }
    let decode = |text: &str| {
        percent_decode_str(text)
            .decode_utf8()
            .map(|text| text.into_owned())
            .map_err(|_| "broker.url: the user or the password is not UTF-8 once percent-decoded".to_owned())
    };
    let login = match (url.username(), url.password()) {
        ("", None) => Login::Nobody,
        // NATS' convention: a user without a password is a token.
        (token, None) => Login::Token(decode(token)?),
        (user, Some(password)) => Login::User { user: decode(user)?, password: decode(password)? },
    };
    Ok((address, login))
}

/// The TLS configuration: the system's roots, those of `broker.tls.ca`, and our certificate if there is one.
fn tls(settings: &BrokerTls) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    // A system without root certificates is not an error as long as none is needed; otherwise the handshake fails.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = &settings.ca {
        for certificate in certificates(path, "broker.tls.ca")? {
            roots.add(certificate).map_err(|error| explain("broker.tls.ca", path, error))?;
        }
    }
    // The provider is explicit, so that no other library's default can make it ambiguous.
    let builder = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("broker.tls: {error}"))?
        .with_root_certificates(roots);
    match (&settings.cert, &settings.key) {
        (Some(cert), Some(key)) => {
            let chain = certificates(cert, "broker.tls.cert")?;
            let pem = read(key, "broker.tls.key")?;
            let secret = PrivateKeyDer::from_pem_slice(pem.as_bytes())
                .map_err(|error| explain("broker.tls.key", key, error))?;
            builder
                .with_client_auth_cert(chain, secret)
                .map_err(|error| explain("broker.tls.key", key, error))
        }
        (Some(_), None) => Err("broker.tls.cert: set broker.tls.key too".into()),
        (None, Some(_)) => Err("broker.tls.key: set broker.tls.cert too".into()),
        (None, None) => Ok(builder.with_no_client_auth()),
    }
}

fn certificates(path: &Path, key: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = read(path, key)?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| explain(key, path, error))?;
    if certificates.is_empty() { Err(explain(key, path, "it has no certificate")) } else { Ok(certificates) }
}

/// These are small local files that are read once per session, so this blocks.
fn read(path: &Path, key: &str) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| explain(key, path, error))
}

fn explain(key: &str, path: &Path, reason: impl std::fmt::Display) -> String {
    format!("{key}: {}: {reason}", path.display())
}
