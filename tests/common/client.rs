//! Clients: hyper for HTTP and an independent parser for the events, neither of them ours.

use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use eventsource_stream::{Event, Eventsource};
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http1;
use hyper::header::HeaderMap;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::LIMIT;
use super::gunzip::Gunzip;

/// A whole response.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Response {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

async fn send(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> hyper::Result<hyper::Response<hyper::body::Incoming>> {
    let socket = TcpStream::connect(address).await.unwrap();
    send_over(socket, &address.to_string(), method, path, headers, body).await
}

/// One request over HTTP/1.1 on a connection that is there already.
async fn send_over(
    socket: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    host: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> hyper::Result<hyper::Response<hyper::body::Incoming>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await?;
    tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path);
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        request = request.header("host", host);
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    if super::are_all_compressed() && !headers.iter().any(|(name, _)| *name == "accept-encoding") {
        request = request.header("accept-encoding", "gzip");
    }
    let request = request.body(Full::new(Bytes::copy_from_slice(body))).unwrap();
    tokio::time::timeout(LIMIT, sender.send_request(request)).await.expect("no response")
}

/// One request, and all of its response.
pub async fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Response {
    whole(send(address, method, path, headers, body).await.unwrap()).await
}

/// As [`request`], on a connection that is there already.
pub async fn request_over(
    socket: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    method: &str,
    path: &str,
    body: &[u8],
) -> Response {
    whole(send_over(socket, "localhost", method, path, &[], body).await.unwrap()).await
}

async fn whole(response: hyper::Response<hyper::body::Incoming>) -> Response {
    let (head, body) = response.into_parts();
    let body = tokio::time::timeout(LIMIT, body.collect())
        .await
        .expect("the response has no end")
        .unwrap()
        .to_bytes();
    let body = if is_gzip(&head.headers) { Gunzip::default().feed(&body).into() } else { body };
    Response { status: head.status.as_u16(), headers: head.headers, body }
}

/// Whether an event says that topics are stale or live.
fn is_of_feeds(kind: &str) -> bool {
    matches!(kind, "stream-stale" | "stream-live")
}

fn is_gzip(headers: &HeaderMap) -> bool {
    headers.get("content-encoding").is_some_and(|coding| coding == "gzip")
}

/// The same body, inflated if it is compressed. A clean end must be the end of what is compressed, too.
fn inflated(
    body: impl Stream<Item = Result<Bytes, String>> + Send + 'static,
    is_gzip: bool,
) -> Pin<Box<dyn Stream<Item = Result<Bytes, String>> + Send>> {
    if !is_gzip {
        return Box::pin(body);
    }
    Box::pin(stream::unfold((Box::pin(body), Gunzip::default()), async |(mut body, mut gunzip)| {
        let next = body.next().await;
        assert!(next.is_some() || gunzip.is_whole(), "a clean end of a body that is not whole");
        let next = next?.map(|bytes| gunzip.feed(&bytes).into());
        Some((next, (body, gunzip)))
    }))
}

/// A subscriber.
pub struct Reader {
    pub headers: HeaderMap,
    events: Pin<Box<dyn Stream<Item = Result<Event, String>> + Send>>,
    /// The id of the last event, with which it would resume.
    pub last_id: String,
    /// Whether it wants `stream-stale` and `stream-live`, which depend on how long an outage takes.
    pub feeds: bool,
}

