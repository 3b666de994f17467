//! `topicgate doctor` through a real nginx: it finds each setting that disturbs a stream, and finds nothing if there is
//! none.
#![cfg(unix)]

use std::net::SocketAddr;
use std::process::Stdio;

use crate::common::command::{Ended, run};
use crate::common::eventually;
use crate::common::front::{Front, Kind};
use crate::common::gateway::Gateway;
use crate::common::ports::free_port;
use crate::common::site::Site;
use crate::common::tls::Files;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

/// The shortest that there is, so that a second or two have some.
const HEARTBEAT: &str = "streams = { heartbeat = \"1s\" }\n";

const ORIGIN: &str = "https://app.example.com";

/// nginx as a child process, in front of a gateway. Killed when dropped.
struct Nginx {
    address: SocketAddr,
    _child: Child,
    _directory: tempfile::TempDir,
}

impl Nginx {
    /// With these lines where requests are passed on.
    async fn start(gateway: SocketAddr, location: &str) -> Self {
        Self::listening(gateway, "", location).await
    }

    /// With these words behind the address that it listens on, as well.
    async fn listening(gateway: SocketAddr, listen: &str, location: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let place = directory.path().display();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|what| format!("{what}_temp_path {place}/{what};\n"))
            .concat();
        let text = format!(
            "daemon off; master_process off; pid {place}/pid; error_log {place}/log;\nevents {{}}\n\
             http {{ access_log off;\n{temporary}server {{ listen {address} {listen};\n\
             location / {{ proxy_pass http://{gateway};\n{location} }} }} }}\n"
        );
        let file = directory.path().join("nginx.conf");
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new("/usr/sbin/nginx");
        command.arg("-c").arg(&file).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let child =
            command.spawn().unwrap_or_else(|error| panic!("nginx is needed: run scripts/tools ({error})"));
        eventually("nginx is up", async || TcpStream::connect(address).await.is_ok()).await;
        Nginx { address, _child: child, _directory: directory }
    }

    async fn examined(&self, more: &[&str]) -> Ended {
        examined(&format!("http://{}/topics/a", self.address), more).await
    }
}

async fn examined(url: &str, more: &[&str]) -> Ended {
    run(&[&["doctor", url], more].concat(), &[]).await
}

/// Insists on this finding, on the advice under it, and that there is no other.
fn finds(ended: &Ended, finding: &str, advice: &str) {
    let found: Vec<&str> = ended.out.lines().filter(|line| line.starts_with("FOUND")).collect();
    assert!(ended.code == 1 && found.len() == 1, "{ended:?}");
    assert!(found[0].starts_with(&format!("FOUND  {finding}")), "no {finding:?} in\n{}", ended.out);
    let under = ended.out.lines().skip_while(|line| !line.starts_with("FOUND")).skip(1);
    let mut under = under.take_while(|line| line.starts_with("     "));
    assert!(advice.is_empty() || under.any(|line| line.contains(advice)), "no {advice:?} in\n{}", ended.out);
}

#[tokio::test]
async fn no_problem_is_reported_behind_a_proxy_without_problems() {
    let toml = format!("{HEARTBEAT}cors = {{ origins = [\"{ORIGIN}\"] }}\n");
    let gateway = Gateway::with(&toml).await;
    let nginx =
        Nginx::start(gateway.address, "proxy_buffering off; proxy_read_timeout 1h; proxy_http_version 1.1;")
            .await;
    let direct = format!("http://{}/topics/a", gateway.address);
    for url in [format!("http://{}/topics/a", nginx.address), direct] {
        let ended = examined(&url, &["--idle", "3s", "--publish", "--origin", ORIGIN]).await;
        assert_eq!(ended.code, 0, "{ended:?}");
        for about in [
            "content type: text/event-stream",
            "HTTP version: 1.1",
            "caching: no-cache, no-store, no-transform",
            "compression: none",
            "first event: ",
            "resume: Last-Event-ID is understood",
            "CORS: pages of https://app.example.com may read",
            "delay: 3 messages",
            "idle: open for 3.",
        ] {
            assert!(ended.out.contains(&format!("ok     {about}")), "no {about:?} in\n{}", ended.out);
        }
    }
}

