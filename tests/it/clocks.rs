//! A gateway whose clock is another than its broker's, and one whose clock is set while it runs. The real binary, which takes the
//! time of day from a library of the test's own.
#![cfg(target_os = "linux")]

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::common::client::Reader;
use crate::common::eventually;
use crate::common::jetstream::Admin;
use crate::common::nats::NatsServer;
use crate::common::process::Process;
use serde_json::json;

/// Replaces the time of day by the system's time plus the number of milliseconds in a file.
const LIBRARY: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile long *offset;

__attribute__((constructor)) static void begin(void) {
    int file = open(getenv("CLOCK_OFFSET"), O_RDONLY);
    offset = mmap(0, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = (int)syscall(SYS_clock_gettime, clock, time);
    if (clock == CLOCK_REALTIME && offset) {
        long nanoseconds = time->tv_nsec + *offset % 1000 * 1000000;
        time->tv_sec += *offset / 1000;
        time->tv_sec += nanoseconds / 1000000000;
        time->tv_nsec = nanoseconds % 1000000000;
        if (time->tv_nsec < 0) {
            time->tv_nsec += 1000000000;
            time->tv_sec -= 1;
        }
    }
    return result;
}
"#;

/// A clock that can be set.
struct Clock {
    directory: tempfile::TempDir,
}

impl Clock {
    /// A clock that is ahead of the system's by this many milliseconds.
    fn ahead_by(milliseconds: i64) -> Self {
        let clock = Clock { directory: tempfile::tempdir().unwrap() };
        let source = clock.directory.path().join("clock.c");
        std::fs::write(&source, LIBRARY).unwrap();
        let built =
            Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(clock.library()).arg(source).status();
        assert!(built.expect("a C compiler, which the build needs as well").success());
        clock.set(milliseconds);
        clock
    }

    fn library(&self) -> PathBuf {
        self.directory.path().join("clock.so")
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("offset")
    }

    /// Sets the clock ahead by this many milliseconds.
    fn set(&self, milliseconds: i64) {
        use std::os::unix::fs::FileExt;
        let file =
            std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(self.file()).unwrap();
        file.write_all_at(&milliseconds.to_ne_bytes(), 0).unwrap();
    }

    /// A gateway that goes by it, with this configuration.
    async fn gateway(&self, toml: &str) -> Process {
        let config = self.directory.path().join("topicgate.toml");
        std::fs::write(&config, toml).unwrap();
        let (library, file) = (self.library(), self.file());
        let environment =
            [("LD_PRELOAD", library.to_str().unwrap()), ("CLOCK_OFFSET", file.to_str().unwrap())];
        let gateway = Process::with(&["--config", config.to_str().unwrap()], &environment).await;
        eventually("the gateway is ready", async || gateway.readyz().await.status == 200).await;
        gateway
    }
}

fn since(time: SystemTime) -> String {
    format!("since={}", humantime::format_rfc3339_nanos(time))
}

async fn pass(milliseconds: u64) -> SystemTime {
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
    SystemTime::now()
}

/// What a stream brings until `last`, which must come without a gap and with `resumed`.
async fn resumed(gateway: &Process, path: &str, last: &str) -> Vec<String> {
    let mut reader = Reader::open(gateway.address, path, &[]).await;
    assert_eq!(reader.control("stream-open").await["resumed"], true, "{path}");
    let mut messages = vec![reader.message().await];
    while messages.last().is_some_and(|message| message != last) {
        messages.push(reader.message().await);
    }
    messages
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn since_uses_the_clock_of_the_stream_and_not_that_of_the_gateway() {
    let server = NatsServer::jetstream();
    let admin = Admin::connect(&server.url()).await;
    admin.stream("ORDERS", &["orders.>"], json!({})).await;
    let toml = format!(
        "broker.url = \"{}\"\n[[topics]]\nmatch = \"orders/**\"\nsource = \"jetstream\"\nread = \"anyone\"\nreplay = {{ messages = 4 }}\n",
        server.url()
    );
    admin.put("orders.eu", "before").await;
    let begin = pass(20).await;
    for number in 1..=5 {
        admin.put("orders.eu", number.to_string()).await;
    }
    for milliseconds in [-3_000, 3_000, -3_600_000, 3_600_000] {
        let clock = Clock::ahead_by(milliseconds);
        let gateway = clock.gateway(&toml).await;
        let path = format!("/topics/orders/eu?{}", since(begin));
        assert_eq!(resumed(&gateway, &path, "5").await, ["1", "2", "3", "4", "5"], "{milliseconds} ms ahead");
        // Some in memory, some at the broker; and, in time, in memory alone.
        let mut live = Reader::open(gateway.address, "/topics/orders/us", &[]).await;
        live.expect("stream-open").await;
        let middle = pass(20).await;
        for number in 0..6 {
            admin.put("orders.us", number.to_string()).await;
            live.message().await;
        }
        let path = |time| format!("/topics/orders/us?{}", since(time));
        let all = ["0", "1", "2", "3", "4", "5"];
        assert_eq!(resumed(&gateway, &path(middle), "5").await, all, "{milliseconds} ms ahead");
        let late = pass(20).await;
        admin.put("orders.us", "late").await;
        assert_eq!(live.message().await, "late");
        assert_eq!(resumed(&gateway, &path(late), "late").await, ["late"], "{milliseconds} ms ahead");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_jumps_ahead_and_back_is_soon_trusted_again() {
    let clock = Clock::ahead_by(0);
    let rule =
        "[[topics]]\nmatch = \"**\"\nread = \"anyone\"\npublish = \"anyone\"\nreplay = { age = \"10s\" }\n";
    let gateway = clock.gateway(rule).await;
    let mut reader = Reader::open(gateway.address, "/topics/a?format=cloudevents", &[]).await;
    reader.expect("stream-open").await;
    gateway.publish("a", "0").await;
    let time = async |reader: &mut Reader| {
        let envelope: serde_json::Value = serde_json::from_str(&reader.message().await).unwrap();
        humantime::parse_rfc3339(envelope["time"].as_str().unwrap()).unwrap()
    };
    let soon = |time: SystemTime| time < SystemTime::now() + Duration::from_secs(2);
    assert!(soon(time(&mut reader).await));
    clock.set(3_600_000);
    gateway.publish("a", "1").await;
    assert!(!soon(time(&mut reader).await));
    // An hour has passed by the clock, and none in truth: nothing was given up for it.
    let mut all = Reader::open(gateway.address, "/topics/a?since=all", &[]).await;
    all.expect("stream-open").await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let mut held = Reader::open(gateway.address, "/topics/a?since=all", &[]).await;
    held.expect("stream-open").await;
    assert_eq!(held.messages(2).await, ["0", "1"]);
    clock.set(0);
    gateway.publish("a", "2").await;
    assert!(soon(time(&mut reader).await), "the next message has the time of day again");
    let late = pass(20).await;
    gateway.publish("a", "3").await;
    assert!(soon(time(&mut reader).await));
    assert_eq!(resumed(&gateway, &format!("/topics/a?{}", since(late)), "3").await, ["3"]);
    // What came while the clock was wrong grows old like everything else.
    eventually("all has grown too old", async || {
        let mut reader = Reader::open(gateway.address, "/topics/a?since=all", &[]).await;
        reader.expect("stream-open").await;
        let next = tokio::time::timeout(Duration::from_millis(200), reader.next()).await;
        next.is_err()
    })
    .await;
}
