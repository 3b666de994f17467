//! The scenarios: the work that one server does in one round, and the values that are measured.
//!
//! A scenario starts a server, opens its streams, and runs its steps. CPU time is read while nothing is in flight: before
//! the first message of a step is published, and after the last one has arrived.

mod ingest;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::history::{self, History};
use crate::load::{Load, Outcome, Spec, Work};
use crate::target::{Need, Running, Setup, Target};

/// The values of one step, by the names of its measures.
pub type Values = BTreeMap<&'static str, f64>;

/// Deliveries per second while latency is measured: about a third of a core for the bound.
const STEADY: f64 = 40_000.0;

/// The most streams that are opening at once, except in the storm.
const CONCURRENCY: usize = 128;

/// Messages that each stream of the storm resumes.
const RESUMED: u32 = 100;

/// Stored messages that each reader of the crowd resumes.
const KEPT: u32 = 10_000;

/// The time in which a crowd that reconnects must receive all messages.
const RETURN: Duration = Duration::from_secs(60);

/// How long readers with `every=1s` receive messages before they are measured: the first message goes out at once.
const EVERY_BEFORE: Duration = Duration::from_millis(1_500);

/// While latency is measured, one in this many readers of JSON parses its events.
const LOOKED_AT: u32 = 20;

/// The longest time that a turn of the load waits for something to read.
const TURN: Duration = Duration::from_millis(20);

/// The scale: full size, or small, to test the tool itself.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    /// The factor for every number of subscribers.
    pub divisor: u32,
    /// How long a step publishes.
    pub time: Duration,
    /// The pause before the memory of a server is read. The gateway frees memory once per second.
    pub settle: Duration,
    /// How long the idle crowd is measured, and three times as long as readers with an interval.
    pub idle: Duration,
}

/// A scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// One topic with this many readers; every window and size.
    OneTopic(u32),
    /// The same, but only the steps that are compared with [`Scenario::TopicEach`].
    OneTopicBriefly(u32),
    /// This many readers, each of its own topic.
    TopicEach(u32),
    /// This many streams, each with the same hundred topics.
    HundredTopics(u32),
    /// This many readers reconnect at once, while others read.
    Storm(u32),
    /// One reader reads this many stored messages.
    Resume(History, u32),
    /// This many readers read [`KEPT`] stored messages at once, while others read live ones.
    ResumeCrowd(u32),
    /// This many readers, of which every tenth reads nothing.
    SlowTenth(u32),
    /// This many streams without messages.
    Idle(u32),
    /// This many HTTP/2 streams, a hundred per connection.
    Http2(u32),
    /// This many readers of one topic with `every=1s`.
    Every(u32),
    /// One topic of JSON with this many readers; whether they accept compression.
    Json(u32, bool),
    /// This many topics with one reader each, and as many messages as the server takes in.
    Ingest(u32),
}

/// A step that was measured.
#[derive(Debug)]
pub struct Step {
    /// Its name in the tables.
    pub name: String,
    /// What was measured.
    pub values: Values,
}

impl Scenario {
    /// Those of a run, in order.
    pub const ALL: [Scenario; 17] = [
        Scenario::OneTopic(2_000),
        Scenario::OneTopic(15_000),
        Scenario::OneTopicBriefly(10_000),
        Scenario::TopicEach(10_000),
        Scenario::HundredTopics(500),
        Scenario::Storm(5_000),
        Scenario::Resume(History::Jetstream, 100_000),
        Scenario::Resume(History::RedisStream, 100_000),
        Scenario::ResumeCrowd(1_000),
        Scenario::SlowTenth(1_000),
        Scenario::Idle(15_000),
        Scenario::Http2(2_000),
        Scenario::Every(5_000),
        Scenario::Json(2_000, false),
        Scenario::Json(2_000, true),
        Scenario::Ingest(1),
        Scenario::Ingest(10_000),
    ];

