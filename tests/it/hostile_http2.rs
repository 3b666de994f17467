//! Hostile HTTP/2, by prior knowledge and over TLS: too many streams, streams that are dropped at once, windows that never
//! open, heads that never end, connections without requests.

use std::time::{Duration, Instant};

use crate::common::gateway::Gateway;
use crate::common::raw::Raw;
use crate::common::tls::{self, Files};
use crate::common::{LIMIT, eventually};
use bytes::Bytes;
use h2::client::{Builder, SendRequest};
use h2::{Reason, RecvStream};
use hyper::Request;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

const STREAMS: &str = "topicgate_streams{http=\"2\"}";

/// A write timeout of a second, late by what the clocks look away for.
const IMPATIENT: &str =
    "streams = { write_timeout = \"1s\", heartbeat = \"1s\" }\nlimits = { head_timeout = \"1s\" }\n";
const SLACK: Duration = Duration::from_secs(4);

trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

/// A gateway and a way to it.
struct Door {
    gateway: Gateway,
    /// Over TLS, with this certificate.
    files: Option<Files>,
}

impl Door {
    /// The same in the clear and over TLS.
    async fn both(toml: &str) -> [Door; 2] {
        let files = Files::new();
        let secure = Gateway::with(&format!("{}{toml}", files.toml())).await;
        [
            Door { gateway: Gateway::with(toml).await, files: None },
            Door { gateway: secure, files: Some(files) },
        ]
    }

    async fn connect(&self) -> Box<dyn Socket> {
        match &self.files {
            None => Box::new(TcpStream::connect(self.gateway.address).await.unwrap()),
            Some(files) => Box::new(tls::connect(self.gateway.address, &files.pair, tls::H2).await),
        }
    }

    /// A connection on which frames are written by hand, past its preface.
    async fn frames(&self) -> Frames {
        let mut socket = self.connect().await;
        socket.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        Frames { socket }
    }

    /// That others are served, and that no stream is left.
    async fn assert_unharmed(&self) {
        eventually("no stream is left", || async { self.gateway.metric(STREAMS).await == 0.0 }).await;
        let (client, _) =
            Builder::new().handshake::<_, Bytes>(self.connect().await).await.map(spawn).unwrap();
        let mut client = client.ready().await.unwrap();
        drop(open(&self.gateway, &mut client, "/topics/alive").await);
    }
}

fn spawn(
    (client, connection): (SendRequest<Bytes>, h2::client::Connection<Box<dyn Socket>>),
) -> (SendRequest<Bytes>, JoinHandle<()>) {
    let connection = tokio::spawn(async {
        let _ = connection.await;
    });
    (client, connection)
}

struct Frames {
    socket: Box<dyn Socket>,
}

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// `GET /topics/a` of localhost, in HPACK without its table.
fn request() -> Vec<u8> {
    [&b"\x82\x86\x04\x09/topics/a"[..], b"\x01\x09localhost"].concat()
}

impl Frames {
    /// Sends, as far as the other side still takes it.
    async fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.socket.write_all(bytes).await?;
        self.socket.flush().await
    }

    /// The next frame: its kind, its stream and its payload. `None` at the end of the connection, however it ends.
    async fn next(&mut self) -> Option<(u8, u32, Vec<u8>)> {
        let read = async {
            let mut head = [0; 9];
            self.socket.read_exact(&mut head).await?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; length as usize];
            self.socket.read_exact(&mut payload).await?;
            std::io::Result::Ok((head[3], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload))
        };
        tokio::time::timeout(LIMIT, read).await.expect("neither a frame nor an end").ok()
    }

    /// The reason with which the connection is given up, which it must be, and now.
    async fn goaway(&mut self) -> Reason {
        let mut reason = None;
        while let Some((kind, _, payload)) = self.next().await {
            if kind == GOAWAY {
                reason = Some(Reason::from(u32::from_be_bytes(payload[4..8].try_into().unwrap())));
            }
        }
        reason.expect("it was closed without a word")
    }
}

async fn connect(gateway: &Gateway, builder: &Builder) -> (SendRequest<Bytes>, JoinHandle<()>) {
    let socket = TcpStream::connect(gateway.address).await.unwrap();
    let (client, connection) = builder.handshake(socket).await.unwrap();
    let connection = tokio::spawn(async {
        let _ = connection.await;
    });
    (client.ready().await.unwrap(), connection)
}

