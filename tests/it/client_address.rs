//! Client addresses: the address of the connection, unless a trusted proxy names another one. They are checked through a
//! limit per address: each gateway here gives an address one stream.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::common::client::Reader;
use crate::common::gateway::Gateway;
use crate::common::raw::{Raw, ask};
use crate::common::wire::Wire;
use crate::common::{LIMIT, eventually, tls};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// One stream an address, and the test itself as the proxy.
fn behind(proxies: &str) -> String {
    format!("limits = {{ streams_per_address = 1 }}\nproxies = {{ {proxies} }}\n")
}

const EVENT_STREAM: [(&str, &str); 1] = [("accept", "text/event-stream")];

const TRUSTED: &str = "trusted = [\"127.0.0.0/8\", \"10.0.0.0/8\", \"fd00::/8\"]";

/// A stream asked for with these bytes before the request and these header lines in it, or `None` if its address has one.
async fn open_with(address: SocketAddr, first: &[u8], lines: &str) -> Option<Raw> {
    let mut raw = Raw::connect(address).await;
    raw.send([first, &ask("GET", "/topics/a", lines)].concat()).await.unwrap();
    match raw.head().await {
        (200, _) => Some(raw),
        (429, _) => None,
        other => panic!("{other:?}"),
    }
}

async fn open(gateway: &Gateway, lines: &str) -> Option<Raw> {
    open_with(gateway.address, b"", lines).await
}

/// From another address of this machine.
async fn open_from(gateway: &Gateway, source: [u8; 4]) -> Wire {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((source, 0))).unwrap();
    Wire::over(socket, gateway.address, "/topics/a", "1.1").await
}

#[tokio::test]
async fn behind_a_trusted_proxy_each_client_counts_by_itself() {
    for (address, one, two) in [
        ("x-forwarded-for", "X-Forwarded-For: 203.0.113.1\r\n", "X-Forwarded-For: 203.0.113.2\r\n"),
        ("forwarded", "Forwarded: for=203.0.113.1\r\n", "Forwarded: for=\"203.0.113.2:4711\"\r\n"),
    ] {
        let gateway = Gateway::with(&behind(&format!("{TRUSTED}, address = \"{address}\""))).await;
        let first = open(&gateway, one).await.unwrap();
        assert!(open(&gateway, one).await.is_none(), "{address}: a second one of the same");
        let _second = open(&gateway, two).await.unwrap();
        // The proxy itself is a client too.
        let _own = open(&gateway, "").await.unwrap();
        drop(first);
        eventually("its place is free", async || open(&gateway, one).await.is_some()).await;
    }
}

#[tokio::test]
async fn a_client_cannot_choose_its_address_by_the_header_fields_that_it_sends_to_the_proxy() {
    let gateway = Gateway::with(&behind(TRUSTED)).await;
    let _held = open(&gateway, "X-Forwarded-For: 203.0.113.1\r\n").await.unwrap();
    for lines in [
        "X-Forwarded-For: 6.6.6.6, 203.0.113.1\r\n",
        "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 203.0.113.1\r\n",
        "X-Forwarded-For: 6.6.6.6, 203.0.113.1, 10.0.0.1, fd00::9\r\n",
        "X-Forwarded-For: 10.6.6.6, 203.0.113.1:4711, 10.0.0.1:80, [fd00::9]:80\r\n",
        "X-Forwarded-For: 6.6.6.6, ::ffff:203.0.113.1\r\n",
        "X-Forwarded-For: \"; DROP, \u{fffd}, 203.0.113.1\r\n",
        "Forwarded: for=6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\nX-Forwarded-For: 203.0.113.1\r\n",
    ] {
        assert!(open(&gateway, lines).await.is_none(), "{lines}");
    }
}

