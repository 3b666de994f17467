//! The handshake of a NATS connection: TCP, the server's `INFO`, TLS if either side requires it, the login, and the
//! server's first `PONG`. `session` and `jetstream` use the connection from then on.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::BytesMut;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::settings::{Proof, Target};
use super::wire::{Connect, Info, Operation, PING, PONG, Reader, write_connect, write_subscribe};
use crate::net::reason::{CLOSED, LATE, Peer, UNRESOLVED, sentence};

/// The timeout of the whole handshake with one address of a server.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);

/// A TCP or TLS connection.
pub(super) trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Socket for S {}

/// A connection that the server has accepted.
pub(super) struct Connection {
    pub(super) socket: Box<dyn Socket>,
    /// The parser, with bytes that have arrived but are not parsed yet.
    pub(super) reader: Reader,
    pub(super) info: Info,
}

/// Connects to the first address of a server that accepts the connection. An error is one line without secrets.
pub(super) async fn connect(target: &Target) -> Result<Connection, String> {
    let (host, port) = (target.host.as_str(), target.port);
    let unusable = |why: &str| format!("cannot connect: {host}:{port}: {}", sentence(why, Peer::Nats));
    let addresses = lookup_host((host, port)).await.map_err(|error| unusable(&error.to_string()))?;
    let mut why = unusable(UNRESOLVED);
    for address in addresses {
        match timeout(CONNECT_LIMIT, begin(target, address)).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(error)) => why = unusable(&error),
            Err(_) => why = unusable(LATE),
        }
    }
    Err(why)
}

async fn begin(target: &Target, address: SocketAddr) -> Result<Connection, String> {
    let socket = TcpStream::connect(address).await.map_err(said)?;
    socket.set_nodelay(true).map_err(said)?;
    let mut socket: Box<dyn Socket> = Box::new(socket);
    let mut reader = Reader::default();
    let info = match operation(&mut socket, &mut reader).await? {
        Operation::Info(info) => *info,
        Operation::Error(words) => return Err(words),
        other => return Err(format!("the server sent {other:?} instead of INFO")),
    };
    if target.needs_tls || info.tls_required {
        if !reader.is_empty() {
            // These bytes were not protected by TLS, so they cannot be trusted.
            return Err("the server sent data without TLS where TLS must begin".into());
        }
        let name = ServerName::try_from(target.tls_host.clone())
            .map_err(|error| format!("{:?} cannot be a name in a certificate: {error}", target.tls_host))?;
        let tls = TlsConnector::from(target.tls.clone()).connect(name, socket);
        socket = Box::new(tls.await.map_err(|error| format!("TLS: {error}"))?);
    }
    let mut connection = Connection { socket, reader, info };
    connection.introduce(target).await?;
    Ok(connection)
}

impl Connection {
    /// Sends the login, and waits until the server has accepted it.
    async fn introduce(&mut self, target: &Target) -> Result<(), String> {
        let mut out = BytesMut::new();
        write_connect(&mut out, &introduction(target, &self.info)?);
        out.extend_from_slice(PING);
        self.send(&out).await?;
        self.confirmed().await
    }

    /// Waits for the answer to a PING, which follows the answers to everything that was sent before.
    async fn confirmed(&mut self) -> Result<(), String> {
        loop {
            match operation(&mut self.socket, &mut self.reader).await? {
                Operation::Pong => return Ok(()),
                Operation::Error(words) => return Err(words),
                Operation::Info(info) => self.info = *info,
                Operation::Ping => self.send(PONG).await?,
                Operation::Ok => {}
                Operation::Message(_) | Operation::TooLarge { .. } => {
                    return Err("the server sent a message that nobody has asked for".into());
                }
            }
        }
    }

    /// Subscribes to `subject`, and waits until the server has confirmed or refused it.
    pub(super) async fn subscribe(&mut self, subject: &str, sid: u64) -> Result<(), String> {
        let mut out = BytesMut::new();
        write_subscribe(&mut out, subject, sid);
        out.extend_from_slice(PING);
        self.send(&out).await?;
        self.confirmed().await
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.socket.write_all(bytes).await.map_err(said)?;
        self.socket.flush().await.map_err(said)
    }
}

fn introduction(target: &Target, info: &Info) -> Result<Connect, String> {
    let mut connect = Connect {
        echo: true,
        headers: true,
        no_responders: true,
        tls_required: target.needs_tls,
        protocol: 1,
        name: "topicgate",
        lang: "rust",
        version: env!("CARGO_PKG_VERSION"),
        ..Connect::default()
    };
    match &target.proof {
        Proof::Nothing => {}
        Proof::User { user, password } => {
            (connect.user, connect.pass) = (Some(user.clone()), Some(password.clone()));
        }
        Proof::Token(token) => connect.auth_token = Some(token.clone()),
        Proof::Key { pair, jwt } => {
            let signature =
                pair.sign(info.nonce.as_bytes()).map_err(|error| format!("cannot sign: {error}"))?;
            connect.sig = Some(URL_SAFE_NO_PAD.encode(signature));
            match jwt {
                Some(jwt) => connect.jwt = Some(jwt.clone()),
                None => connect.nkey = Some(pair.public_key()),
            }
        }
    }
    Ok(connect)
}

/// Reads the next operation during the handshake.
async fn operation(socket: &mut Box<dyn Socket>, reader: &mut Reader) -> Result<Operation, String> {
    loop {
        if let Some(operation) = reader.next().map_err(|error| error.to_string())? {
            return Ok(operation);
        }
        if socket.read_buf(reader.space()).await.map_err(said)? == 0 {
            return Err(CLOSED.into());
        }
    }
}

fn said(error: io::Error) -> String {
    error.to_string()
}
