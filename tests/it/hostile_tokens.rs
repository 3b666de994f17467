//! Hostile tokens: each is refused, and chooses neither an algorithm nor a key nor a URL.

use std::net::TcpListener;

use crate::common::client::Reader;
use crate::common::gateway::Gateway;
use crate::common::process::Process;
use crate::common::raw::{self, ask};
use crate::common::token::{self, JWT, SECRET, der, hour, key, sign, signed, token, with_header};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use serde_json::{Value, json};

const RULES: &str = "[[topics]]\nmatch = \"public/**\"\nread = \"anyone\"\npublish = \"anyone\"\n\
                     [[topics]]\nmatch = \"members/**\"\nread = \"token\"\npublish = \"token\"\n";

async fn with_secret() -> Gateway {
    Gateway::with(&format!("{JWT}{RULES}")).await
}

async fn with_key(file: &str, more: &str) -> Gateway {
    let path = key(file);
    Gateway::with(&format!("[auth.jwt]\npublic_key = {:?}\n{more}\n{RULES}", path.to_str().unwrap())).await
}

/// Sends the token by every way there is, to read and to publish, and insists that it is refused and not repeated.
async fn assert_refused(gateway: &Gateway, name: &str, token: &str) {
    let (bearer, cookie) = (format!("Bearer {token}"), format!("topicgate={token}"));
    for header in [("authorization", bearer.as_str()), ("cookie", cookie.as_str())] {
        for method in ["GET", "HEAD", "POST"] {
            let answer = gateway.request(method, "/topics/members/a", &[header]).await;
            assert_eq!(answer.status, 401, "{name} {method} {}", answer.text());
            assert!(answer.header("www-authenticate").contains("error=\"invalid_token\""), "{name}");
            if method != "HEAD" {
                assert_eq!(answer.json()["code"], "bad_token", "{name}");
            }
            let all = format!("{:?}{}", answer.headers, answer.text());
            assert!(token.len() < 8 || !all.contains(&token[..8]), "{name}: {all}");
        }
    }
}

async fn assert_holds(gateway: &Gateway, name: &str, token: &str) {
    let answer =
        gateway.request("HEAD", "/topics/members/a", &[("authorization", &format!("Bearer {token}"))]).await;
    assert_eq!(answer.status, 200, "{name}: {}", answer.header("www-authenticate"));
}

fn claims() -> Value {
    hour(json!({"sub": "me", "topicgate": {"subscribe": ["**"], "publish": ["**"]}}))
}

fn hs256(secret: &[u8], message: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message).as_ref().to_vec()
}

#[tokio::test]
async fn a_token_cannot_choose_its_algorithm() {
    let (secret, rsa) = (with_secret().await, with_key("rsa.pub.pem", "").await);
    for gateway in [&secret, &rsa] {
        for none in ["none", "None", "NONE", "nOnE", "", "HS256 ", "hs256", "RS1", "HS1", "null"] {
            for signature in [vec![], b"x".to_vec(), vec![0; 32], vec![0; 256]] {
                let token = with_header(json!({"alg": none}), &claims(), |_| signature);
                assert_refused(gateway, none, &token).await;
            }
        }
        for header in [
            json!({}),
            json!({"alg": null}),
            json!({"alg": ["RS256"]}),
            json!({"alg": 1}),
            json!([]),
            json!("RS256"),
        ] {
            let token = with_header(header.clone(), &claims(), |message| sign("RS256", "rsa.pem", message));
            assert_refused(gateway, &header.to_string(), &token).await;
        }
    }
    // The public key used as a secret: as PEM, as its bytes, as its point, and in hexadecimal.
    for (file, gateway) in [("rsa.pub.pem", &rsa), ("p256.pub.pem", &with_key("p256.pub.pem", "").await)] {
        let pem = std::fs::read(key(file)).unwrap();
        let der = der(file);
        let trimmed = pem.trim_ascii_end();
        for known in [&pem[..], trimmed, &der, &der[24..], &der[26..], b""] {
            for algorithm in ["HS256", "HS384", "HS512"] {
                let token =
                    with_header(json!({"alg": algorithm}), &claims(), |message| hs256(known, message));
                assert_refused(gateway, file, &token).await;
            }
        }
    }
    // One key, and another padding than it is pinned to.
    let pss = with_key("rsa.pub.pem", "algorithm = \"PS256\"").await;
    assert_holds(&pss, "PS256", &signed("PS256", claims())).await;
    for (header, algorithm) in
        [("RS256", "RS256"), ("PS256", "RS256"), ("PS384", "PS384"), ("PS256", "PS384")]
    {
        let token =
            with_header(json!({"alg": header}), &claims(), |message| sign(algorithm, "rsa.pem", message));
        assert_refused(&pss, algorithm, &token).await;
    }
}

