//! An HTTP server that the gateway asks: the backend of forward auth, or the endpoint of a JWKS. It answers as the test
//! says, and records the questions.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::HeaderMap;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// A question.
#[derive(Debug, Clone)]
pub struct Question {
    pub method: String,
    pub uri: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Question {
    /// A header that is text; empty if it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Bytes,
    /// Answered only once the test lets it be.
    held: bool,
}

impl Reply {
    pub fn status(status: u16) -> Self {
        Reply { status, headers: vec![], body: Bytes::new(), held: false }
    }

    pub fn json(body: impl ToString) -> Self {
        Reply::status(200).header("content-type", "application/json").body(body.to_string())
    }

    pub fn header(mut self, name: &'static str, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }

    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// Waits for [`Backend::release`].
    pub fn held(mut self) -> Self {
        self.held = true;
        self
    }
}

type Answer = Box<dyn Fn(&Question) -> Reply + Send + Sync>;

struct State {
    answer: Mutex<Answer>,
    asked: Mutex<Vec<Question>>,
    gate: Semaphore,
    now: AtomicUsize,
    most: AtomicUsize,
}

/// A running server. Dropped, it is gone, with its connections.
pub struct Backend {
    pub address: SocketAddr,
    state: Arc<State>,
    accepting: JoinHandle<()>,
    ended: CancellationToken,
}

impl Backend {
    pub async fn start(answer: impl Fn(&Question) -> Reply + Send + Sync + 'static) -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), answer).await
    }

    /// At an address that may have had a server before.
    pub async fn at(
        address: SocketAddr,
        answer: impl Fn(&Question) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::over(address, None, answer).await
    }

    /// Over TLS, as `localhost`. Also returns the certificate (PEM) that clients must trust.
    pub async fn tls(answer: impl Fn(&Question) -> Reply + Send + Sync + 'static) -> (Self, String) {
        let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(issued.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![issued.cert.der().clone()], key)
            .unwrap();
        let tls = TlsAcceptor::from(Arc::new(config));
        let backend = Self::over("127.0.0.1:0".parse().unwrap(), Some(tls), answer).await;
        (backend, issued.cert.pem())
    }

    async fn over(
        address: SocketAddr,
        tls: Option<TlsAcceptor>,
        answer: impl Fn(&Question) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let state = Arc::new(State {
            answer: Mutex::new(Box::new(answer)),
            asked: Mutex::default(),
            gate: Semaphore::new(0),
            now: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
        });
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let ended = CancellationToken::new();
        let accepting = tokio::spawn(accept(listener, tls, state.clone(), ended.clone()));
        Backend { address, state, accepting, ended }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// From now on it answers so.
    pub fn answer(&self, answer: impl Fn(&Question) -> Reply + Send + Sync + 'static) {
        *self.state.answer.lock() = Box::new(answer);
    }

    /// The questions so far.
    pub fn asked(&self) -> Vec<Question> {
        self.state.asked.lock().clone()
    }

    /// How often it was asked so far.
    pub fn count(&self) -> usize {
        self.state.asked.lock().len()
    }

    /// How many questions it had before it at once, at most.
    pub fn most_at_once(&self) -> usize {
        self.state.most.load(Ordering::Relaxed)
    }

    /// Releases `count` held replies.
    pub fn release(&self, replies: usize) {
        self.state.gate.add_permits(replies);
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.accepting.abort();
        self.ended.cancel();
    }
}

async fn accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    state: Arc<State>,
    ended: CancellationToken,
) {
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        let (state, tls, ended) = (state.clone(), tls.clone(), ended.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| reply(state.clone(), request));
            let http = http1::Builder::new();
            // Whatever becomes of a connection, those after it are served.
            match tls {
                None => drop(
                    ended.run_until_cancelled(http.serve_connection(TokioIo::new(socket), service)).await,
                ),
                Some(tls) => {
                    let Ok(socket) = tls.accept(socket).await else { return };
                    drop(
                        ended.run_until_cancelled(http.serve_connection(TokioIo::new(socket), service)).await,
                    );
                }
            }
        });
    }
}

/// One question in progress, until it is answered or its sender has left.
struct Present<'a>(&'a State);

impl Drop for Present<'_> {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn reply(state: Arc<State>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let present = Present(&state);
    state.most.fetch_max(state.now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let question =
        Question { method: head.method.to_string(), uri: head.uri.to_string(), headers: head.headers, body };
    let reply = (state.answer.lock())(&question);
    state.asked.lock().push(question);
    if reply.held {
        state.gate.acquire().await.unwrap().forget();
    }
    drop(present);
    let mut response = Response::builder().status(reply.status);
    for (name, value) in reply.headers {
        response = response.header(name, value);
    }
    Ok(response.body(Full::new(reply.body)).unwrap())
}

/// A server that answers every request with these bytes, whatever they are, and closes.
pub async fn raw(bytes: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut head = vec![0; 4096];
                let _ = socket.read(&mut head).await;
                let _ = socket.write_all(bytes).await;
            });
        }
    });
    address
}

/// A server that answers the first request of each connection with 204. At the second it sends `second`, and closes.
/// Returns the number of requests so far, too.
pub async fn closing_with(second: &'static [u8]) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let counted = counted.clone();
            tokio::spawn(async move {
                for answer in [b"HTTP/1.1 204 No Content\r\n\r\n", second] {
                    let mut head = vec![];
                    while !head.ends_with(b"\r\n\r\n") {
                        if !matches!(socket.read_buf(&mut head).await, Ok(1..)) {
                            return;
                        }
                    }
                    counted.fetch_add(1, Ordering::Relaxed);
                    // Requests that come at the same time use several connections.
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    let _ = socket.write_all(answer).await;
                }
            });
        }
    });
    (address, count)
}
