//! Why another server cannot be used, in words: what is wrong, where, and which key to change. Against real servers,
//! because the text depends on what the libraries report.
#![cfg(unix)]

use std::path::PathBuf;
use std::sync::Arc;

use crate::common::client::{self, Reader};
use crate::common::command::run;
use crate::common::eventually;
use crate::common::gateway::Gateway;
use crate::common::nats::NatsServer;
use crate::common::ports::free_port;
use crate::common::process::Process;
use crate::common::redis::{RedisServer, run as redis_run};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;

/// The text of `/readyz` for a broker that cannot be used, with these lines in the configuration.
async fn not_ready(toml: &str) -> String {
    let gateway = Gateway::unready(toml).await;
    let why = || async {
        gateway
            .ready()
            .await
            .err()
            .filter(|why| !why.contains("connecting") && !why.contains("not connected yet"))
    };
    eventually("the broker is away", async || why().await.is_some()).await;
    let why = why().await.unwrap();
    assert_eq!(why.lines().count(), 1, "{why}");
    why
}

fn broker(url: &str, more: &str) -> String {
    format!("[broker]\nurl = \"{url}\"\n{more}\n[[topics]]\nmatch = \"**\"\nread = \"anyone\"\n")
}

#[track_caller]
fn says(why: &str, parts: &[&str]) {
    for part in parts {
        assert!(why.contains(part), "no {part:?} in {why}");
    }
}

/// An authority, and certificates of its own making, as files.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    directory: tempfile::TempDir,
    ca: PathBuf,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let ca = directory.path().join("ca.pem");
        std::fs::write(&ca, certificate.pem()).unwrap();
        std::fs::write(directory.path().join("ca.key"), key.serialize_pem()).unwrap();
        Authority { issuer: Issuer::new(params, key), directory, ca }
    }

    /// A certificate for `host`, which ends in that year.
    fn issue(&self, host: &str, until: i32) -> [PathBuf; 2] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(until, 1, 1));
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let [cert, secret] =
            [".crt", ".key"].map(|end| self.directory.path().join(format!("{host}-{until}{end}")));
        std::fs::write(&cert, certificate.pem()).unwrap();
        std::fs::write(&secret, key.serialize_pem()).unwrap();
        [cert, secret]
    }

    /// The authority's own certificate, which a server must not use.
    fn own(&self) -> [PathBuf; 2] {
        [self.ca.clone(), self.directory.path().join("ca.key")]
    }

    fn toml(&self) -> String {
        format!("tls.ca = {:?}", self.ca)
    }
}

/// A server that shows this certificate, and then says nothing. Returns its port.
async fn tls_server([cert, key]: &[PathBuf; 2]) -> u16 {
    let chain = CertificateDer::pem_file_iter(cert).unwrap().collect::<Result<_, _>>().unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from_pem_file(key).unwrap())
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let _ = acceptor.accept(socket).await;
        }
    });
    port
}

