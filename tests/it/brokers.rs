//! The contract of `broker`, checked against every broker, and the faults that only a real server can have.
//!
//! To add a broker: a variant of [`Upstream`], a constructor of [`Fixture`], and a line in `contract_of_all!`.

use std::time::{Duration, Instant};

use crate::common::nats::NatsServer;
use crate::common::upstream::Upstream;
use crate::common::{broker_config, found, within};
use bytes::Bytes;
use tokio::sync::mpsc;
use topicgate::internals::broker::{Broker, BrokerError, EVENT_CAPACITY, Event, Message};
use topicgate::internals::config::{self, Secret};
use topicgate::internals::protocol::headers::Headers;
use topicgate::internals::protocol::source::Source;
use topicgate::internals::protocol::topic::{Filter, Topic};

const SOON: Duration = Duration::from_secs(10);

/// The server of a broker, and a client of it that is not topicgate.
#[allow(clippy::large_enum_variant)] // one a test
enum Server {
    Memory,
    Real(Upstream),
}

/// A broker that is up, and its events.
struct Fixture {
    server: Server,
    broker: Broker,
    events: mpsc::Receiver<Event>,
    /// Messages so far whose subject was no topic.
    unnameable: usize,
}

impl Fixture {
    async fn memory() -> Self {
        let (sender, events) = mpsc::channel(EVENT_CAPACITY);
        Self::up(Server::Memory, Broker::memory(sender), events).await
    }

    async fn nats() -> Self {
        let upstream = Upstream::nats().await;
        let (broker, events) = connect(&broker_config(&upstream.url()));
        Self::up(Server::Real(upstream), broker, events).await
    }

    async fn redis() -> Self {
        let upstream = Upstream::redis().await;
        let (sender, events) = mpsc::channel(EVENT_CAPACITY);
        let broker = Broker::redis(&broker_config(&upstream.url()), sender).unwrap();
        Self::up(Server::Real(upstream), broker, events).await
    }

    async fn up(server: Server, broker: Broker, events: mpsc::Receiver<Event>) -> Self {
        let mut fixture = Fixture { server, broker, events, unnameable: 0 };
        assert!(matches!(next(&mut fixture.events).await, Event::Up(_)));
        fixture
    }

    /// Publishes past topicgate, under the broker's own name for the topic.
    async fn publish(&self, topic: &str, payload: impl Into<Bytes>) {
        match &self.server {
            Server::Memory => {
                let topic = Topic::parse(topic, 200).unwrap();
                self.broker.publish(topic, Source::Pubsub, payload.into(), Headers::default()).await.unwrap();
            }
            Server::Real(upstream) => upstream.publish(topic, payload.into()).await,
        }
    }

    /// Subscriptions on the server, where one can ask it.
    async fn subscriptions(&self) -> Option<u64> {
        match &self.server {
            Server::Memory => None,
            Server::Real(upstream) => Some(upstream.subscriptions().await),
        }
    }

    async fn subscribe(&self, text: &str) {
        self.broker.subscribe(filter(text), Source::Pubsub).await.unwrap();
    }

    /// The next event, which must be a message.
    async fn message(&mut self) -> Message {
        loop {
            match next(&mut self.events).await {
                Event::Message(message) => return message,
                Event::Unnameable { .. } => self.unnameable += 1,
                other => panic!("{other:?}"),
            }
        }
    }

    /// The topics of all messages up to one that is published now on `end`, which must be subscribed.
    async fn topics_until(&mut self, end: &str) -> Vec<String> {
        self.publish(end, "end").await;
        let mut topics = Vec::new();
        loop {
            let message = self.message().await;
            if message.topic.as_str() == end {
                return topics;
            }
            topics.push(message.topic.to_string());
        }
    }
}

fn filter(text: &str) -> Filter {
    Filter::parse(text, 200).unwrap()
}

fn topic(text: &str) -> Topic {
    Topic::parse(text, 200).unwrap()
}

fn connect(config: &config::Broker) -> (Broker, mpsc::Receiver<Event>) {
    let (sender, events) = mpsc::channel(EVENT_CAPACITY);
    (Broker::nats(config, sender).unwrap(), events)
}