#[tokio::test]
async fn an_unreadable_client_address_counts_as_the_proxy() {
    for (address, header, malformed) in [
        ("x-forwarded-for", "X-Forwarded-For", ["unknown", "", "1.2.3", "203.0.113.1;", "localhost"]),
        ("forwarded", "Forwarded", ["for=unknown", "", "for=_hidden", "203.0.113.1", "for=\"[::1\""]),
    ] {
        let gateway = Gateway::with(&behind(&format!("{TRUSTED}, address = \"{address}\""))).await;
        let _proxy = open(&gateway, "").await.unwrap();
        for value in malformed {
            let lines =
                format!("{header}: {}6.6.6.6, {value}\r\n", if header == "Forwarded" { "for=" } else { "" });
            assert!(open(&gateway, &lines).await.is_none(), "{lines}");
        }
    }
}

#[tokio::test]
async fn an_untrusted_peer_counts_as_itself_with_any_header_fields() {
    for proxies in [
        "",
        "trusted = [\"10.0.0.0/8\", \"127.0.0.2\"]",
        "trusted = [\"127.0.0.2\"], address = \"forwarded\"",
    ] {
        let gateway = Gateway::with(&behind(proxies)).await;
        let _held = open(&gateway, "").await.unwrap();
        let claims =
            "X-Forwarded-For: 203.0.113.1\r\nForwarded: for=203.0.113.1\r\nX-Real-IP: 203.0.113.1\r\n";
        assert!(open(&gateway, claims).await.is_none(), "{proxies}");
        // Another address is another client.
        open_from(&gateway, [127, 0, 0, 3]).await;
    }
}

#[tokio::test]
async fn a_client_of_ipv6_counts_by_its_64() {
    let gateway = Gateway::with(&behind(TRUSTED)).await;
    let _held = open(&gateway, "X-Forwarded-For: 2001:db8:0:1::1\r\n").await.unwrap();
    for same in ["2001:db8:0:1::2", "[2001:db8:0:1:ffff:ffff:ffff:ffff]:80"] {
        assert!(open(&gateway, &format!("X-Forwarded-For: {same}\r\n")).await.is_none(), "{same}");
    }
    for other in ["2001:db8:0:2::1", "2001:db8::1"] {
        assert!(open(&gateway, &format!("X-Forwarded-For: {other}\r\n")).await.is_some(), "{other}");
    }
}

/// A header of the PROXY protocol, version 2, as its text (2.2) writes it.
fn proxy_header(version_and_command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    header.extend([version_and_command, family]);
    header.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
    header.extend(rest);
    header
}

const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;

/// Of a connection from `client` over TCP.
fn proxied(client: &str, more: &[u8]) -> Vec<u8> {
    let (family, mut rest) = match client.parse().unwrap() {
        IpAddr::V4(client) => (0x11, [client.octets(), [127, 0, 0, 1]].concat()),
        IpAddr::V6(client) => (0x21, [client.octets(), [0xfd; 16]].concat()),
    };
    rest.extend([0x12, 0x34, 0x01, 0xbb]);
    rest.extend(more);
    proxy_header(PROXY, family, &rest)
}

async fn gateway_of_proxies() -> Gateway {
    Gateway::with(&behind(&format!("{TRUSTED}, address = \"proxy-protocol\""))).await
}

#[tokio::test]
async fn a_proxy_header_names_the_client_and_a_local_one_means_the_proxy_itself() {
    let gateway = gateway_of_proxies().await;
    let address = gateway.address;
    let mut held = vec![];
    for client in ["203.0.113.1", "2001:db8:0:1::1", "10.1.2.3"] {
        held.push(open_with(address, &proxied(client, b""), "").await.unwrap());
        // A further field: a TLV of 3 bytes, here with the type of a checksum, which need not be checked.
        let noted = proxied(client, b"\xee\0\x03abc");
        assert!(open_with(address, &noted, "X-Forwarded-For: 6.6.6.6\r\n").await.is_none(), "{client}");
    }
    assert!(open_with(address, &proxied("::ffff:203.0.113.1", b""), "").await.is_none());
    assert!(open_with(address, &proxied("2001:db8:0:1::9", b""), "").await.is_none());
    // From a health check, with meaningless addresses, and from a client without an address: both are the proxy itself.
    let _own = open_with(address, &proxy_header(LOCAL, 0, b""), "").await.unwrap();
    for own in [
        proxy_header(LOCAL, 0x11, &[6; 12]),
        proxy_header(PROXY, 0, b""),
        proxy_header(PROXY, 0, &[6; 36]),
        proxy_header(PROXY, 0x31, &[6; 216]),
    ] {
        assert!(open_with(address, &own, "").await.is_none(), "{own:?}");
    }
}

