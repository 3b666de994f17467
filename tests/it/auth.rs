//! Access control for reading and publishing: kinds of tokens, places, claims, rules, and the texts of refusals.

use std::sync::LazyLock;

use crate::common::client::{self, Reader, Response};
use crate::common::eventually;
use crate::common::gateway::Gateway;
use crate::common::token::{self, JWT, key, seconds, signed, token};
use serde_json::{Value, json};
use topicgate::Config;
use topicgate::Server;

const RULES: &str = r#"
[[topics]]
match = "public/**"
read = "anyone"
publish = "anyone"
[[topics]]
match = "members/**"
read = "token"
publish = "token"
[[topics]]
match = "granted/**"
read = "granted"
publish = "granted"
[[topics]]
match = "users/{sub}/**"
read = "token"
publish = "granted"
[[topics]]
match = "boxes/{sub}"
read = "granted"
[[topics]]
match = "mixed/secret"
read = "granted"
[[topics]]
match = "mixed/**"
read = "token"
[[topics]]
match = "hidden/**"
publish = "token"
"#;

async fn gateway(auth: &str) -> Gateway {
    Gateway::with(&format!("{auth}{RULES}")).await
}

/// Sends it as HEAD and as GET, insists that both say the same, and returns the status and the code of the refusal.
async fn read(gateway: &Gateway, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
    let head = gateway.request("HEAD", path, headers).await;
    if head.status == 200 {
        let mut reader = Reader::open(gateway.address, path, headers).await;
        reader.expect("stream-open").await;
        return (200, String::new());
    }
    let get = gateway.request("GET", path, headers).await;
    assert_eq!(
        (head.status, head.header("www-authenticate")),
        (get.status, get.header("www-authenticate")),
        "{path}"
    );
    (get.status, code(&get))
}

fn code(response: &Response) -> String {
    assert_eq!(response.header("content-type"), "application/problem+json");
    assert_eq!(response.header("cache-control"), "no-store");
    response.json()["code"].as_str().unwrap().to_owned()
}

