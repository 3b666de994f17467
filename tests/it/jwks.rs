//! The keys of tokens from a URL: which keys are used, when they are fetched, and the behaviour while they cannot be.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::common::backend::{Backend, Reply};
use crate::common::client::Reader;
use crate::common::eventually;
use crate::common::gateway::Gateway;
use crate::common::signer::Signer;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::net::TcpListener;

const LATER: &str = "auth_unavailable";
const BAD: &str = "401 bad_token";

async fn gateway(url: &str, settings: &str) -> Gateway {
    let rules = "[[topics]]\nmatch = \"**\"\nread = \"granted\"";
    Gateway::with(&format!("[auth.jwt]\njwks_url = \"{url}\"\n{settings}\n{rules}")).await
}

/// An endpoint with these keys, and a gateway that has fetched them.
async fn with_keys(keys: &[Value], settings: &str) -> (Backend, Gateway) {
    let backend = Backend::start(publish(keys)).await;
    let gateway = gateway(&backend.url("/jwks.json"), settings).await;
    let fetched = async || gateway.metric("topicgate_jwks_fetches_total{outcome=\"fetched\"}").await;
    eventually("the keys are fetched", async || fetched().await >= 1.0).await;
    (backend, gateway)
}

fn publish(keys: &[Value]) -> impl Fn(&crate::common::backend::Question) -> Reply + Send + Sync + 'static {
    let set = json!({"keys": keys}).to_string();
    move |_| Reply::json(&set)
}

fn claims() -> Value {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    json!({"sub": "ann", "exp": now + 3600, "topicgate": {"subscribe": ["**"]}})
}

/// The outcome of a request for a stream with this token.
async fn outcome(gateway: &Gateway, token: &str) -> String {
    let bearer = format!("Bearer {token}");
    match Reader::ask(gateway.address, "/topics/a", &[("authorization", &bearer)]).await {
        Ok(mut reader) => match reader.next().await.unwrap() {
            event if event.event == "stream-open" => "open".into(),
            event => serde_json::from_str::<Value>(&event.data).unwrap()["code"].as_str().unwrap().into(),
        },
        Err(refusal) => format!("{} {}", refusal.status, refusal.json()["code"].as_str().unwrap()),
    }
}

/// Without waiting for another fetch.
async fn at_once(gateway: &Gateway, token: &str) -> String {
    let begin = Instant::now();
    let outcome = outcome(gateway, token).await;
    assert!(begin.elapsed() < Duration::from_secs(3), "{outcome} after {:?}", begin.elapsed());
    outcome
}

#[tokio::test]
async fn keys_of_every_kind_are_taken_and_each_is_for_its_one_algorithm() {
    let signers =
        ["EdDSA", "ES256", "ES384", "RS256", "RS512", "PS256"].map(|alg| (alg, Signer::new(alg, alg)));
    // Those of RSA say their algorithm but for the usual one; the others' kind says it.
    let keys = signers.each_ref().map(|(algorithm, signer)| {
        let mut jwk = signer.jwk();
        if ["RS512", "PS256"].contains(algorithm) {
            jwk["alg"] = (*algorithm).into();
        }
        jwk
    });
    let (backend, gateway) = with_keys(&keys, "").await;
    for (algorithm, signer) in &signers {
        assert_eq!(at_once(&gateway, &signer.token(&claims())).await, "open", "{algorithm}");
    }
    for (kid, says) in [("RS256", "RS512"), ("RS256", "PS256"), ("RS512", "RS256"), ("PS256", "RS256")] {
        let signer = &signers.iter().find(|(algorithm, _)| *algorithm == kid).unwrap().1;
        let token = signer.token_with(&json!({"alg": says, "kid": kid}), &claims());
        assert_eq!(at_once(&gateway, &token).await, BAD, "{kid} signed with {says}");
    }
    let forged = signers[0].1.token_with(&json!({"alg": "ES256", "kid": "ES256"}), &claims());
    assert_eq!(at_once(&gateway, &forged).await, BAD, "signed with another key");
    assert_eq!(backend.count(), 1, "known keys are not fetched again");
    assert_eq!(gateway.metric("topicgate_jwks_keys").await, 6.0);
    assert_eq!(backend.asked()[0].uri, "/jwks.json");
    assert_eq!(backend.asked()[0].header("accept"), "application/json");
}