fn get(gateway: &Gateway, path: &str) -> Request<()> {
    Request::get(format!("http://{}{path}", gateway.address)).body(()).unwrap()
}

/// Opens a stream and insists on 200.
async fn open(gateway: &Gateway, client: &mut SendRequest<Bytes>, path: &str) -> RecvStream {
    let (response, _) = client.send_request(get(gateway, path), true).unwrap();
    let response = tokio::time::timeout(LIMIT, response).await.expect("no response").unwrap();
    assert_eq!(response.status(), 200);
    assert!(response.headers().get("connection").is_none());
    response.into_body()
}

async fn until(body: &mut RecvStream, needle: &str) -> String {
    let mut text = String::new();
    while !text.contains(needle) {
        let data = tokio::time::timeout(LIMIT, body.data()).await.expect("no data").expect("an end").unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        text.push_str(std::str::from_utf8(&data).unwrap());
    }
    text
}

async fn assert_alive_and_empty(gateway: &Gateway) {
    eventually("no stream is left", || async { gateway.metric(STREAMS).await == 0.0 }).await;
    let (mut client, _) = connect(gateway, &Builder::new()).await;
    let mut body = open(gateway, &mut client, "/topics/alive").await;
    gateway.publish("alive", "yes").await;
    until(&mut body, "data: yes\n\n").await;
}

#[tokio::test]
async fn streams_share_a_connection_and_refusals_come_over_it_too() {
    let gateway = Gateway::start().await;
    let (mut client, _) = connect(&gateway, &Builder::new()).await;
    let mut a = open(&gateway, &mut client, "/topics/a").await;
    let mut b = open(&gateway, &mut client, "/topics/b").await;
    for (path, status) in [("/topics/%3E", 400), ("/topics/$SYS/a", 404)] {
        let (response, _) = client.send_request(get(&gateway, path), true).unwrap();
        assert_eq!(response.await.unwrap().status(), status, "{path}");
    }
    let attacker =
        Request::get("http://attacker.example/topics/a").header("host", "localhost").body(()).unwrap();
    let (response, _) = client.send_request(attacker, true).unwrap();
    assert_eq!(response.await.unwrap().status(), 421);
    let tunnel = Request::connect("attacker.example:443").body(()).unwrap();
    let (response, _) = client.send_request(tunnel, true).unwrap();
    assert!(response.await.unwrap().status().is_client_error());
    let large = Request::get(format!("http://{}/topics/a", gateway.address)).header("x", "x".repeat(20_000));
    let (response, _) = client.send_request(large.body(()).unwrap(), true).unwrap();
    assert_eq!(response.await.unwrap().status(), 431);
    gateway.publish("a", "for a").await;
    gateway.publish("b", "for b").await;
    let (a, b) = (until(&mut a, "data: for a\n\n").await, until(&mut b, "data: for b\n\n").await);
    assert!(a.starts_with("event: stream-open\n") && b.starts_with("event: stream-open\n"));
}

#[tokio::test]
async fn the_streams_of_one_connection_are_bounded() {
    let gateway = Gateway::start().await;
    let (mut client, connection) = connect(&gateway, &Builder::new()).await;
    // With the first response the client knows the bound, and keeps it. Streams beyond it would be refused.
    let mut bodies = vec![open(&gateway, &mut client, "/topics/first").await];
    let mut open = tokio::task::JoinSet::new();
    for n in 0..300 {
        let (client, request) = (client.clone(), get(&gateway, &format!("/topics/t{n}")));
        open.spawn(async move {
            let (response, _) = client.ready().await.unwrap().send_request(request, true).unwrap();
            let mut body = response.await.unwrap().into_body();
            // h2 gives a connection up on which much waits unread.
            until(&mut body, "event: stream-open\n").await;
            body
        });
    }
    while bodies.len() < 256 {
        let body = tokio::time::timeout(LIMIT, open.join_next()).await.expect("no more streams");
        bodies.push(body.unwrap().unwrap());
    }
    assert!(tokio::time::timeout(Duration::from_millis(200), open.join_next()).await.is_err());
    assert_eq!(gateway.metric(STREAMS).await, 256.0);
    // One that leaves makes room for one that waits.
    drop(bodies.pop());
    let _body = tokio::time::timeout(LIMIT, open.join_next()).await.expect("no room").unwrap().unwrap();
    open.abort_all();
    connection.abort();
    assert_alive_and_empty(&gateway).await;
}