async fn next(events: &mut mpsc::Receiver<Event>) -> Event {
    within("the next event", SOON, events.recv()).await.expect("the broker runs")
}

macro_rules! contract {
    ($broker:ident, $fixture:ident: $($name:ident),* $(,)?) => {
        mod $broker { $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(super::Fixture::$fixture().await).await }
        )* }
    };
}

macro_rules! contract_of_all {
    ($($name:ident),* $(,)?) => {
        contract!(memory, memory: $($name),*);
        contract!(nats, nats: $($name),*);
        contract!(redis_server, redis: $($name),*); // `mod redis` would hide the crate
    };
}

contract_of_all!(
    messages_that_are_published_after_the_confirmation_arrive,
    messages_keep_their_order,
    wildcards_match_as_the_grammar_says,
    filters_that_overlap_get_a_message_once_each,
    unsubscribing_stops_messages_and_leaves_nothing_on_the_server,
    a_filter_can_be_subscribed_again_right_after_it_was_unsubscribed,
    a_wildcard_never_matches_a_reserved_topic,
    payloads_are_any_bytes_of_any_length,
    subscribing_twice_changes_nothing,
);

// Redis has no header fields: tests/it/redis_broker.rs tests how they are refused.
contract!(memory_headers, memory: messages_that_are_published_through_the_broker_arrive_with_their_headers);
contract!(nats_headers, nats: messages_that_are_published_through_the_broker_arrive_with_their_headers);

async fn messages_that_are_published_after_the_confirmation_arrive(mut broker: Fixture) {
    for round in 0..200 {
        let name = format!("orders/{round}");
        broker.subscribe(&name).await;
        broker.publish(&name, name.clone()).await;
        let message = broker.message().await;
        assert_eq!(message.topic, topic(&name));
        assert_eq!(message.filter, filter(&name));
        assert_eq!(message.payload, name);
    }
}

async fn messages_keep_their_order(mut broker: Fixture) {
    broker.subscribe("count").await;
    for number in 0..10_000 {
        broker.publish("count", number.to_string()).await;
    }
    for number in 0..10_000 {
        assert_eq!(broker.message().await.payload, number.to_string());
    }
}

async fn wildcards_match_as_the_grammar_says(mut broker: Fixture) {
    for (pattern, expected, last) in [
        ("orders/*", vec!["orders/eu"], "orders/last"),
        ("orders/**", vec!["orders/eu", "orders/eu/42"], "orders/last"),
        ("*/eu/*", vec!["orders/eu/42"], "last/eu/x"),
        ("**", vec!["orders", "orders/eu", "orders/eu/42"], "last"),
    ] {
        broker.subscribe(pattern).await;
        for name in ["orders", "orders/eu", "orders/eu/42"] {
            broker.publish(name, "").await;
        }
        assert_eq!(broker.topics_until(last).await, expected, "{pattern}");
        assert!(broker.broker.try_unsubscribe(filter(pattern), &Source::Pubsub));
    }
}

async fn filters_that_overlap_get_a_message_once_each(mut broker: Fixture) {
    let filters = ["orders/eu", "orders/*", "orders/**", "**"];
    for text in filters {
        broker.subscribe(text).await;
    }
    broker.publish("orders/eu", "x").await;
    let mut by = Vec::new();
    for _ in filters {
        by.push(broker.message().await.filter);
    }
    by.sort();
    let mut expected = filters.map(filter);
    expected.sort();
    assert_eq!(by, expected);
}

async fn unsubscribing_stops_messages_and_leaves_nothing_on_the_server(mut broker: Fixture) {
    for number in 0..300 {
        broker.subscribe(&format!("orders/{number}")).await;
    }
    for number in 0..300 {
        assert!(broker.broker.try_unsubscribe(filter(&format!("orders/{number}")), &Source::Pubsub));
    }
    broker.subscribe("end").await;
    for number in 0..300 {
        broker.publish(&format!("orders/{number}"), "x").await;
    }
    assert_eq!(broker.topics_until("end").await, Vec::<String>::new());
    assert!(broker.broker.try_unsubscribe(filter("end"), &Source::Pubsub));
    found("no subscription is left on the server", SOON, async || {
        broker.subscriptions().await.is_none_or(|count| count == 0).then_some(())
    })
    .await;
}