    /// Its name on the command line.
    pub fn name(self) -> String {
        match self {
            Scenario::OneTopic(readers) | Scenario::OneTopicBriefly(readers) => {
                format!("one-topic-{readers}")
            }
            Scenario::TopicEach(readers) => format!("topic-each-{readers}"),
            Scenario::HundredTopics(readers) => format!("hundred-topics-{readers}"),
            Scenario::Storm(readers) => format!("storm-{readers}"),
            Scenario::Resume(history, messages) => format!("resume-{}-{messages}", history.name()),
            Scenario::ResumeCrowd(readers) => format!("resume-crowd-{readers}"),
            Scenario::SlowTenth(readers) => format!("slow-tenth-{readers}"),
            Scenario::Idle(readers) => format!("idle-{readers}"),
            Scenario::Http2(readers) => format!("http2-{readers}"),
            Scenario::Every(readers) => format!("every-{readers}"),
            Scenario::Json(readers, false) => format!("json-{readers}"),
            Scenario::Json(readers, true) => format!("compressed-json-{readers}"),
            Scenario::Ingest(topics) => format!("ingest-{topics}"),
        }
    }

    /// One line for the report.
    pub fn title(self) -> String {
        match self {
            Scenario::OneTopic(readers) | Scenario::OneTopicBriefly(readers) => {
                format!("One topic, {readers} readers")
            }
            Scenario::TopicEach(readers) => format!("{readers} topics with one reader each"),
            Scenario::HundredTopics(readers) => format!("100 topics on one stream, {readers} streams"),
            Scenario::Storm(readers) => {
                format!("Reconnect storm: {readers} readers return at once, each resumes {RESUMED} messages")
            }
            Scenario::Resume(History::Jetstream, messages) => {
                format!("One reader resumes {messages} messages of JetStream")
            }
            Scenario::Resume(History::RedisStream, messages) => {
                format!("One reader resumes {messages} messages of a Redis Stream")
            }
            Scenario::ResumeCrowd(readers) => {
                format!("{readers} readers return at once, each resumes {KEPT} messages of JetStream")
            }
            Scenario::SlowTenth(readers) => format!("A slow tenth among {readers} readers"),
            Scenario::Idle(readers) => format!("Idle crowd: {readers} streams with heartbeats"),
            Scenario::Http2(readers) => format!("HTTP/2: {readers} streams, 100 to a connection"),
            Scenario::Every(readers) => format!("{readers} readers of one topic with every=1s"),
            Scenario::Json(readers, false) => format!("JSON, {readers} readers"),
            Scenario::Json(readers, true) => format!("The same JSON, {readers} readers, compressed"),
            Scenario::Ingest(1) => "As many messages as come in, on one topic with one reader".to_owned(),
            Scenario::Ingest(topics) => {
                format!("As many messages as come in, on {topics} topics with one reader each")
            }
        }
    }

    /// The ability that a server needs for it.
    pub fn need(self) -> Need {
        match self {
            Scenario::HundredTopics(_) => Need::ManyTopics,
            Scenario::Storm(_) => Need::Resume,
            Scenario::Resume(history, _) => Need::History(history),
            Scenario::ResumeCrowd(_) => Need::HistoryForMany,
            Scenario::Idle(_) => Need::Heartbeat,
            Scenario::Http2(_) => Need::Http2,
            Scenario::Every(_) => Need::Interval,
            Scenario::Json(_, compressed) => Need::Json { compressed },
            Scenario::Ingest(_) => Need::Ingest,
            Scenario::OneTopic(_)
            | Scenario::OneTopicBriefly(_)
            | Scenario::TopicEach(_)
            | Scenario::SlowTenth(_) => Need::Nothing,
        }
    }

    /// Runs it once.
    pub fn run(self, target: Target, setup: &Setup, scale: Scale) -> Result<Vec<Step>> {
        let running = target.start(setup, self.need())?;
        let scaled = |readers: u32| (readers / scale.divisor).max(10);
        match self {
            Scenario::OneTopic(readers) => {
                one_topic(&running, scaled(readers), scale, &[200, 4096], &[1, 16, 200])
            }
            Scenario::OneTopicBriefly(readers) => one_topic(&running, scaled(readers), scale, &[200], &[1]),
            Scenario::TopicEach(readers) => topic_each(&running, scaled(readers), scale),
            Scenario::HundredTopics(readers) => hundred_topics(&running, scaled(readers), scale),
            Scenario::Storm(readers) => storm(&running, scaled(readers), scale),
            Scenario::Resume(history, messages) => resume(&running, history, scaled(messages), scale),
            Scenario::ResumeCrowd(readers) => resume_crowd(&running, scaled(readers), scale),
            Scenario::SlowTenth(readers) => slow_tenth(&running, scaled(readers), scale),
            Scenario::Idle(readers) => idle(&running, scaled(readers), scale),
            Scenario::Http2(readers) => http2(&running, scaled(readers), scale),
            Scenario::Every(readers) => every(&running, scaled(readers), scale),
            Scenario::Json(readers, compressed) => json(&running, scaled(readers), scale, compressed),
            Scenario::Ingest(1) => ingest::ingest(&running, 1, scale),
            Scenario::Ingest(topics) => ingest::ingest(&running, scaled(topics), scale),
        }
    }
}