#[tokio::test]
async fn a_client_that_never_opens_its_window_is_closed() {
    for door in Door::both(IMPATIENT).await {
        let begin = Instant::now();
        let socket = door.connect().await;
        let (client, connection) =
            Builder::new().initial_window_size(0).handshake(socket).await.map(spawn).unwrap();
        let _body = open(&door.gateway, &mut client.ready().await.unwrap(), "/topics/a").await;
        tokio::time::timeout(LIMIT, connection).await.expect("it is never closed").unwrap();
        assert!(begin.elapsed() < SLACK, "{:?}", begin.elapsed());
        door.assert_unharmed().await;
    }
}

#[tokio::test]
async fn an_answer_that_is_never_read_does_not_hold_its_connection_for_ever() {
    // After both timeouts, and 20 s in which an answer may still be made.
    const LONGEST: Duration = Duration::from_secs(22);
    let gateway = Gateway::with(IMPATIENT).await;
    let begin = Instant::now();
    let (mut client, connection) = connect(&gateway, Builder::new().initial_window_size(0)).await;
    let (response, _) = client.send_request(get(&gateway, "/nothing"), true).unwrap();
    let response = tokio::time::timeout(LIMIT, response).await.expect("no response").unwrap();
    assert_eq!(response.status(), 404); // held to the end, and its body never asked for
    tokio::time::timeout(LONGEST + SLACK, connection).await.expect("it is never closed").unwrap();
    assert!(begin.elapsed() >= LONGEST, "{:?}", begin.elapsed());
    assert_alive_and_empty(&gateway).await;
}

#[tokio::test]
async fn streams_that_are_opened_and_reset_in_one_go_end_the_connection() {
    for door in Door::both("").await {
        let mut frames = door.frames().await;
        let mut flood = vec![];
        for n in 0..200 {
            flood.extend(frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, &request()));
            flood.extend(frame(RST_STREAM, 0, 2 * n + 1, &8_u32.to_be_bytes()));
        }
        frames.send(&flood).await.unwrap();
        assert_eq!(frames.goaway().await, Reason::ENHANCE_YOUR_CALM);
        door.assert_unharmed().await;
    }
}

#[tokio::test]
async fn a_client_whose_mistakes_make_us_reset_its_streams_is_soon_closed() {
    for door in Door::both("").await {
        let mut frames = door.frames().await;
        let mut resets = 0;
        for n in 0.. {
            let open = frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, &request());
            let mistake = frame(WINDOW_UPDATE, 0, 2 * n + 1, &0x7fff_ffff_u32.to_be_bytes()); // beyond what there can be
            if frames.send(&[open, mistake].concat()).await.is_err() {
                break;
            }
            let answer = loop {
                match frames.next().await {
                    Some((kind @ (RST_STREAM | GOAWAY), _, payload)) => break Some((kind, payload)),
                    Some(_) => {}
                    None => break None,
                }
            };
            match answer {
                Some((RST_STREAM, _)) => resets += 1,
                Some((_, payload)) => {
                    assert_eq!(payload[4..8], u32::from(Reason::ENHANCE_YOUR_CALM).to_be_bytes());
                    break;
                }
                None => break,
            }
        }
        assert_eq!(resets, 100);
        door.assert_unharmed().await;
    }
}

#[tokio::test]
async fn a_head_that_goes_on_and_on_ends_the_connection() {
    // Of fields as large as a frame, and of frames that bring next to nothing.
    let field = [&b"\x00\x01x\x7f\x81\x7f"[..], &[b'x'; 16_512][..]].concat();
    for piece in [&field[..16_384], b"\x82", b""] {
        for door in Door::both("").await {
            let mut frames = door.frames().await;
            let mut sent = 0;
            let mut flood = frame(HEADERS, END_STREAM, 1, &request());
            while frames.send(&flood).await.is_ok() {
                flood = frame(CONTINUATION, 0, 1, piece);
                sent += flood.len();
                assert!(sent < 4 << 20, "it takes and takes");
                tokio::task::yield_now().await;
            }
            door.assert_unharmed().await;
        }
    }
}

