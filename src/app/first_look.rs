//! The back end of the first look: it simulates a shop, so that the page at `/` is alive on a gateway without a
//! configuration. It publishes as any publisher does, and only what somebody reads: without readers there are no messages.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval};

use crate::gateway::{Gateway, MessageAttributes};
use crate::protocol::publisher::EventType;
use crate::protocol::topic::{Filter, Topic};

/// How often it checks which topics have readers, and publishes the next steps.
const STEP: Duration = Duration::from_millis(500);

/// The longest name of a topic here.
const NAME: usize = 64;

const SENSORS: u64 = 12;

/// This sensor is silent now and then, as real ones are.
const UNRELIABLE: u64 = 9;

const NOTICES: [&str; 6] = [
    "Order 1042 was paid",
    "Ann mentioned you in “Agenda”",
    "The report for November is ready",
    "Your parcel is out for delivery",
    "Bob asks for a review",
    "The backup has finished",
];

/// The type and the headline of each message.
const NEWS: [(&str, &str); 8] = [
    ("city", "The new bridge opens on Monday"),
    ("sport", "Rowing club wins the regional cup"),
    ("weather", "Fog until noon, then sun"),
    ("city", "The library stays open until ten"),
    ("weather", "First frost expected tonight"),
    ("sport", "Marathon route announced"),
    ("city", "Tram line 4 runs again"),
    ("sport", "Late goal decides the derby"),
];

/// The document's state, the events of saving, and the present editors.
const DOCUMENT: [(&str, &str, &[&str]); 6] = [
    ("editing", "Ann", &["Ann"]),
    ("editing", "Ann", &["Ann", "Bob"]),
    ("saved", "Ann", &["Ann", "Bob"]),
    ("conflict", "Bob", &["Ann", "Bob"]),
    ("editing", "Bob", &["Bob"]),
    ("saved", "Bob", &[]),
];

/// The uses that the page shows.
#[derive(Debug, Clone, Copy)]
enum Use {
    Dashboard,
    Notifications,
    News,
    Document,
    Sensors,
}

/// The topics of one use.
struct Feed {
    of: Use,
    topics: Filter,
    /// It publishes its next message every time this many steps have passed.
    period: u64,
    /// How many messages it publishes at once for its first reader, so that there is something to see.
    at_first: u64,
    is_read: bool,
    /// The number of messages so far.
    count: u64,
}

/// Publishes for as long as the process runs, or for as long as it has no configuration.
pub(super) async fn run(gateway: Arc<Gateway>) {
    let uses = [
        (Use::Dashboard, "demo/dashboard", 1, 30),
        (Use::Notifications, "demo/notifications", 7, 2),
        (Use::News, "demo/news", 9, 4),
        (Use::Document, "demo/document", 4, 1),
        (Use::Sensors, "demo/sensors/*", 2, 1),
    ];
    let feed = |(of, topics, period, at_first)| {
        let topics = Filter::parse(topics, NAME).ok()?;
        Some(Feed { of, topics, period, at_first, is_read: false, count: 0 })
    };
    let mut feeds: Vec<Feed> = uses.into_iter().filter_map(feed).collect();
    let Ok(all) = Filter::parse("demo/**", NAME) else { return };
    let mut load = 0.5;
    let mut ticks = interval(STEP);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for step in 0_u64.. {
        ticks.tick().await;
        if !gateway.current().config.has_first_look || gateway.readers(&all) == 0 {
            feeds.iter_mut().for_each(|feed| feed.is_read = false);
            continue;
        }
        for feed in &mut feeds {
            let readers = gateway.readers(&feed.topics);
            let is_new = readers > 0 && !std::mem::replace(&mut feed.is_read, readers > 0);
            let times = match readers {
                0 => 0,
                _ if is_new => feed.at_first,
                _ => u64::from(step.is_multiple_of(feed.period)),
            };
            for _ in 0..times {
                load = wander(load);
                feed.go_on(&gateway, load, readers).await;
            }
        }
    }
}

/// A random change, a little up or down.
fn wander(load: f64) -> f64 {
    (load + (fastrand::f64() - 0.5) / 6.0).clamp(0.1, 1.0)
}

impl Feed {
    async fn go_on(&mut self, gateway: &Gateway, load: f64, readers: usize) {
        let count = self.count;
        self.count += 1;
        match self.of {
            Use::Dashboard => {
                let (orders, latency) = (load * 900.0 + fastrand::f64() * 30.0, 18.0 + load.powi(3) * 160.0);
                let numbers = json!({
                    "orders": orders as u64,
                    "latency": latency as u64,
                    "visitors": (load * 4000.0) as u64,
                    "streams": readers,
                });
                send(gateway, "demo/dashboard", None, &numbers).await;
            }
            Use::Notifications => {
                let text = pick(&NOTICES, count);
                send(gateway, "demo/notifications", None, &json!({ "text": text })).await;
            }
            Use::News => {
                let (kind, title) = pick(&NEWS, count);
                send(gateway, "demo/news", Some(kind), &json!({ "title": title })).await;
            }
            Use::Document => {
                let (state, by, editors) = pick(&DOCUMENT, count);
                // A version is saved twice in each round.
                let version = 1 + count / 6 * 2 + [0, 0, 1, 1, 1, 2][(count % 6) as usize];
                let status = json!({ "state": state, "version": version, "by": by, "editors": editors });
                send(gateway, "demo/document", None, &status).await;
            }
            Use::Sensors => {
                for sensor in 1..=SENSORS {
                    if sensor == UNRELIABLE && count % 16 >= 6 {
                        continue;
                    }
                    let phase = count as f64 / 9.0 + sensor as f64;
                    let degrees = 20.0 + 5.0 * phase.sin() + fastrand::f64() / 2.0;
                    let rounded = json!((degrees * 10.0).round() / 10.0);
                    send(gateway, &format!("demo/sensors/{sensor}"), None, &rounded).await;
                }
            }
        }
    }
}

/// The next element; after the last, the first again.
fn pick<T: Copy, const N: usize>(from: &[T; N], count: u64) -> T {
    from[(count % N as u64) as usize]
}

/// A message that cannot be published is missing from the demo, and that is all.
async fn send(gateway: &Gateway, topic: &str, kind: Option<&str>, payload: &Value) {
    let Ok(topic) = Topic::parse(topic, NAME) else { return };
    let attributes =
        MessageAttributes { kind: kind.and_then(EventType::new), ..MessageAttributes::default() };
    let _ = gateway.publish(&topic, None, payload.to_string().into(), attributes).await;
}