#[tokio::test]
async fn an_algorithm_in_the_configuration_leaves_out_the_keys_of_others() {
    let (ed, rsa) = (Signer::new("ed", "EdDSA"), Signer::new("rsa", "PS256"));
    let (_backend, gateway) = with_keys(&[ed.jwk(), rsa.jwk()], "algorithm = \"PS256\"").await;
    assert_eq!(at_once(&gateway, &rsa.token(&claims())).await, "open");
    assert_eq!(gateway.metric("topicgate_jwks_keys").await, 1.0);
    assert_eq!(gateway.metric("topicgate_jwks_skipped_keys").await, 1.0);
    assert_eq!(outcome(&gateway, &ed.token(&claims())).await, BAD);
}

#[tokio::test]
async fn a_token_that_names_no_key_is_checked_with_the_only_key_that_fits() {
    let (one, other, ec) = (Signer::new("1", "EdDSA"), Signer::new("2", "EdDSA"), Signer::new("3", "ES256"));
    let nameless = |signer: &Signer, algorithm| signer.token_with(&json!({"alg": algorithm}), &claims());
    let (_backend, gateway) = with_keys(&[one.jwk(), ec.jwk()], "").await;
    assert_eq!(at_once(&gateway, &nameless(&one, "EdDSA")).await, "open");
    assert_eq!(at_once(&gateway, &nameless(&ec, "ES256")).await, "open");
    assert_eq!(at_once(&gateway, &nameless(&other, "EdDSA")).await, BAD);
    let (_backend, gateway) = with_keys(&[one.jwk(), other.jwk(), ec.jwk()], "").await;
    assert_eq!(at_once(&gateway, &nameless(&one, "EdDSA")).await, BAD, "it could be for either");
    assert_eq!(at_once(&gateway, &nameless(&ec, "ES256")).await, "open");
}

#[tokio::test]
async fn a_new_key_is_fetched_when_a_token_names_it_and_an_old_one_is_given_up() {
    let (old, new) = (Signer::new("old", "ES256"), Signer::new("new", "ES256"));
    let (backend, gateway) = with_keys(&[old.jwk()], "").await;
    assert_eq!(at_once(&gateway, &old.token(&claims())).await, "open");
    backend.answer(publish(&[old.jwk(), new.jwk()]));
    assert_eq!(outcome(&gateway, &new.token(&claims())).await, "open");
    assert_eq!(at_once(&gateway, &old.token(&claims())).await, "open");
    assert_eq!(backend.count(), 2);
    backend.answer(publish(&[new.jwk()]));
    // No token uses it, so it is dropped with the next fetch.
    assert_eq!(outcome(&gateway, &Signer::new("x", "ES256").token(&claims())).await, BAD);
    assert_eq!(outcome(&gateway, &old.token(&claims())).await, BAD);
    assert_eq!(at_once(&gateway, &new.token(&claims())).await, "open");
}

#[tokio::test]
async fn keys_are_fetched_again_after_a_while_without_any_request() {
    let signer = Signer::new("1", "EdDSA");
    let (backend, gateway) = with_keys(&[signer.jwk()], "jwks_refresh = \"10s\"").await;
    let begin = Instant::now();
    let (token, held) = (signer.token(&claims()), async || gateway.metric("topicgate_jwks_keys").await);
    assert_eq!(at_once(&gateway, &token).await, "open");
    backend.answer(publish(&[]));
    eventually("the keys are withdrawn", async || held().await == 0.0).await;
    assert!(begin.elapsed() > Duration::from_secs(8), "{:?}", begin.elapsed());
    assert_eq!(outcome(&gateway, &token).await, BAD, "a set without keys is one");
}

#[tokio::test]
async fn while_the_endpoint_is_down_at_the_start_tokens_are_neither_accepted_nor_finally_refused() {
    let address = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let gateway = gateway(&format!("http://{address}/"), "").await;
    let signer = Signer::new("1", "EdDSA");
    let token = signer.token(&claims());
    assert_eq!(at_once(&gateway, &token).await, LATER);
    assert_eq!(at_once(&gateway, "nonsense").await, BAD);
    assert_eq!(gateway.get("/topics/a").await.status, 401, "a request without a token is refused for that");
    let _backend = Backend::at(address, publish(&[signer.jwk()])).await;
    eventually("it is found", async || outcome(&gateway, &token).await == "open").await;
}

