//! Paths: below a prefix that a proxy removes or not, and unusual ones, for which the refusal says what is wrong.

use crate::common::gateway::Gateway;
use serde_json::json;
use topicgate::Config;

#[tokio::test]
async fn below_its_base_path_everything_is_served_as_without_it() {
    let gateway = Gateway::with("base_path = \"/site/events/\"\n").await;
    for base in ["/site/events", ""] {
        let mut reader = gateway.open(&format!("{base}/topics/a?last=0")).await;
        reader.expect("stream-open").await;
        let mut several = gateway.open(&format!("{base}/topics?topic=a&topic=b")).await;
        several.expect("stream-open").await;
        let posted = gateway.post(&format!("{base}/topics/a?type=kind"), "x").await;
        assert_eq!(posted.json(), json!({"topic": "a"}));
        assert_eq!(reader.expect("kind").await.data, "x");
        assert_eq!(several.expect("kind").await.data, "x");
        assert!(gateway.get(&format!("{base}/")).await.text().contains("<title>topicgate</title>"));
        assert_eq!(gateway.request("HEAD", &format!("{base}/topics/a"), &[]).await.status, 200);
        assert_eq!(gateway.request("OPTIONS", &format!("{base}/topics/a"), &[]).await.status, 204);
    }
    // The page's links are relative to an address that ends with a slash.
    let moved = gateway.get("/site/events").await;
    assert_eq!((moved.status, moved.header("location")), (308, "/site/events/"));
    assert_eq!(gateway.get("/site/eventsource/topics/a").await.status, 404);

    assert!(gateway.reload_with("base_path = \"/elsewhere\"\n"));
    gateway.open("/elsewhere/topics/a").await.expect("stream-open").await;
    assert_eq!(gateway.get("/site/events/topics/a").await.status, 404);
}

#[tokio::test]
async fn unusual_paths_are_served_or_the_refusal_says_what_is_wrong() {
    let gateway = Gateway::start().await;
    let mut reader = gateway.open("/topics/?topic=a").await;
    reader.expect("stream-open").await;
    gateway.publish("a", "x").await;
    assert_eq!(reader.message().await, "x");
    for (path, status, code, word) in [
        ("/topics/", 404, "not_found", "/topics/<path>"),
        ("//topics/a", 404, "not_found", "2 slashes"),
        ("///topics/a?last=1", 404, "not_found", "3 slashes"),
        ("/events/topics/a", 404, "not_found", "base_path"),
        ("/events/topics?topic=a", 404, "not_found", "base_path"),
        ("/topics//a", 400, "bad_topic", "segment"),
        ("/topics/a/", 400, "bad_topic", "segment"),
        ("/elsewhere", 404, "not_found", "/topics/<path>"),
    ] {
        let answer = gateway.get(path).await;
        let problem = answer.json();
        assert_eq!((answer.status, problem["code"].as_str()), (status, Some(code)), "{path}");
        assert!(problem["detail"].as_str().unwrap().contains(word), "{path}: {problem}");
    }
    assert_eq!(gateway.post("/topics/", "x").await.status, 405);
}

#[test]
fn an_invalid_base_path_is_refused_with_its_key() {
    for bad in [
        "events",
        "/a//b",
        "/a b",
        "/../a",
        "https://a.example/events",
        "/events?x",
        "/topics",
        "/topics/a",
        "/topicgate.js",
    ] {
        let errors = Config::from_toml(&format!("base_path = {bad:?}\n")).unwrap_err().to_string();
        assert!(errors.contains("base_path"), "{bad}: {errors}");
    }
    for good in ["/", "/events", "/a/b.c/", "/~x"] {
        Config::from_toml(&format!("base_path = {good:?}\n")).unwrap();
    }
}

#[tokio::test]
async fn with_tokens_in_urls_every_answer_keeps_the_url_private() {
    let gateway = Gateway::with("base_path = \"/site\"\nauth.token.query = true\n").await;
    let foreign = [("origin", "https://elsewhere.example")];
    for (path, headers, status) in [
        ("/site", &[][..], 308),
        ("/site/topics/a", &foreign, 403),
        ("/site/topics/a?last=x", &[], 400),
        ("/nowhere", &[], 404),
    ] {
        let answer = gateway.request("GET", path, headers).await;
        assert_eq!(answer.status, status, "{path}");
        assert_eq!(answer.header("referrer-policy"), "no-referrer", "{path}");
        assert!(answer.header("vary").contains("origin"), "{path}");
    }
}
