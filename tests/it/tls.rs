//! TLS towards browsers: streams in both versions of HTTP, certificates that change meanwhile, clients that do not finish
//! the handshake, and how a stream ends.
#![cfg(unix)]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::client::{self, Reader};
use crate::common::gateway::Gateway;
use crate::common::process::Process;
use crate::common::raw::{Raw, ask};
use crate::common::tls::{self, Files, H1, H2, Http2, Pair};
use crate::common::wire::{dechunk, events};
use crate::common::{LIMIT, eventually, within};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};

/// How late a deadline of one second may be: it holds for the handshake, the first bytes and the head, each.
const SLACK: Duration = Duration::from_secs(5);

async fn gateway(files: &Files, more: &str) -> Gateway {
    Gateway::with(&format!("{}{more}", files.toml())).await
}

async fn until(socket: &mut (impl AsyncRead + Unpin), needle: &str) -> Vec<u8> {
    let mut bytes = vec![];
    while memchr::memmem::find(&bytes, needle.as_bytes()).is_none() {
        let read = within(needle, LIMIT, socket.read_buf(&mut bytes)).await.unwrap();
        assert!(read > 0, "ended before {needle:?}: {}", String::from_utf8_lossy(&bytes));
    }
    bytes
}

#[tokio::test]
async fn streams_over_http_1_1_and_http_2_are_delivered_and_resumed() {
    let files = Files::new();
    let gateway = gateway(&files, "").await;
    let (address, pair) = (gateway.address, &files.pair);
    let mut http2 = Http2::connect(address, pair).await;
    let old = Reader::over(tls::connect_1_2(address, pair).await, "/topics/a", &[]).await;
    let mut readers = [tls::open(address, pair, "/topics/a").await, http2.open("/topics/a", &[]).await, old];
    let large = "x".repeat(200 * 1024); // more than a record, more than what is sent at once
    for reader in &mut readers {
        assert!(reader.expect("stream-open").await.id.contains('-'));
    }
    for payload in ["first", &large, "last"] {
        tls::publish(address, pair, "a", payload).await;
        for reader in &mut readers {
            assert!(reader.message().await == payload);
        }
    }
    let [h1, h2, _] = readers.map(|reader| reader.last_id);
    tls::publish(address, pair, "a", "missed").await;
    let h1 = [("last-event-id", h1.as_str())];
    let socket = tls::connect(address, pair, H1).await;
    for mut resumed in [
        Reader::over(socket, "/topics/a", &h1).await,
        http2.open("/topics/a", &[("last-event-id", &h2)]).await,
    ] {
        assert_eq!(resumed.control("stream-open").await["resumed"], true);
        assert_eq!(resumed.message().await, "missed");
    }
    assert_eq!(gateway.metric("topicgate_tls_handshakes_total{result=\"failed\"}").await, 0.0);
    // rcgen's certificates last until the year 4096.
    let expires = gateway.metric("topicgate_tls_certificate_expires{listener=\"public\"}").await;
    assert_eq!(expires, 67_090_118_400.0);
}