/// Whether a connection that begins with these bytes is closed without an answer.
async fn is_closed(address: SocketAddr, first: &[u8]) -> bool {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(&[first, &ask("GET", "/topics/a", "")].concat()).await.unwrap();
    let read = crate::common::within("an answer or the end", LIMIT, socket.read(&mut [0])).await;
    matches!(read, Ok(0) | Err(_))
}

#[tokio::test]
async fn connections_count_for_the_client_that_a_proxy_names_and_never_for_a_trusted_proxy() {
    let settings = |address: &str| {
        format!(
            "limits = {{ connections_per_address = 1 }}\nproxies = {{ {TRUSTED}, address = \"{address}\" }}\n"
        )
    };
    let gateway = Gateway::with(&settings("proxy-protocol")).await;
    let address = gateway.address;
    let held = open_with(address, &proxied("203.0.113.1", b""), "").await.unwrap();
    assert!(is_closed(address, &proxied("203.0.113.1", b"")).await);
    let _other = open_with(address, &proxied("203.0.113.2", b""), "").await.unwrap();
    // Connections of the proxy itself have no such limit.
    let mut own = vec![];
    for _ in 0..3 {
        own.push(open_with(address, &proxy_header(LOCAL, 0, b""), "").await.unwrap());
    }
    drop(held);
    eventually("its place is free", async || !is_closed(address, &proxied("203.0.113.1", b"")).await).await;

    // One address carries all clients.
    let gateway = Gateway::with(&settings("x-forwarded-for")).await;
    let mut held = vec![];
    for client in 0..5 {
        let line = format!("X-Forwarded-For: 203.0.113.{client}\r\n");
        held.push(open(&gateway, &line).await.unwrap());
    }
}