/// The fault of the certificate, the certificate, whether its authority is trusted, and the expected text.
fn bad_certificates(authority: &Authority) -> Vec<([PathBuf; 2], bool, [&'static str; 2])> {
    vec![
        (authority.own(), true, ["CA:TRUE", "CaUsedAsEndEntity"]),
        (authority.issue("localhost", 2090), false, ["is not trusted", "UnknownIssuer"]),
        (authority.issue("localhost", 2021), true, ["has expired", "renew"]),
        (
            authority.issue("elsewhere.example", 2090),
            true,
            ["does not have the name in", "elsewhere.example"],
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nats_server_that_cannot_be_used_is_explained_with_the_key_to_change() {
    let nowhere = free_port();
    let why = not_ready(&broker(&format!("nats://127.0.0.1:{nowhere}"), "")).await;
    says(
        &why,
        &[
            &format!("127.0.0.1:{nowhere}: nothing listens at this address"),
            "broker.url",
            "Connection refused",
        ],
    );
    says(
        &not_ready(&broker("nats://no-such-host.invalid", "")).await,
        &["no-such-host.invalid:4222: its name has no address", "broker.url"],
    );
    let server = NatsServer::with("authorization { user: gate, password: right }");
    for url in [server.url(), server.url().replace("//", "//gate:wrong@")] {
        let why = not_ready(&broker(&url, "")).await;
        says(
            &why,
            &[&format!("127.0.0.1:{}", server.port()), "refuses the login", "broker.password", "credentials"],
        );
        assert_eq!(why.to_lowercase().matches("authorization violation").count(), 1, "{why}");
        assert!(!why.contains("wrong"), "{why}");
    }
    let authority = Authority::new();
    for ([cert, key], trusted, told) in bad_certificates(&authority) {
        let server = NatsServer::with(&format!("tls {{ cert_file: {cert:?}, key_file: {key:?} }}"));
        let trust = if trusted { authority.toml() } else { String::new() };
        let why = not_ready(&broker(&format!("tls://localhost:{}", server.port()), &trust)).await;
        says(&why, &told);
        says(&why, &[&format!("localhost:{}: its", server.port()).replace("its", "")]);
    }
    let plain = NatsServer::start();
    let why = not_ready(&broker(&format!("tls://localhost:{}", plain.port()), &authority.toml())).await;
    says(&why, &["without TLS", "nats://", "broker.url"]);
    let [cert, key] = authority.issue("localhost", 2090);
    let ca = &authority.ca;
    let verifies = NatsServer::with(&format!(
        "tls {{ cert_file: {cert:?}, key_file: {key:?}, ca_file: {ca:?}, verify: true }}"
    ));
    let why = not_ready(&broker(&format!("tls://localhost:{}", verifies.port()), &authority.toml())).await;
    says(&why, &["requires a client certificate", "broker.tls.cert"]);
    let web = Gateway::start().await;
    let why = not_ready(&broker(&format!("nats://{}", web.address), "")).await;
    says(&why, &[&web.address.to_string(), "broker.url"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_server_that_cannot_be_used_is_explained_with_the_key_to_change() {
    let nowhere = free_port();
    for more in ["", "source = \"redis-stream\""] {
        let why = not_ready(&(broker(&format!("redis://127.0.0.1:{nowhere}"), "") + more)).await;
        says(
            &why,
            &[
                &format!("127.0.0.1:{nowhere}: nothing listens at this address"),
                "broker.url",
                "Connection refused",
            ],
        );
    }
    says(
        &not_ready(&broker("redis://no-such-host.invalid", "")).await,
        &["its name has no address", "broker.url"],
    );
    let server = RedisServer::start_with(&["requirepass secret"]);
    says(&not_ready(&broker(&server.url(), "")).await, &["NOAUTH", "requires a login", "broker.password"]);
    let wrong = server.url().replace("//", "//:nope@");
    let why = not_ready(&broker(&wrong, "")).await;
    says(&why, &["refuses the login", "broker.password", "WRONGPASS"]);
    assert!(!why.contains("nope"), "{why}");
    let authority = Authority::new();
    for (files, trusted, told) in bad_certificates(&authority) {
        let port = tls_server(&files).await;
        let trust = if trusted { authority.toml() } else { String::new() };
        let why = not_ready(&broker(&format!("rediss://localhost:{port}"), &trust)).await;
        says(&why, &told);
    }
    let plain = RedisServer::start();
    let why = not_ready(&broker(&plain.url().replace("redis:", "rediss:"), &authority.toml())).await;
    says(&why, &["does not answer in time", "TLS (rediss://) or not (redis://)", "broker.url"]);
    let port = tls_server(&authority.issue("localhost", 2090)).await;
    let why = not_ready(&broker(&format!("redis://localhost:{port}"), "")).await;
    says(
        &why,
        &[
            &format!("localhost:{port}: it closed the connection"),
            "TLS (rediss://) or not (redis://)",
            "broker.url",
        ],
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_says_in_words_why_a_url_cannot_be_reached() {
    let doctor = async |url: String, more: &[&str]| {
        let ended = run(&[&["doctor", &url], more].concat(), &[]).await;
        assert_eq!(ended.code, 1, "{ended:?}");
        ended.out
    };
    let nowhere = free_port();
    says(
        &doctor(format!("http://127.0.0.1:{nowhere}/topics/a"), &[]).await,
        &["nothing listens at this address", "the URL"],
    );
    says(&doctor("http://no-such-host.invalid/topics/a".into(), &[]).await, &["its name has no address"]);
    let plain = Gateway::start().await;
    says(&doctor(format!("https://{}/topics/a", plain.address), &[]).await, &["without TLS", "http://"]);
    let authority = Authority::new();
    let ca = authority.ca.to_str().unwrap();
    for (files, trusted, told) in bad_certificates(&authority) {
        let port = tls_server(&files).await;
        let more = ["--ca", ca];
        let out =
            doctor(format!("https://localhost:{port}/topics/a"), if trusted { &more } else { &[] }).await;
        says(&out, &told);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_says_in_words_why_the_backend_and_the_keys_cannot_be_asked() {
    let nowhere = free_port();
    let plain = Gateway::start().await;
    let keys = format!("https://{}/jwks.json", plain.address);
    let process = Process::start(&[
        ("TOPICGATE_AUTH__FORWARD__URL", &format!("http://127.0.0.1:{nowhere}/may?key=s3cret")),
        ("TOPICGATE_AUTH__JWT__JWKS_URL", &keys),
        ("TOPICGATE_TOPICS", "[{ match = \"a\", read = \"token\" }]"),
    ])
    .await;
    crate::common::client::request(process.address, "GET", "/topics/a", &[], b"").await;
    let told = async || {
        let log = process.log();
        log.contains("auth.forward.url")
            && log.contains("auth.jwt.jwks_url,") | log.contains("in auth.jwt.jwks_url")
    };
    eventually("both are in the log", told).await;
    let log = process.log();
    says(
        &log,
        &[
            &format!("127.0.0.1:{nowhere}: nothing listens at this address"),
            &format!("{}: it answers without TLS; write http:// in auth.jwt.jwks_url", plain.address),
        ],
    );
    assert!(!log.contains("s3cret"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_connection_that_had_worked_is_not_explained_like_one_that_cannot_be_made() {
    let server = RedisServer::start();
    let mut redis = server.connect().await;
    let rules = "[{ match = \"live\", read = \"anyone\", publish = \"anyone\" }, { match = \"stored\", source = \
                 \"redis-stream\", payload = { field = \"data\" }, read = \"anyone\", publish = \"anyone\" }]";
    let process =
        Process::start(&[("TOPICGATE_BROKER__URL", &server.url()), ("TOPICGATE_TOPICS", rules)]).await;
    let mut reader = Reader::open(process.address, "/topics?topic=live&topic=stored", &[]).await;
    reader.expect("stream-open").await;
    process.publish("stored", "x").await;
    process.publish("live", "x").await;
    for kind in ["normal", "pubsub"] {
        redis_run::<i64>(&mut redis, &format!("CLIENT KILL TYPE {kind} SKIPME yes")).await;
    }
    let lost = || process.log().matches("the connection was closed").count();
    eventually("both lost connections are in the log", async || lost() >= 2).await;
    assert!(!process.log().contains("broker.url"), "{}", process.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_replica_is_named_in_the_log_when_a_message_cannot_be_stored() {
    let master = RedisServer::start_with(&["repl-diskless-sync-delay 0"]);
    let replica = RedisServer::replica_of(&master, &[]);
    let mut redis = replica.connect().await;
    eventually("the replica is in step", async || {
        redis_run::<String>(&mut redis, "INFO replication").await.contains("master_link_status:up")
    })
    .await;
    let rules = "[{ match = \"a\", source = \"redis-stream\", payload = { field = \"data\" }, read = \"anyone\", \
                 publish = \"anyone\" }]";
    let process =
        Process::start(&[("TOPICGATE_BROKER__URL", &replica.url()), ("TOPICGATE_TOPICS", rules)]).await;
    for _ in 0..3 {
        let answer = client::request(process.address, "POST", "/topics/a", &[], b"x").await;
        assert_eq!(answer.status, 503, "{}", answer.text());
        assert!(!answer.text().contains("READONLY"), "{}", answer.text());
    }
    eventually("it is in the log", async || process.log().contains("READONLY")).await;
    says(&process.log(), &["replica", "name its master in broker.url", "broker.sentinel"]);
    assert_eq!(process.log().matches("READONLY").count(), 1, "once for many publishes:\n{}", process.log());
}
