//! Buckets of the NATS key-value store, at the contract of `broker`.

use std::time::Duration;

use crate::common::jetstream::{Admin, Kept, bucket, filter, seq, topic, value};
use crate::common::nats::NatsServer;
use serde_json::json;
use topicgate::internals::broker::{BrokerError, Change, Event, Message};
use topicgate::internals::protocol::headers::Headers;
use topicgate::internals::protocol::seek::{Seek, SeekResult};

async fn start() -> (NatsServer, Admin, Kept) {
    let server = NatsServer::jetstream();
    let admin = Admin::connect(&server.url()).await;
    let kept = Kept::connect(&server.url());
    (server, admin, kept)
}

const DELETE: &[(&str, &str)] = &[("KV-Operation", "DEL")];
const PURGE: &[(&str, &str)] = &[("KV-Operation", "PURGE"), ("Nats-Rollup", "sub")];

fn change(message: &Message) -> (String, Change) {
    (message.topic.to_string(), message.stored.unwrap().change)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_topics_and_each_change_has_its_kind() {
    let (_server, admin, mut kept) = start().await;
    admin.bucket("PRICES", json!({})).await;
    let source = bucket("PRICES", 1);
    let (_, head) = kept.follow("prices/**", &source).await;
    assert_eq!(head, 0);
    admin.put("$KV.PRICES.eur.bid", "1.08").await;
    admin.put_with("$KV.PRICES.eur.bid", DELETE, "").await;
    admin.put_with("$KV.PRICES.usd", PURGE, "").await;
    let first = kept.message().await;
    assert_eq!(value(&first), ("prices/eur/bid".into(), "1.08".into()));
    assert_eq!(change(&first).1, Change::Put);
    assert_eq!(change(&kept.message().await), ("prices/eur/bid".into(), Change::Delete));
    assert_eq!(change(&kept.message().await), ("prices/usd".into(), Change::Purge));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_expires_is_a_deletion() {
    let (_server, admin, mut kept) = start().await;
    let second = 1_000_000_000u64;
    let limits = json!({"max_age": second, "allow_msg_ttl": true, "subject_delete_marker_ttl": 60 * second});
    admin.bucket("SESSIONS", limits).await;
    kept.follow("sessions/**", &bucket("SESSIONS", 1)).await;
    admin.put("$KV.SESSIONS.ann", "here").await;
    assert_eq!(change(&kept.message().await), ("sessions/ann".into(), Change::Put));
    assert_eq!(change(&kept.message().await), ("sessions/ann".into(), Change::Delete));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_has_each_key_once_and_no_deleted_one() {
    let (_server, admin, kept) = start().await;
    for (name, history) in [("ONE", 1), ("MANY", 5)] {
        admin.bucket(name, json!({"max_msgs_per_subject": history})).await;
        let source = bucket(name, 1);
        for round in 0..4 {
            for key in ["a", "b.c", "gone", "purged"] {
                admin.put(&format!("$KV.{name}.{key}"), format!("{key}{round}")).await;
            }
        }
        admin.put_with(&format!("$KV.{name}.gone"), DELETE, "").await;
        let until = admin.put_with(&format!("$KV.{name}.purged"), PURGE, "").await;
        let told = kept.fetch_all("prices/**", &source, 0, until).await;
        let expected = [("prices/a", "a3"), ("prices/b/c", "b.c3")];
        assert_eq!(
            told.values(),
            expected.map(|(topic, value)| (topic.to_owned(), value.to_owned())),
            "{name}"
        );
        assert_eq!(told.gone, []);
        // Of one key, and of those below one.
        let told = kept.fetch_all("prices/a", &source, 0, until).await;
        assert_eq!(told.values(), [("prices/a".to_owned(), "a3".to_owned())]);
        let told = kept.fetch_all("prices/b/*", &source, 0, until).await;
        assert_eq!(told.values().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_and_the_changes_after_it_meet_without_a_race() {
    let (_server, admin, mut kept) = start().await;
    for (name, history) in [("ONE", 1), ("MANY", 3)] {
        admin.bucket(name, json!({"max_msgs_per_subject": history})).await;
        let source = bucket(name, 0);
        for key in 0..2500 {
            admin.client.publish(format!("$KV.{name}.k{key}"), format!("{key}").into()).await.unwrap();
        }
        admin.put(&format!("$KV.{name}.end"), "0").await;
        let (_, head) = kept.follow("**", &source).await;
        let writer = tokio::spawn({
            let (admin, subject) = (admin.clone(), format!("$KV.{name}."));
            async move {
                for round in 0..2500 {
                    let key = round % 50;
                    admin
                        .client
                        .publish(format!("{subject}k{key}"), format!("new{round}").into())
                        .await
                        .unwrap();
                }
                admin.put(&format!("{subject}end"), "1").await
            }
        });
        let told = kept.fetch_all("**", &source, 0, head).await;
        let last = writer.await.unwrap();
        let live = kept.read_until(head, last).await;
        assert_eq!((&told.gone, &live.gone), (&vec![], &vec![]));
        let mut topics: Vec<_> = told.messages.values().map(|message| message.topic.clone()).collect();
        topics.sort();
        let before = topics.len();
        topics.dedup();
        assert_eq!(topics.len(), before, "one value a key");
        let mut state = std::collections::BTreeMap::new();
        for message in told.messages.values().chain(live.messages.values()) {
            let (topic, value) = value(message);
            state.insert(topic, value);
        }
        assert_eq!(state.len(), 2501);
        for key in 0..2500 {
            let expected = if key < 50 { format!("new{}", 2450 + key) } else { key.to_string() };
            assert_eq!(state[&format!("k{key}")], expected);
        }
        kept.broker.try_unsubscribe(filter("**"), &source);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_that_are_overwritten_or_deleted_are_no_gap() {
    let (_server, admin, kept) = start().await;
    admin.bucket("PRICES", json!({})).await;
    let source = bucket("PRICES", 1);
    let last = admin.put_many("$KV.PRICES.eur", 0..50, "").await;
    assert_eq!(kept.locate("prices/**", &source, Seek::After(seq(7))).await, SeekResult::At(seq(7)));
    assert_eq!(kept.locate("prices/**", &source, Seek::After(seq(51))).await, SeekResult::Unknown(seq(49)));
    let told = kept.fetch_all("prices/**", &source, 7, last).await;
    assert_eq!((told.gone.len(), told.numbers()), (0, vec![last]));
    admin.put_with("$KV.PRICES.eur", DELETE, "").await;
    admin.purge("KV_PRICES").await;
    let told = kept.fetch_all("prices/**", &source, 0, last).await;
    assert_eq!((told.gone.len(), told.numbers().len()), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_single_key_the_last_message_says_what_has_changed() {
    let (_server, admin, kept) = start().await;
    for (name, history) in [("ONE", 1), ("MANY", 5)] {
        admin.bucket(name, json!({"max_msgs_per_subject": history})).await;
        let source = bucket(name, 1);
        let old = admin.put(&format!("$KV.{name}.eur"), "1").await;
        let deleted = admin.put_with(&format!("$KV.{name}.eur"), DELETE, "").await;
        let other = admin.put(&format!("$KV.{name}.usd"), "1").await;
        let told = kept.fetch_all("prices/eur", &source, 0, other).await;
        assert_eq!(told.numbers(), [0; 0], "a reader that has nothing needs no deletion");
        let told = kept.fetch_all("prices/eur", &source, old, other).await;
        assert_eq!(told.numbers(), [deleted]);
        assert_eq!(
            told.messages.values().map(|message| change(message).1).collect::<Vec<_>>(),
            [Change::Delete]
        );
        let told = kept.fetch_all("prices/*", &source, old, other).await;
        assert_eq!(told.numbers(), [other], "a pattern has the values alone");
        let after = Seek::After(seq(old));
        assert_eq!(kept.locate("prices/eur", &source, after).await, SeekResult::At(seq(old)));
        assert_eq!(kept.locate("prices/gbp", &source, after).await, SeekResult::Evicted(seq(old)));
        assert_eq!(kept.locate("prices/*", &source, after).await, SeekResult::At(seq(old)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_is_put_under_a_key_that_others_can_read() {
    let (_server, admin, mut kept) = start().await;
    let source = bucket("PRICES", 1);
    let store = async |kept: &Kept, name: &str| {
        kept.broker
            .publish(topic(name), bucket("PRICES", 1), "1".into(), Headers::default())
            .await
            .map(|number| number.expect("a number"))
    };
    let refused = store(&kept, "prices/eur").await;
    assert!(
        matches!(&refused, Err(BrokerError::Refused(why)) if why.contains("nats kv add PRICES")),
        "{refused:?}"
    );
    let refused = kept.broker.subscribe(filter("prices/**"), source.clone()).await;
    assert!(
        matches!(&refused, Err(BrokerError::Refused(why)) if why.contains("nats kv add PRICES")),
        "{refused:?}"
    );
    admin.bucket("PRICES", json!({})).await;
    kept.follow("prices/**", &source).await;
    assert_eq!(store(&kept, "prices/eur").await.map(|stored| stored.number.get()), Ok(1));
    assert_eq!(kept.message().await.stored.unwrap().number.get(), 1);
    for name in ["prices/é", "prices/a:b", "prices/a.b", "prices"] {
        let refused = store(&kept, name).await;
        assert!(
            matches!(refused, Err(BrokerError::Unfit(_) | BrokerError::Refused(_))),
            "{name}: {refused:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_is_followed_survives_its_server() {
    let (mut server, admin, mut kept) = start().await;
    admin.bucket("PRICES", json!({})).await;
    let (tag, head) = kept.follow("prices/**", &bucket("PRICES", 1)).await;
    let last = admin.put_many("$KV.PRICES.eur", 0..10, "").await;
    kept.read_until(head, last).await;
    server.restart();
    admin.put_until_stored("$KV.PRICES.eur", "1").await;
    let next = admin.put_until_stored("$KV.PRICES.eur", "2").await;
    let told = kept.read_until(last, next).await;
    assert_eq!((told.gone.len(), told.values().pop().unwrap().1), (0, "2".into()));
    admin.delete("KV_PRICES").await;
    assert!(matches!(kept.next().await, Event::Ended { .. }));
    admin.bucket("PRICES", json!({})).await;
    assert_ne!(kept.follow("prices/**", &bucket("PRICES", 1)).await.0, tag);
    let silence = tokio::time::timeout(Duration::from_millis(200), kept.next()).await;
    assert!(silence.is_err(), "{silence:?}");
}
