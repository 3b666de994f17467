//! TLS towards browsers: certificates made for the test, and a client that is not the gateway's own code.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::PublicKeyData;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::LIMIT;
use super::client::{self, Reader, Response};

pub const H1: &[&[u8]] = &[b"http/1.1"];
pub const H2: &[&[u8]] = &[b"h2", b"http/1.1"];

/// A certificate of localhost that is its own authority, and its key.
pub struct Pair {
    pub cert: String,
    pub key: String,
    pub der: CertificateDer<'static>,
    public_key: Vec<u8>,
}

impl Pair {
    pub fn new() -> Self {
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        Pair {
            cert: made.cert.pem(),
            key: made.signing_key.serialize_pem(),
            der: made.cert.der().clone(),
            public_key: made.signing_key.subject_public_key_info(),
        }
    }

    /// The form in which Chromium's flag names a key to trust.
    pub fn public_key_digest(&self) -> [u8; 32] {
        let digest = ring::digest::digest(&ring::digest::SHA256, &self.public_key);
        digest.as_ref().try_into().unwrap()
    }
}

/// A pair where the gateway looks for it.
pub struct Files {
    directory: tempfile::TempDir,
    pub pair: Pair,
}

impl Files {
    pub fn new() -> Self {
        let files = Files { directory: tempfile::tempdir().unwrap(), pair: Pair::new() };
        files.write(&files.pair);
        files
    }

    pub fn write(&self, pair: &Pair) {
        std::fs::write(self.cert(), &pair.cert).unwrap();
        std::fs::write(self.key(), &pair.key).unwrap();
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn cert(&self) -> PathBuf {
        self.directory.path().join("tls.crt")
    }

    pub fn key(&self) -> PathBuf {
        self.directory.path().join("tls.key")
    }

    /// The setting, as one line that can stand before any table.
    pub fn toml(&self) -> String {
        format!("tls = {{ cert = {:?}, key = {:?} }}\n", self.cert(), self.key())
    }
}

fn config(
    trusted: &Pair,
    alpn: &[&[u8]],
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.der.clone()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config
}

async fn shake(socket: TcpStream, config: ClientConfig) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from("localhost").unwrap();
    let handshake = TlsConnector::from(Arc::new(config)).connect(name, socket);
    tokio::time::timeout(LIMIT, handshake).await.expect("the handshake has no end")
}

/// A handshake that trusts `trusted` alone.
pub async fn try_connect(
    address: SocketAddr,
    trusted: &Pair,
    alpn: &[&[u8]],
) -> io::Result<TlsStream<TcpStream>> {
    shake(TcpStream::connect(address).await?, config(trusted, alpn, &[&TLS13, &TLS12])).await
}

/// As [`try_connect`], and insists.
pub async fn connect(address: SocketAddr, trusted: &Pair, alpn: &[&[u8]]) -> TlsStream<TcpStream> {
    try_connect(address, trusted, alpn).await.unwrap()
}

/// As [`connect`] with HTTP/1.1, on a connection over which something was sent already.
pub async fn over(socket: TcpStream, trusted: &Pair) -> TlsStream<TcpStream> {
    try_over(socket, trusted).await.unwrap()
}

/// As [`over`], which may fail.
pub async fn try_over(socket: TcpStream, trusted: &Pair) -> io::Result<TlsStream<TcpStream>> {
    shake(socket, config(trusted, H1, &[&TLS13])).await
}

/// As [`connect`] without ALPN, with TLS 1.2.
pub async fn connect_1_2(address: SocketAddr, trusted: &Pair) -> TlsStream<TcpStream> {
    shake(TcpStream::connect(address).await.unwrap(), config(trusted, &[], &[&TLS12])).await.unwrap()
}

/// As [`over`], with this version of TLS.
pub async fn with_version(
    socket: TcpStream,
    trusted: &Pair,
    version: &'static rustls::SupportedProtocolVersion,
) -> TlsStream<TcpStream> {
    shake(socket, config(trusted, H1, &[version])).await.unwrap()
}

/// As [`connect`] with HTTP/1.1, with a receive buffer of this size.
pub async fn buffered(address: SocketAddr, trusted: &Pair, bytes: u32) -> TlsStream<TcpStream> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(bytes).unwrap();
    shake(socket.connect(address).await.unwrap(), config(trusted, H1, &[&TLS13])).await.unwrap()
}

/// A reader over HTTP/1.1.
pub async fn open(address: SocketAddr, trusted: &Pair, path: &str) -> Reader {
    Reader::over(connect(address, trusted, H1).await, path, &[]).await
}

/// A connection of HTTP/2, on which streams are opened.
pub struct Http2(http2::SendRequest<Full<Bytes>>);

impl Http2 {
    pub async fn connect(address: SocketAddr, trusted: &Pair) -> Self {
        let socket = connect(address, trusted, H2).await;
        assert_eq!(socket.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let (sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(socket)).await.unwrap();
        tokio::spawn(connection);
        Http2(sender)
    }

    pub async fn open(&mut self, path: &str, headers: &[(&str, &str)]) -> Reader {
        let mut request = Request::get(format!("https://localhost{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.0.send_request(request.body(Full::default()).unwrap());
        Reader::of(tokio::time::timeout(LIMIT, response).await.expect("no response").unwrap())
    }
}

/// Publishes over TLS, and insists that it was accepted.
pub async fn publish(address: SocketAddr, trusted: &Pair, topic: &str, payload: impl AsRef<[u8]>) {
    let response = post(address, trusted, topic, payload).await;
    assert_eq!(response.status, 202, "{}", response.text());
}

async fn post(address: SocketAddr, trusted: &Pair, topic: &str, payload: impl AsRef<[u8]>) -> Response {
    let socket = connect(address, trusted, H1).await;
    client::request_over(socket, "POST", &format!("/topics/{topic}"), payload.as_ref()).await
}
