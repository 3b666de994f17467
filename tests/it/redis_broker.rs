//! The broker contract in cases that only Redis has: globs, ACLs, TLS, and every way in which a connection can end.

use std::future::Future;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::common::broker_config;
use crate::common::redis::RedisServer;
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::timeout;
use topicgate::internals::broker::{Broker, BrokerError, EVENT_CAPACITY, Event, Message};
use topicgate::internals::config::{self, BrokerTls, Secret};
use topicgate::internals::protocol::headers::Headers;
use topicgate::internals::protocol::source::Source;
use topicgate::internals::protocol::topic::{Filter, Topic};

/// How long anything may take that has no limit of its own.
const LIMIT: Duration = Duration::from_secs(5);

/// A broker under test and its events.
struct Fixture {
    broker: Broker,
    events: mpsc::Receiver<Event>,
}

fn start_with(config: &config::Broker, capacity: usize) -> Fixture {
    let (sender, events) = mpsc::channel(capacity);
    Fixture { broker: Broker::redis(config, sender).unwrap(), events }
}

async fn start(server: &RedisServer) -> Fixture {
    let mut fixture = start_with(&broker_config(&server.url()), EVENT_CAPACITY);
    fixture.until_up().await;
    fixture
}

impl Fixture {
    /// The first event that `wanted` accepts, and the events before it.
    async fn until(&mut self, limit: Duration, wanted: impl Fn(&Event) -> bool) -> (Event, Vec<Event>) {
        let mut before = Vec::new();
        let found = timeout(limit, async {
            loop {
                let event = self.events.recv().await.expect("the broker's task runs");
                if wanted(&event) {
                    return event;
                }
                before.push(event);
            }
        });
        match found.await {
            Ok(event) => (event, before),
            Err(_) => panic!("not within {limit:?}; came instead: {before:?}"),
        }
    }

    async fn until_up(&mut self) -> Vec<Event> {
        self.until(LIMIT, |event| matches!(event, Event::Up(_))).await.1
    }

    async fn until_down(&mut self, limit: Duration) -> String {
        match self.until(limit, |event| matches!(event, Event::Down { .. })).await.0 {
            Event::Down { why, .. } => why,
            _ => unreachable!(),
        }
    }

    async fn message(&mut self) -> Message {
        match self.until(LIMIT, |event| matches!(event, Event::Message(_))).await {
            (Event::Message(message), before) if before.is_empty() => message,
            other => panic!("a message was expected: {other:?}"),
        }
    }

    /// Checks that the connection comes back as promised: the loss for all, then up.
    async fn recovered(&mut self) -> Vec<Event> {
        let mut before = self.until_up().await;
        assert!(matches!(before.pop(), Some(Event::Lost { filters: None, .. })), "{before:?}");
        before
    }

    async fn subscribe(&self, text: &str) -> Result<(), BrokerError> {
        timeout(LIMIT, self.broker.subscribe(filter(text), Source::Pubsub)).await.unwrap()
    }

    async fn publish(&self, text: &str, payload: impl Into<Bytes>) -> Result<(), BrokerError> {
        let answer = self.broker.publish(topic(text), Source::Pubsub, payload.into(), Headers::default());
        timeout(LIMIT, answer).await.unwrap().map(drop)
    }

    /// Publishes and checks that it arrives, by `filter`.
    async fn delivers(&mut self, text: &str, by: &str) {
        self.publish(text, "delivered").await.unwrap();
        let message = self.message().await;
        assert_eq!(
            (message.topic, message.filter, &message.payload[..]),
            (topic(text), filter(by), &b"delivered"[..])
        );
    }
}

fn filter(text: &str) -> Filter {
    Filter::parse(text, 200).unwrap()
}

fn topic(text: &str) -> Topic {
    Topic::parse(text, 200).unwrap()
}

