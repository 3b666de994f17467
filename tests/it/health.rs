//! `topicgate health`, as a container's health check runs it: a process of its own that knows the configuration alone.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::common::client::Reader;
use crate::common::eventually;
use crate::common::gateway::Gateway;
use crate::common::ports::free_port;
use crate::common::process::Process;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;

/// The exit code and the one line, of standard output or of standard error.
async fn health(admin: &str) -> (i32, String) {
    let answer = tokio::process::Command::new(env!("CARGO_BIN_EXE_topicgate"))
        .arg("health")
        .env("TOPICGATE_ADMIN__LISTEN", admin)
        .current_dir(env!("CARGO_TARGET_TMPDIR"))
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let code = answer.status.code().unwrap();
    let (said, silent) =
        if code == 0 { (answer.stdout, answer.stderr) } else { (answer.stderr, answer.stdout) };
    let said = String::from_utf8(said).unwrap();
    assert_eq!((said.lines().count(), silent.len()), (1, 0), "{said}");
    (code, said.trim_end().to_owned())
}

#[tokio::test]
async fn a_gateway_that_runs_is_alive() {
    let gateway = Gateway::start().await;
    assert_eq!(health(&gateway.admin.to_string()).await, (0, "alive, and ready".into()));
}

#[tokio::test]
async fn health_asks_a_listener_on_every_address_on_loopback() {
    let gateway = Gateway::start().await;
    let everywhere = format!("0.0.0.0:{}", gateway.admin.port());
    assert_eq!(health(&everywhere).await.0, 0);
}

#[tokio::test]
async fn a_gateway_without_its_broker_is_alive_and_names_the_reason() {
    let gateway = Gateway::unready("broker.url = \"nats://127.0.0.1:1\"").await;
    let why = async || gateway.ready().await.unwrap_err();
    eventually("it has tried", async || why().await.contains("refused")).await;
    let (code, line) = health(&gateway.admin.to_string()).await;
    assert_eq!((code, line), (0, format!("alive, and not ready: {}", why().await.trim_end())));
}

#[tokio::test]
async fn a_gateway_that_drains_is_alive() {
    let process = Process::start(&[("TOPICGATE_DRAIN", "1m")]).await;
    // The drain waits for it: it reads nothing, so its stream has no end to be sent.
    let _reader = Reader::open(process.address, "/topics/a", &[]).await;
    for _ in 0..60 {
        process.publish("a", &"x".repeat(200_000)).await;
    }
    process.signal("TERM");
    eventually("it drains", async || process.readyz().await.status == 503).await;
    let (code, line) = health(&process.admin.to_string()).await;
    assert_eq!(code, 0, "{line}");
    assert!(line.contains("not ready: draining"), "{line}");
}

#[tokio::test]
async fn health_fails_if_no_server_answers_and_names_the_key() {
    let admin = SocketAddr::from(([127, 0, 0, 1], free_port())).to_string();
    let (code, line) = health(&admin).await;
    assert_eq!(code, 1);
    assert!(line.contains(&format!("admin.listen = \"{admin}\"")), "{line}");
}

#[tokio::test]
async fn health_fails_for_a_silent_server_and_for_a_server_that_is_no_gateway() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let begin = Instant::now();
    let (code, line) = health(&silent.local_addr().unwrap().to_string()).await;
    assert_eq!(code, 1);
    assert!(line.contains("no answer within 3s"), "{line}");
    assert!(begin.elapsed() < Duration::from_secs(15), "a check has an end");

    for answer in
        ["", "SSH-2.0-OpenSSH_9.2\r\n", "HTTP/1.1 404 Not Found\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n<html>"]
    {
        let stranger = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = stranger.local_addr().unwrap().to_string();
        let answers = tokio::spawn(async move {
            let (mut socket, _) = stranger.accept().await.unwrap();
            socket.write_all(answer.as_bytes()).await.unwrap();
            socket.shutdown().await.unwrap();
            tokio::time::sleep(Duration::from_secs(10)).await; // held, so that nothing resets the answer
        });
        let (code, line) = health(&address).await;
        assert_eq!(code, 1, "{answer}");
        assert!(line.contains("something else than topicgate"), "{line}");
        answers.abort();
    }
}