#[tokio::test]
async fn a_token_cannot_choose_its_key() {
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let url = format!("http://{}/jwks.json", elsewhere.local_addr().unwrap());
    let gateway = with_key("rsa.pub.pem", "").await;
    // The attacker's own key, PKCS#1: two integers, of which the first is the modulus.
    let pair = ring::signature::RsaKeyPair::from_pkcs8(&der("other.pem")).unwrap();
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let components: ring::rsa::PublicKeyComponents<Vec<u8>> = pair.public().into();
    let jwk = json!({"kty": "RSA", "alg": "RS256", "use": "sig", "kid": "theirs", "n": encode(&components.n), "e": encode(&components.e)});
    let certificate = base64::engine::general_purpose::STANDARD.encode(der("certificate.pem"));
    for more in [
        json!({}),
        json!({"kid": "unknown"}),
        json!({"kid": ""}),
        json!({"kid": "../../../../dev/null"}),
        json!({"kid": "x' UNION SELECT 'secret"}),
        json!({"kid": url}),
        json!({"jku": url}),
        json!({"jku": url, "kid": "theirs"}),
        json!({"jwk": jwk}),
        json!({"x5u": url}),
        json!({"x5c": [certificate]}),
        json!({"iss": url, "url": url}),
    ] {
        let mut header = json!({"alg": "RS256"});
        header.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let theirs = with_header(header.clone(), &claims(), |message| sign("RS256", "other.pem", message));
        assert_refused(&gateway, &more.to_string(), &theirs).await;
        // With a valid signature, the same header changes nothing.
        let ours = with_header(header, &claims(), |message| sign("RS256", "rsa.pem", message));
        assert_holds(&gateway, &more.to_string(), &ours).await;
    }
    assert!(elsewhere.accept().is_err(), "a token made the gateway fetch a URL");
}