#[tokio::test]
async fn no_problem_is_reported_behind_the_proxies_in_deploy() {
    for kind in [Kind::Nginx, Kind::Haproxy, Kind::Caddy] {
        let gateway = Gateway::with(&format!("{HEARTBEAT}{}", kind.gateway_toml())).await;
        let front = Front::start(kind, gateway.address).await;
        let ca = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&ca, &front.pair.cert).unwrap();
        let url = format!("https://localhost:{}/topics/a", front.address.port());
        let more = ["--idle", "3s", "--publish", "--ca", ca.path().to_str().unwrap()];
        let ended = examined(&url, &more).await;
        assert!(ended.code == 0 && ended.out.contains("ok     HTTP version: 2"), "{kind:?}: {ended:?}");
        assert!(!ended.out.contains("note"), "{kind:?}: {ended:?}");
    }
}

#[tokio::test]
async fn buffering_is_reported() {
    let gateway = Gateway::with(HEARTBEAT).await;
    let nginx =
        Nginx::start(gateway.address, "proxy_buffering on; proxy_ignore_headers X-Accel-Buffering;").await;
    finds(
        &nginx.examined(&["--idle", "2s"]).await,
        "buffering: HEAD is answered",
        "nginx: proxy_buffering off",
    );
}

#[tokio::test]
async fn a_read_timeout_that_is_shorter_than_the_heartbeat_is_reported() {
    let gateway = Gateway::start().await;
    let nginx = Nginx::start(gateway.address, "proxy_read_timeout 1s;").await;
    finds(
        &nginx.examined(&["--idle", "10s"]).await,
        "idle: it was cut after 1.",
        "nginx: proxy_read_timeout",
    );
}

#[tokio::test]
async fn a_limit_on_the_whole_response_is_distinguished_from_a_limit_on_silence() {
    let gateway = Gateway::with(HEARTBEAT).await;
    let proxy = cutting_after(gateway.address, std::time::Duration::from_millis(3500)).await;
    let ended = examined(&format!("http://{proxy}/topics/a"), &["--idle", "10s"]).await;
    finds(&ended, "idle: it was cut after 3.", "Envoy: timeout: 0s");
}

/// A proxy that ends every connection after so long, as those do that have a limit on a whole answer.
async fn cutting_after(gateway: SocketAddr, limit: std::time::Duration) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut server = TcpStream::connect(gateway).await.unwrap();
                let _ = tokio::time::timeout(limit, tokio::io::copy_bidirectional(&mut client, &mut server))
                    .await;
            });
        }
    });
    address
}

#[tokio::test]
async fn compression_by_the_gateway_is_no_problem_and_nginx_does_not_compress_it_again() {
    let gateway = Gateway::compressing(HEARTBEAT).await;
    let gzip =
        "proxy_buffering off; gzip on; gzip_types text/event-stream; gzip_proxied any; gzip_min_length 0;";
    let nginx = Nginx::start(gateway.address, gzip).await;
    for address in [gateway.address, nginx.address] {
        let ended = examined(&format!("http://{address}/topics/a"), &["--idle", "2s"]).await;
        assert!(ended.out.contains("ok     compression: gzip, by the gateway"), "{}", ended.out);
        assert!(ended.out.contains("ok     first event"), "{}", ended.out);
    }
}

#[tokio::test]
async fn compression_is_reported() {
    let gateway = Gateway::with(HEARTBEAT).await;
    let gzip = "proxy_buffering off; gzip on; gzip_types text/event-stream; gzip_proxied any;";
    let nginx = Nginx::start(gateway.address, gzip).await;
    let ended = nginx.examined(&["--idle", "2s"]).await;
    finds(&ended, "compression: \"gzip\"", "nginx: take text/event-stream out of gzip_types");
    assert!(
        ended.out.contains("ok     first event"),
        "the other checks use an uncompressed stream:\n{}",
        ended.out
    );
}

