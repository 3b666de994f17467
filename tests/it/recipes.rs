//! The recipe of docs/security.md that brings a program with it, as it stands there.

use crate::common::client::Reader;
use crate::common::document::blocks;
use crate::common::eventually;
use crate::common::gateway::Gateway;
use crate::common::redis::free_port;
use tokio::net::TcpStream;
use tokio::process::Command;

const DOCUMENT: &str = include_str!("../../docs/security.md");

#[tokio::test]
async fn the_backend_of_the_document_lets_its_users_in_and_nobody_else() {
    let heading = "A session cookie and a backend";
    let (program, toml) = (blocks(DOCUMENT, heading, "js"), blocks(DOCUMENT, heading, "toml"));
    let port = free_port().to_string();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("backend.mjs");
    std::fs::write(&file, program[0].replace("3000", &port)).unwrap();
    let mut backend = Command::new("node").arg(&file).kill_on_drop(true).spawn().unwrap();
    let address = format!("127.0.0.1:{port}");
    eventually("the backend listens", async || TcpStream::connect(&address).await.is_ok()).await;

    // Without what is about the machine: listeners, certificates, the broker.
    let about_access =
        |table: &&str| ["[auth", "[cors", "[[topics"].iter().any(|name| table.starts_with(name));
    let access: Vec<&str> = toml[0].split("\n\n").filter(about_access).collect();
    assert_eq!(access.len(), 4, "{access:?}");
    let gateway = Gateway::with(&access.join("\n\n").replace("3000", &port)).await;

    let alice = [("cookie", "theme=dark; session=5f0c9d1b")];
    for topic in ["orders/eu", "orders/**", "users/alice/inbox", "users/alice/**"] {
        let mut reader = Reader::open(gateway.address, &format!("/topics/{topic}"), &alice).await;
        reader.expect("stream-open").await;
    }
    for topic in ["users/bob/inbox", "users/*/inbox", "users/*/**"] {
        let answer = gateway.request("GET", &format!("/topics/{topic}"), &alice).await;
        assert_eq!(answer.status, 403, "{topic}: {}", answer.text());
    }
    for cookie in ["", "session=", "session=5f0c9d1c", "xsession=5f0c9d1b"] {
        let answer = gateway.request("GET", "/topics/orders/eu", &[("cookie", cookie)]).await;
        assert_eq!(answer.status, 401, "{cookie}: {}", answer.text());
    }
    for topic in ["elsewhere", "users/**"] {
        let answer = gateway.request("GET", &format!("/topics/{topic}"), &alice).await;
        assert_eq!(answer.status, 404, "{topic}: {}", answer.text());
    }

    backend.kill().await.unwrap();
    let mut reader = Reader::open(gateway.address, "/topics/orders/us", &alice).await;
    assert_eq!(reader.control("stream-close").await["reconnect"], true);
}
