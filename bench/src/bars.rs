//! The goals of the gateway: each is a number that the results of one run must not exceed.

use crate::history::History;
use crate::report::Report;
use crate::scenario::Scenario;
use crate::target::Target;

/// A goal and its result.
#[derive(Debug)]
pub struct Bar {
    /// In words.
    pub what: String,
    /// The highest allowed value.
    pub limit: f64,
    /// The measured value.
    pub measured: f64,
}

/// Every goal for which the run has the measurements.
pub fn all(report: &Report) -> Vec<Bar> {
    let (small, large) = (Scenario::OneTopic(2_000).name(), Scenario::OneTopic(15_000).name());
    let (together, each) = (Scenario::OneTopicBriefly(10_000).name(), Scenario::TopicEach(10_000).name());
    let (storm, idle) = (Scenario::Storm(5_000).name(), Scenario::Idle(15_000).name());
    let gateway = Target::Gateway;
    let of = |scenario: &str, step: &str, measure: &str| report.median(scenario, step, gateway, measure);
    let against = |scenario: &str, step: &str, target: Target, measure: &str| {
        report.ratio((scenario, step, gateway), (scenario, step, target), measure)
    };
    let peers = [Target::Afternoon, Target::Nchan, Target::Nats]
        .into_iter()
        .filter_map(|peer| against(&small, "w1 200 B", peer, "cpu_us"))
        .reduce(f64::max);
    let per_topic = match (of(&each, "connect", "idle_kib"), of(&together, "connect", "idle_kib")) {
        (Some(each), Some(together)) => Some(each - together),
        _ => None,
    };
    let alarm = match (of(&storm, "while it lasts", "p99_ms"), of(&storm, "before", "p99_ms")) {
        (Some(during), Some(before)) => Some(during / before),
        _ => None,
    };
    let every = Scenario::Every(5_000).name();
    let conflated =
        match (of(&every, "1000 per second", "server_core"), of(&every, "1 per second", "server_core")) {
            (Some(busy), Some(quiet)) => Some(busy / quiet),
            _ => None,
        };
    let apart = report.ratio((&each, "w16 200 B", gateway), (&together, "w1 200 B", gateway), "cpu_us");
    let (plain, compressed) = (Scenario::Json(2_000, false).name(), Scenario::Json(2_000, true).name());
    let saving = |step: &str, measure: &str| {
        report.ratio((&compressed, step, gateway), (&plain, step, gateway), measure)
    };
    // For the whole process: a compressor and its pieces belong to a topic, not to a reader.
    let more = match (of(&compressed, "memory", "traffic_kib"), of(&plain, "memory", "traffic_kib")) {
        (Some(compressed), Some(plain)) => Some(2_000.0 * (compressed - plain)),
        _ => None,
    };
    let (taken, taken_each) = (Scenario::Ingest(1).name(), Scenario::Ingest(10_000).name());
    let behind = |scenario: &str| {
        let step = "w800 200 B";
        report.ratio((scenario, step, Target::Bound), (scenario, step, gateway), "per_second")
    };
    let many = Scenario::HundredTopics(500).name();
    let resumed = |history: History| {
        let name = Scenario::Resume(history, 100_000).name();
        against(&name, "all of it", Target::Direct, "storm_s")
    };
    let bars = [
        (
            "2,000 readers, 1 in flight: CPU per delivery, × bound",
            1.15,
            against(&small, "w1 200 B", Target::Bound, "cpu_us"),
        ),
        ("the same, × the cheapest peer", 1.0, peers),
        (
            "2,000 readers, 16 in flight: CPU per delivery, × bound",
            1.2,
            against(&small, "w16 200 B", Target::Bound, "cpu_us"),
        ),
        (
            "2,000 readers, 200 in flight: CPU per delivery, × bound",
            1.25,
            against(&small, "w200 200 B", Target::Bound, "cpu_us"),
        ),
        ("the same, × nchan", 0.05, against(&small, "w200 200 B", Target::Nchan, "cpu_us")),
        ("15,000 readers: KiB each, idle", 1.0, of(&large, "connect", "idle_kib")),
        ("the same, after traffic", 1.5, of(&large, "memory", "traffic_kib")),
        ("the same, after all left", 0.25, of(&large, "memory", "left_kib")),
        ("10,000 topics, 16 in flight: CPU per delivery, × one topic with 10,000", 1.5, apart),
        ("10,000 topics: KiB each, without the stream's", 2.0, per_topic),
        (
            "100 topics on one stream, 1 in flight: CPU per delivery, × bound",
            1.5,
            against(&many, "w1 200 B", Target::Bound, "cpu_us"),
        ),
        ("the same, 16 in flight", 1.5, against(&many, "w16 200 B", Target::Bound, "cpu_us")),
        ("the same, 200 in flight", 1.5, against(&many, "w200 200 B", Target::Bound, "cpu_us")),
        ("100,000 messages of JetStream: time, × direct", 2.0, resumed(History::Jetstream)),
        ("100,000 messages of a Redis Stream: time, × direct", 2.0, resumed(History::RedisStream)),
        ("messages taken in per second, one topic: bound's, × ours", 2.0, behind(&taken)),
        ("the same, 10,000 topics", 2.0, behind(&taken_each)),
        ("a new connection: CPU, × nchan", 2.0, against(&small, "connect", Target::Nchan, "connect_us")),
        ("storm: p99 of the other readers, × before", 2.0, alarm),
        ("5,000 readers with every=1s: CPU at 1000 messages per second, × 1 per second", 1.5, conflated),
        ("idle crowd: % of a core", 3.0, of(&idle, "idle", "server_core")),
        ("JSON of 200 B, compressed, 1 in flight: bytes, × plain", 0.3333, saving("w1 200 B", "wire_bytes")),
        ("one by one, at the same rate: CPU per delivery, × plain", 1.1, saving("steady 200 B", "cpu_us")),
        ("16 in flight: CPU per delivery, × plain", 1.0, saving("w16 200 B, one in 20 checked", "cpu_us")),
        ("200 in flight: CPU per delivery, × plain", 1.0, saving("w200 200 B, one in 20 checked", "cpu_us")),
        ("p99, × plain", 1.2, saving("steady 200 B", "p99_ms")),
        ("KiB more than plain after traffic, in all", 1024.0, more),
        ("JSON of 1 KiB, compressed, 1 in flight: bytes, × plain", 0.3333, saving("w1 1 KiB", "wire_bytes")),
        ("one by one, at the same rate: CPU per delivery, × plain", 1.1, saving("steady 1 KiB", "cpu_us")),
        ("16 in flight: CPU per delivery, × plain", 1.0, saving("w16 1 KiB, one in 20 checked", "cpu_us")),
        ("200 in flight: CPU per delivery, × plain", 1.0, saving("w200 1 KiB, one in 20 checked", "cpu_us")),
        ("p99, × plain", 1.2, saving("steady 1 KiB", "p99_ms")),
    ];
    let bar = |(what, limit, measured): (&str, f64, Option<f64>)| {
        measured.map(|measured| Bar { what: what.to_owned(), limit, measured })
    };
    bars.into_iter().filter_map(bar).collect()
}