#[tokio::test]
async fn a_cursor_that_does_not_arrive_is_reported() {
    let gateway = Gateway::with(HEARTBEAT).await;
    let nginx = Nginx::start(gateway.address, "proxy_set_header Last-Event-ID \"\";").await;
    finds(
        &nginx.examined(&["--idle", "2s"]).await,
        "resume: Last-Event-ID does not reach the gateway",
        "proxy_set_header",
    );
}

#[tokio::test]
async fn another_process_behind_the_same_name_is_reported() {
    let (one, two) = (Gateway::with(HEARTBEAT).await, Gateway::with(HEARTBEAT).await);
    let spread = format!("if ($http_last_event_id) {{ proxy_pass http://{}; }}", two.address);
    let nginx = Nginx::start(one.address, &spread).await;
    let ended = nginx.examined(&["--idle", "2s"]).await;
    finds(&ended, "resume: the second stream does not resume: stream-gap restarted", "nginx: ip_hash");
}

#[tokio::test]
async fn obstacles_for_other_origins_are_reported() {
    let twice = format!("add_header Access-Control-Allow-Origin {ORIGIN};");
    let listed = Gateway::with(&format!("{HEARTBEAT}cors = {{ origins = [\"{ORIGIN}\"] }}\n")).await;
    let nginx = Nginx::start(listed.address, &twice).await;
    let ended = nginx.examined(&["--idle", "2s", "--origin", ORIGIN]).await;
    assert_eq!(ended.out.matches("is present twice").count(), 2, "{ended:?}");
    assert!(ended.code == 1 && ended.out.contains("no add_header Access-Control-"), "{ended:?}");

    let nginx = Nginx::start(listed.address, "").await;
    let ended = nginx.examined(&["--idle", "2s", "--origin", "https://other.example.com"]).await;
    assert!(ended.code == 1 && ended.out.contains("403 bad_origin"), "{ended:?}");
}

#[tokio::test]
async fn a_url_that_is_no_gateway_or_cannot_be_reached_is_reported() {
    let site = Site::start().await;
    let ended = examined(&format!("{}/topics/a", site.origin("127.0.0.1")), &[]).await;
    finds(&ended, "content type: \"text/html\"", "nginx: proxy_pass");
    let nowhere = SocketAddr::from(([127, 0, 0, 1], free_port()));
    finds(&Nginx::start(nowhere, "").await.examined(&[]).await, "reach: 502", "nginx: proxy_pass");
    finds(&examined(&format!("http://{nowhere}/topics/a"), &[]).await, "reach: ", "");
    let gateway = Gateway::start().await;
    let nginx = Nginx::start(gateway.address, "proxy_set_header Host elsewhere.example.com;").await;
    finds(&nginx.examined(&[]).await, "reach: 421 bad_host", "hosts");
}

#[tokio::test]
async fn a_topic_that_has_ended_is_no_problem() {
    let gateway = Gateway::start().await;
    let mut reader = gateway.open("/topics/a").await;
    reader.expect("stream-open").await;
    gateway.post("/topics/a?end=true", "last").await;
    reader.message().await;
    let url = format!("http://{}/topics/a?last_event_id={}", gateway.address, reader.last_id);
    let ended = examined(&url, &[]).await;
    assert!(
        ended.code == 0 && ended.out.starts_with("note   reach: 204 No Content: the topic has ended"),
        "{ended:?}"
    );
}