#[tokio::test]
async fn the_http_version_is_agreed_on_by_alpn_or_read_from_the_first_bytes() {
    let files = Files::new();
    let gateway = gateway(&files, "").await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    for (alpn, agreed) in [
        (&[][..], None),
        (H1, Some(&b"http/1.1"[..])),
        (H2, Some(b"h2")),
        (&[b"http/1.0", b"http/1.1"], Some(b"http/1.1")),
    ] {
        let socket = tls::connect(gateway.address, &files.pair, alpn).await;
        assert_eq!(socket.get_ref().1.alpn_protocol(), agreed);
    }
    assert!(tls::try_connect(gateway.address, &files.pair, &[b"spdy/1"]).await.is_err());
    let mut unsaid = tls::connect(gateway.address, &files.pair, &[]).await;
    unsaid.write_all(preface).await.unwrap();
    let mut settings = [0; 9];
    unsaid.read_exact(&mut settings).await.unwrap();
    assert_eq!(settings[3], 4, "a SETTINGS frame");
    // A client that negotiated one version and speaks the other is not served.
    let mut said = tls::connect(gateway.address, &files.pair, H1).await;
    said.write_all(preface).await.unwrap();
    let mut answer = vec![];
    let _ = within("the end", LIMIT, said.read_to_end(&mut answer)).await;
    assert!(
        answer.is_empty() || answer.starts_with(b"HTTP/1.1 400 "),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    let mut said = tls::connect(gateway.address, &files.pair, H2).await;
    said.write_all(&ask("GET", "/topics/a", "")).await.unwrap();
    answer.clear();
    let _ = within("the end", LIMIT, said.read_to_end(&mut answer)).await;
    assert_eq!(answer, b"");
}

#[tokio::test]
async fn curl_reads_a_stream_in_both_versions() {
    let files = Files::new();
    let gateway = gateway(&files, "streams = { max_age = \"1s\" }\n").await;
    for (version, shown) in [("--http1.1", "HTTP/1.1 200"), ("--http2", "HTTP/2 200")] {
        let mut curl = tokio::process::Command::new("curl");
        curl.args(["-sSiN", version, "--cacert"]).arg(files.cert());
        let output = curl.arg(format!("https://localhost:{}/topics/a", gateway.address.port())).output();
        let output = within("the end of the stream", LIMIT, output).await.unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{version}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(text.starts_with(shown) && text.contains("\"code\":\"max_age\""), "{version}: {text}");
    }
}

/// As Kubernetes lays out a secret: the names never change, the link in the middle does.
#[tokio::test]
async fn a_certificate_that_is_swapped_while_a_stream_runs_is_for_new_connections() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let (old, new) = (Pair::new(), Pair::new());
    for (version, pair) in [("v1", &old), ("v2", &new)] {
        std::fs::create_dir(path(version)).unwrap();
        std::fs::write(path(version).join("tls.crt"), &pair.cert).unwrap();
        std::fs::write(path(version).join("tls.key"), &pair.key).unwrap();
    }
    let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, path(name)).unwrap();
    link("v1", "..data");
    link("..data/tls.crt", "tls.crt");
    link("..data/tls.key", "tls.key");
    let gateway =
        Gateway::with(&format!("tls = {{ cert = {:?}, key = {:?} }}\n", path("tls.crt"), path("tls.key")))
            .await;
    let address = gateway.address;
    let mut over_1 = tls::open(address, &old, "/topics/a").await;
    let mut connection = Http2::connect(address, &old).await;
    let mut over_2 = connection.open("/topics/a", &[]).await;
    over_1.expect("stream-open").await;
    over_2.expect("stream-open").await;
    assert!(tls::try_connect(address, &new, H1).await.is_err());

    link("v2", "..next");
    std::fs::rename(path("..next"), path("..data")).unwrap();
    eventually("the new one is shown", async || tls::try_connect(address, &new, H1).await.is_ok()).await;
    assert!(tls::try_connect(address, &old, H1).await.is_err());
    tls::publish(address, &new, "a", "on").await;
    assert_eq!((over_1.message().await, over_2.message().await), ("on".into(), "on".into()));
    connection.open("/topics/b", &[]).await.expect("stream-open").await;
    assert_eq!(gateway.metric("topicgate_tls_certificate_reloads_total{result=\"done\"}").await, 1.0);
    assert_eq!(gateway.metric("topicgate_tls_certificate_reloads_total{result=\"refused\"}").await, 0.0);
}

async fn start(files: &Files) -> Process {
    let (cert, key) = (files.cert(), files.key());
    let environment =
        [("TOPICGATE_TLS__CERT", cert.to_str().unwrap()), ("TOPICGATE_TLS__KEY", key.to_str().unwrap())];
    Process::start(&environment).await
}