async fn a_filter_can_be_subscribed_again_right_after_it_was_unsubscribed(mut broker: Fixture) {
    broker.subscribe("orders").await;
    for round in 0..100 {
        assert!(broker.broker.try_unsubscribe(filter("orders"), &Source::Pubsub));
        broker.subscribe("orders").await;
        broker.publish("orders", round.to_string()).await;
        assert_eq!(broker.message().await.payload, round.to_string());
    }
}

async fn messages_that_are_published_through_the_broker_arrive_with_their_headers(mut broker: Fixture) {
    broker.subscribe("orders").await;
    let mut headers = Headers::default();
    headers.insert("Nats-Msg-Id", "42");
    headers.insert("Type", "created");
    broker.broker.publish(topic("orders"), Source::Pubsub, "new".into(), headers).await.unwrap();
    let message = broker.message().await;
    assert_eq!(message.payload, "new");
    assert_eq!(message.headers.get("nats-msg-id"), Some("42"));
    assert_eq!(message.headers.get("type"), Some("created"));
}

async fn a_wildcard_never_matches_a_reserved_topic(mut broker: Fixture) {
    broker.subscribe("**").await;
    for name in ["_INBOX/secret", "$KV/prices/eu", "__keyspace@0__"] {
        broker.publish(name, "x").await;
    }
    assert_eq!(broker.topics_until("end").await, Vec::<String>::new());
}

async fn payloads_are_any_bytes_of_any_length(mut broker: Fixture) {
    broker.subscribe("bytes").await;
    let large: Vec<u8> = (0..256 * 1024).map(|index| index as u8).collect();
    for payload in [Bytes::new(), Bytes::from_static(b"\0\xff\r\n\xfe"), Bytes::from(large)] {
        broker.publish("bytes", payload.clone()).await;
        assert_eq!(broker.message().await.payload, payload);
    }
}

async fn subscribing_twice_changes_nothing(mut broker: Fixture) {
    broker.subscribe("orders").await;
    broker.subscribe("orders").await;
    broker.publish("orders", "once").await;
    broker.publish("orders", "then").await;
    assert_eq!(broker.message().await.payload, "once");
    assert_eq!(broker.message().await.payload, "then");
}

/// Tests that need a server that can be killed, stopped or configured to refuse.
mod nats_server {
    use super::*;

    impl Fixture {
        fn nats_server(&mut self) -> &mut NatsServer {
            let Server::Real(Upstream::Nats { server, .. }) = &mut self.server else { panic!("not on NATS") };
            server
        }
    }

    /// The reason of the next event, which must be `Down`.
    async fn down(events: &mut mpsc::Receiver<Event>, limit: Duration) -> String {
        match within("the connection is found dead", limit, events.recv()).await {
            Some(Event::Down { why, .. }) => why,
            other => panic!("{other:?}"),
        }
    }

    /// Skips repeated `Down`s; the next other event must be the loss, then `Up`.
    async fn lost_then_up(events: &mut mpsc::Receiver<Event>) {
        loop {
            match next(events).await {
                Event::Down { .. } => {}
                Event::Lost { filters: None, .. } => break,
                other => panic!("{other:?}"),
            }
        }
        assert!(matches!(next(events).await, Event::Up(_)));
    }