/// Waits for a condition that no event tells.
async fn eventually<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let started = Instant::now();
    while !condition().await {
        assert!(started.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn command(server: &RedisServer, words: &[&str]) {
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    command.exec_async(&mut server.connect().await).await.unwrap();
}

#[tokio::test]
async fn two_patterns_of_one_glob_are_subscribed_once_and_both_are_served() {
    let server = RedisServer::start();
    let mut gate = start(&server).await;
    let (one, rest) = tokio::join!(gate.subscribe("orders/*"), gate.subscribe("orders/**"));
    assert_eq!((one, rest), (Ok(()), Ok(())));
    assert_eq!(server.patterns().await, 1);

    gate.publish("orders/eu", "1").await.unwrap();
    let mut filters = [gate.message().await.filter, gate.message().await.filter];
    filters.sort();
    assert_eq!(filters, [filter("orders/*"), filter("orders/**")]);

    assert!(gate.broker.try_unsubscribe(filter("orders/**"), &Source::Pubsub));
    gate.delivers("orders/eu", "orders/*").await;
    assert_eq!(server.patterns().await, 1, "the other filter still needs it");
    assert!(gate.broker.try_unsubscribe(filter("orders/*"), &Source::Pubsub));
    eventually("the glob is unsubscribed", async || server.patterns().await == 0).await;
    gate.subscribe("orders/**").await.unwrap();
    gate.delivers("orders/eu/42", "orders/**").await;
}

#[tokio::test]
async fn messages_that_a_glob_matches_across_a_separator_are_dropped() {
    let server = RedisServer::start();
    let mut gate = start(&server).await;
    gate.subscribe("orders/*").await.unwrap();
    gate.subscribe("*/eu").await.unwrap();
    for channel in ["orders:eu:42", "orders::", "orders:a b", "orders:a/b", "__keyspace@0__:eu", "a:b:eu"] {
        command(&server, &["PUBLISH", channel, "no"]).await;
    }
    // Three of them are not valid topics, which is reported; the others match other filters.
    for _ in 0..3 {
        let unnameable =
            |event: &Event| matches!(event, Event::Unnameable { filter } if filter.as_str() == "orders/*");
        let (_, before) = gate.until(LIMIT, unnameable).await;
        assert!(before.is_empty(), "{before:?}");
    }
    gate.delivers("orders/us", "orders/*").await;
}

#[tokio::test]
async fn a_topic_and_a_pattern_that_covers_it_each_get_the_message() {
    let server = RedisServer::start();
    let mut gate = start(&server).await;
    gate.subscribe("orders/eu").await.unwrap();
    gate.subscribe("orders/*").await.unwrap();
    let payload: Vec<u8> = (0..=255).collect();
    gate.publish("orders/eu", payload.clone()).await.unwrap();
    let (first, second) = (gate.message().await, gate.message().await);
    assert_eq!((&first.payload, &second.payload), (&payload.clone().into(), &payload.into()));
    assert_ne!(first.filter, second.filter);
}

#[tokio::test]
async fn a_separator_of_the_operators_choice_is_used_both_ways() {
    let server = RedisServer::start();
    let mut gate =
        start_with(&config::Broker { separator: '.', ..broker_config(&server.url()) }, EVENT_CAPACITY);
    gate.until_up().await;
    gate.subscribe("orders/eu").await.unwrap();
    gate.subscribe("trades/*").await.unwrap();
    assert_eq!(server.channel_subscribers("orders.eu").await, 1);
    gate.delivers("orders/eu", "orders/eu").await;
    gate.delivers("trades/42", "trades/*").await;
    // On the wire it would be orders.eu.x, which is another topic.
    assert!(matches!(gate.subscribe("orders/eu.x").await, Err(BrokerError::Refused(_))));
    assert!(matches!(gate.publish("orders/eu.x", "").await, Err(BrokerError::Refused(_))));
}

#[tokio::test]
async fn headers_are_refused_since_redis_has_none() {
    let server = RedisServer::start();
    let gate = start(&server).await;
    let mut headers = Headers::default();
    headers.insert("type", "created");
    let answer = gate.broker.publish(topic("orders/eu"), Source::Pubsub, Bytes::new(), headers).await;
    assert!(matches!(answer, Err(BrokerError::Refused(why)) if why.contains("header")));
}

#[tokio::test]
async fn thousands_of_topics_are_subscribed_served_and_released() {
    let server = RedisServer::start();
    let mut gate = start(&server).await;
    let topics: Vec<String> = (0..3000).map(|number| format!("orders/{number}")).collect();
    let subscribed = futures_util::future::join_all(topics.iter().map(|topic| gate.subscribe(topic))).await;
    assert!(subscribed.iter().all(Result::is_ok));
    assert_eq!(server.channels().await, topics.len());
    command(&server, &["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    gate.recovered().await;
    assert_eq!(server.channels().await, topics.len());
    gate.delivers("orders/2999", "orders/2999").await;
    for topic in &topics {
        eventually("the command is taken", async || {
            gate.broker.try_unsubscribe(filter(topic), &Source::Pubsub)
        })
        .await;
    }
    eventually("all are released", async || server.channels().await == 0).await;
}

#[tokio::test]
async fn commands_of_one_filter_take_effect_in_the_order_sent() {
    let server = RedisServer::start();
    let mut gate = start(&server).await;
    for _ in 0..50 {
        let (first, second) = (
            gate.broker.subscribe(filter("a/b"), Source::Pubsub),
            gate.broker.subscribe(filter("a/*"), Source::Pubsub),
        );
        let third = async {
            assert!(gate.broker.try_unsubscribe(filter("a/b"), &Source::Pubsub));
            assert!(gate.broker.try_unsubscribe(filter("a/*"), &Source::Pubsub));
            gate.broker.subscribe(filter("a/b"), Source::Pubsub).await
        };
        // Polled in this order, without a wait between them, so that they arrive as one batch.
        let answers = tokio::join!(biased; first, second, third);
        assert_eq!(answers, (Ok(()), Ok(()), Ok(())));
    }
    gate.delivers("a/b", "a/b").await;
    assert_eq!((server.channels().await, server.patterns().await), (1, 0));
}

#[tokio::test]
async fn a_user_confined_to_some_channels_is_refused_beyond_them_and_only_there() {
    let server = RedisServer::start_with(&["user gate on >secret resetchannels &orders:* -@all \
         +subscribe +psubscribe +unsubscribe +punsubscribe +publish"]);
    let url = server.url().replace("//", "//gate:secret@");
    let mut gate = start_with(&broker_config(&url), EVENT_CAPACITY);
    gate.until_up().await;
    let (eu, secret, us, all, every) = tokio::join!(
        gate.subscribe("orders/eu"),
        gate.subscribe("secret/plans"),
        gate.subscribe("orders/us"),
        gate.subscribe("orders/**"),
        gate.subscribe("**"),
    );
    assert_eq!((eu, us, all), (Ok(()), Ok(()), Ok(())));
    for answer in [secret, every, gate.publish("secret/plans", "").await] {
        assert!(matches!(&answer, Err(BrokerError::Refused(why)) if why.starts_with("NOPERM")), "{answer:?}");
    }
    gate.publish("orders/us", "1").await.unwrap();
    let mut filters = [gate.message().await.filter, gate.message().await.filter];
    filters.sort();
    assert_eq!(filters, [filter("orders/**"), filter("orders/us")]);

    // Redis disconnects clients that are subscribed to channels that they may no longer read.
    command(&server, &["ACL", "SETUSER", "gate", "resetchannels", "&orders:eu"]).await;
    let mut refused: Vec<Filter> = gate
        .recovered()
        .await
        .into_iter()
        .filter_map(|event| match event {
            Event::Refused { filter, why } if why.starts_with("NOPERM") => Some(filter),
            _ => None,
        })
        .collect();
    refused.sort();
    assert_eq!(refused, [filter("orders/**"), filter("orders/us")]);
    gate.delivers("orders/eu", "orders/eu").await;
}

#[tokio::test]
async fn a_wrong_password_is_the_reported_reason_until_it_is_right() {
    let server = RedisServer::start_with(&["user gate on >right allcommands allchannels"]);
    let config = config::Broker {
        user: Some("gate".into()),
        password: Some(Secret("hunter2".into())),
        ..broker_config(&server.url())
    };
    let mut gate = start_with(&config, EVENT_CAPACITY);
    let why = gate.until_down(LIMIT).await;
    assert!(why.contains("broker.password") && !why.contains("hunter2"), "{why}");
    assert!(matches!(gate.subscribe("orders/eu").await, Err(BrokerError::Away(_))));
    command(&server, &["ACL", "SETUSER", "gate", ">hunter2"]).await;
    gate.until_up().await;
    gate.subscribe("orders/eu").await.unwrap();
    gate.delivers("orders/eu", "orders/eu").await;
}

#[tokio::test]
async fn a_missing_password_is_the_reported_reason() {
    let server = RedisServer::start_with(&["requirepass secret"]);
    let mut gate = start_with(&broker_config(&server.url()), EVENT_CAPACITY);
    let why = gate.until_down(LIMIT).await;
    assert!(why.contains("NOAUTH"), "{why}");
}

#[tokio::test]
async fn the_database_of_the_url_is_selected() {
    let server = RedisServer::start();
    let mut gate = start_with(&broker_config(&format!("{}/99", server.url())), EVENT_CAPACITY);
    let why = gate.until_down(LIMIT).await;
    assert!(why.contains("DB index"), "{why}");
    let mut gate = start_with(&broker_config(&format!("{}/3", server.url())), EVENT_CAPACITY);
    gate.until_up().await;
}

/// Certificates of an authority, of a server on 127.0.0.1 and of a client, as files in `directory`.
fn write_certificates(directory: &Path) {
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
    authority.distinguished_name.push(rcgen::DnType::CommonName, "authority");
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = authority.self_signed(&authority_key).unwrap();
    std::fs::write(directory.join("ca.pem"), certificate.pem()).unwrap();
    let issuer = rcgen::Issuer::new(authority, authority_key);
    for (name, host) in [("server", "127.0.0.1"), ("client", "gate")] {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![host.to_string()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let certificate = params.signed_by(&key, &issuer).unwrap();
        std::fs::write(directory.join(format!("{name}.pem")), certificate.pem()).unwrap();
        std::fs::write(directory.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

#[tokio::test]
async fn tls_takes_an_authority_and_a_client_certificate() {
    let directory = tempfile::tempdir().unwrap();
    write_certificates(directory.path());
    let file = |name: &str| directory.path().join(name);
    let port = crate::common::ports::free_port();
    let line = |key: &str, name: &str| format!("{key} {}", file(name).display());
    let lines = [
        format!("tls-port {port}"),
        line("tls-cert-file", "server.pem"),
        line("tls-key-file", "server.key"),
        line("tls-ca-cert-file", "ca.pem"),
        "tls-auth-clients yes".into(),
    ];
    let _server = RedisServer::start_with(&lines.each_ref().map(String::as_str));

    let mut config = broker_config(&format!("rediss://127.0.0.1:{port}"));
    config.tls.ca = Some(file("ca.pem"));
    let why = start_with(&config, EVENT_CAPACITY).until_down(LIMIT).await;
    assert!(why.contains("cannot connect") || why.contains("closed"), "{why}");

    config.tls.cert = Some(file("client.pem"));
    config.tls.key = Some(file("client.key"));
    let mut gate = start_with(&config, EVENT_CAPACITY);
    gate.until_up().await;
    gate.subscribe("orders/eu").await.unwrap();
    gate.delivers("orders/eu", "orders/eu").await;

    // Another authority, which did not sign the server's.
    let other = tempfile::tempdir().unwrap();
    write_certificates(other.path());
    config.tls.ca = Some(other.path().join("ca.pem"));
    let why = start_with(&config, EVENT_CAPACITY).until_down(LIMIT).await;
    assert!(why.contains("certificate"), "{why}");
}

#[tokio::test]
async fn settings_that_can_never_work_fail_at_once_and_name_their_key() {
    let directory = tempfile::tempdir().unwrap();
    write_certificates(directory.path());
    let file = |name: &str| Some(directory.path().join(name));
    std::fs::write(directory.path().join("empty"), "").unwrap();
    let other = tempfile::tempdir().unwrap();
    write_certificates(other.path());

    let secure = || broker_config("rediss://h");
    let tls = |ca: Option<_>, cert: Option<_>, key: Option<_>| config::Broker {
        tls: BrokerTls { ca, cert, key },
        ..secure()
    };
    let cases = [
        ("broker.url", broker_config("redis://u:hunter2@h:port")),
        ("broker.url", broker_config("redis://u:hunter2@h/zero")),
        ("broker.url", broker_config("amqp://u:hunter2@h")),
        ("broker.url", broker_config("redis://")),
        ("broker.url", broker_config("rediss://h#insecure")),
        ("broker.user", config::Broker { user: Some("gate".into()), ..broker_config("redis://h") }),
        ("broker.separator", config::Broker { separator: '*', ..broker_config("redis://h") }),
        (
            "broker.tls.ca",
            config::Broker { tls: tls(file("ca.pem"), None, None).tls, ..broker_config("redis://h") },
        ),
        ("broker.tls.ca", tls(file("absent"), None, None)),
        ("broker.tls.ca", tls(file("empty"), None, None)),
        ("broker.tls.cert", tls(None, file("client.pem"), None)),
        ("broker.tls.key", tls(None, None, file("client.key"))),
        ("broker.tls.cert", tls(None, file("empty"), file("client.key"))),
        ("broker.tls.key", tls(None, file("client.pem"), file("ca.pem"))),
        ("broker.tls.key", tls(None, file("client.pem"), Some(other.path().join("client.key")))),
    ];
    for (key, config) in cases {
        let error = Broker::redis(&config, mpsc::channel(1).0).expect_err(key);
        let error = error.to_string();
        assert!(error.starts_with(&format!("{key}: ")), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
        if let Some(name) = config.tls.ca.filter(|_| config.url.0.starts_with("rediss")) {
            assert!(error.contains(name.to_str().unwrap()), "{error}");
        }
    }
}

#[tokio::test]
async fn every_number_comes_in_order_or_after_a_loss_when_the_server_cuts_the_client_off() {
    let server = RedisServer::start();
    let mut gate = start(&server).await;
    gate.subscribe("numbers").await.unwrap();
    gate.subscribe("*").await.unwrap();
    let mut connection = server.connect().await;
    let publishing = async {
        for number in 0..3000_u32 {
            let mut publish = redis::cmd("PUBLISH");
            publish.arg("numbers").arg(number).exec_async(&mut connection).await.unwrap();
            if number % 1000 == 500 {
                // Patterns are subscribed last.
                eventually("subscribed", async || server.patterns().await == 1).await;
                command(&server, &["CLIENT", "KILL", "TYPE", "pubsub"]).await;
            }
        }
        // The last may fall into the gap as well; one after that may not.
        eventually("subscribed again", async || server.patterns().await == 1).await;
        let mut publish = redis::cmd("PUBLISH");
        publish.arg("numbers").arg(3000).exec_async(&mut connection).await.unwrap();
    };
    let reading = async {
        let mut next = [Some(0), Some(0)];
        let mut losses = 0;
        while next != [Some(3001); 2] {
            match timeout(LIMIT, gate.events.recv()).await.unwrap().unwrap() {
                Event::Message(message) => {
                    let number: u32 = std::str::from_utf8(&message.payload).unwrap().parse().unwrap();
                    let next = &mut next[usize::from(message.filter.is_pattern())];
                    assert!(next.is_none_or(|next| next == number), "{number} came instead of {next:?}");
                    *next = Some(number + 1);
                }
                Event::Lost { filters: None, .. } => {
                    next = [None; 2];
                    losses += 1;
                }
                Event::Up(_) | Event::Down { .. } | Event::Interrupted { .. } | Event::Resumed { .. } => {}
                event => panic!("{event:?}"),
            }
        }
        // A cut that falls between a subscription and our knowing of it adds none.
        assert!((1..=3).contains(&losses), "{losses}");
    };
    tokio::join!(publishing, reading);
    assert_eq!(server.pubsub_clients().await, 1);
}

#[tokio::test]
async fn a_connection_that_is_closed_for_a_full_output_buffer_is_a_loss_and_then_delivers_again() {
    let server = RedisServer::start_with(&["client-output-buffer-limit pubsub 256kb 256kb 1"]);
    let mut gate = start(&server).await;
    gate.subscribe("orders/eu").await.unwrap();
    gate.publish("orders/eu", vec![b'x'; 1024 * 1024]).await.unwrap();
    gate.recovered().await;
    gate.delivers("orders/eu", "orders/eu").await;
}

#[tokio::test]
async fn a_server_that_was_killed_and_comes_back_delivers_within_two_seconds() {
    let mut server = RedisServer::start();
    let mut gate = start(&server).await;
    gate.subscribe("orders/eu").await.unwrap();
    gate.subscribe("trades/*").await.unwrap();
    gate.subscribe("gone").await.unwrap();
    gate.delivers("orders/eu", "orders/eu").await;
    server.stop();
    gate.until_down(LIMIT).await;

    let asked = Instant::now();
    assert!(matches!(gate.subscribe("new").await, Err(BrokerError::Away(_))));
    assert!(matches!(gate.publish("orders/eu", "").await, Err(BrokerError::Away(_))));
    assert!(gate.broker.try_unsubscribe(filter("gone"), &Source::Pubsub));
    assert!(asked.elapsed() < Duration::from_millis(500), "answered at once");
    // Long enough for the back-off to have reached its cap: the reason changes once, when nothing listens any more.
    let why = gate.until_down(LIMIT).await;
    assert!(why.contains("refused"), "{why}");

    server.restart();
    let returned = Instant::now();
    gate.recovered().await;
    gate.delivers("orders/eu", "orders/eu").await;
    gate.delivers("trades/42", "trades/*").await;
    assert!(returned.elapsed() < Duration::from_secs(2), "{:?}", returned.elapsed());
    assert_eq!(server.channels().await, 1, "what was unsubscribed meanwhile, or refused, is not subscribed");
}

#[tokio::test]
async fn a_server_that_stops_answering_is_noticed_within_fifteen_seconds() {
    let server = RedisServer::start();
    let mut gate = start(&server).await;
    gate.subscribe("orders/eu").await.unwrap();
    server.pause();
    let paused = Instant::now();
    gate.until_down(Duration::from_secs(15)).await;
    assert!(paused.elapsed() > Duration::from_secs(3), "not before it was silent for long");
    assert!(matches!(gate.subscribe("new").await, Err(BrokerError::Away(_))));
    server.resume();
    let resumed = Instant::now();
    gate.recovered().await;
    gate.delivers("orders/eu", "orders/eu").await;
    assert!(resumed.elapsed() < Duration::from_secs(2), "{:?}", resumed.elapsed());
    eventually("the dead connection is gone", async || server.pubsub_clients().await == 1).await;
}

#[tokio::test]
async fn a_subscription_that_is_never_confirmed_fails_in_time() {
    let server = RedisServer::start();
    let mut gate = start(&server).await;
    server.pause();
    let (subscribed, published) = tokio::join!(
        timeout(Duration::from_secs(15), gate.broker.subscribe(filter("orders/eu"), Source::Pubsub)),
        timeout(
            Duration::from_secs(15),
            gate.broker.publish(topic("a"), Source::Pubsub, Bytes::new(), Headers::default())
        ),
    );
    assert!(matches!(subscribed.unwrap(), Err(BrokerError::Away(_))));
    assert!(matches!(published.unwrap(), Err(BrokerError::Away(_))));
    server.resume();
    gate.recovered().await;
    assert_eq!(server.channels().await, 0, "what was answered with an error is not subscribed");
}

#[tokio::test]
async fn a_publishing_connection_that_was_closed_while_idle_costs_no_publish() {
    let server = RedisServer::start();
    let mut gate = start(&server).await;
    gate.subscribe("orders/eu").await.unwrap();
    gate.delivers("orders/eu", "orders/eu").await;
    command(&server, &["CLIENT", "KILL", "TYPE", "normal"]).await;
    // Being idle is what is tested; shorter than this, the connection is not tried before it is used.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    gate.delivers("orders/eu", "orders/eu").await;
}

#[tokio::test]
async fn a_server_absent_at_the_start_is_waited_for() {
    let mut server = RedisServer::absent(&[]);
    let mut gate = start_with(&broker_config(&server.url()), EVENT_CAPACITY);
    gate.until_down(LIMIT).await;
    assert!(matches!(gate.subscribe("orders/eu").await, Err(BrokerError::Away(_))));
    server.restart();
    let before = gate.until_up().await;
    assert!(
        !before.iter().any(|event| matches!(event, Event::Lost { .. })),
        "there was nothing to lose: {before:?}"
    );
    gate.subscribe("orders/eu").await.unwrap();
    gate.delivers("orders/eu", "orders/eu").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_that_is_not_read_is_a_loss_of_its_filter_alone_and_every_message_is_accounted_for() {
    const FLOOD: u32 = 50_000;
    let server = RedisServer::start();
    let mut gate = start_with(&broker_config(&server.url()), 64);
    gate.until_up().await;
    gate.subscribe("flood").await.unwrap();
    gate.subscribe("calm").await.unwrap();
    gate.publish("calm", "0").await.unwrap();

    let mut connection = server.connect().await;
    for start in (0..FLOOD).step_by(1000) {
        let mut pipeline = redis::pipe();
        for number in start..start + 1000 {
            pipeline.cmd("PUBLISH").arg("flood").arg(number).ignore();
        }
        pipeline.exec_async(&mut connection).await.unwrap();
    }
    // A subscription answered now was confirmed behind the flood: the connection is not held up by it.
    gate.subscribe("after").await.unwrap();
    // Nor does a subscription that is sent again wipe out what is marked.
    gate.subscribe("flood").await.unwrap();

    let (mut next, mut marked, mut lost, mut calm) = (0, false, 0, 0);
    while next < FLOOD {
        // A number that is past the flood tells whether its last messages were dropped.
        match timeout(Duration::from_millis(200), gate.events.recv()).await {
            Err(_) => gate.publish("flood", FLOOD.to_string()).await.unwrap(),
            Ok(Some(Event::Message(message))) if message.filter == filter("flood") => {
                let number: u32 = std::str::from_utf8(&message.payload).unwrap().parse().unwrap();
                assert!(number == next || marked, "{number} came instead of {next} without a mark");
                if number == next {
                    assert!(!marked, "a mark before {number} where nothing is missing");
                }
                lost -= if marked { number - next } else { 0 };
                (next, marked) = (number + 1, false);
            }
            Ok(Some(Event::Message(message))) => {
                assert_eq!(message.filter, filter("calm"));
                calm += 1;
            }
            Ok(Some(Event::Lost { filters: Some(of), why })) => {
                assert_eq!(of, [filter("flood")]);
                lost += why.split(' ').next().unwrap().parse::<u32>().unwrap();
                marked = true;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((calm, lost), (1, 0), "the counts of the marks are what is missing");
}

#[tokio::test]
async fn the_task_ends_with_the_last_handle() {
    let server = RedisServer::start();
    let Fixture { broker, mut events } = start(&server).await;
    broker.subscribe(filter("orders/eu"), Source::Pubsub).await.unwrap();
    drop(broker);
    assert!(timeout(LIMIT, events.recv()).await.unwrap().is_none());
    eventually("the connection is closed", async || server.pubsub_clients().await == 0).await;
}