#[tokio::test]
async fn while_the_endpoint_is_down_the_known_keys_stay_in_use() {
    let (old, new) = (Signer::new("old", "EdDSA"), Signer::new("new", "EdDSA"));
    let (backend, gateway) = with_keys(&[old.jwk()], "").await;
    backend.answer(|_| Reply::status(503));
    assert_eq!(
        outcome(&gateway, &new.token(&claims())).await,
        LATER,
        "nobody can say that there is no such key"
    );
    assert_eq!(at_once(&gateway, &old.token(&claims())).await, "open");
    let address = backend.address;
    drop(backend);
    let failed = async || gateway.metric("topicgate_jwks_fetches_total{outcome=\"failed\"}").await;
    eventually("it is asked again, in vain", async || failed().await >= 2.0).await;
    assert_eq!(at_once(&gateway, &old.token(&claims())).await, "open");
    let _backend = Backend::at(address, publish(&[new.jwk()])).await;
    eventually("it is back", async || outcome(&gateway, &new.token(&claims())).await == "open").await;
}

#[tokio::test]
async fn a_flood_of_unknown_keys_is_one_fetch_at_a_time_and_delays_nobody_else() {
    let signer = Signer::new("1", "EdDSA");
    let (backend, gateway) = with_keys(&[signer.jwk()], "").await;
    let begin = Instant::now();
    let unknown: Vec<_> = (0..200)
        .map(|n| signer.token_with(&json!({"alg": "EdDSA", "kid": format!("{n}'; --")}), &claims()))
        .collect();
    let flood = join_all(unknown.iter().map(|token| outcome(&gateway, token)));
    let token = signer.token(&claims());
    let others = async {
        for _ in 0..20 {
            assert_eq!(at_once(&gateway, &token).await, "open");
        }
    };
    let (outcomes, ()) = tokio::join!(flood, others);
    assert!(outcomes.iter().all(|outcome| outcome == BAD), "{outcomes:?}");
    let fetches = backend.count() as u64;
    assert!(fetches <= 2 + begin.elapsed().as_secs() / 5, "{fetches} in {:?}", begin.elapsed());
}

#[tokio::test]
async fn a_token_chooses_neither_where_keys_come_from_nor_a_key() {
    let (ours, theirs) = (Signer::new("1", "EdDSA"), Signer::new("1", "EdDSA"));
    let (backend, gateway) = with_keys(&[ours.jwk()], "").await;
    let attacker = Backend::start(publish(&[theirs.jwk()])).await;
    let mut hostile = claims();
    hostile["iss"] = attacker.url("/").into();
    for header in [
        json!({"alg": "EdDSA", "kid": "1", "jku": attacker.url("/jwks.json")}),
        json!({"alg": "EdDSA", "kid": "1", "x5u": attacker.url("/chain.pem")}),
        json!({"alg": "EdDSA", "kid": "1", "jwk": theirs.jwk()}),
        json!({"alg": "EdDSA", "jku": attacker.url("/jwks.json")}),
    ] {
        assert_eq!(at_once(&gateway, &theirs.token_with(&header, &hostile)).await, BAD, "{header}");
    }
    assert_eq!((attacker.count(), backend.count()), (0, 1));
}

