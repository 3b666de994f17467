//! Redis over a Unix socket.

use crate::common::document::blocks;
use crate::common::eventually;
use crate::common::gateway::Gateway;
use crate::common::redis::RedisServer;

#[tokio::test]
async fn a_unix_socket_is_a_redis_like_any_other() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("redis.sock");
    let mut redis = RedisServer::start_with(&[&format!("unixsocket {}", socket.display())]);
    let file = blocks(include_str!("../../docs/brokers.md"), "Redis over a Unix socket", "toml").remove(0);
    let file = file.replace("/run/redis/redis.sock", socket.to_str().unwrap());
    let more = "publish = \"anyone\"\n[[topics]]\nmatch = \"jobs/**\"\nsource = \"redis-stream\"\npayload.field = \"data\"\n\
                read = \"anyone\"\npublish = \"anyone\"\n";
    for scheme in ["redis+unix://", "unix://"] {
        let gateway = Gateway::with(&(file.replace("redis+unix://", scheme) + more)).await;
        let mut orders = gateway.open("/topics/orders/**").await;
        orders.expect("stream-open").await;
        gateway.publish("orders/eu", "1").await;
        assert_eq!(orders.message().await, "1");
        let mut jobs = gateway.open("/topics/jobs/a?since=all").await;
        jobs.expect("stream-open").await;
        let stored = gateway.post("/topics/jobs/a", "2").await;
        assert_eq!(stored.status, 202, "{}", stored.text());
        assert_eq!(jobs.message().await, "2");
        redis.stop();
        let is_named =
            async || gateway.ready().await.is_err_and(|why| why.contains(socket.to_str().unwrap()));
        eventually("the reason names the socket", is_named).await;
        redis.restart();
        orders.expect("stream-gap").await;
        gateway.publish("orders/eu", "3").await;
        assert_eq!(orders.message().await, "3");
    }
}
