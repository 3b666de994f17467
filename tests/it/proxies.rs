//! A gateway behind nginx, HAProxy, Caddy, Envoy and Traefik, each with its file in deploy/proxies.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use crate::common::client::{self, Reader};
use crate::common::front::{ALL, Front, Kind};
use crate::common::gateway::Gateway;
use crate::common::process::Process;
use crate::common::{eventually, tls, within};
use futures_util::future::join_all;

/// As its file asks for, and with `more` settings.
async fn gateway_behind(kind: Kind, more: &str) -> Gateway {
    Gateway::with(&format!("{more}\n{}", kind.gateway_toml())).await
}

async fn behind(kind: Kind, more: &str) -> (Front, Gateway) {
    let gateway = gateway_behind(kind, more).await;
    (Front::start(kind, gateway.address).await, gateway)
}

/// Does the same behind each of them, all at once.
async fn each<F: Future<Output = ()>>(what: impl Fn(Kind) -> F) {
    join_all(ALL.map(what)).await;
}

/// Each message is published only after the previous one was read, so any buffering on the way stops it.
async fn follows_at_once(kind: Kind, front: &Front, reader: &mut Reader, topic: &str) {
    let soon = Duration::from_secs(5);
    let opened = within(&format!("{kind:?}: the first event"), soon, reader.expect("stream-open")).await;
    assert!(!opened.id.is_empty());
    for payload in ["one", "two", "three"] {
        front.publish(topic, payload).await;
        assert_eq!(within(&format!("{kind:?}: {payload}"), soon, reader.message()).await, payload);
    }
}

#[tokio::test]
async fn the_first_event_and_every_message_come_at_once() {
    each(async |kind| {
        let (front, _gateway) = behind(kind, "").await;
        let mut reader = front.open("/topics/a", &[("accept-encoding", "gzip, br")]).await;
        assert_eq!(reader.headers.get("content-encoding"), None, "{kind:?}");
        follows_at_once(kind, &front, &mut reader, "a").await;
    })
    .await;
}

#[tokio::test]
async fn the_browser_module_comes_through() {
    each(async |kind| {
        let (front, _gateway) = behind(kind, "").await;
        assert_eq!(front.status("GET", "/topicgate.js").await, Some(200), "{kind:?}");
    })
    .await;
}