#[tokio::test]
async fn a_proxy_header_may_come_in_pieces_and_before_http_2() {
    let gateway = gateway_of_proxies().await;
    let mut raw = Raw::connect(gateway.address).await;
    for byte in [proxied("203.0.113.1", b""), ask("GET", "/topics/a", "")].concat() {
        raw.send([byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(raw.head().await.0, 200);
    let mut raw = Raw::connect(gateway.address).await;
    raw.send(
        [proxied("203.0.113.2", b""), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec()]
            .concat(),
    )
    .await
    .unwrap();
    raw.until("\0\0\0\x04\x01").await; // our acknowledgement of its SETTINGS
}

#[tokio::test]
async fn a_proxy_header_stands_before_the_handshake_of_tls() {
    let files = tls::Files::new();
    let settings = behind(&format!("{TRUSTED}, address = \"proxy-protocol\""));
    let gateway = Gateway::with(&(files.toml() + &settings)).await;
    let open = async |client: &str| {
        let mut socket = TcpStream::connect(gateway.address).await.unwrap();
        socket.write_all(&proxied(client, b"")).await.unwrap();
        let mut reader = Reader::over(tls::over(socket, &files.pair).await, "/topics/a", &EVENT_STREAM).await;
        (reader.next().await.unwrap().event == "stream-open").then_some(reader)
    };
    let _held = open("203.0.113.1").await.unwrap();
    assert!(open("203.0.113.1").await.is_none());
    assert!(open("203.0.113.2").await.is_some());
    let bare = TcpStream::connect(gateway.address).await.unwrap();
    let refused = tls::try_over(bare, &files.pair).await;
    assert!(refused.is_err(), "a trusted peer's connection has a header or no answer");
}

#[tokio::test]
async fn without_a_whole_and_good_proxy_header_a_trusted_peer_s_connection_is_closed_unanswered() {
    let gateway = gateway_of_proxies().await;
    let patience = Duration::from_secs(10); // limits.head_timeout
    let request = ask("GET", "/topics/a", "");
    let mut short = proxied("203.0.113.1", b"");
    short[15] -= 1;
    let mut long = proxied("203.0.113.1", &[0; 1500]);
    long[14..16].copy_from_slice(&u16::MAX.to_be_bytes());
    for (what, bytes) in [
        ("none", request.clone()),
        ("version 1", [b"PROXY TCP4 203.0.113.1 127.0.0.1 4711 443\r\n", request.as_slice()].concat()),
        ("none, for HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec()),
        ("a version that is not", [proxy_header(0x11, 0x11, &[1; 12]), request.clone()].concat()),
        ("a command that is not", [proxy_header(0x2f, 0x11, &[1; 12]), request.clone()].concat()),
        ("a family that is not", [proxy_header(PROXY, 0xf1, &[1; 12]), request.clone()].concat()),
        ("too short for its addresses", [short, request.clone()].concat()),
        ("too long", [long, request.clone()].concat()),
        ("nearly", [b"\r\n\r\n\0\r\nQUIT\r".as_slice(), &[PROXY, 0x11, 0, 12], &[1; 12], &request].concat()),
    ] {
        let begin = Instant::now();
        let mut raw = Raw::connect(gateway.address).await;
        let _ = raw.send(&bytes).await; // it may be closed before all of it is sent
        assert_eq!(raw.rest().await, "", "{what}");
        assert!(begin.elapsed() < patience / 2, "{what}: only after {:?}", begin.elapsed());
    }
    assert!(open_with(gateway.address, &proxied("203.0.113.1", b""), "").await.is_some());
}

#[tokio::test]
async fn a_proxy_header_that_does_not_arrive_whole_is_waited_for_as_long_as_a_head() {
    let rules =
        format!("limits.head_timeout = \"1s\"\nproxies = {{ {TRUSTED}, address = \"proxy-protocol\" }}\n");
    let gateway = Gateway::with(&rules).await;
    let mut cut = proxied("203.0.113.1", b"");
    let whole = cut.len();
    cut[15] += 1; // one byte more than there is
    for (what, bytes) in [
        ("nothing", &b""[..]),
        ("a part", &cut[..9]),
        ("all but the addresses", &cut[..16]),
        ("all but a byte", &cut[..whole]),
    ] {
        let begin = Instant::now();
        let mut raw = Raw::connect(gateway.address).await;
        raw.send(bytes).await.unwrap();
        assert_eq!(raw.rest().await, "", "{what}");
        let took = begin.elapsed();
        assert!((Duration::from_millis(900)..Duration::from_secs(4)).contains(&took), "{what}: {took:?}");
    }
    assert!(open_with(gateway.address, &proxied("203.0.113.1", b""), "").await.is_some());
}

#[tokio::test]
async fn an_untrusted_peer_s_proxy_header_is_a_bad_request() {
    for proxies in ["trusted = [\"127.0.0.2\"], address = \"proxy-protocol\"", TRUSTED, ""] {
        let gateway = Gateway::with(&behind(proxies)).await;
        let mut raw = Raw::connect(gateway.address).await;
        raw.send([proxied("203.0.113.1", b""), ask("GET", "/topics/a", "")].concat()).await.unwrap();
        assert_eq!(raw.head().await.0, 400, "{proxies}");
        let _held = open(&gateway, "").await.unwrap();
        assert!(open(&gateway, "").await.is_none(), "{proxies}");
    }
}
