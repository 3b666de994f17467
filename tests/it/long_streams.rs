//! A short token for a long stream: `exp` says until when a token may open a stream, and a claim of its own until when the
//! stream may last. The limits of such a stream, what withdraws it, and the page that uses it.

use crate::common::backend::{Backend, Reply};
use crate::common::browser::show;
use crate::common::client::Reader;
use crate::common::document::blocks;
use crate::common::eventually;
use crate::common::gateway::Gateway;
use crate::common::signer::Signer;
use crate::common::site::Site;
use crate::common::token::{JWT, seconds, token};
use crate::common::upstream::Upstream;
use serde_json::{Value, json};

const RULES: &str = "[auth.token]\nquery = true\n\
                     [[topics]]\nmatch = \"members/**\"\nread = \"token\"\npublish = \"anyone\"\n\
                     [[topics]]\nmatch = \"granted/**\"\nread = \"granted\"\npublish = \"granted\"\n";

const EXPIRED: &str = r#"{"code":"expired","reconnect":true}"#;

/// Without leeway, so that a token ends when it says so.
fn settings(more: &str) -> String {
    format!("{JWT}leeway = \"0s\"\n{more}\n{RULES}")
}

/// The claims of a token that may open a stream for `open` seconds, which then lasts until `until` seconds from now.
fn claims(open: f64, until: f64) -> Value {
    let grants = json!({"subscribe": ["**"], "publish": ["**"], "until": seconds(until)});
    json!({"sub": "me", "exp": seconds(open), "topicgate": grants})
}

fn path(topic: &str, token: &str) -> String {
    format!("/topics/{topic}?access_token={token}")
}

/// A stream that is open.
async fn opened(gateway: &Gateway, topic: &str, token: &str) -> Reader {
    let mut reader = gateway.open(&path(topic, token)).await;
    reader.expect("stream-open").await;
    reader
}

/// Until that many seconds since 1970 have passed. The clock is the condition.
async fn after(time: f64) {
    eventually("the time has come", async || seconds(0.0) > time).await;
}