/// One server in one round, and the steps so far.
struct Session<'a> {
    running: &'a Running,
    load: Load,
    scale: Scale,
    base_kib: f64,
    streams: u32,
    steps: Vec<Step>,
}

impl<'a> Session<'a> {
    /// Opens `specs`, and measures the CPU of a connection and the memory of an idle stream.
    fn open(
        running: &'a Running,
        mut load: Load,
        scale: Scale,
        streams: u32,
        specs: Vec<Spec>,
    ) -> Result<Self> {
        let base_kib = running.server.pss_kib()?;
        let connections = specs.len() as f64;
        let cpu = running.server.cpu()?;
        load.open(specs, CONCURRENCY)?;
        load.rest(Duration::from_millis(100))?; // for what a server does behind the response head
        let cpu = running.server.cpu()? - cpu;
        let mut session = Session { running, load, scale, base_kib, streams, steps: Vec::new() };
        session.load.rest(scale.settle)?;
        let idle = session.kib_per_stream()?;
        let values = [("connect_us", micros(cpu) / connections), ("idle_kib", idle), ("base_kib", base_kib)];
        session.note("connect", values);
        Ok(session)
    }

    fn note(&mut self, name: impl Into<String>, values: impl IntoIterator<Item = (&'static str, f64)>) {
        self.steps.push(Step { name: name.into(), values: values.into_iter().collect() });
    }

    fn kib_per_stream(&self) -> Result<f64> {
        Ok((self.running.server.pss_kib()? - self.base_kib) / f64::from(self.streams))
    }

    fn closed_loop(&mut self, window: u32, work: Work) -> Result<()> {
        let name = format!("w{window} {}", bytes(work.size));
        self.load.set_work(work);
        let received = self.load.bytes();
        let cpu = self.running.server.cpu()?;
        let outcome = self.load.closed_loop(window, self.scale.time).with_context(|| name.clone())?;
        let cpu = self.running.server.cpu()? - cpu;
        let deliveries = outcome.deliveries as f64;
        let wall = outcome.wall.as_secs_f64();
        let values = [
            ("cpu_us", micros(cpu) / deliveries),
            ("per_second", deliveries / wall),
            ("wire_bytes", (self.load.bytes() - received) as f64 / deliveries),
            ("server_core", 100.0 * cpu.as_secs_f64() / wall),
            ("load_core", 100.0 * outcome.load),
        ];
        self.note(name, values);
        Ok(())
    }

    /// Latency at a fixed rate of deliveries.
    fn steady(&mut self, name: &str, work: Work, also: impl FnMut(&mut Load) -> bool) -> Result<()> {
        let rate = STEADY / f64::from(work.readers);
        self.load.set_work(work);
        let cpu = self.running.server.cpu()?;
        // A slow rate needs longer for as many samples.
        let outcome = self.load.paced(rate, self.scale.time * 2, also).with_context(|| name.to_owned())?;
        let cpu = self.running.server.cpu()? - cpu;
        let values = [
            ("p50_ms", outcome.latency.quantile_ms(0.5)),
            ("p99_ms", outcome.latency.quantile_ms(0.99)),
            ("cpu_us", micros(cpu) / outcome.deliveries as f64),
            ("load_core", 100.0 * outcome.load),
        ];
        self.note(name, values);
        Ok(())
    }

    /// Opens all of `specs` at once, while others read at a steady rate, until each has received `wanted` messages.
    fn come_back(&mut self, live: Work, specs: Vec<Spec>, wanted: u32) -> Result<Back> {
        let (first, returning) = (self.load.streams(), specs.len());
        let mut specs = Some(specs);
        let (running, mut took) = (self.running, None);
        let (begin, cpu) = (Instant::now(), running.server.cpu()?);
        self.steady("while it lasts", live, |load| {
            if let Some(specs) = specs.take() {
                load.start_opening(specs, usize::MAX);
            }
            if took.is_none()
                && (begin.elapsed() > RETURN
                    || !load.is_opening() && load.received(first).all(|received| received >= wanted))
            {
                took = Some(begin.elapsed());
            }
            took.is_none()
        })?;
        let cpu = running.server.cpu()? - cpu;
        let complete = self.load.received(first).filter(|received| *received >= wanted).count();
        ensure!(complete == returning, "{complete} of {returning} got what they missed");
        Ok(Back { took: took.context("it did not end")?, cpu })
    }

    /// Measures the memory of the streams after traffic, and the memory that remains when they have left.
    fn finish(mut self) -> Result<Vec<Step>> {
        self.load.rest(self.scale.settle)?;
        let traffic = self.kib_per_stream()?;
        self.load.close();
        let begin = Instant::now();
        while begin.elapsed() < self.scale.settle {
            self.load.turn(self.scale.settle.saturating_sub(begin.elapsed()))?;
        }
        let left = self.kib_per_stream()?;
        self.note("memory", [("traffic_kib", traffic), ("left_kib", left)]);
        Ok(self.steps)
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn bytes(size: usize) -> String {
    if size.is_multiple_of(1024) { format!("{} KiB", size / 1024) } else { format!("{size} B") }
}

fn topics(prefix: &str, count: u32) -> Rc<[String]> {
    (0..count).map(|index| format!("{prefix}/{index}")).collect()
}

fn one_topic(
    running: &Running,
    readers: u32,
    scale: Scale,
    sizes: &[usize],
    windows: &[u32],
) -> Result<Vec<Step>> {
    let work = |size| Work { topics: topics("one", 1), readers, size, json: false };
    let load = running.load(work(200), true)?;
    let spec = Spec::new(running.stages(&work(200).topics, None).into());
    let specs = vec![spec; readers as usize];
    let mut session = Session::open(running, load, scale, readers, specs)?;
    for size in sizes {
        for window in windows {
            session.closed_loop(*window, work(*size))?;
        }
    }
    session.steady("steady 200 B", work(200), |_| false)?;
    session.finish()
}

fn json(running: &Running, readers: u32, scale: Scale, compressed: bool) -> Result<Vec<Step>> {
    let work = |size| Work { topics: topics("one", 1), readers, size, json: true };
    let load = running.load(work(200), true)?;
    let spec = Spec { gzip: compressed, ..Spec::new(running.stages(&work(200).topics, None).into()) };
    let mut session = Session::open(running, load, scale, readers, vec![spec; readers as usize])?;
    for size in [200, 1024] {
        for window in [1, 16, 200] {
            session.closed_loop(window, work(size))?;
        }
    }
    let streams = std::mem::take(&mut session.steps);
    let mut steps = session.finish()?;
    steps.splice(0..0, streams);
    steps.extend(json_watched(running, readers, scale, compressed)?);
    Ok(steps)
}

/// The latency of a few readers of the crowd, and the CPU of the server. In real life, the others are other machines, whose
/// bytes this process need not inflate: it would take messages more slowly than without compression, and the server would
/// get fewer of them at once.
fn json_watched(running: &Running, readers: u32, scale: Scale, compressed: bool) -> Result<Vec<Step>> {
    let watched = readers.div_ceil(LOOKED_AT);
    let work = |size| Work { topics: topics("one", 1), readers: watched, size, json: true };
    let mut load = running.load(work(200), true)?;
    let seen = Spec { gzip: compressed, ..Spec::new(running.stages(&work(200).topics, None).into()) };
    let unseen = Spec { blind: true, counted: false, gzip: false, ..seen.clone() };
    let spec = |index| if index % LOOKED_AT == 0 { seen.clone() } else { unseen.clone() };
    load.open((0..readers).map(spec), CONCURRENCY)?;
    let mut steps = Vec::new();
    for size in [200, 1024] {
        load.set_work(work(size));
        let all = |outcome: &Outcome| outcome.deliveries as f64 * f64::from(readers) / f64::from(watched);
        let cpu = running.server.cpu()?;
        let outcome = load.paced(STEADY / f64::from(readers), scale.time * 4, |_| false)?;
        let cpu = running.server.cpu()? - cpu;
        let values = [
            ("p50_ms", outcome.latency.quantile_ms(0.5)),
            ("p99_ms", outcome.latency.quantile_ms(0.99)),
            ("cpu_us", micros(cpu) / all(&outcome)),
            ("load_core", 100.0 * outcome.load),
        ];
        steps.push(Step { name: format!("steady {}", bytes(size)), values: values.into() });
        for window in [16, 200] {
            let cpu = running.server.cpu()?;
            let outcome = load.closed_loop(window, scale.time)?;
            let cpu = running.server.cpu()? - cpu;
            let values = [
                ("cpu_us", micros(cpu) / all(&outcome)),
                ("per_second", all(&outcome) / outcome.wall.as_secs_f64()),
                ("load_core", 100.0 * outcome.load),
            ];
            let name = format!("w{window} {}, one in {LOOKED_AT} checked", bytes(size));
            steps.push(Step { name, values: values.into() });
        }
    }
    Ok(steps)
}

fn topic_each(running: &Running, readers: u32, scale: Scale) -> Result<Vec<Step>> {
    let work = Work { topics: topics("user", readers), readers: 1, size: 200, json: false };
    let load = running.load(work.clone(), false)?;
    let spec = |topic: &String| Spec::new(running.stages(std::slice::from_ref(topic), None).into());
    let specs = work.topics.iter().map(spec).collect();
    let mut session = Session::open(running, load, scale, readers, specs)?;
    for window in [1, 16, 200] {
        session.closed_loop(window, work.clone())?;
    }
    // There is one publisher and one broker: a message is delivered once here.
    let rate = Work { readers: 1, ..work };
    session.load.set_work(rate);
    let outcome = session.load.paced(STEADY / 8.0, scale.time * 2, |_| false)?;
    let latency = &outcome.latency;
    let values = [
        ("p50_ms", latency.quantile_ms(0.5)),
        ("p99_ms", latency.quantile_ms(0.99)),
        ("load_core", 100.0 * outcome.load),
    ];
    session.note("steady 200 B", values);
    session.finish()
}

fn hundred_topics(running: &Running, readers: u32, scale: Scale) -> Result<Vec<Step>> {
    let work = Work { topics: topics("many", 100), readers, size: 200, json: false };
    let load = running.load(work.clone(), true)?;
    let spec = Spec { topics: 100, ..Spec::new(running.stages(&work.topics, None).into()) };
    let mut session = Session::open(running, load, scale, readers, vec![spec; readers as usize])?;
    for window in [1, 16, 200] {
        session.closed_loop(window, work.clone())?;
    }
    session.finish()
}

fn http2(running: &Running, streams: u32, scale: Scale) -> Result<Vec<Step>> {
    let per_connection = 100.min(streams);
    let connections = streams / per_connection;
    let streams = connections * per_connection;
    let work = Work { topics: topics("one", 1), readers: streams, size: 200, json: false };
    let load = running.load(work.clone(), true)?;
    let stages = running.http2_stages(&work.topics[0], per_connection);
    let spec = Spec { streams: per_connection, ..Spec::new(stages.into()) };
    let mut session = Session::open(running, load, scale, streams, vec![spec; connections as usize])?;
    for window in [1, 16] {
        session.closed_loop(window, work.clone())?;
    }
    session.finish()
}

fn slow_tenth(running: &Running, readers: u32, scale: Scale) -> Result<Vec<Step>> {
    let slow = readers / 10;
    let fast = readers - slow;
    // One size, and large: the unread bytes of the slow readers must exceed the buffers of the system.
    let work = Work { topics: topics("one", 1), readers: fast, size: 4096, json: false };
    let load = running.load(work.clone(), true)?;
    let spec = Spec::new(running.stages(&work.topics, None).into());
    let sleeper = Spec { counted: false, asleep: true, ..spec.clone() };
    let specs = (0..readers).map(|i| if i % 10 == 9 { sleeper.clone() } else { spec.clone() }).collect();
    let mut session = Session::open(running, load, scale, readers, specs)?;
    session.closed_loop(1, work.clone())?;
    session.scale.time = scale.time * 4;
    session.closed_loop(200, work.clone())?;
    session.scale.time = scale.time;
    session.steady("steady 4 KiB", work, |_| false)?;
    let traffic = session.kib_per_stream()?;
    session.load.wake_sleepers()?;
    session.load.rest(scale.settle)?;
    let (skipped, told) = session.load.skipped();
    let slow = f64::from(slow);
    let values = [("traffic_kib", traffic), ("skipped", skipped as f64 / slow), ("told", told as f64 / slow)];
    session.note("the slow ones, awake again", values);
    Ok(session.steps)
}

fn idle(running: &Running, readers: u32, scale: Scale) -> Result<Vec<Step>> {
    let work = Work { topics: topics("one", 1), readers, size: 200, json: false };
    let load = running.load(work.clone(), true)?;
    let spec = Spec::new(running.stages(&work.topics, None).into());
    let mut session = Session::open(running, load, scale, readers, vec![spec; readers as usize])?;
    let cpu = running.server.cpu()?;
    session.load.rest(scale.idle)?;
    let cpu = running.server.cpu()? - cpu;
    session.note("idle", [("server_core", 100.0 * cpu.as_secs_f64() / scale.idle.as_secs_f64())]);
    session.finish()
}

/// The cost of a topic with one message per second and with a thousand, if its readers want one per second.
fn every(running: &Running, readers: u32, scale: Scale) -> Result<Vec<Step>> {
    // A message is done once it is published, because most of them are not delivered.
    let work = Work { topics: topics("one", 1), readers: 0, size: 200, json: false };
    let load = running.load(work.clone(), true)?;
    let path = format!("{}?every=1s", work.topics[0]);
    let spec = Spec { counted: false, ..Spec::new(running.stages(&[path], None).into()) };
    let mut session = Session::open(running, load, scale, readers, vec![spec; readers as usize])?;
    for (name, rate) in [("1 per second", 1.0), ("1000 per second", 1_000.0)] {
        session.load.paced(rate, EVERY_BEFORE.min(scale.idle), |_| false).with_context(|| name.to_owned())?;
        let (cpu, begin) = (running.server.cpu()?, Instant::now());
        let outcome = session.load.paced(rate, scale.idle / 3, |_| false).with_context(|| name.to_owned())?;
        let (cpu, wall) = (running.server.cpu()? - cpu, begin.elapsed().as_secs_f64());
        let values = [
            ("server_core", 100.0 * cpu.as_secs_f64() / wall),
            ("per_second", outcome.deliveries as f64 / wall),
            ("load_core", 100.0 * outcome.load),
        ];
        session.note(name, values);
    }
    session.finish()
}

/// Some readers read at a steady rate. Then all others connect at once, each with the id of a message that is followed
/// by [`RESUMED`] more.
fn storm(running: &Running, returning: u32, scale: Scale) -> Result<Vec<Step>> {
    let steady = (returning / 10).max(10);
    let old = Work { topics: topics("old", 1), readers: 1, size: 200, json: false };
    let live = Work { topics: topics("live", 1), readers: steady, size: 200, json: false };
    let load = running.load(old.clone(), false)?;
    let probe = Spec { record: true, ..Spec::new(running.stages(&old.topics, None).into()) };
    let mut session = Session::open(running, load, scale, 1, vec![probe])?;
    session.steps.clear(); // one connection says nothing
    // One at a time, so that exactly the wanted number is published.
    while session.load.next_number() <= RESUMED {
        session.load.closed_loop(1, Duration::ZERO)?;
    }
    let cursor = first_event_id(session.load.recorded(0)).context("the first message has no id")?;
    let published = session.load.next_number();
    let reader = Spec { first: published, ..Spec::new(running.stages(&live.topics, None).into()) };
    session.load.open(vec![reader; steady as usize], CONCURRENCY)?;
    session.steady("before", live.clone(), |_| false)?;

    let stages = running.stages(&old.topics, Some(&cursor));
    let spec = Spec { counted: false, first: 1, ..Spec::new(stages.into()) };
    let back = session.come_back(live, vec![spec; returning as usize], published - 1)?;
    let cpu = micros(back.cpu) / f64::from(returning);
    session.note("the storm", [("storm_s", back.took.as_secs_f64()), ("connect_us", cpu)]);
    Ok(session.steps)
}

/// One reader reads all messages that the broker stores, which the server has never read.
fn resume(running: &Running, history: History, messages: u32, scale: Scale) -> Result<Vec<Step>> {
    running.fill(history, messages)?;
    if !running.is_direct() {
        follow(running)?;
    }
    std::thread::sleep(scale.settle);
    let server = &running.server;
    let base = server.pss_kib()?;
    let work =
        Work { topics: [history::TOPIC.to_owned()].into(), readers: 0, size: history::SIZE, json: false };
    let resident = server.begin_peak()?;
    let (cpu, begin) = (server.cpu()?, Instant::now());
    let bytes = if running.is_direct() {
        running.read_directly(messages)?
    } else {
        let mut load = running.load(work, true)?;
        let spec = Spec { counted: false, ..Spec::new(running.stages_from_oldest(history::TOPIC).into()) };
        load.start_opening([spec], 1);
        while load.is_opening() || load.received(0).any(|received| received < messages) {
            ensure!(begin.elapsed() < RETURN, "it does not get all");
            load.turn(TURN)?;
        }
        load.rest(Duration::ZERO)?;
        load.bytes()
    };
    let (wall, cpu, count) = (begin.elapsed(), server.cpu()? - cpu, f64::from(messages));
    std::thread::sleep(scale.settle);
    let values = [
        ("storm_s", wall.as_secs_f64()),
        ("cpu_us", micros(cpu) / count),
        ("wire_bytes", bytes as f64 / count),
        ("base_kib", base),
        ("peak_kib", server.peak_kib()? - resident),
        ("after_kib", server.pss_kib()? - base),
    ];
    Ok(vec![Step { name: "all of it".into(), values: values.into() }])
}

/// Waits until the gateway follows the stream, with a reader of a topic that has no messages: a gateway that started
/// before the stream was created looks for it only every few seconds.
fn follow(running: &Running) -> Result<()> {
    let other = ["kept/other".to_owned()];
    let work = Work { topics: other.clone().into(), readers: 0, size: history::SIZE, json: false };
    let spec = Spec { counted: false, ..Spec::new(running.stages(&other, None).into()) };
    running.load(work, true)?.open([spec], 1)
}

/// Some readers read new messages of a stream at a steady rate. Then all others connect at once and read the stream from
/// its beginning.
fn resume_crowd(running: &Running, returning: u32, scale: Scale) -> Result<Vec<Step>> {
    running.fill(History::Jetstream, KEPT)?;
    let steady = (returning / 10).max(10);
    let live =
        Work { topics: ["kept/live".to_owned()].into(), readers: steady, size: history::SIZE, json: false };
    let load = running.load(live.clone(), true)?;
    let reader = Spec::new(running.stages(&live.topics, None).into());
    let mut session = Session::open(running, load, scale, steady, vec![reader; steady as usize])?;
    session.steady("before", live.clone(), |_| false)?;
    let base = running.server.pss_kib()?;
    let spec = Spec { counted: false, ..Spec::new(running.stages_from_oldest(history::TOPIC).into()) };
    let resident = running.server.begin_peak()?;
    let back = session.come_back(live, vec![spec; returning as usize], KEPT)?;
    let peak = running.server.peak_kib()?;
    session.load.rest(scale.settle)?;
    let values = [
        ("storm_s", back.took.as_secs_f64()),
        ("cpu_us", micros(back.cpu) / (f64::from(returning) * f64::from(KEPT))),
        ("base_kib", base),
        ("peak_kib", peak - resident),
        ("after_kib", running.server.pss_kib()? - base),
    ];
    session.note("the crowd", values);
    Ok(session.steps)
}

/// The result of a crowd that reconnected.
struct Back {
    took: Duration,
    cpu: Duration,
}

/// The id of the event with the first message's stamp.
fn first_event_id(recorded: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(recorded);
    let stamp = text.find("@00000000")?;
    let block = &text[text[..stamp].rfind("\n\n").map_or(0, |at| at + 2)..];
    let block = &block[..block.find("\n\n").unwrap_or(block.len())];
    block.lines().find_map(|line| line.strip_prefix("id: ")).map(|id| id.trim().to_owned())
}