    /// Waits for `Up` and nothing but `Down` before it.
    async fn up(events: &mut mpsc::Receiver<Event>) {
        loop {
            match next(events).await {
                Event::Down { .. } => {}
                Event::Up(_) => return,
                other => panic!("{other:?}"),
            }
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn messages_whose_subject_is_no_topic_are_dropped_and_reported() {
        let mut broker = Fixture::nats().await;
        broker.subscribe("**").await;
        let Server::Real(Upstream::Nats { client, .. }) = &broker.server else { panic!() };
        for subject in ["a/b", "a.b%c", "a.[b]", "a\u{7f}b"] {
            client.publish(subject, "x".into()).await.unwrap();
        }
        assert_eq!(broker.topics_until("end").await, Vec::<String>::new());
        assert_eq!(broker.unnameable, 4);
        let dotted = broker.broker.subscribe(filter("a.b/c"), Source::Pubsub).await;
        assert!(matches!(dotted, Err(BrokerError::Refused(_))), "{dotted:?}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_killed_server_is_a_loss_before_the_next_message() {
        let mut broker = Fixture::nats().await;
        broker.subscribe("count").await;
        broker.subscribe("other/**").await;
        for round in 0..3 {
            broker.publish("count", "before").await;
            // The publisher of the round before may have left a last word.
            while broker.message().await.payload != "before" {}
            broker.nats_server().stop();
            down(&mut broker.events, SOON).await;
            let away = broker.broker.subscribe(filter("late"), Source::Pubsub).await;
            assert!(matches!(away, Err(BrokerError::Away(_))), "{away:?}");
            let away =
                broker.broker.publish(topic("late"), Source::Pubsub, "x".into(), Headers::default()).await;
            assert!(matches!(away, Err(BrokerError::Away(_))), "{away:?}");
            if round == 0 {
                assert!(broker.broker.try_unsubscribe(filter("other/**"), &Source::Pubsub));
            }
            broker.nats_server().restart();
            let returned = Instant::now();
            // Others publish from the first moment on; their messages must arrive after the loss.
            let client = async_nats::connect(broker.nats_server().url()).await.unwrap();
            let publisher = tokio::spawn(async move {
                loop {
                    client.publish("count", "after".into()).await.unwrap();
                    client.flush().await.unwrap();
                    tokio::task::yield_now().await;
                }
            });
            lost_then_up(&mut broker.events).await;
            assert_eq!(broker.message().await.payload, "after");
            assert!(returned.elapsed() < Duration::from_secs(2), "{:?}", returned.elapsed());
            publisher.abort();
            assert!(publisher.await.unwrap_err().is_cancelled());
            let url = broker.nats_server().url();
            let fresh = async_nats::connect(url).await.unwrap();
            if let Server::Real(Upstream::Nats { client, .. }) = &mut broker.server {
                *client = fresh;
            }
            broker.publish("count", "last").await;
            while broker.message().await.payload != "last" {}
            // One connection, and one subscription on it: nothing of the old session is left.
            found("only the new connection", SOON, async || {
                (broker.nats_server().subscriptions() == [1]).then_some(())
            })
            .await;
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_server_that_went_silent_is_noticed_within_fifteen_seconds() {
        let mut broker = Fixture::nats().await;
        broker.subscribe("orders").await;
        broker.nats_server().pause();
        down(&mut broker.events, Duration::from_secs(15)).await;
        broker.nats_server().resume();
        lost_then_up(&mut broker.events).await;
        broker.publish("orders", "x").await;
        assert_eq!(broker.message().await.payload, "x");
        found("only the new connection", SOON, async || {
            (broker.nats_server().subscriptions() == [1]).then_some(())
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_server_that_confirms_nothing_ends_the_session() {
        let mut broker = Fixture::nats().await;
        broker.nats_server().pause();
        let answer =
            within("an answer", SOON, broker.broker.subscribe(filter("orders"), Source::Pubsub)).await;
        assert!(matches!(answer, Err(BrokerError::Away(_))), "{answer:?}");
        down(&mut broker.events, SOON).await;
        broker.nats_server().resume();
        lost_then_up(&mut broker.events).await;
        found("only the new connection, with nothing on it", SOON, async || {
            (broker.nats_server().subscriptions() == [0]).then_some(())
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_server_that_is_absent_at_the_start_is_waited_for() {
        let mut server = NatsServer::start();
        server.stop();
        let (broker, mut events) = connect(&broker_config(&server.url()));
        down(&mut events, SOON).await;
        assert!(matches!(
            broker.subscribe(filter("orders"), Source::Pubsub).await,
            Err(BrokerError::Away(_))
        ));
        server.restart();
        up(&mut events).await;
        broker.subscribe(filter("orders"), Source::Pubsub).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn another_server_of_the_list_takes_over() {
        let mut first = NatsServer::start();
        let mut second = NatsServer::start();
        let (broker, mut events) = connect(&broker_config(&format!("{},{}", first.url(), second.url())));
        up(&mut events).await;
        broker.subscribe(filter("orders"), Source::Pubsub).await.unwrap();
        let (used, spare) =
            if first.subscriptions().is_empty() { (&mut second, &first) } else { (&mut first, &second) };
        used.stop();
        down(&mut events, SOON).await;
        lost_then_up(&mut events).await;
        assert_eq!(spare.subscriptions(), [1]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_connection_ends_with_the_last_handle() {
        let broker = Fixture::nats().await;
        broker.subscribe("orders").await;
        let Fixture { server, broker, mut events, .. } = broker;
        drop(broker);
        assert!(within("the end of the events", SOON, events.recv()).await.is_none());
        let Server::Real(Upstream::Nats { server, .. }) = server else { panic!() };
        found("no connection is left", SOON, async || server.subscriptions().is_empty().then_some(())).await;
    }

    const NARROW: &str = r#"authorization { users = [
        { user: gate, password: pass, permissions: { subscribe: ["orders.>"], publish: ["orders.in"] } }
        { user: other, password: pass }
    ] }"#;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn permissions_for_the_topics_alone_are_enough() {
        let server = NatsServer::with(NARROW);
        let url = server.url().replace("//", "//gate:pass@");
        let (broker, mut events) = connect(&broker_config(&url));
        up(&mut events).await;
        broker.subscribe(filter("orders/**"), Source::Pubsub).await.unwrap();
        broker.publish(topic("orders/in"), Source::Pubsub, "x".into(), Headers::default()).await.unwrap();
        assert!(matches!(next(&mut events).await, Event::Message(message) if message.payload == "x"));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_command_that_permissions_forbid_is_refused_alone() {
        let server = NatsServer::with(NARROW);
        let url = server.url().replace("//", "//gate:pass@");
        let (broker, mut events) = connect(&broker_config(&url));
        up(&mut events).await;
        let forbidden: Vec<_> = (0..150).map(|number| filter(&format!("Secret/{number}"))).collect();
        let asked = forbidden.iter().map(|filter| broker.subscribe(filter.clone(), Source::Pubsub));
        let (refused, allowed) = tokio::join!(
            futures_util::future::join_all(asked),
            broker.subscribe(filter("orders/eu"), Source::Pubsub)
        );
        assert_eq!(allowed, Ok(()));
        for answer in refused {
            assert!(
                matches!(&answer, Err(BrokerError::Refused(why)) if why.contains("Secret")),
                "{answer:?}"
            );
        }
        let refused =
            broker.publish(topic("orders/out"), Source::Pubsub, "x".into(), Headers::default()).await;
        assert!(matches!(refused, Err(BrokerError::Refused(_))), "{refused:?}");
        // The server quotes subjects as a Go string does.
        let odd = broker.subscribe(filter("se\"cr\u{ad}et/é"), Source::Pubsub).await;
        assert!(matches!(odd, Err(BrokerError::Refused(_))), "{odd:?}");
        assert_eq!(server.subscriptions(), [1]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_permission_that_is_withdrawn_later_is_reported() {
        let server = NatsServer::with(NARROW);
        let url = server.url().replace("//", "//gate:pass@");
        let (broker, mut events) = connect(&broker_config(&url));
        up(&mut events).await;
        broker.subscribe(filter("orders/eu"), Source::Pubsub).await.unwrap();
        broker.subscribe(filter("orders/us"), Source::Pubsub).await.unwrap();
        server.configure(&NARROW.replace("orders.>", "orders.us"));
        server.reload();
        // A server may also end the connection to apply new permissions; the refusal comes with the next one then.
        let refused = loop {
            match next(&mut events).await {
                Event::Refused { filter, .. } => break filter,
                Event::Down { .. } => {}
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(refused, filter("orders/eu"));
        found("one subscription is left", SOON, async || (server.subscriptions() == [1]).then_some(())).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_payload_above_the_server_limit_is_refused() {
        let server = NatsServer::with("max_payload: 1024");
        let (broker, mut events) = connect(&broker_config(&server.url()));
        up(&mut events).await;
        let answer =
            broker.publish(topic("orders"), Source::Pubsub, vec![0; 2000].into(), Headers::default()).await;
        assert!(matches!(&answer, Err(BrokerError::TooLarge(why)) if why.contains("1024")), "{answer:?}");
        assert_eq!(broker.largest_message(), 1024);
        broker.publish(topic("orders"), Source::Pubsub, "small".into(), Headers::default()).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_subscription_above_the_server_limit_is_not_confirmed() {
        let server = NatsServer::with("max_subscriptions: 1");
        let (broker, mut events) = connect(&broker_config(&server.url()));
        up(&mut events).await;
        broker.subscribe(filter("orders"), Source::Pubsub).await.unwrap();
        for _ in 0..3 {
            let above = broker.subscribe(filter("above"), Source::Pubsub).await.unwrap_err();
            assert!(above.to_string().contains("maximum subscriptions"), "{above}");
        }
        broker.publish(topic("orders"), Source::Pubsub, "x".into(), Headers::default()).await.unwrap();
        assert!(matches!(next(&mut events).await, Event::Message(_)));
    }

    /// Connects as `config` says and shows that it works.
    async fn works(config: &config::Broker) {
        let (broker, mut events) = connect(config);
        up(&mut events).await;
        broker.subscribe(filter("orders"), Source::Pubsub).await.unwrap();
        broker.publish(topic("orders"), Source::Pubsub, "x".into(), Headers::default()).await.unwrap();
        assert!(matches!(next(&mut events).await, Event::Message(_)));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn every_way_to_log_in_works() {
        let server = NatsServer::with("authorization { user: gate, password: \"p@ss\" }");
        let plain = broker_config(&server.url());
        works(&broker_config(&server.url().replace("//", "//gate:p%40ss@"))).await;
        let password = Some(Secret("p@ss".into()));
        works(&config::Broker { user: Some("gate".into()), password, ..plain }).await;

        let server = NatsServer::with("authorization { token: \"s3cret\" }");
        let plain = broker_config(&server.url());
        works(&broker_config(&server.url().replace("//", "//s3cret@"))).await;
        works(&config::Broker { token: Some(Secret("s3cret".into())), ..plain }).await;

        let user = nkeys::KeyPair::new_user();
        let server =
            NatsServer::with(&format!("authorization {{ users = [ {{ nkey: {} }} ] }}", user.public_key()));
        let plain = broker_config(&server.url());
        works(&config::Broker { nkey: Some(Secret(user.seed().unwrap())), ..plain }).await;

        let (server_config, creds) = decentralised();
        let server = NatsServer::with(&server_config);
        let path = server.directory().join("user.creds");
        std::fs::write(&path, creds).unwrap();
        let plain = broker_config(&server.url());
        works(&config::Broker { credentials: Some(path), ..plain }).await;
    }

    /// A server's configuration with an operator and an account, and the credentials of a user of it.
    fn decentralised() -> (String, String) {
        use base64::Engine;
        use base64::engine::general_purpose::URL_SAFE_NO_PAD;
        let token = |issuer: &nkeys::KeyPair, subject: &nkeys::KeyPair, claims: serde_json::Value| {
            let body = serde_json::json!({
                "jti": subject.public_key(), "iat": 1_700_000_000, "iss": issuer.public_key(),
                "sub": subject.public_key(), "name": "test", "nats": claims,
            });
            let head = URL_SAFE_NO_PAD.encode(r#"{"typ":"JWT","alg":"ed25519-nkey"}"#);
            let signed = format!("{head}.{}", URL_SAFE_NO_PAD.encode(body.to_string()));
            let signature = URL_SAFE_NO_PAD.encode(issuer.sign(signed.as_bytes()).unwrap());
            format!("{signed}.{signature}")
        };
        let (operator, account, user) =
            (nkeys::KeyPair::new_operator(), nkeys::KeyPair::new_account(), nkeys::KeyPair::new_user());
        let limits = serde_json::json!({
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true,
            "conn": -1, "leaf": -1,
        });
        let of_operator = token(&operator, &operator, serde_json::json!({"type": "operator", "version": 2}));
        let of_account = token(
            &operator,
            &account,
            serde_json::json!({"type": "account", "version": 2, "limits": limits}),
        );
        let of_user = token(
            &account,
            &user,
            serde_json::json!({"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1}),
        );
        let config = format!(
            "operator: {of_operator}\nresolver: MEMORY\nresolver_preload: {{ {}: {of_account} }}\n",
            account.public_key()
        );
        let creds = format!(
            "-----BEGIN NATS USER JWT-----\n{of_user}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            user.seed().unwrap()
        );
        (config, creds)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_wrong_password_is_reported_as_the_reason_and_not_repeated_in_it() {
        let server = NatsServer::with("authorization { user: gate, password: right }");
        let url = server.url().replace("//", "//gate:wrong@");
        let (broker, mut events) = connect(&broker_config(&url));
        let why = down(&mut events, SOON).await;
        assert!(why.to_lowercase().contains("authorization violation"), "{why}");
        assert!(!why.contains("wrong"), "{why}");
        assert!(matches!(
            broker.subscribe(filter("orders"), Source::Pubsub).await,
            Err(BrokerError::Away(_))
        ));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_configuration_that_can_never_work_names_its_key() {
        let directory = tempfile::tempdir().unwrap();
        let empty = directory.path().join("empty");
        std::fs::write(&empty, "").unwrap();
        let plain = || broker_config("nats://127.0.0.1:4222");
        let tls = |ca, cert, key| config::Broker { tls: config::BrokerTls { ca, cert, key }, ..plain() };
        let missing = Some(directory.path().join("missing"));
        for (key, config) in [
            ("broker.url", broker_config("http://127.0.0.1")),
            ("broker.url", broker_config("nats://")),
            ("broker.url", broker_config("nats://a:4222,b:4222")),
            ("broker.user", config::Broker { user: Some("a".into()), ..plain() }),
            ("broker.password", config::Broker { password: Some(Secret("a".into())), ..plain() }),
            ("broker.nkey", config::Broker { nkey: Some(Secret("SUnope".into())), ..plain() }),
            ("broker.credentials", config::Broker { credentials: missing.clone(), ..plain() }),
            ("broker.credentials", config::Broker { credentials: Some(empty.clone()), ..plain() }),
            ("broker.tls.ca", tls(missing.clone(), None, None)),
            ("broker.tls.ca", tls(Some(empty.clone()), None, None)),
            ("broker.tls.cert", tls(None, Some(empty.clone()), None)),
            ("broker.tls.key", tls(None, None, Some(empty.clone()))),
        ] {
            let (sender, _events) = mpsc::channel(1);
            let why = Broker::nats(&config, sender).unwrap_err();
            assert!(why.0.starts_with(key), "{key}: {why}");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn tls_with_a_private_authority_and_a_client_certificate_works() {
        use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
        let authority_key = KeyPair::generate().unwrap();
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority_certificate = authority.self_signed(&authority_key).unwrap();
        let issuer = Issuer::new(authority, authority_key);
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let ca = write("ca.pem", authority_certificate.pem());
        let issue = |name: &str, host: &str| {
            let key = KeyPair::generate().unwrap();
            let certificate =
                CertificateParams::new(vec![host.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
            (
                write(&format!("{name}.pem"), certificate.pem()),
                write(&format!("{name}.key"), key.serialize_pem()),
            )
        };
        let (server_cert, server_key) = issue("server", "localhost");
        let (cert, key) = issue("client", "gate");
        let server = NatsServer::with(&format!(
            "tls {{ cert_file: {server_cert:?}, key_file: {server_key:?}, ca_file: {ca:?}, verify: true }}"
        ));
        let at = |scheme: &str| broker_config(&format!("{scheme}://localhost:{}", server.port()));
        let tls = config::BrokerTls { ca: Some(ca.clone()), cert: Some(cert), key: Some(key) };
        works(&config::Broker { tls: tls.clone(), ..at("tls") }).await;
        works(&config::Broker { tls, ..at("nats") }).await;
        // Without the authority the server is not trusted; without a certificate it does not trust us.
        let stranger = config::BrokerTls { ca: Some(ca), ..Default::default() };
        for tls in [config::BrokerTls::default(), stranger] {
            let (_broker, mut events) = connect(&config::Broker { tls, ..at("tls") });
            down(&mut events, SOON).await;
        }
    }

    /// Numbers each message so that a reader notices missing ones.
    async fn flood(client: &async_nats::Client, range: std::ops::Range<u64>) {
        for number in range {
            client.publish("flood", number.to_string().into()).await.unwrap();
        }
        client.flush().await.unwrap();
    }

    /// Takes events up to the message `end`. Every number must come in its order; where one is missing, there must be
    /// a `Lost`, and where there is a `Lost`, one must be missing. Returns how often.
    async fn flooded(events: &mut mpsc::Receiver<Event>, end: u64) -> usize {
        let (mut expected, mut is_told, mut losses) = (0, false, 0);
        while expected < end {
            match next(events).await {
                Event::Message(message) => {
                    let number: u64 = std::str::from_utf8(&message.payload).unwrap().parse().unwrap();
                    assert!(number == expected || is_told, "{number} instead of {expected}");
                    (expected, is_told) = (number + 1, false);
                }
                Event::Lost { filters: None, .. } => {
                    (is_told, losses) = (true, losses + 1);
                }
                Event::Down { .. } | Event::Up(_) => {}
                other => panic!("{other:?}"),
            }
        }
        losses
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_message_that_is_too_large_for_memory_is_a_loss_of_its_filter_alone() {
        let server = NatsServer::with("max_payload: 67108865\nmax_pending: 268435456");
        let client = async_nats::connect(server.url()).await.unwrap();
        let (broker, mut events) = connect(&broker_config(&server.url()));
        up(&mut events).await;
        broker.subscribe(filter("large"), Source::Pubsub).await.unwrap();
        broker.subscribe(filter("small"), Source::Pubsub).await.unwrap();
        client.publish("large", vec![b'x'; 64 * 1024 * 1024 + 1].into()).await.unwrap();
        client.publish("large", "after".into()).await.unwrap();
        client.publish("small", "after".into()).await.unwrap();
        match next(&mut events).await {
            Event::Lost { filters: Some(lost), .. } => assert_eq!(lost, [filter("large")]),
            other => panic!("{other:?}"),
        }
        for name in ["large", "small"] {
            let after = next(&mut events).await;
            assert!(matches!(&after, Event::Message(message) if message.topic == topic(name)), "{after:?}");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn messages_that_are_not_read_wait_at_the_server() {
        let server = NatsServer::start();
        let client = async_nats::connect(server.url()).await.unwrap();
        let (sender, mut events) = mpsc::channel(16);
        let broker = Broker::nats(&broker_config(&server.url()), sender).unwrap();
        assert!(matches!(next(&mut events).await, Event::Up(_)));
        broker.subscribe(filter("flood"), Source::Pubsub).await.unwrap();
        flood(&client, 0..200_000).await;
        // Its answer stands behind the messages.
        let late = tokio::spawn({
            let broker = broker.clone();
            async move { broker.subscribe(filter("late"), Source::Pubsub).await }
        });
        assert_eq!(flooded(&mut events, 200_000).await, 0);
        within("an answer", SOON, late).await.unwrap().unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn messages_that_the_server_drops_for_a_slow_gateway_are_a_loss_in_their_place() {
        // It gives a reader up that takes nothing for a second, or lets a megabyte wait.
        let server = NatsServer::with("max_payload: 1000000\nmax_pending: 1000000\nwrite_deadline: \"1s\"");
        let client = async_nats::connect(server.url()).await.unwrap();
        let (sender, mut events) = mpsc::channel(16);
        let broker = Broker::nats(&broker_config(&server.url()), sender).unwrap();
        assert!(matches!(next(&mut events).await, Event::Up(_)));
        broker.subscribe(filter("flood"), Source::Pubsub).await.unwrap();
        let mut sent = 0;
        found("the server gives it up", SOON, async || {
            flood(&client, sent..sent + 50_000).await;
            sent += 50_000;
            server.log().contains("Slow Consumer").then_some(())
        })
        .await;
        let publisher = tokio::spawn(async move {
            loop {
                flood(&client, sent..sent + 1).await;
                sent += 1;
            }
        });
        let losses = flooded(&mut events, sent + 1000).await;
        assert!(losses > 0);
        publisher.abort();
    }
}