async fn publish(gateway: &Gateway, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
    let response = client::request(gateway.address, "POST", path, headers, b"x").await;
    (response.status, if response.status == 202 { String::new() } else { code(&response) })
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

/// A caller of each kind.
static CALLERS: LazyLock<[(&str, Option<String>); 5]> = LazyLock::new(|| {
    [
        ("nobody", None),
        ("no grants", Some(token(json!({"sub": "me"})))),
        (
            "grants",
            Some(token(json!({"sub": "me", "topicgate": {
                "subscribe": ["granted/a/*", "granted/b", "boxes/*", "users/**"],
                "publish": ["granted/c", "users/*/in"],
            }}))),
        ),
        ("everything", Some(token(json!({"topicgate": {"subscribe": ["**"], "publish": ["**"]}})))),
        ("expired", Some(token(json!({"sub": "me", "exp": seconds(-3600.0)})))),
    ]
});

#[tokio::test]
async fn each_rule_decides_which_callers_can_read() {
    const OK: (u16, &str) = (200, "");
    const NO_TOKEN: (u16, &str) = (401, "no_token");
    const EXPIRED: (u16, &str) = (401, "expired_token");
    const GRANT: (u16, &str) = (403, "missing_grant");
    const SUBJECT: (u16, &str) = (403, "wrong_subject");
    const HIDDEN: (u16, &str) = (404, "not_found");
    let gateway = gateway(JWT).await;
    // In the order of CALLERS: nobody, no grants, grants, everything (without a subject), expired.
    for (path, expected) in [
        ("/topics/public/a", [OK, OK, OK, OK, OK]),
        ("/topics/public/**", [OK, OK, OK, OK, OK]),
        ("/topics/members/a", [NO_TOKEN, OK, OK, OK, EXPIRED]),
        ("/topics/members/**", [NO_TOKEN, OK, OK, OK, EXPIRED]),
        ("/topics/granted/a/1", [NO_TOKEN, GRANT, OK, OK, EXPIRED]),
        ("/topics/granted/a/*", [NO_TOKEN, GRANT, OK, OK, EXPIRED]),
        ("/topics/granted/a/**", [NO_TOKEN, GRANT, GRANT, OK, EXPIRED]),
        ("/topics/granted/*", [NO_TOKEN, GRANT, GRANT, OK, EXPIRED]),
        ("/topics/granted/b", [NO_TOKEN, GRANT, OK, OK, EXPIRED]),
        ("/topics/granted/c", [NO_TOKEN, GRANT, GRANT, OK, EXPIRED]),
        ("/topics/users/me/in", [NO_TOKEN, OK, OK, SUBJECT, EXPIRED]),
        ("/topics/users/me/**", [NO_TOKEN, OK, OK, SUBJECT, EXPIRED]),
        ("/topics/users/you/in", [NO_TOKEN, SUBJECT, SUBJECT, SUBJECT, EXPIRED]),
        ("/topics/users/*/in", [NO_TOKEN, SUBJECT, SUBJECT, SUBJECT, EXPIRED]),
        ("/topics/boxes/me", [NO_TOKEN, GRANT, OK, SUBJECT, EXPIRED]),
        ("/topics/boxes/you", [NO_TOKEN, SUBJECT, SUBJECT, SUBJECT, EXPIRED]),
        ("/topics/mixed/a", [NO_TOKEN, OK, OK, OK, EXPIRED]),
        ("/topics/mixed/secret", [NO_TOKEN, GRANT, GRANT, OK, EXPIRED]),
        ("/topics/mixed/*", [NO_TOKEN, GRANT, GRANT, OK, EXPIRED]),
        ("/topics/hidden/a", [HIDDEN, HIDDEN, HIDDEN, HIDDEN, HIDDEN]),
        ("/topics/nowhere", [HIDDEN, HIDDEN, HIDDEN, HIDDEN, HIDDEN]),
        ("/topics/**", [HIDDEN, HIDDEN, HIDDEN, HIDDEN, HIDDEN]),
        // All of them must be allowed.
        ("/topics?topic=public/a&topic=members/a", [NO_TOKEN, OK, OK, OK, EXPIRED]),
        ("/topics?topic=members/a&topic=granted/b", [NO_TOKEN, GRANT, OK, OK, EXPIRED]),
        ("/topics?topic=users/me/in&topic=users/you/in", [NO_TOKEN, SUBJECT, SUBJECT, SUBJECT, EXPIRED]),
        ("/topics/members/a?topic=hidden/a", [HIDDEN, HIDDEN, HIDDEN, HIDDEN, HIDDEN]),
    ] {
        for ((name, token), (status, code)) in CALLERS.iter().zip(expected) {
            let value = token.as_deref().map(bearer);
            let headers: Vec<_> = value.iter().map(|value| ("authorization", value.as_str())).collect();
            assert_eq!(read(&gateway, path, &headers).await, (status, code.to_owned()), "{path} by {name}");
        }
    }
}

#[tokio::test]
async fn each_rule_decides_which_callers_can_publish() {
    let gateway = gateway(JWT).await;
    for (path, expected) in [
        ("/topics/public/a", ["", "", "", "", ""]),
        ("/topics/members/a", ["no_token", "", "", "", "expired_token"]),
        ("/topics/granted/b", ["no_token", "missing_grant", "missing_grant", "", "expired_token"]),
        ("/topics/granted/c", ["no_token", "missing_grant", "", "", "expired_token"]),
        ("/topics/users/me/in", ["no_token", "missing_grant", "", "wrong_subject", "expired_token"]),
        (
            "/topics/users/you/in",
            ["no_token", "wrong_subject", "wrong_subject", "wrong_subject", "expired_token"],
        ),
        ("/topics/boxes/me", ["not_found"; 5]),
        ("/topics/hidden/a", ["no_token", "", "", "", "expired_token"]),
    ] {
        for ((name, token), code) in CALLERS.iter().zip(expected) {
            let value = token.as_deref().map(bearer);
            let headers: Vec<_> = value.iter().map(|value| ("authorization", value.as_str())).collect();
            let (status, got) = publish(&gateway, path, &headers).await;
            assert_eq!(got, code, "{path} by {name}: {status}");
        }
    }
    assert_eq!(gateway.metric("topicgate_publishes_total{result=\"accepted\"}").await, 15.0);
    assert_eq!(gateway.metric("topicgate_publishes_total{result=\"refused\"}").await, 25.0);
}

#[tokio::test]
async fn a_token_is_read_from_each_permitted_place_and_several_tokens_must_agree() {
    let (good, other) = (token(json!({"sub": "me"})), token(json!({"sub": "you"})));
    let default = gateway(JWT).await;
    let switched = gateway(&format!("{JWT}[auth.token]\ncookie = \"session\"\nquery = true\n")).await;
    let (a, b, quoted) =
        (format!("topicgate={good}"), format!("session={good}"), format!("session=\"{good}\""));
    let (bearer_good, other_cookie) = (bearer(&good), format!("session={other}"));
    let (twice, agreeing) =
        (format!("session={good}; session={other}"), format!("x=1;session={good};  session={good}; y"));
    let (lower, upper) = (format!("bearer   {good} "), format!("BEARER {good}"));
    let (basic, glued) = (format!("Basic {good}"), format!("Bearer{good}"));
    let prefixed = format!("session2={good}; sess={good}; Session={good}; my-session={good}");
    let good_query = format!("?access_token={good}");
    let (none, two) = ((401, "no_token"), (400, "two_tokens"));
    let ok = (200, "");
    // At the defaults, and with the cookie `session` and the query parameter.
    for (query, headers, at_default, at_switched) in [
        ("", vec![], none, none),
        ("", vec![("authorization", bearer_good.as_str())], ok, ok),
        ("", vec![("authorization", &lower)], ok, ok),
        ("", vec![("authorization", &upper)], ok, ok),
        ("", vec![("authorization", &basic)], none, none),
        ("", vec![("authorization", &glued)], none, none),
        ("", vec![("authorization", "Bearer")], none, none),
        ("", vec![("authorization", "Bearer ")], none, none),
        ("", vec![("authorization", good.as_str())], none, none),
        ("", vec![("authorization", &basic), ("authorization", &bearer_good)], ok, ok),
        ("", vec![("authorization", &bearer_good), ("authorization", &bearer_good)], ok, ok),
        ("", vec![("cookie", &a)], ok, none),
        ("", vec![("cookie", &b)], none, ok),
        ("", vec![("cookie", &quoted)], none, ok),
        ("", vec![("cookie", "session=")], none, none),
        ("", vec![("cookie", &prefixed)], none, none),
        ("", vec![("cookie", "a=1"), ("cookie", &b)], none, ok),
        ("", vec![("cookie", &agreeing)], none, ok),
        ("", vec![("cookie", &twice)], none, two),
        ("", vec![("cookie", &b), ("cookie", &other_cookie)], none, two),
        ("", vec![("authorization", &bearer_good), ("cookie", &b)], ok, ok),
        ("", vec![("authorization", &bearer_good), ("cookie", &other_cookie)], ok, two),
        (good_query.as_str(), vec![], none, ok),
        (&good_query, vec![("cookie", &b)], none, ok),
        (&good_query, vec![("cookie", &other_cookie)], none, two),
        (&good_query, vec![("authorization", &bearer_good)], ok, ok),
        ("?access_token=", vec![], none, none),
        ("?access_token=x", vec![("authorization", &bearer_good)], ok, two),
        ("?access_token=x&access_token=y", vec![], none, two),
        ("?token=x&Access_Token=x", vec![], none, none),
    ] {
        let path = format!("/topics/members/a{query}");
        for (gateway, (status, code)) in [(&default, at_default), (&switched, at_switched)] {
            assert_eq!(
                read(gateway, &path, &headers).await,
                (status, code.to_owned()),
                "{query} {headers:?}"
            );
        }
        // If no token is required, an invalid one does no harm.
        let public = format!("/topics/public/a{query}");
        assert_eq!(read(&switched, &public, &headers).await.0, 200, "{query} {headers:?}");
    }
}

#[tokio::test]
async fn grants_are_read_from_each_configured_claim() {
    let own = gateway(JWT).await;
    let nested = gateway(&format!("{JWT}claim = \"/realm/topics~1x\"\n")).await;
    let mercure = gateway(&format!("{JWT}mercure = true\n")).await;
    let centrifugo = gateway(&format!("{JWT}centrifugo = true\n")).await;
    let gateways = [&own, &nested, &mercure, &centrifugo];
    let granted = |subscribe: Value| json!({"topicgate": {"subscribe": subscribe}});
    let many: Vec<Value> =
        (0..256).map(|n| json!(format!("granted/{n}"))).chain([json!("granted/a")]).collect();
    for (claims, allowed) in [
        (json!({}), [false; 4]),
        (granted(json!(["granted/a"])), [true, false, true, true]),
        (granted(json!(["granted/*"])), [true, false, true, true]),
        (granted(json!(["**"])), [true, false, true, true]),
        (granted(json!(["*"])), [false; 4]),
        (granted(json!(["b", "granted/**"])), [true, false, true, true]),
        // An entry that cannot be parsed grants nothing, and does not affect the others.
        (
            granted(json!(["a b", "", "**/a", 7, null, {}, [], "granted/{x", "granted/a"])),
            [true, false, true, true],
        ),
        (
            granted(json!([
                "granted/a ",
                "granted//a",
                "granted/a/",
                "/granted/a",
                "granted/%61",
                "GRANTED/A"
            ])),
            [false; 4],
        ),
        (granted(json!("granted/a")), [false; 4]),
        (granted(json!({"granted/a": true})), [false; 4]),
        (granted(json!(true)), [false; 4]),
        (json!({"topicgate": ["granted/a"]}), [false; 4]),
        (json!({"topicgate": "granted/a"}), [false; 4]),
        (json!({"topicgate": {"publish": ["granted/a"]}}), [false; 4]),
        (json!({"subscribe": ["granted/a"]}), [false; 4]),
        (granted(json!(many)), [false; 4]),
        (json!({"realm": {"topics/x": {"subscribe": ["granted/a"]}}}), [false, true, false, false]),
        (json!({"mercure": {"subscribe": ["granted/a"]}}), [false, false, true, false]),
        (json!({"mercure": {"subscribe": ["*"]}}), [false, false, true, false]),
        (json!({"mercure": {"subscribe": ["https://example.com/granted/a", "granted/{id}"]}}), [false; 4]),
        (json!({"mercure": {"publish": ["*"]}}), [false; 4]),
        (json!({"mercure": true}), [false; 4]),
        (json!({"channels": ["granted/a"]}), [false, false, false, true]),
        // There a channel is a name.
        (json!({"channels": ["granted/*", "**", "*"]}), [false; 4]),
        (json!({"channels": "granted/a"}), [false; 4]),
    ] {
        let value = bearer(&token(claims.clone()));
        for (index, gateway) in gateways.into_iter().enumerate() {
            let (status, _) = read(gateway, "/topics/granted/a", &[("authorization", &value)]).await;
            assert_eq!(status, if allowed[index] { 200 } else { 403 }, "{claims} at {index}");
        }
    }
    // The same to publish, and Centrifugo's channels are only to read.
    for (claims, allowed) in [
        (json!({"topicgate": {"publish": ["granted/a"]}}), [true, false, true, true]),
        (json!({"mercure": {"publish": ["*"]}}), [false, false, true, false]),
        (json!({"mercure": {"publish": ["granted/*"]}}), [false, false, true, false]),
        (json!({"channels": ["granted/a"]}), [false; 4]),
    ] {
        let value = bearer(&token(claims.clone()));
        for (index, gateway) in gateways.into_iter().enumerate() {
            let (status, _) = publish(gateway, "/topics/granted/a", &[("authorization", &value)]).await;
            assert_eq!(status, if allowed[index] { 202 } else { 403 }, "{claims} at {index}");
        }
    }
}

#[tokio::test]
async fn grants_may_be_written_with_the_brokers_separator() {
    let server = crate::common::nats::NatsServer::start();
    let nats =
        Gateway::with(&format!("broker.url = \"{}\"\n{JWT}centrifugo = true\n{RULES}", server.url())).await;
    for (claims, path, status) in [
        (json!({"topicgate": {"subscribe": ["granted.a.*"]}}), "/topics/granted/a/1", 200),
        (json!({"topicgate": {"subscribe": ["granted.*"]}}), "/topics/granted.a", 200),
        (json!({"topicgate": {"subscribe": ["granted.>"]}}), "/topics/granted/a", 403),
        (json!({"channels": ["granted.a"]}), "/topics/granted/a", 200),
        // A subject with a separator in it is two segments, and so no one's.
        (json!({"sub": "a.b"}), "/topics/users/a/b", 403),
        (json!({"sub": "a.b"}), "/topics/users.a.b", 403),
    ] {
        let value = bearer(&token(claims.clone()));
        assert_eq!(read(&nats, path, &[("authorization", &value)]).await.0, status, "{claims} {path}");
    }
}

#[tokio::test]
async fn a_subject_that_is_no_segment_reads_nothing() {
    let gateway = gateway(JWT).await;
    for subject in [json!("*"), json!("**"), json!(""), json!("a/b"), json!("a%2Fb"), json!(7), json!(null)] {
        let value = bearer(&token(json!({"sub": subject})));
        for path in [
            "/topics/users/*/in",
            "/topics/users/*/**",
            "/topics/users/a/b",
            "/topics/users/7/in",
            "/topics/users/null/in",
        ] {
            let got = read(&gateway, path, &[("authorization", &value)]).await;
            assert_eq!(got, (403, "wrong_subject".to_owned()), "{subject} {path}");
        }
        assert_eq!(
            read(&gateway, "/topics/members/a", &[("authorization", &value)]).await.0,
            200,
            "{subject}"
        );
    }
    for subject in [json!(["a"]), json!({"a": 1})] {
        let value = bearer(&token(json!({"sub": subject})));
        let got = read(&gateway, "/topics/users/a/in", &[("authorization", &value)]).await;
        assert_eq!(got, (401, "bad_token".to_owned()), "{subject}");
    }
    let value = bearer(&token(json!({"sub": "zoë@example.com"})));
    let path = "/topics/users/zo%C3%AB@example.com/in";
    assert_eq!(read(&gateway, path, &[("authorization", &value)]).await.0, 200);
}

#[tokio::test]
async fn a_token_is_accepted_only_with_the_algorithm_of_its_key() {
    let rsa = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"];
    let public = |file: &str| format!("[auth.jwt]\npublic_key = {:?}\n", key(file).to_str().unwrap());
    let mut settings: Vec<(String, Option<&str>, &str)> = vec![
        (JWT.into(), None, "HS256"),
        (public("rsa.pub.pem"), None, "RS256"),
        (public("p256.pub.pem"), None, "ES256"),
        (public("p384.pub.pem"), None, "ES384"),
        (public("ed25519.pub.pem"), None, "EdDSA"),
    ];
    settings.extend(["HS256", "HS384", "HS512"].map(|algorithm| (JWT.into(), Some(algorithm), algorithm)));
    settings.extend(rsa.map(|algorithm| (public("rsa.pub.pem"), Some(algorithm), algorithm)));
    let all = ["HS256", "HS384", "HS512", "ES256", "ES384", "EdDSA"].into_iter().chain(rsa);
    let tokens: Vec<_> = all.map(|name| (name, bearer(&signed(name, token::hour(json!({})))))).collect();
    for (auth, pinned, holds) in settings {
        let pinned = pinned.map(|name| format!("algorithm = {name:?}\n")).unwrap_or_default();
        let gateway = gateway(&(auth + &pinned)).await;
        for (algorithm, token) in &tokens {
            let got = read(&gateway, "/topics/members/a", &[("authorization", token)]).await;
            let expected = if *algorithm == holds { (200, "") } else { (401, "bad_token") };
            assert_eq!(got, (expected.0, expected.1.to_owned()), "{algorithm} for {holds}");
        }
    }
}

#[tokio::test]
async fn expiry_audience_and_issuer_are_enforced_within_the_leeway() {
    let plain = gateway(JWT).await;
    let strict = gateway(&format!(
        "{JWT}leeway = \"0s\"\naudience = [\"gate\", \"door\"]\nissuer = \"https://login.example.com\"\n"
    ))
    .await;
    let (bad, expired, ok) = ((401, "bad_token"), (401, "expired_token"), (200, ""));
    let ours = |mut claims: Value| {
        let all = claims.as_object_mut().unwrap();
        all.entry("aud").or_insert(json!("gate"));
        all.entry("iss").or_insert(json!("https://login.example.com"));
        claims
    };
    for (claims, expected) in [
        (json!({"exp": seconds(-20.0)}), ok),
        (json!({"exp": seconds(-31.0)}), expired),
        (json!({"nbf": seconds(20.0)}), ok),
        (json!({"nbf": seconds(40.0)}), bad),
        (json!({"nbf": "soon"}), bad),
        (json!({"iss": "anyone"}), ok),
        // No audience is configured.
        (json!({"aud": "gate"}), bad),
        (json!({"aud": []}), bad),
        (json!({"aud": 5}), bad),
        (json!({"aud": {"gate": 1}}), bad),
        (json!({"exp": 0}), expired),
        (json!({"exp": 18446744073709551615_u64}), ok),
        (json!({"exp": 1e300}), bad),
        (json!({"exp": -1}), bad),
        (json!({"exp": null}), bad),
        (json!({"exp": "9999999999"}), bad),
        (json!({"exp": [9999999999_u64]}), bad),
    ] {
        let got =
            read(&plain, "/topics/members/a", &[("authorization", &bearer(&token(claims.clone())))]).await;
        assert_eq!(got, (expected.0, expected.1.to_owned()), "{claims}");
    }
    for (claims, expected) in [
        (ours(json!({})), ok),
        (ours(json!({"exp": seconds(-1.0)})), expired),
        (ours(json!({"exp": seconds(-0.2)})), expired),
        (ours(json!({"nbf": seconds(5.0)})), bad),
        (ours(json!({"aud": ["else", "door"]})), ok),
        (ours(json!({"aud": "Gate"})), bad),
        (ours(json!({"aud": ["else"]})), bad),
        (ours(json!({"aud": []})), bad),
        (ours(json!({"aud": null})), bad),
        (ours(json!({"aud": {"gate": 1}})), bad),
        (ours(json!({"iss": "https://login.example.com/"})), bad),
        (ours(json!({"iss": null})), bad),
        (json!({"aud": "gate"}), bad),
        (json!({"iss": "https://login.example.com"}), bad),
    ] {
        let got =
            read(&strict, "/topics/members/a", &[("authorization", &bearer(&token(claims.clone())))]).await;
        assert_eq!(got, (expected.0, expected.1.to_owned()), "{claims}");
    }
}

#[tokio::test]
async fn a_refusal_names_the_missing_grant_as_rfc_6750_defines() {
    let gateway = gateway(JWT).await;
    let none = gateway.get("/topics/granted/a").await;
    assert_eq!((none.status, none.header("www-authenticate")), (401, "Bearer realm=\"topicgate\""));

    let value = bearer(&token(json!({"exp": 1})));
    let expired = gateway.request("GET", "/topics/granted/a", &[("authorization", &value)]).await;
    assert_eq!(
        expired.header("www-authenticate"),
        "Bearer realm=\"topicgate\", error=\"invalid_token\", error_description=\"the token has expired\""
    );
    assert_eq!(expired.json()["detail"], "the token has expired");

    let value = bearer(&token(json!({"sub": "me", "topicgate": {"subscribe": ["members/**"]}})));
    let path = "/topics?topic=members/a&topic=granted/%C3%A9%22/**";
    let refused = gateway.request("GET", path, &[("authorization", &value)]).await;
    assert_eq!(refused.status, 403);
    assert_eq!(
        refused.header("www-authenticate"),
        "Bearer realm=\"topicgate\", error=\"insufficient_scope\", scope=\"subscribe:granted/%C3%A9%22/**\""
    );
    assert_eq!(refused.json()["missing"], json!({"subscribe": ["granted/é\"/**"]}));
    let refused =
        client::request(gateway.address, "POST", "/topics/granted/a", &[("authorization", &value)], b"x")
            .await;
    assert_eq!(refused.json()["missing"], json!({"publish": ["granted/a"]}));
    let refused = gateway.request("GET", "/topics/users/you/in", &[("authorization", &value)]).await;
    assert_eq!(
        refused.header("www-authenticate"),
        "Bearer realm=\"topicgate\", error=\"insufficient_scope\""
    );
    assert_eq!(refused.json()["missing"], json!(null));

    for (code, count) in
        [("no_token", 1.0), ("expired_token", 1.0), ("missing_grant", 2.0), ("wrong_subject", 1.0)]
    {
        let sample = format!("topicgate_refused_requests_total{{code=\"{code}\"}}");
        assert_eq!(gateway.metric(&sample).await, count, "{code}");
    }
}

#[tokio::test]
async fn a_refusal_is_the_same_whether_or_not_a_topic_has_messages_and_readers() {
    let gateway = gateway(JWT).await;
    let all = bearer(&token(json!({"sub": "you", "topicgate": {"subscribe": ["**"], "publish": ["**"]}})));
    let mut readers = Vec::new();
    for topic in ["granted/busy", "users/you/busy"] {
        let path = format!("/topics/{topic}");
        readers.push(Reader::open(gateway.address, &path, &[("authorization", &all)]).await);
        assert_eq!(publish(&gateway, &path, &[("authorization", &all)]).await.0, 202);
    }
    let me = bearer(&token(json!({"sub": "me"})));
    for headers in [vec![], vec![("authorization", me.as_str())]] {
        for method in ["GET", "HEAD", "POST"] {
            for query in ["", "?last=1", "?since=all", "?last_event_id=x"] {
                for parent in ["granted", "users/you"] {
                    let ask = async |name| {
                        let path = format!("/topics/{parent}/{name}{query}");
                        let mut answer = gateway.request(method, &path, &headers).await;
                        answer.headers.remove("date");
                        assert!((400..500).contains(&answer.status), "{method} {path}");
                        format!("{answer:?}").replace(name, "NAME")
                    };
                    assert_eq!(ask("busy").await, ask("idle").await, "{method} {query} {parent}");
                }
            }
        }
    }
    eventually("nothing was subscribed for those who may not", async || {
        gateway.metric("topicgate_topics").await == 2.0
    })
    .await;
}

#[tokio::test]
async fn a_preflight_needs_no_token() {
    let gateway = gateway(&format!("cors.origins = [\"https://app.example.com\"]\n{JWT}")).await;
    let headers = [
        ("origin", "https://app.example.com"),
        ("access-control-request-method", "GET"),
        ("access-control-request-headers", "authorization"),
    ];
    let answer = gateway.request("OPTIONS", "/topics/members/a", &headers).await;
    assert_eq!(answer.status, 204);
    assert_eq!(answer.header("access-control-allow-origin"), "https://app.example.com");
    let refused = gateway.request("GET", "/topics/members/a", &headers[..1]).await;
    assert_eq!(
        (refused.status, refused.header("access-control-allow-origin")),
        (401, "https://app.example.com")
    );
}

#[tokio::test]
async fn a_key_that_cannot_work_ends_the_start_with_the_reason() {
    for (file, algorithm, phrase) in [
        ("missing.pem", "", "missing.pem cannot be read"),
        ("rsa.pem", "", "rsa.pem is a private key"),
        ("certificate.pem", "", "certificate.pem is a certificate"),
        ("rsa1024.pub.pem", "", "less than 2048 bits"),
        ("p521.pub.pem", "", "is not a key for ES256"),
        ("README.md", "", "is not an RSA, P-256, P-384 or Ed25519 public key in PEM"),
        ("p384.pub.pem", "algorithm = \"ES256\"", "is not a key for ES256"),
        ("p256.pub.pem", "algorithm = \"RS256\"", "is not a key for RS256"),
        ("rsa.pub.pem", "algorithm = \"EdDSA\"", "is not a key for EdDSA"),
    ] {
        let file = key(file);
        let text = format!(
            "listen = \"127.0.0.1:0\"\nadmin.listen = \"127.0.0.1:0\"\n[auth.jwt]\npublic_key = {:?}\n{algorithm}",
            file.to_str().unwrap()
        );
        let problem = Server::build(Config::from_toml(&text).unwrap()).await.unwrap_err().to_string();
        assert!(problem.starts_with("auth.jwt.public_key: ") && problem.contains(phrase), "{problem}");
    }
}
