//! The settings of NATS connections. They are read and checked at the start, so that an error ends the process and
//! names its key, and read again for every session, so that rotated files are used.

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_nats::rustls::pki_types::pem::PemObject;
use async_nats::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use async_nats::rustls::{ClientConfig, RootCertStore, crypto};
use async_nats::{ConnectOptions, ServerAddr};
use percent_encoding::percent_decode_str;
use url::Url;

use crate::config::{self, BrokerTls};

/// The most servers of a cluster that are known in addition to `broker.url`.
const DISCOVERED: usize = 64;

/// The servers and logins.
#[derive(Clone)]
pub(in crate::broker) struct Settings {
    servers: Vec<Server>,
    /// How many of them `broker.url` names; the cluster announced the others.
    named: usize,
    tls: BrokerTls,
    /// `broker.settle`.
    pub(super) settle: Duration,
}

#[derive(Clone)]
struct Server {
    address: ServerAddr,
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
        pair: Box<nkeys::KeyPair>,
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
            servers.push(Server { host: address.host().to_owned(), address, login });
        }
        let (named, settle) = (servers.len(), config.settle);
        let settings = Settings { named, servers, tls: config.tls.clone(), settle };
        tls(&settings.tls)?;
        Ok(settings)
    }

    /// The server to begin with.
    pub(super) fn any(&self) -> usize {
        fastrand::usize(..self.len())
    }

    /// How many servers there are; at least one.
    pub(super) fn len(&self) -> usize {
        self.servers.len()
    }

    /// The server `index`, ready to connect to.
    pub(super) fn target(&self, index: usize) -> Result<Target, String> {
        let Server { address, login, host } = &self.servers[index % self.servers.len()];
        let pair = |seed: &str, key: &str| {
            nkeys::KeyPair::from_seed(seed)
                .map(Box::new)
                .map_err(|error| format!("{key}: it is not the seed of an NKey: {error}"))
        };
        let proof = match login.clone() {
            Login::Nobody => Proof::Nothing,
            Login::User { user, password } => Proof::User { user, password },
            Login::Token(token) => Proof::Token(token),
            Login::Nkey(seed) => Proof::Key { pair: pair(&seed, "broker.nkey")?, jwt: None },
            Login::Credentials(path) => {
                let text = read(&path, "broker.credentials")?;
                let (jwt, seed) = credentials(&text)
                    .ok_or_else(|| explain("broker.credentials", &path, "it has no token and seed"))?;
                Proof::Key { pair: pair(seed, "broker.credentials")?, jwt: Some(jwt.to_owned()) }
            }
        };
        Ok(Target {
            host: address.host().to_owned(),
            port: address.port(),
            tls_host: host.clone(),
            tls: Arc::new(tls(&self.tls)?),
            needs_tls: address.tls_required() || self.tls != BrokerTls::default(),
            proof,
        })
    }

    /// Replaces the announced servers by those that server `index` announces, each as host and port. They use the same
    /// login and scheme as that server, and its name for the certificate if they have only an address.
    pub(super) fn discovered(&mut self, index: usize, addresses: &[String]) {
        let Server { address: like, login, host: name } = self.servers[index % self.servers.len()].clone();
        self.servers.truncate(self.named);
        for address in addresses.iter().take(DISCOVERED) {
            let parsed = ServerAddr::from_str(&format!("{}://{address}", like.scheme()));
            if let Ok(address) = parsed
                && !self.servers.iter().any(|known| known.address == address)
            {
                let is_number = address.host().parse::<std::net::IpAddr>().is_ok();
                let host = if is_number { name.clone() } else { address.host().to_owned() };
                self.servers.push(Server { address, login: login.clone(), host });
            }
        }
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
        nkeys::KeyPair::from_seed(&seed.0).map_err(|error| {
            format!("broker.nkey: it is not the seed of an NKey, which starts with SU: {error}")
        })?;
        logins.push(Login::Nkey(seed.0.clone()));
    }
    if let Some(path) = &config.credentials {
        let text = read(path, "broker.credentials")?;
        ConnectOptions::new()
            .credentials(&text)
            .map_err(|error| explain("broker.credentials", path, error))?;
        logins.push(Login::Credentials(path.clone()));
    }
    if logins.len() > 1 {
        return Err("broker: keep one of user and password, token, nkey, credentials; several are set".into());
    }
    Ok(logins.pop().unwrap_or(Login::Nobody))
}

/// The token and the seed in a credentials file: each on its own line between two lines of dashes.
fn credentials(text: &str) -> Option<(&str, &str)> {
    let is_frame = |line: &str| line.starts_with("---") && line.ends_with("---");
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let mut framed = lines.windows(3).filter(|lines| {
        let is_text = !lines[1].is_empty() && !lines[1].starts_with("---");
        is_frame(lines[0]) && is_text && is_frame(lines[2])
    });
    Some((framed.next()?[1], framed.next()?[1]))
}

/// A server of `broker.url`. The login is removed from the address, because async-nats logs addresses at debug level
/// and does not read a login from them.
fn server(text: &str) -> Result<(ServerAddr, Login), String> {
    // The text may have a password, so no message repeats it.
    let mut url = Url::parse(text).map_err(|error| format!("broker.url: {error}"))?;
    if !matches!(url.scheme(), "nats" | "tls") {
        return Err(format!("broker.url: {}:// is not NATS; write nats:// or tls://", url.scheme()));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err("broker.url: it has no host; write nats://host:4222".into());
    }
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
    let unusable = |()| "broker.url: it cannot have a user".to_owned();
    url.set_username("").map_err(unusable)?;
    url.set_password(None).map_err(unusable)?;
    let address = ServerAddr::from_url(url).map_err(|error| format!("broker.url: {error}"))?;
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