/// The refusal of a request with this token.
async fn refusal(gateway: &Gateway, method: &str, topic: &str, token: &str) -> (u16, String) {
    let answer = gateway.request(method, &path(topic, token), &[]).await;
    let code = if method == "HEAD" { Value::Null } else { answer.json()["code"].clone() };
    (answer.status, code.as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn a_token_that_expires_in_a_second_opens_a_stream_that_lasts_until_the_time_in_its_claim() {
    let gateway = Gateway::with(&settings("")).await;
    let claims = claims(1.0, 4.0);
    let (exp, until) = (claims["exp"].as_f64().unwrap(), claims["topicgate"]["until"].as_f64().unwrap());
    let token = token(claims);
    let mut reader = opened(&gateway, "members/a", &token).await;
    after(exp).await;
    gateway.publish("members/a", "after exp").await;
    assert_eq!(reader.message().await, "after exp");
    // The token itself is over, for all else.
    for (method, status, code) in
        [("GET", 401, "expired_token"), ("HEAD", 401, ""), ("POST", 401, "expired_token")]
    {
        assert_eq!(
            refusal(&gateway, method, "granted/a", &token).await,
            (status, code.to_owned()),
            "{method}"
        );
    }
    let close = reader.expect("stream-close").await;
    assert_eq!(close.data, EXPIRED);
    assert!((-0.002..1.5).contains(&(seconds(0.0) - until)), "{} s late", seconds(0.0) - until);

    // A new token goes on where the old one ended.
    gateway.publish("members/a", "meanwhile").await;
    let renewed = path("members/a", &self::token(self::claims(60.0, 90.0)));
    let mut renewed = gateway.resume(&renewed, &reader.last_id).await;
    assert_eq!(renewed.control("stream-open").await["resumed"], true);
    assert_eq!(renewed.message().await, "meanwhile");
}

#[tokio::test]
async fn the_limit_shortens_the_time_of_the_claim_and_never_that_of_exp() {
    // Seconds until which: the limit, exp, the claim, and the end of the stream after it was opened.
    for (limit, open, until, end) in [
        ("2s", 1.0, 3600.0, 2.0),
        ("2s", 1.0, 1e300, 2.0),
        ("0s", 1.5, 3600.0, 1.5),
        ("1s", 2.0, 3600.0, 2.0),
        ("12h", 3600.0, 1.0, 1.0),
    ] {
        let gateway = Gateway::with(&settings(&format!("until_limit = \"{limit}\""))).await;
        let begin = seconds(0.0);
        let mut reader = opened(&gateway, "members/a", &token(claims(open, until))).await;
        assert_eq!(reader.expect("stream-close").await.data, EXPIRED);
        let lasted = seconds(0.0) - begin;
        assert!((end - 0.1..end + 3.0).contains(&lasted), "{limit}, {open}, {until}: {lasted}");
    }
}

#[tokio::test]
async fn a_claim_that_is_no_time_is_refused_and_a_claim_in_the_past_opens_nothing() {
    let gateway = Gateway::with(&settings("")).await;
    let with = |until: Value| {
        token(
            json!({"exp": seconds(60.0), "topicgate": {"subscribe": ["**"], "publish": ["**"], "until": until}}),
        )
    };
    for until in
        [json!("1795564800"), json!(-1), json!(-0.5), json!(true), json!([]), json!({"a": 1}), json!("")]
    {
        for method in ["GET", "POST"] {
            let answer = gateway.request(method, &path("granted/a", &with(until.clone())), &[]).await;
            let problem = answer.json();
            assert_eq!((answer.status, problem["code"].as_str()), (401, Some("bad_token")), "{until}");
            assert!(problem["detail"].as_str().unwrap().ends_with("wrong type: until"), "{problem}");
        }
    }
    for past in [json!(0), json!(seconds(-0.1)), json!(1e-300)] {
        let token = with(past.clone());
        assert_eq!(
            refusal(&gateway, "GET", "granted/a", &token).await,
            (401, "expired_token".into()),
            "{past}"
        );
        assert_eq!(refusal(&gateway, "HEAD", "granted/a", &token).await.0, 401, "{past}");
        // It says nothing about publishing.
        assert_eq!(gateway.request("POST", &path("granted/a", &token), &[]).await.status, 202, "{past}");
    }
    for fine in [Value::Null, json!(seconds(30.5)), json!(u64::MAX), json!(1e308)] {
        drop(opened(&gateway, "granted/a", &with(fine)).await);
    }
    // A token that is over opens nothing, whatever it says of streams.
    let token = token(claims(-1.0, 60.0));
    assert_eq!(refusal(&gateway, "GET", "members/a", &token).await, (401, "expired_token".into()));
}

#[tokio::test]
async fn the_claim_is_read_from_its_configured_place() {
    for (setting, claim) in [
        ("claim = \"/realm/topics\"", json!({"realm": {"topics": {"until": seconds(60.0)}}})),
        ("until = \"stream_until\"", json!({"stream_until": seconds(60.0)})),
        (
            "until = \"/stream/until\"",
            json!({"stream": {"until": seconds(60.0)}, "topicgate": {"until": "x"}}),
        ),
    ] {
        let gateway = Gateway::with(&settings(setting)).await;
        let mut claims = claim;
        claims["exp"] = json!(seconds(1.0));
        let exp = claims["exp"].as_f64().unwrap();
        let mut reader = opened(&gateway, "members/a", &token(claims)).await;
        after(exp).await;
        gateway.publish("members/a", "still").await;
        assert_eq!(reader.message().await, "still", "{setting}");
    }
}

#[tokio::test]
async fn a_token_that_ends_while_the_broker_is_asked_has_opened_in_time() {
    let broker = Upstream::nats().await;
    let gateway = Gateway::with(&format!("broker.url = \"{}\"\n{}", broker.url(), settings(""))).await;
    broker.pause();
    let claims = claims(1.0, 60.0);
    let exp = claims["exp"].as_f64().unwrap();
    let url = path("members/a", &token(claims));
    let address = gateway.address;
    let asked = tokio::spawn(async move { Reader::open(address, &url, &[]).await });
    after(exp).await;
    assert!(!asked.is_finished(), "the broker has not confirmed");
    broker.resume();
    asked.await.unwrap().expect("stream-open").await;
}

#[tokio::test]
async fn a_reload_ends_the_stream_only_if_its_permission_is_gone() {
    let kept = settings("until_limit = \"1h\"");
    let other_key = kept.replace("0123456789abcdef", "fedcba9876543210");
    for (change, is_revoked) in [
        (kept.clone(), false),
        (settings("until_limit = \"2h\""), false),
        (settings("until_limit = \"1h\"\nmercure = false"), false),
        (settings("until_limit = \"59m\""), true),
        (settings("until_limit = \"0s\""), true),
        (settings("until_limit = \"1h\"\nuntil = \"elsewhere\""), true),
        (other_key, true),
        (kept.replace("members/**", "elsewhere/**"), true),
        ("[[topics]]\nmatch = \"elsewhere\"\nread = \"anyone\"\npublish = \"anyone\"".to_owned(), true),
    ] {
        let gateway = Gateway::with(&kept).await;
        let long = claims(1.0, 3600.0);
        let exp = long["exp"].as_f64().unwrap();
        let mut long = opened(&gateway, "members/a", &token(long)).await;
        // One that lives on its exp alone has nothing to do with the settings of the claim.
        let plain = token(json!({"exp": seconds(60.0)}));
        let mut plain = opened(&gateway, "members/a", &plain).await;
        after(exp).await;
        assert!(gateway.reload_with(&change), "{change}");
        if is_revoked {
            assert_eq!(long.control("stream-close").await["code"], "revoked", "{change}");
        } else {
            gateway.publish("members/a", "still").await;
            assert_eq!(long.message().await, "still", "{change}");
        }
        if !is_revoked || change.contains("until_limit") && change.contains("members") && change.contains(JWT)
        {
            gateway.publish("members/a", "too").await;
            eventually("the other stream goes on", async || plain.message().await == "too").await;
        }
    }
}

#[tokio::test]
async fn a_key_that_is_withdrawn_from_the_key_set_ends_the_streams_that_outlast_their_tokens() {
    let (kept, withdrawn) = (Signer::new("kept", "EdDSA"), Signer::new("withdrawn", "EdDSA"));
    let publish = |keys: &[&Signer]| {
        let set = json!({"keys": keys.iter().map(|key| key.jwk()).collect::<Vec<_>>()}).to_string();
        move |_: &_| Reply::json(&set)
    };
    let backend = Backend::start(publish(&[&kept, &withdrawn])).await;
    let jwks = format!(
        "[auth.jwt]\njwks_url = \"{}\"\njwks_refresh = \"10s\"\nleeway = \"0s\"",
        backend.url("/keys")
    );
    let gateway = Gateway::with(&format!("{jwks}\n{RULES}")).await;
    let open =
        async |signer: &Signer, claims: Value| opened(&gateway, "members/a", &signer.token(&claims)).await;
    let mut stays = open(&kept, claims(1.0, 3600.0)).await;
    let mut ends = open(&withdrawn, claims(1.0, 3600.0)).await;
    let mut ends_early = open(&withdrawn, claims(3600.0, 7200.0)).await;
    let mut plain = open(&withdrawn, json!({"exp": seconds(3600.0)})).await;
    backend.answer(publish(&[&kept]));
    for reader in [&mut ends, &mut ends_early] {
        assert_eq!(reader.control("stream-close").await["code"], "revoked");
    }
    gateway.publish("members/a", "still").await;
    assert_eq!((stays.message().await, plain.message().await), ("still".to_owned(), "still".to_owned()));
}

#[tokio::test]
async fn the_page_of_the_document_follows_with_urls_that_are_short_lived() {
    let page = blocks(include_str!("../../docs/security.md"), "A short token in the URL", "js").remove(0);
    let gateway =
        Gateway::with(&format!("streams.retry = \"500ms\"\ncors.origins = [\"*\"]\n{}", settings(""))).await;
    let address = gateway.address;
    // The application: each URL may be opened for two seconds, and its stream lasts for four.
    let application = Backend::start(move |_| {
        let url = format!("http://{address}{}", path("members/a", &token(claims(2.0, 4.0))));
        Reply::json(json!({"url": url})).header("access-control-allow-origin", "*")
    })
    .await;
    let mut seen = gateway.open(&path("members/seen", &token(json!({})))).await;
    seen.expect("stream-open").await;
    let page = page.replace("/stream-url", &application.url("/stream-url")).replace("3000)", "300)");
    let report = format!("fetch('http://{address}/topics/members/seen', {{ method: 'POST', body: data }})");
    let html = format!("<script>function show(data) {{ {report}; }}\n{page}</script>");
    let _page = show(&Site::start().await.origin("localhost"), &html).await;
    eventually("the page reads", async || gateway.metric("topicgate_topics").await == 2.0).await;
    gateway.publish("members/a", "first").await;
    assert_eq!(seen.message().await, "first");
    let expired = async || gateway.metric("topicgate_streams_closed_total{code=\"expired\"}").await;
    eventually("its stream has ended", async || expired().await >= 1.0).await;
    gateway.publish("members/a", "meanwhile").await;
    assert_eq!(seen.message().await, "meanwhile", "it has a new URL, and misses nothing");
    assert!(application.count() >= 2);
    let refused = "topicgate_refused_requests_total{code=\"expired_token\"}";
    assert!(gateway.metric(refused).await >= 1.0, "the old URL is refused");
}