async fn reloads(process: &Process, result: &str) -> u64 {
    let text = client::request(process.admin, "GET", "/metrics", &[], b"").await.text();
    let sample = format!("topicgate_tls_certificate_reloads_total{{result=\"{result}\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&sample)).unwrap().parse().unwrap()
}

#[tokio::test]
async fn sighup_swaps_the_certificate_and_ends_no_stream() {
    let files = Files::new();
    let process = start(&files).await;
    let mut reader = tls::open(process.address, &files.pair, "/topics/a").await;
    reader.expect("stream-open").await;
    // By itself, and not because a change was seen: there is none yet.
    process.signal("HUP");
    eventually("it is read again", async || reloads(&process, "done").await == 1).await;
    let new = Pair::new();
    files.write(&new);
    process.signal("HUP");
    eventually("the new one is shown", async || tls::try_connect(process.address, &new, H2).await.is_ok())
        .await;
    tls::publish(process.address, &new, "a", "on").await;
    assert_eq!(reader.message().await, "on");
    assert_eq!((reloads(&process, "done").await, reloads(&process, "refused").await), (2, 0));
    assert!(process.log().contains("new connections use the new certificate"), "{}", process.log());
}

#[tokio::test]
async fn a_new_certificate_that_cannot_be_used_changes_nothing_and_is_logged_once() {
    let files = Files::new();
    let process = start(&files).await;
    let mut reader = tls::open(process.address, &files.pair, "/topics/a").await;
    reader.expect("stream-open").await;
    let told = |what: &str| {
        process.log().lines().filter(|line| line.contains("ERROR") && line.contains(what)).count()
    };
    let refused = async |times: u64| {
        eventually("it is refused", async || reloads(&process, "refused").await == times).await;
        // The next change is found two looks from here: time enough to count this one again.
        assert!(tls::try_connect(process.address, &files.pair, H1).await.is_ok());
    };
    std::fs::write(files.cert(), Pair::new().cert).unwrap();
    refused(1).await;
    std::fs::write(files.cert(), "nothing of use").unwrap();
    refused(2).await;
    std::fs::remove_file(files.cert()).unwrap();
    refused(3).await;
    // A reload by a person reports the error each time.
    process.signal("HUP");
    refused(4).await;
    let log = process.log();
    for (what, times) in [
        ("is not the key of the certificate", 1),
        ("has no certificate", 1),
        ("cannot be read", 2),
        ("tls.", 4),
    ] {
        assert_eq!(told(what), times, "{what}: {log}");
    }
    files.write(&files.pair);
    eventually("the old pair is taken again", async || reloads(&process, "done").await == 1).await;
    tls::publish(process.address, &files.pair, "a", "on").await;
    assert_eq!(reader.message().await, "on");
    assert!(!process.log().contains("PRIVATE"), "{log}");
}

#[tokio::test]
async fn files_that_cannot_be_used_end_the_start_with_the_key_and_the_reason() {
    let files = Files::new();
    let other = Pair::new();
    let pem = files.directory().join("other.pem");
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let not_der = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let (cert, key) = (files.cert(), files.key());
    for (cert, key, content, reason) in [
        (
            Path::new("/nowhere/cert.pem"),
            &*key,
            "",
            "tls.cert = \"/nowhere/cert.pem\": cannot be read: No such file",
        ),
        (
            &*cert,
            Path::new("/nowhere/key.pem"),
            "",
            "tls.key = \"/nowhere/key.pem\": cannot be read: No such file",
        ),
        (&*pem, &*key, "", "other.pem\": has no certificate"),
        (&*pem, &*key, not_der, "tls.cert = "),
        (&*cert, &*pem, encrypted, "other.pem\": has no private key; put one in PEM here, not encrypted"),
        (&*cert, &*pem, &other.key, "is not the key of the certificate in tls.cert = "),
        (&*cert, &*pem, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "tls.key = "),
    ] {
        std::fs::write(&pem, content).unwrap();
        let (cert, key) = (cert.to_str().unwrap(), key.to_str().unwrap());
        let ended =
            Process::spawn(&[], &[("TOPICGATE_TLS__CERT", cert), ("TOPICGATE_TLS__KEY", key)]).ended().await;
        assert_eq!(ended.code, Some(64), "{reason}: {}", ended.log);
        assert!(ended.log.contains(reason), "{reason}: {}", ended.log);
    }
}

#[tokio::test]
async fn a_handshake_that_never_ends_is_closed_in_time_and_delays_no_other() {
    let files = Files::new();
    let gateway = gateway(&files, "limits = { head_timeout = \"1s\" }\n").await;
    let begin = Instant::now();
    let mut stuck = vec![];
    // Nothing; half a record; a whole record that is half a message.
    let half = [b"\x16\x03\x01\0\x05\x01\0\x04\0\0".as_slice(), b"\x16\x03\x01\x02\0\x01", b""];
    for n in 0..60 {
        let mut raw = Raw::connect(gateway.address).await;
        raw.send(half[n % 3]).await.unwrap();
        stuck.push(raw);
    }
    let mut reader = tls::open(gateway.address, &files.pair, "/topics/a").await;
    reader.expect("stream-open").await;
    assert!(begin.elapsed() < SLACK);
    // Nor is one that ends and is followed by nothing.
    let mut silent = tls::connect(gateway.address, &files.pair, H2).await;
    for mut raw in stuck {
        assert_eq!(raw.rest().await, "");
    }
    let mut rest = vec![];
    let _ = within("the silent one is closed", LIMIT, silent.read_to_end(&mut rest)).await;
    assert!(begin.elapsed() < SLACK, "{:?}", begin.elapsed());
    assert_eq!(gateway.metric("topicgate_tls_handshakes_total{result=\"timeout\"}").await, 60.0);
    tls::publish(gateway.address, &files.pair, "a", "on").await;
    assert_eq!(reader.message().await, "on");
}

#[tokio::test]
async fn handshakes_count_as_connections_from_the_first_byte() {
    let files = Files::new();
    let gateway = gateway(&files, "limits = { connections = 4 }\n").await;
    let mut held = vec![];
    for _ in 0..4 {
        held.push(Raw::connect(gateway.address).await);
    }
    eventually("all are accepted", async || gateway.metric("topicgate_connections").await == 5.0).await;
    let fifth = tls::connect(gateway.address, &files.pair, H1);
    let mut fifth = std::pin::pin!(fifth);
    assert!(tokio::time::timeout(Duration::from_millis(200), fifth.as_mut()).await.is_err());
    drop(held.pop());
    Reader::over(fifth.await, "/topics/a", &[]).await.expect("stream-open").await;
}

#[tokio::test]
async fn plain_http_to_a_tls_port_gets_an_explanation_and_tls_to_a_plain_port_fails_at_once() {
    let files = Files::new();
    let secure = gateway(&files, "").await;
    for (method, path) in [("GET", "/topics/a"), ("POST", "/topics/a"), ("GET", "/")] {
        let answer = secure.request(method, path, &[]).await;
        assert_eq!((answer.status, answer.header("content-type")), (400, "application/problem+json"));
        assert!(answer.json()["detail"].as_str().unwrap().contains("https://"), "{}", answer.text());
    }
    assert_eq!(secure.metric("topicgate_tls_handshakes_total{result=\"plain\"}").await, 3.0);
    // What begins like TLS and is none; a version that is no longer spoken; a client that does not trust us.
    for garbage in [&b"\x16GET / HTTP/1.1\r\n\r\n"[..], b"\x16\x03\x01\0\x2a\x01\0\0\x26\x03\x01"] {
        let mut raw = Raw::connect(secure.address).await;
        raw.send([garbage, &[0; 64]].concat()).await.unwrap();
        assert!(!raw.rest().await.contains("HTTP"));
    }
    assert!(tls::try_connect(secure.address, &Pair::new(), H1).await.is_err());
    eventually("they are counted", async || {
        secure.metric("topicgate_tls_handshakes_total{result=\"failed\"}").await >= 2.0
    })
    .await;
    assert_eq!(secure.metric("topicgate_streams{http=\"1.1\"}").await, 0.0);
    tls::open(secure.address, &files.pair, "/topics/a").await.expect("stream-open").await;

    let plain = Gateway::start().await;
    let begin = Instant::now();
    assert!(tls::try_connect(plain.address, &files.pair, H2).await.is_err());
    assert!(begin.elapsed() < SLACK);
    plain.open("/topics/a").await.expect("stream-open").await;
}

#[tokio::test]
async fn a_reader_that_reads_nothing_is_cut_off_and_a_slow_reader_is_not() {
    let files = Files::new();
    // All of it is held, so that there is enough for who takes slowly, however fast it was published.
    let rule = "[[topics]]\nmatch = \"**\"\nread = \"anyone\"\npublish = \"anyone\"\nreplay = { bytes = \"16MiB\" }\n";
    let gateway = gateway(&files, &format!("streams = {{ write_timeout = \"1s\" }}\n{rule}")).await;
    let (address, pair) = (gateway.address, &files.pair);
    let mut sockets = vec![];
    for buffer in [4, 128] {
        let mut socket = tls::buffered(address, pair, buffer * 1024).await;
        socket.write_all(&ask("GET", "/topics/a", "")).await.unwrap();
        until(&mut socket, "event: stream-open\n").await;
        sockets.push(socket);
    }
    let [mut nothing, mut slow] = <[_; 2]>::try_from(sockets).unwrap();
    let mut quick = tls::open(address, pair, "/topics/a").await;
    quick.expect("stream-open").await;
    let payload = "x".repeat(200 * 1024);
    // For as long as it takes until the other one is cut off, however slow the machine is.
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let taking = tokio::spawn(async move {
        let mut bytes = vec![0; 64 * 1024];
        loop {
            tokio::select! {
                taken = slow.read_exact(&mut bytes) => { taken.expect("it was cut off"); }
                _ = &mut stopped => return slow,
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    for _ in 0..30 {
        tls::publish(address, pair, "a", &payload).await;
        assert_eq!(quick.message().await.len(), payload.len());
    }
    eventually("one is cut off", async || {
        gateway.metric("topicgate_streams_closed_total{code=\"slow\"}").await == 1.0
    })
    .await;
    assert_eq!(gateway.metric("topicgate_streams{http=\"1.1\"}").await, 2.0);
    drop(stop);
    let _slow = taking.await.unwrap();
    // With no pretence of an orderly end.
    let mut rest = vec![];
    assert!(within("the end", LIMIT, nothing.read_to_end(&mut rest)).await.is_err());
    tls::publish(address, pair, "a", "on").await;
    assert_eq!(quick.message().await, "on");
}

#[tokio::test]
async fn a_reader_that_pauses_gets_the_rest_when_it_reads_again() {
    let files = Files::new();
    let gateway = gateway(&files, "").await;
    let (address, pair) = (gateway.address, &files.pair);
    let mut socket = tls::buffered(address, pair, 4 * 1024).await;
    socket.write_all(&ask("GET", "/topics/a", "")).await.unwrap();
    until(&mut socket, "event: stream-open\n").await;
    let payload = "x".repeat(100 * 1024);
    for _ in 0..20 {
        tls::publish(address, pair, "a", &payload).await;
    }
    // Nothing is published from here on: what the socket did not take must follow by itself.
    tls::publish(address, pair, "a", "the last").await;
    until(&mut socket, "data: the last\n\n\r\n").await;
}

#[tokio::test]
async fn a_drain_ends_each_stream_at_an_event_boundary_and_says_that_it_was_the_end() {
    let files = Files::new();
    let mut gateway = gateway(&files, "drain = \"2s\"\n").await;
    let (address, pair) = (gateway.address, &files.pair);
    let mut sockets = vec![];
    for _ in 0..40 {
        let mut socket = tls::connect(address, pair, H1).await;
        socket.write_all(&ask("GET", "/topics/a", "")).await.unwrap();
        let head = until(&mut socket, "\r\n\r\n").await;
        let body = memchr::memmem::find(&head, b"\r\n\r\n").unwrap() + 4;
        sockets.push((socket, head[body..].to_vec()));
    }
    let mut http2 = Http2::connect(address, pair).await;
    let mut reader = http2.open("/topics/a", &[]).await;
    tls::publish(address, pair, "a", "before").await;
    gateway.begin_to_stop();
    for (mut socket, mut body) in sockets {
        // tokio-rustls makes an error of an end without close_notify.
        within("the end", LIMIT, socket.read_to_end(&mut body)).await.expect("not ended, but cut");
        let events = events(dechunk(&body)).await;
        let names: Vec<_> = events.iter().map(|event| event.event.as_str()).collect();
        assert_eq!(names, ["stream-open", "message", "stream-close"]);
    }
    reader.expect("stream-open").await;
    assert_eq!(reader.message().await, "before");
    assert_eq!(reader.control("stream-close").await["code"], "draining");
    assert!(reader.next().await.is_none());
    within("the end of the drain", LIMIT, gateway.ended()).await;
}

/// Chromium with `count` EventSources to one origin.
struct Page {
    child: tokio::process::Child,
    lines: tokio::io::Lines<BufReader<tokio::process::ChildStdout>>,
}

impl Page {
    fn open(origin: &str, sources: usize, trusted: Option<&Pair>) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/many.mjs");
        let mut node = tokio::process::Command::new("node");
        node.arg(script).args([origin, &sources.to_string()]);
        node.args(trusted.map(|pair| STANDARD.encode(pair.public_key_digest())));
        let mut child = node
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("node is needed");
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Page { child, lines }
    }

    /// The topics of the next `count` events, which must all be of this type.
    async fn next(&mut self, kind: &str, count: usize) -> BTreeSet<u64> {
        let mut topics = BTreeSet::new();
        for _ in 0..count {
            let line =
                within(kind, 3 * LIMIT, self.lines.next_line()).await.unwrap().expect("the page ended");
            let line: Value = serde_json::from_str(&line).unwrap();
            assert_eq!(line["kind"], kind);
            assert!(topics.insert(line["topic"].as_u64().unwrap()), "{line} came twice");
        }
        topics
    }

    async fn close(mut self) {
        drop(self.child.stdin.take());
        let _ = tokio::time::timeout(LIMIT, self.child.wait()).await;
    }
}

#[tokio::test]
async fn chromium_holds_thirty_streams_over_http_2_and_six_over_http_1_1() {
    let files = Files::new();
    let (secure, plain) = (gateway(&files, "").await, Gateway::start().await);
    let all: BTreeSet<u64> = (0..30).collect();
    let mut page = Page::open(&format!("https://localhost:{}", secure.address.port()), 30, Some(&files.pair));
    assert_eq!(page.next("open", 30).await, all);
    for topic in &all {
        tls::publish(secure.address, &files.pair, &format!("many/{topic}"), "for you").await;
    }
    assert_eq!(page.next("message", 30).await, all);
    assert_eq!(secure.metric("topicgate_streams{http=\"2\"}").await, 30.0);
    page.close().await;

    let mut page = Page::open(&format!("http://localhost:{}", plain.address.port()), 30, None);
    let six = page.next("open", 6).await;
    for topic in &all {
        plain.publish(&format!("many/{topic}"), "for you").await;
    }
    assert_eq!(page.next("message", 6).await, six);
    assert_eq!(plain.metric("topicgate_streams{http=\"1.1\"}").await, 6.0);
    page.close().await;
}

#[test]
fn openssl_finds_nothing_older_than_tls_1_2() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let files = Files::new();
    let gateway = runtime.block_on(gateway(&files, ""));
    let speaks = |version: &str| {
        let mut openssl = Command::new("openssl");
        openssl.args(["s_client", version, "-cipher", "ALL:@SECLEVEL=0", "-connect"]);
        openssl.arg(gateway.address.to_string()).stdin(Stdio::null()).output().unwrap().status.success()
    };
    assert_eq!(["-tls1", "-tls1_1", "-tls1_2", "-tls1_3"].map(speaks), [false, false, true, true]);
}