#[tokio::test]
async fn unusable_keys_do_not_affect_the_others() {
    let (good, bad) = (Signer::new("good", "ES256"), Signer::new("bad", "ES256"));
    let with = |member: &str, value: Value| {
        let mut jwk = bad.jwk();
        jwk[member] = value;
        jwk
    };
    let mut private = Signer::new("bad", "EdDSA").jwk();
    private["d"] = "AAAA".into();
    for key in [
        with("use", "enc".into()),
        with("key_ops", json!(["encrypt"])),
        with("d", "AAAA".into()),
        with("alg", "RS256".into()),
        with("alg", "HS256".into()),
        with("alg", "none".into()),
        with("alg", "ECDH-ES".into()),
        with("alg", json!(7)),
        with("crv", "P-521".into()),
        with("crv", "secp256k1".into()),
        with("kty", "XYZ".into()),
        with("x", "AAAA".into()),
        with("y", "!".into()),
        private,
        json!({"kty": "oct", "kid": "bad", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA", "alg": "HS256"}),
        json!({"kty": "RSA", "kid": "bad", "n": "AQAB", "e": "AQAB"}),
        json!({"kid": "bad"}),
        json!({}),
        json!(5),
        json!("x"),
        json!([good.jwk()]),
        Value::Null,
    ] {
        let (_backend, gateway) = with_keys(&[key.clone(), good.jwk()], "").await;
        assert_eq!(at_once(&gateway, &good.token(&claims())).await, "open", "beside {key}");
        assert_eq!(gateway.metric("topicgate_jwks_keys").await, 1.0, "{key}");
        assert_eq!(gateway.metric("topicgate_jwks_skipped_keys").await, 1.0, "{key}");
    }
    // Two of one name are both asked: neither shuts the other out.
    let twin = Signer::new("good", "ES256");
    let (_backend, gateway) = with_keys(&[twin.jwk(), good.jwk()], "").await;
    for signer in [&good, &twin] {
        assert_eq!(at_once(&gateway, &signer.token(&claims())).await, "open");
    }
    assert_eq!(at_once(&gateway, &Signer::new("good", "ES256").token(&claims())).await, BAD);
}

#[tokio::test]
async fn an_answer_that_is_no_key_set_changes_nothing() {
    let signer = Signer::new("1", "EdDSA");
    let set = |keys: &[Value]| json!({"keys": keys}).to_string();
    let many: Vec<_> = (0..65).map(|_| signer.jwk()).collect();
    let padded = json!({"keys": [signer.jwk()], "x": "x".repeat(10 * 1024 * 1024)});
    for reply in [
        Reply::json("not JSON"),
        Reply::json(""),
        Reply::json("[]"),
        Reply::json(json!({"keys": signer.jwk()})),
        Reply::json(json!({"jwks": [signer.jwk()]})),
        Reply::json(set(&many)),
        Reply::json(padded),
        Reply::status(404).header("content-type", "application/json").body(set(&[signer.jwk()])),
        Reply::status(204),
    ] {
        let shown = format!("{reply:?}").chars().take(200).collect::<String>();
        let backend = Backend::start(move |_| reply.clone()).await;
        let gateway = gateway(&backend.url("/"), "").await;
        let failed = async || gateway.metric("topicgate_jwks_fetches_total{outcome=\"failed\"}").await;
        eventually("it was fetched", async || failed().await >= 1.0).await;
        assert_eq!(at_once(&gateway, &signer.token(&claims())).await, LATER, "{shown}");
    }
    let elsewhere = Backend::start(publish(&[signer.jwk()])).await;
    let location = elsewhere.url("/");
    let backend = Backend::start(move |_| Reply::status(302).header("location", &location)).await;
    let gateway = gateway(&backend.url("/"), "").await;
    eventually("it was asked", async || backend.count() == 1).await;
    assert_eq!(at_once(&gateway, &signer.token(&claims())).await, LATER, "a redirect is not followed");
    assert_eq!(elsewhere.count(), 0);
}

#[tokio::test]
async fn a_request_is_judged_by_its_token_alone_and_without_one_by_the_backend() {
    let signer = Signer::new("1", "EdDSA");
    let keys = Backend::start(publish(&[signer.jwk()])).await;
    let backend = Backend::start(|_| Reply::status(200)).await;
    let forward = format!("[auth.forward]\nurl = \"{}\"\ncache = \"0s\"\n", backend.url("/"));
    let gateway = gateway(&keys.url("/"), &forward).await;
    assert_eq!(outcome(&gateway, &signer.token(&claims())).await, "open");
    assert_eq!(outcome(&gateway, "nonsense").await, BAD);
    let mut narrow = claims();
    narrow["topicgate"] = json!({"subscribe": ["b"]});
    assert_eq!(outcome(&gateway, &signer.token(&narrow)).await, "403 missing_grant");
    assert_eq!(backend.count(), 0);
    let mut reader = Reader::open(gateway.address, "/topics/a", &[("cookie", "session=1")]).await;
    reader.expect("stream-open").await;
    assert_eq!(backend.count(), 1);
}