#[tokio::test]
async fn a_malformed_token_is_refused() {
    let gateway = with_secret().await;
    let good = token(json!({"sub": "me"}));
    assert_holds(&gateway, "good", &good).await;
    let parts: Vec<&str> = good.split('.').collect();
    let [header, payload, signature] = parts[..] else { panic!() };
    let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let resigned = |header: &str, payload: &str| {
        let message = format!("{header}.{payload}");
        format!("{message}.{}", encode_bytes(&hs256(SECRET.as_bytes(), message.as_bytes())))
    };
    let deep = "[".repeat(2000) + &"]".repeat(2000);
    let mut longer = URL_SAFE_NO_PAD.decode(signature).unwrap();
    longer.push(0);
    let changed = payload.replacen(&payload[4..5], if &payload[4..5] == "A" { "B" } else { "A" }, 1);
    for (name, token) in [
        ("a word", "garbage".to_owned()),
        ("dots", "..".into()),
        ("more dots", "....".into()),
        ("two parts", format!("{header}.{payload}")),
        ("an empty signature", format!("{header}.{payload}.")),
        ("four parts", format!("{good}.{signature}")),
        ("five parts, as an encrypted one has", format!("{good}.x.y")),
        ("another payload", format!("{header}.{changed}.{signature}")),
        ("a signature that is shorter", format!("{header}.{payload}.{}", &signature[..signature.len() - 3])),
        ("one that is longer", format!("{header}.{payload}.{}", encode_bytes(&longer))),
        ("padding", format!("{good}=")),
        ("another base64", format!("{header}.{payload}.{}", signature.replace(['-', '_'], "+"))),
        ("quotes", format!("%22{good}%22")),
        ("claims that are a list", resigned(header, &encode("[]"))),
        ("claims that are text", resigned(header, &encode("\"x\""))),
        ("claims that are nothing", resigned(header, "")),
        ("claims that break off", resigned(header, &encode("{\"exp\":99999999999"))),
        (
            "claims that are not UTF-8",
            resigned(header, &encode_bytes(b"{\"exp\":99999999999,\"sub\":\"\xff\"}")),
        ),
        ("deep claims", resigned(header, &encode(&format!("{{\"exp\":99999999999,\"x\":{deep}}}")))),
        ("two expiries", resigned(header, &encode("{\"exp\":1,\"exp\":99999999999}"))),
        ("a header that is not JSON", resigned(&encode("alg=HS256"), payload)),
        (
            "an extension that must be understood",
            resigned(&encode(r#"{"alg":"HS256","crit":["exp"]}"#), payload),
        ),
        ("no base64", resigned(&encode(r#"{"alg":"HS256","b64":false,"crit":["b64"]}"#), payload)),
        ("an empty crit", resigned(&encode(r#"{"alg":"HS256","crit":[]}"#), payload)),
    ] {
        if name == "another base64" && token == good {
            continue; // a signature without the two characters that differ
        }
        assert_refused(&gateway, name, &token).await;
    }
    let hostile = raw::exchange(
        gateway.address,
        b"GET /topics/members/a HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer \xff\xfe.\x80.\xc0\r\n\r\n",
    )
    .await;
    assert_eq!(hostile.status, 401);
}

fn encode_bytes(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

#[tokio::test]
async fn a_signature_of_zeros_is_valid_for_no_key() {
    for (algorithm, file) in [
        ("ES256", "p256.pub.pem"),
        ("ES384", "p384.pub.pem"),
        ("EdDSA", "ed25519.pub.pem"),
        ("RS256", "rsa.pub.pem"),
    ] {
        let gateway = with_key(file, "").await;
        assert_holds(&gateway, algorithm, &signed(algorithm, claims())).await;
        for signature in
            [vec![], vec![0; 64], vec![0; 96], vec![0; 256], vec![0xff; 64], vec![0xff; 96], vec![0xff; 256]]
        {
            let token = with_header(json!({"alg": algorithm}), &claims(), |_| signature);
            assert_refused(&gateway, algorithm, &token).await;
        }
        // The same signature in the form that certificates have it.
        if algorithm.starts_with("ES") {
            let token = with_header(json!({"alg": algorithm}), &claims(), |message| {
                let fixed =
                    sign(algorithm, if algorithm == "ES256" { "p256.pem" } else { "p384.pem" }, message);
                let (r, s) = fixed.split_at(fixed.len() / 2);
                let integer = |bytes: &[u8]| [&[2, bytes.len() as u8 + 1, 0], bytes].concat();
                let both = [integer(r), integer(s)].concat();
                [&[0x30, both.len() as u8][..], &both].concat()
            });
            assert_refused(&gateway, algorithm, &token).await;
        }
    }
}

#[tokio::test]
async fn a_token_of_64_kib_exceeds_the_limit_of_a_request() {
    let gateway = with_secret().await;
    let fits = token(json!({"x": "x".repeat(8000)}));
    assert_holds(&gateway, "8 KiB", &fits).await;
    let huge = token(json!({"x": "x".repeat(48 * 1024)}));
    assert!(huge.len() > 64 * 1024);
    for line in [format!("Authorization: Bearer {huge}\r\n"), format!("Cookie: topicgate={huge}\r\n")] {
        for method in ["GET", "POST"] {
            let reply = raw::exchange(gateway.address, ask(method, "/topics/members/a", &line)).await;
            assert_eq!(reply.status, 431, "{method}");
        }
    }
    assert_holds(&gateway, "and the gateway is alive", &fits).await;
}

#[tokio::test]
async fn a_token_in_a_url_reaches_no_log_and_no_answer() {
    let process = Process::start(&[
        ("TOPICGATE_AUTH__JWT__SECRET", SECRET),
        ("TOPICGATE_AUTH__TOKEN__QUERY", "true"),
        ("TOPICGATE_LOG__LEVEL", "trace"),
        ("TOPICGATE_TOPICS", "[{ match = \"members/**\", read = \"token\", publish = \"token\" }]"),
    ])
    .await;
    let good = token(json!({"sub": "me"}));
    let expired = token(json!({"sub": "me", "exp": token::seconds(-3600.0)}));
    let mut answers = Vec::new();
    for token in [&good, &expired] {
        for (method, path) in [
            ("GET", "/topics/members/a?last=x&"),
            ("GET", "/topics/nowhere?"),
            ("POST", "/topics/members/*?"),
            ("PUT", "/topics/members/a?"),
            ("GET", "/x?"),
        ] {
            let path = format!("{path}access_token={token}");
            let answer = crate::common::client::request(process.address, method, &path, &[], b"x").await;
            assert!(answer.status >= 400);
            assert_eq!(answer.header("referrer-policy"), "no-referrer");
            answers.push(format!("{:?} {}", answer.headers, answer.text()));
        }
    }
    let path = format!("/topics/members/a?access_token={expired}");
    answers
        .push(format!("{:?}", crate::common::client::request(process.address, "GET", &path, &[], b"").await));
    let mut reader =
        Reader::open(process.address, &format!("/topics/members/a?access_token={good}"), &[]).await;
    assert_eq!(reader.headers["referrer-policy"], "no-referrer");
    let open = reader.expect("stream-open").await;
    answers.push(format!("{:?} {open:?}", reader.headers));
    process.signal("TERM");
    answers.push(process.ended().await.log);
    for token in [&good, &expired] {
        for part in token.split('.') {
            assert!(!answers.iter().any(|answer| answer.contains(part)), "{part} in {answers:?}");
        }
    }
    assert!(answers.last().unwrap().contains("topicgate is listening"));
}

#[tokio::test]
async fn a_number_that_cannot_be_represented_is_named_in_the_refusal() {
    let gateway = with_secret().await;
    for claims in [r#"{"exp":9e9,"topicgate":{"until":1e400}}"#, r#"{"exp":1e999}"#] {
        let encode = |part: &str| URL_SAFE_NO_PAD.encode(part);
        let message = format!("{}.{}", encode(r#"{"alg":"HS256"}"#), encode(claims));
        let signature = URL_SAFE_NO_PAD.encode(hs256(SECRET.as_bytes(), message.as_bytes()));
        let bearer = format!("Bearer {message}.{signature}");
        let answer = gateway.request("GET", "/topics/members/a", &[("authorization", &bearer)]).await;
        assert_eq!((answer.status, &answer.json()["code"]), (401, &json!("bad_token")), "{claims}");
        assert!(answer.text().contains("a number that is out of range"), "{claims}: {}", answer.text());
    }
}
