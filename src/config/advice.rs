//! What is allowed but unwise. Advice is data: `topicgate check` prints it, a start logs it, nothing is refused for it.

use std::time::Duration;

use super::{Access, BrokerKind, Config, Field, Origin};

/// Proxies and load balancers commonly cut a connection that was silent for a minute.
const PROXY_PATIENCE: Duration = Duration::from_secs(55);

impl Config {
    /// One line for each thing that is allowed but may not be meant: what, and what to do about it.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = vec![];
        let mut warn = |text: String| warnings.push(text);
        let public = !self.listen.ip().is_loopback();
        let open = |access: Access| access == Access::Anyone;

        if !self.topics.iter().any(|rule| open(rule.read) || open(rule.publish)) {
            warn(
                "nothing is exposed: no [[topics]] rule lets anyone read or publish; all requests get 404"
                    .into(),
            );
        }
        for (index, rule) in self.topics.iter().enumerate() {
            let name = format!("[[topics]] #{} ({})", index + 1, rule.filter);
            let earlier =
                self.topics.iter().take(index).position(|earlier| earlier.filter.covers(&rule.filter));
            if let Some(earlier) = earlier {
                warn(format!(
                    "{name} is never reached: #{} ({}) covers it and comes first; put the narrower rule first",
                    earlier + 1,
                    self.topics[earlier].filter
                ));
                continue;
            }
            if public && open(rule.publish) {
                warn(format!(
                    "{name} lets anyone who reaches {} publish; is publish = \"nobody\" meant?",
                    self.listen
                ));
            }
            let real = self.broker.kind() != BrokerKind::Memory;
            if public && real && open(rule.read) && rule.filter.as_str() == "**" {
                warn(format!("{name} shows everything on the broker to anyone who reaches {}", self.listen));
            }
            if open(rule.publish) && self.cors.origins.contains(&Origin::Any) {
                warn(format!(
                    "{name} and cors.origins = [\"*\"] together let every web page that a visitor opens publish"
                ));
            }
            let fields = [("id", &rule.id, "Nats-Msg-Id"), ("type", &rule.kind, "Event-Type")];
            for (key, field, default) in fields {
                if let (BrokerKind::Redis, Field::Header(header)) = (self.broker.kind(), field)
                    && header != default
                {
                    warn(format!(
                        "{name} takes {key} from the header {header}, and Redis messages have none; \
                         write {{ pointer = \"/{key}\" }}"
                    ));
                }
            }
            if open(rule.read) && rule.replay.linger < self.streams.retry.mul_f64(1.5) {
                warn(format!(
                    "{name} is forgotten {} after its last reader left, before that reader is told to come back \
                     (streams.retry, up to half more); raise replay.linger or lower streams.retry",
                    humantime::format_duration(rule.replay.linger)
                ));
            }
            if rule.replay.bytes > self.limits.buffer {
                warn(format!("{name} may hold more than limits.buffer, which then cuts it short"));
            }
        }
        if !self.admin.listen.ip().is_loopback() {
            warn(format!(
                "admin.listen = {} is reachable from other hosts and asks for no password; keep it behind a firewall",
                self.admin.listen
            ));
        }
        if self.streams.heartbeat > PROXY_PATIENCE {
            warn(format!(
                "streams.heartbeat = {} is longer than many proxies keep a silent connection (60s); 15s is safe",
                humantime::format_duration(self.streams.heartbeat)
            ));
        }
        if self.streams.max_age.is_some_and(|age| age < Duration::from_secs(60)) {
            warn("streams.max_age is under a minute: every reader reconnects that often".into());
        }
        if self.limits.streams > self.limits.connections {
            warn(
                "limits.streams is above limits.connections: with HTTP/1.1, a stream takes a connection"
                    .into(),
            );
        }
        if self.cors.credentials && self.cors.origins.is_empty() {
            warn("cors.credentials has no effect without cors.origins".into());
        }
        let wide = self.cors.origins.iter().find(|origin| matches!(origin, Origin::Subdomains { .. }));
        if let Some(wide) = wide.filter(|_| self.cors.credentials) {
            warn(format!(
                "cors.origins has {wide} and cors.credentials is true: a page on any name below it acts with its \
                 visitor's cookies; if some of those names are not yours, name the origins"
            ));
        }
        warnings
    }
}