#[tokio::test]
async fn the_cursor_at_the_end_of_a_topic_that_has_ended_is_no_problem() {
    let gateway = Gateway::with(HEARTBEAT).await;
    let mut reader = gateway.open("/topics/a").await;
    reader.expect("stream-open").await;
    gateway.post("/topics/a?end=true", "last").await;
    reader.message().await;
    let ended = examined(&format!("http://{}/topics/a", gateway.address), &["--idle", "2s"]).await;
    assert!(ended.code == 0 && ended.out.contains("ok     resume: 204 No Content"), "{ended:?}");
}

#[tokio::test]
async fn parameters_that_change_what_a_stream_carries_are_no_problem() {
    let gateway = Gateway::with(HEARTBEAT).await;
    let queries = [
        "control=none",
        "type=x",
        "every=20s",
        "format=cloudevents",
        "since=10m",
        "last_event_id=other-7",
        "lastEventId=other-7",
        "since=all&type=x&event=none",
    ];
    let examinations = queries.iter().enumerate().map(async |(number, query)| {
        let url = format!("http://{}/topics/a/{number}?{query}", gateway.address);
        let ended = examined(&url, &["--idle", "3s", "--publish"]).await;
        assert_eq!(ended.code, 0, "{query}: {ended:?}");
        let name = query.split('=').next().unwrap();
        assert!(
            ended.out.contains(&format!("note   URL: the following checks leave out {name}")),
            "{ended:?}"
        );
        for about in ["first event: ", "resume: Last-Event-ID is understood", "delay: 3 messages", "idle: "] {
            assert!(
                ended.out.contains(&format!("ok     {about}")),
                "no {about:?} for {query} in\n{}",
                ended.out
            );
        }
    });
    futures_util::future::join_all(examinations).await;
    let wrong = format!("http://{}/topics/a?every=1ms", gateway.address);
    finds(&examined(&wrong, &[]).await, "reach: 400 bad_query", "");
}

#[tokio::test]
async fn a_page_of_the_urls_own_origin_needs_no_permission() {
    let gateway = Gateway::with(HEARTBEAT).await;
    let origin = format!("http://{}", gateway.address);
    let ended = examined(&format!("{origin}/topics/a"), &["--idle", "2s", "--origin", &origin]).await;
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.out.contains(&format!("ok     CORS: pages of {origin} may read")), "{ended:?}");
    let ended = examined(&format!("{origin}/topics/a"), &["--origin", "https://app.example.com/"]).await;
    assert!(ended.code == 64 && ended.err.contains("write https://app.example.com"), "{ended:?}");
}

#[tokio::test]
async fn a_stream_that_the_gateway_closes_while_messages_are_sent_is_no_problem() {
    let gateway = Gateway::with("streams = { heartbeat = \"1s\", max_age = \"1s\" }").await;
    let url = format!("http://{}/topics/a", gateway.address);
    let ended = examined(&url, &["--idle", "3s", "--publish"]).await;
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.out.contains("the gateway closed the stream (max_age)"), "{ended:?}");
}

#[tokio::test]
async fn http_2_is_used_if_tls_offers_it_and_reported_as_missing_if_not() {
    let files = Files::new();
    let gateway = Gateway::with(&format!("{HEARTBEAT}{}", files.toml())).await;
    let (ca, cert, key) = (files.cert(), files.cert(), files.key());
    let url = |address: SocketAddr| format!("https://localhost:{}/topics/a", address.port());
    let more = ["--idle", "2s", "--publish", "--ca", ca.to_str().unwrap()];
    let ended = examined(&url(gateway.address), &more).await;
    assert!(ended.code == 0 && ended.out.contains("ok     HTTP version: 2"), "{ended:?}");

    let plain = Gateway::with(HEARTBEAT).await;
    let tls = format!("ssl; ssl_certificate {}; ssl_certificate_key {}", cert.display(), key.display());
    let nginx = Nginx::listening(plain.address, &tls, "").await;
    let ended = examined(&url(nginx.address), &more).await;
    assert!(ended.code == 0 && ended.out.contains("note   HTTP version: 1.1"), "{ended:?}");
    assert!(ended.out.contains("nginx: http2 on"), "{ended:?}");
}