#[tokio::test]
async fn streams_beyond_the_bound_are_refused_to_a_client_that_does_not_keep_it() {
    for door in Door::both("").await {
        let mut frames = door.frames().await;
        let mut flood = vec![];
        for n in 0..300 {
            flood.extend(frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, &request()));
        }
        frames.send(&flood).await.unwrap();
        let (mut served, mut refused) = (0, 0);
        while served + refused < 300 {
            match frames.next().await.expect("an end") {
                (HEADERS, ..) => served += 1,
                (RST_STREAM, _, payload) => {
                    assert_eq!(payload, u32::from(Reason::REFUSED_STREAM).to_be_bytes());
                    refused += 1;
                }
                _ => {}
            }
        }
        assert_eq!((served, refused), (256, 44));
        drop(frames);
        door.assert_unharmed().await;
    }
}

#[tokio::test]
async fn a_client_that_stops_reading_is_closed_and_a_client_that_reads_is_not() {
    let gateway = Gateway::with(IMPATIENT).await;
    let (mut quick, _) = connect(&gateway, &Builder::new()).await;
    let mut taken = open(&gateway, &mut quick, "/topics/a").await;
    let (mut slow, connection) = connect(&gateway, &Builder::new()).await;
    let _body = open(&gateway, &mut slow, "/topics/a").await;
    gateway.publish("a", "m".repeat(200_000)).await; // the default window is 65,535
    until(&mut taken, "mm\n\n").await;
    // Bytes beyond the window may wait in h2's buffer. It is the next heartbeat that finds no way out.
    tokio::time::timeout(SLACK, connection).await.expect("it is not closed").unwrap();
    gateway.publish("a", "and on").await;
    until(&mut taken, "data: and on\n\n").await;
}

#[tokio::test]
async fn streams_that_are_reset_immediately_leave_nothing_behind() {
    // The limit on new streams is not to spare it the trouble.
    let gateway = Gateway::with("limits = { opens_per_second = 10000 }\n").await;
    let mut asked = 0;
    while asked < 1000 {
        let (mut client, connection) = connect(&gateway, &Builder::new()).await;
        // A flood of resets is answered by the end of the connection, after which the attacker opens the next.
        while asked < 1000 && !connection.is_finished() {
            let Ok((response, mut stream)) = client.send_request(get(&gateway, "/topics/alive"), true) else {
                break;
            };
            asked += 1;
            if asked % 3 == 0 {
                let _ = tokio::time::timeout(LIMIT, response).await.expect("neither a response nor an end");
            }
            stream.send_reset(Reason::CANCEL);
            if asked % 50 == 0 {
                tokio::task::yield_now().await;
            }
            match client.ready().await {
                Ok(ready) => client = ready,
                Err(_) => break,
            }
        }
        connection.abort();
    }
    assert_alive_and_empty(&gateway).await;
    eventually("one topic is held", || async { gateway.metric("topicgate_topics").await == 1.0 }).await;
}

#[tokio::test]
async fn a_connection_without_requests_is_closed_even_if_it_answers_pings() {
    let gateway = Gateway::with(IMPATIENT).await;
    let (mut client, kept) = connect(&gateway, &Builder::new()).await;
    let mut body = open(&gateway, &mut client, "/topics/a").await;
    let begin = Instant::now();
    let (_client, connection) = connect(&gateway, &Builder::new()).await;
    tokio::time::timeout(LIMIT, connection).await.expect("it is never closed").unwrap();
    assert!(begin.elapsed() < SLACK, "{:?}", begin.elapsed());
    // One with a stream is not idle, for as long as the stream is silent.
    assert!(!kept.is_finished());
    gateway.publish("a", "still here").await;
    until(&mut body, "data: still here\n\n").await;
    drop(body);
    tokio::time::timeout(LIMIT, kept).await.expect("it is never closed").unwrap();
}

#[tokio::test]
async fn a_connection_that_says_nothing_after_its_preface_is_closed() {
    let gateway = Gateway::with(IMPATIENT).await;
    let begin = Instant::now();
    let mut raw = Raw::connect(gateway.address).await;
    raw.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    raw.rest().await;
    assert!(begin.elapsed() < SLACK, "{:?}", begin.elapsed());
    // Nor does a field block that is never finished hold it open.
    let begin = Instant::now();
    let mut raw = Raw::connect(gateway.address).await;
    raw.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    raw.send(b"\0\0\x01\x01\x01\0\0\0\x01\x82").await.unwrap(); // HEADERS without END_HEADERS
    raw.rest().await;
    assert!(begin.elapsed() < SLACK, "{:?}", begin.elapsed());
    assert_alive_and_empty(&gateway).await;
}