impl Reader {
    /// Opens a stream, asking for it by its name as every EventSource does, and insists on 200 and the content type. Does
    /// not wait for an event.
    pub async fn open(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Self {
        Self::try_open(address, path, headers).await.unwrap()
    }

    /// As [`Reader::open`], with a connection that breaks within the response head as an error.
    pub async fn try_open(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> hyper::Result<Self> {
        let response = Self::send(address, path, headers).await?;
        assert_eq!(response.status(), 200, "{path}");
        Ok(Self::of(response))
    }

    /// As [`Reader::open`], with a refusal as an error.
    pub async fn ask(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Result<Self, Response> {
        let response = Self::send(address, path, headers).await.unwrap();
        if response.status() == 200 { Ok(Self::of(response)) } else { Err(whole(response).await) }
    }

    async fn send(
        address: SocketAddr,
        path: &str,
        headers: &[(&str, &str)],
    ) -> hyper::Result<hyper::Response<hyper::body::Incoming>> {
        let accept = ("accept", "text/event-stream");
        send(address, "GET", path, &[&[accept], headers].concat(), b"").await
    }

    /// As [`Reader::open`], on a connection that is there already.
    pub async fn over(
        socket: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Self {
        Self::of(send_over(socket, "localhost", "GET", path, headers, b"").await.unwrap())
    }

    /// As [`Reader::over`], with a connection that breaks within the response head as an error.
    pub async fn try_over(socket: TcpStream, path: &str, headers: &[(&str, &str)]) -> hyper::Result<Self> {
        let headers = [&[("accept", "text/event-stream")], headers].concat();
        Ok(Self::of(send_over(socket, "localhost", "GET", path, &headers, b"").await?))
    }

    /// The reader of a response, over whichever version it came.
    pub fn of(response: hyper::Response<hyper::body::Incoming>) -> Self {
        let (head, body) = response.into_parts();
        assert_eq!(head.status, 200);
        assert_eq!(head.headers["content-type"], "text/event-stream; charset=utf-8");
        let bytes = body.into_data_stream().map_err(|error| error.to_string());
        let bytes = inflated(bytes, is_gzip(&head.headers));
        let events = bytes.eventsource().map_err(|error| error.to_string());
        Reader { headers: head.headers, events: Box::pin(events), last_id: String::new(), feeds: false }
    }

    /// The next event; `None` at a clean end of the stream. Fails if it takes longer than [`LIMIT`] or the stream breaks.
    pub async fn next(&mut self) -> Option<Event> {
        self.try_next().await.unwrap()
    }

    /// As [`Reader::next`], with a broken stream as an error.
    pub async fn try_next(&mut self) -> Result<Option<Event>, String> {
        let of_feeds = |event: &Option<Event>| event.as_ref().is_some_and(|event| is_of_feeds(&event.event));
        let mut event;
        loop {
            event = tokio::time::timeout(LIMIT, self.events.next()).await.expect("no event").transpose()?;
            if self.feeds || !of_feeds(&event) {
                break;
            }
        }
        if let Some(event) = &event
            && !event.id.is_empty()
        {
            self.last_id.clone_from(&event.id);
        }
        Ok(event)
    }

    /// The next event, which must be of this type.
    pub async fn expect(&mut self, kind: &str) -> Event {
        let event = self.next().await.unwrap_or_else(|| panic!("the stream ended before a {kind}"));
        assert_eq!(event.event, kind, "{event:?}");
        event
    }

    /// The data of the next event, which must be an ordinary message.
    pub async fn message(&mut self) -> String {
        self.expect("message").await.data
    }

    /// The data of a control event, read as JSON.
    pub async fn control(&mut self, kind: &str) -> serde_json::Value {
        serde_json::from_str(&self.expect(kind).await.data).unwrap()
    }

    /// The data of the next `count` messages.
    pub async fn messages(&mut self, count: usize) -> Vec<String> {
        let mut all = Vec::with_capacity(count);
        for _ in 0..count {
            all.push(self.message().await);
        }
        all
    }

    /// The data of the next events, which must be of these types.
    pub async fn messages_of(&mut self, kinds: &[&str]) -> Vec<String> {
        let mut all = Vec::with_capacity(kinds.len());
        for kind in kinds {
            all.push(self.expect(kind).await.data);
        }
        all
    }

    /// Insists that nothing comes for a while.
    pub async fn quiet(&mut self, time: Duration) {
        let begin = tokio::time::Instant::now();
        while let Ok(event) = tokio::time::timeout_at(begin + time, self.events.next()).await {
            let is_of_feeds = matches!(&event, Some(Ok(event)) if is_of_feeds(&event.event));
            assert!(is_of_feeds && !self.feeds, "unexpected {event:?}");
        }
    }
}

/// One connection for many requests without a body, one after the other.
pub struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    address: SocketAddr,
}

impl Connection {
    pub async fn open(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).await.unwrap();
        let (sender, connection) = http1::handshake(TokioIo::new(socket)).await.unwrap();
        tokio::spawn(connection);
        Connection { sender, address }
    }

    /// Waits until the other side has closed it.
    pub async fn ended(&mut self) {
        let ready = tokio::time::timeout(LIMIT, self.sender.ready()).await.expect("it stays open");
        assert!(ready.is_err(), "it takes another request");
    }

    /// The status of the answer.
    pub async fn request(&mut self, method: &str, path: &str, headers: &[(&str, &str)]) -> u16 {
        let mut request =
            Request::builder().method(method).uri(path).header("host", self.address.to_string());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.sender.ready().await.unwrap();
        let response = self.sender.send_request(request.body(Full::default()).unwrap());
        let response = tokio::time::timeout(LIMIT, response).await.expect("no response").unwrap();
        response.status().as_u16()
    }
}