#[tokio::test]
async fn compressed_streams_pass_through_each_proxy_at_once_and_are_compressed_once() {
    each(async |kind| {
        let gateway = Gateway::compressing(&kind.gateway_toml()).await;
        // nginx compresses such streams itself if configured to, but not streams that are compressed already.
        let compress =
            ("gzip off;", "gzip on; gzip_proxied any; gzip_min_length 0; gzip_types text/event-stream;");
        let changes: &[_] = if kind == Kind::Nginx { &[compress] } else { &[] };
        let front = Front::start_changed(kind, &[gateway.address], "/topics/up", changes).await;
        let mut reader = front.open("/topics/a", &[("accept-encoding", "gzip, br")]).await;
        let codings: Vec<_> = reader.headers.get_all("content-encoding").iter().collect();
        assert_eq!(codings, ["gzip"], "{kind:?}");
        eprintln!("{kind:?}, compressed");
        follows_at_once(kind, &front, &mut reader, "a").await;
        // A proxy may ask for compression itself and inflate it for a client that knows none.
        let mut plain = front.open("/topics/a", &[]).await;
        assert_eq!(plain.headers.get("content-encoding"), None, "{kind:?}");
        eprintln!("{kind:?}, plain");
        follows_at_once(kind, &front, &mut plain, "a").await;
        for payload in ["one", "two", "three"] {
            assert_eq!(reader.message().await, payload, "{kind:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn http_2_in_front_carries_many_streams_on_one_connection() {
    each(async |kind| {
        let (front, _gateway) = behind(kind, "").await;
        let mut connection = tls::Http2::connect(front.address, &front.pair).await;
        let mut readers = vec![];
        for topic in ["a", "b", "c", "d", "e", "f", "g", "h"] {
            let accept = [("accept", "text/event-stream")];
            let mut reader = connection.open(&format!("/topics/{topic}"), &accept).await;
            follows_at_once(kind, &front, &mut reader, topic).await;
            readers.push((topic, reader));
        }
        for (topic, reader) in &mut readers {
            front.publish(topic, "still").await;
            assert_eq!(reader.message().await, "still", "{kind:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn heartbeats_carry_a_silent_stream_through_ten_minutes() {
    each(async |kind| {
        // The files' minute is four seconds here, so that a second is the fifteen of a heartbeat, and forty are ten
        // minutes.
        let (front, _gateway) = behind(kind, "streams.heartbeat = \"1s\"").await;
        let mut reader = front.open("/topics/a", &[]).await;
        let mut connection = tls::Http2::connect(front.address, &front.pair).await;
        let mut second = connection.open("/topics/a", &[]).await;
        for reader in [&mut reader, &mut second] {
            reader.expect("stream-open").await;
        }
        let silence = Duration::from_secs(40);
        tokio::join!(reader.quiet(silence), second.quiet(silence));
        front.publish("a", "after it").await;
        assert_eq!(reader.message().await, "after it", "{kind:?}, HTTP/1.1");
        assert_eq!(second.message().await, "after it", "{kind:?}, HTTP/2");
    })
    .await;
}

#[tokio::test]
async fn without_heartbeats_the_same_proxies_cut_a_silent_stream() {
    each(async |kind| {
        let (front, _gateway) = behind(kind, "streams.heartbeat = \"1h\"").await;
        let mut reader = front.open("/topics/a", &[]).await;
        reader.expect("stream-open").await;
        if !kind.cuts_what_is_silent() {
            return reader.quiet(Duration::from_secs(12)).await;
        }
        let begin = Instant::now();
        let end = reader.try_next().await;
        assert!(matches!(end, Ok(None) | Err(_)), "{kind:?}: {end:?}");
        assert!(begin.elapsed() > Duration::from_secs(2), "{kind:?}: after {:?}", begin.elapsed());
    })
    .await;
}

#[tokio::test]
async fn a_stream_that_was_cut_resumes_where_it_was() {
    each(async |kind| {
        let (front, _gateway) = behind(kind, "").await;
        let mut reader = front.open("/topics/a", &[]).await;
        reader.expect("stream-open").await;
        front.publish("a", "seen").await;
        assert_eq!(reader.message().await, "seen");
        let id = reader.last_id.clone();
        drop(reader);
        front.publish("a", "missed").await;
        let mut reader = front.open("/topics/a", &[("last-event-id", &id)]).await;
        assert_eq!(reader.control("stream-open").await["resumed"], true, "{kind:?}");
        assert_eq!(reader.message().await, "missed", "{kind:?}");
        front.publish("a", "live").await;
        assert_eq!(reader.message().await, "live", "{kind:?}");
    })
    .await;
}

#[tokio::test]
async fn each_client_counts_by_its_own_address_and_cannot_choose_it() {
    each(async |kind| {
        let (front, _gateway) = behind(kind, "limits.streams_per_address = 1").await;
        let first_event = async |last: u8, headers: &[(&str, &str)]| {
            let mut reader = front.open_from(Ipv4Addr::new(127, 0, 1, last), "/topics/a", headers).await;
            (reader.next().await.unwrap(), reader)
        };
        let (one, _held) = first_event(2, &[]).await;
        assert_eq!(one.event, "stream-open", "{kind:?}");
        for headers in [
            &[][..],
            &[("x-forwarded-for", "203.0.113.9")],
            &[("forwarded", "for=203.0.113.9")],
            &[("x-real-ip", "203.0.113.9")],
        ] {
            let (again, _) = first_event(2, headers).await;
            assert_eq!(again.event, "stream-close", "{kind:?}, {headers:?}");
            assert!(again.data.contains("too_many_streams"), "{kind:?}: {again:?}");
        }
        let (other, _held) = first_event(3, &[]).await;
        assert_eq!(other.event, "stream-open", "{kind:?}");
    })
    .await;
}

/// A gateway of its own process, at the same address each time.
async fn process(kind: Kind, listen: Option<&str>) -> Process {
    let file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    std::fs::write(&file, kind.gateway_toml()).unwrap();
    let mut flags = vec!["--config", file.path().to_str().unwrap()];
    flags.extend(listen.into_iter().flat_map(|listen| ["--listen", listen]));
    Process::with(&flags, &[]).await
}

#[tokio::test]
async fn a_reader_comes_back_from_a_gateway_that_was_away() {
    each(async |kind| {
        let gateway = process(kind, None).await;
        let address = gateway.address.to_string();
        let front = Front::start(kind, gateway.address).await;
        let mut reader = front.open("/topics/a", &[]).await;
        reader.expect("stream-open").await;
        gateway.kill().await;
        assert!(matches!(reader.try_next().await, Ok(None) | Err(_)), "{kind:?}: cut off");

        let mut reader = if kind == Kind::Traefik {
            // It asks again for as long as a restart may take.
            let (reader, _gateway) = tokio::join!(front.open("/topics/a", &[]), async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                process(kind, Some(&address)).await
            });
            return drop(reader);
        } else {
            // 200 and the content type, which the client insists on; anything else would end an EventSource for good.
            front.open("/topics/a", &[]).await
        };
        assert_eq!(reader.next().await, None, "{kind:?}: nothing but when to come back");
        // To a program that publishes it is no success.
        let refused = front.status("POST", "/topics/a").await;
        assert!(matches!(refused, Some(502..=504)), "{kind:?}: {refused:?}");

        let _gateway = process(kind, Some(&address)).await;
        eventually(&format!("{kind:?}: it reads again"), async || {
            let mut reader = front.open("/topics/a", &[]).await;
            reader.next().await.is_some_and(|event| event.event == "stream-open")
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn below_a_path_nginx_may_remove_it_or_leave_it() {
    let rule = "    location /topics {\n        proxy_pass http://topicgate;";
    assert!(std::fs::read_to_string("deploy/proxies/nginx.conf").unwrap().contains(rule));
    for (what, instead, base_path) in [
        ("it is removed", "    location /events/ {\n        proxy_pass http://topicgate/;", ""),
        (
            "it is left",
            "    location /events {\n        proxy_pass http://topicgate;",
            "base_path = \"/events/\"\n",
        ),
        (
            "it is removed, and known",
            "    location /events/ {\n        proxy_pass http://topicgate/;",
            "base_path = \"/events\"\n",
        ),
    ] {
        let gateway = gateway_behind(Kind::Nginx, base_path).await;
        let changes = [(rule, instead)];
        let front =
            Front::start_changed(Kind::Nginx, &[gateway.address], "/events/topics/up", &changes).await;
        let mut reader = front.open("/events/topics/a?last=0", &[]).await;
        reader.expect("stream-open").await;
        let mut several = front.open("/events/topics?topic=a&topic=b", &[]).await;
        several.expect("stream-open").await;
        let socket = tls::connect(front.address, &front.pair, tls::H1).await;
        let posted = client::request_over(socket, "POST", "/events/topics/a", b"below").await;
        assert_eq!(posted.status, 202, "{what}: {}", posted.text());
        assert_eq!((reader.message().await, several.message().await), ("below".into(), "below".into()));
        let socket = tls::connect(front.address, &front.pair, tls::H1).await;
        let page = client::request_over(socket, "GET", "/events/", b"").await;
        assert_eq!((page.status, page.text().contains("<title>topicgate")), (200, true), "{what}");
    }
}
