//! What is allowed but unwise. Advice is data: `topicgate check` prints it, a start logs it, nothing is refused for it.

use std::net::IpAddr;
use std::time::Duration;

use super::{Access, AddressSource, BrokerKind, Config, Origin, url};
use crate::protocol::source::Field;

/// Proxies and load balancers commonly cut a connection that was silent for a minute.
const PROXY_PATIENCE: Duration = Duration::from_secs(55);

impl Config {
    /// One line for each thing that is allowed but may not be meant: what, and what to do about it.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = vec![];
        let mut warn = |text: String| warnings.push(text);
        let public = !self.listen.ip().is_loopback();
        let open = |access: Access| access == Access::Anyone;
        let somebody = |access: Access| access != Access::Nobody;
        let known = |access: Access| somebody(access) && !open(access);

        for variable in &self.unset {
            warn(format!(
                "the environment variable {variable} is empty and counts as not set; give it a value, or remove it"
            ));
        }
        if !self.topics.iter().any(|rule| somebody(rule.read) || somebody(rule.publish)) {
            warn(
                "nothing is exposed: no [[topics]] rule lets anyone read or publish; all requests get 404"
                    .into(),
            );
        } else if self.auth.is_configured()
            && !self.topics.iter().any(|rule| known(rule.read) || known(rule.publish))
        {
            warn("[auth] has no effect: no [[topics]] rule says \"token\" or \"granted\"".into());
        }
        for (index, rule) in self.topics.iter().enumerate() {
            let name = format!("[[topics]] #{} ({})", index + 1, rule.pattern());
            let earlier =
                self.topics.iter().take(index).position(|earlier| earlier.filter.covers(&rule.filter));
            if let Some(earlier) = earlier {
                warn(format!(
                    "{name} is never reached: #{} ({}) covers it and comes first; put the narrower rule first",
                    earlier + 1,
                    self.topics[earlier].pattern()
                ));
                continue;
            }
            if public && open(rule.publish) {
                warn(format!(
                    "{name} lets anyone who reaches {} publish; is publish = \"nobody\" meant?",
                    self.listen
                ));
            }
            if somebody(rule.publish) && rule.filter.is_reserved() {
                warn(format!(
                    "{name} lets callers publish where the broker's own servers and clients listen; is publish = \"nobody\" \
                     meant?"
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
            for (key, field) in [("id", &rule.id), ("type", &rule.kind)] {
                if let (BrokerKind::Redis, Field::Header(header)) = (self.broker.kind(), field)
                    && !rule.source.is_stored()
                {
                    warn(format!(
                        "{name} takes {key} from the header {header}, and Redis messages have none; \
                         write {{ pointer = \"/{key}\" }}"
                    ));
                }
            }
            if somebody(rule.read) && rule.replay.linger < self.streams.retry.mul_f64(1.5) {
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
        if let Some(forward) = &self.auth.forward
            && url::is_plain_and_far(&forward.url.0)
        {
            warn(
                "auth.forward.url is http:// to another machine: cookies and credentials of all readers go there in \
                 the clear; write https://, or keep the network between to yourself"
                    .into(),
            );
        }
        if self.auth.token.query {
            warn(
                "auth.token.query = true takes tokens from URLs, which histories and the logs of proxies keep; \
                 where a cookie can carry them, let it"
                    .into(),
            );
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
        if self.proxies.trusted.is_empty() && self.is_likely_behind_a_proxy() {
            warn(
                "it seems that a proxy is in front, and proxies.trusted names none: all clients then count as one, the \
                 proxy, for limits.streams_per_address and the other limits of an address; name the proxy's network"
                    .into(),
            );
        }
        if self.proxies.trusted.is_empty() && self.proxies.address != AddressSource::default() {
            warn("proxies.address has no effect without proxies.trusted".into());
        }
        if let Some(network) = self.proxies.trusted.iter().find(|network| network.prefix_len() == 0) {
            warn(format!(
                "proxies.trusted = [\"{network}\"] believes everyone, so that each client chooses the address that it is \
                 held to; name the networks of the proxies alone"
            ));
        }
        for (key, set) in
            [("cors.credentials", self.cors.credentials), ("cors.headers", !self.cors.headers.is_empty())]
        {
            if set && self.cors.origins.is_empty() {
                warn(format!("{key} has no effect without cors.origins"));
            }
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

    /// Whoever answers on loopback for a name of the network, or for pages of `https:` without TLS, has a proxy that
    /// brings the requests.
    fn is_likely_behind_a_proxy(&self) -> bool {
        let elsewhere = |host: &String| host != "localhost" && host.parse::<IpAddr>().is_err();
        let named = self.listen.ip().is_loopback() && self.hosts.iter().any(elsewhere);
        let secure = |origin: &Origin| origin.to_string().starts_with("https:");
        named || self.tls.is_none() && self.cors.origins.iter().any(secure)
    }
}
