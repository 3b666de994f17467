//! Warnings about settings that are valid but unwise. `topicgate check` prints them and a start logs them; nothing is
//! refused for them.

use std::net::IpAddr;
use std::time::Duration;

use super::{Access, AddressSource, BrokerKind, Config, Origin, Rule, url};
use crate::protocol::source::Field;

/// Proxies and load balancers commonly close a connection that was silent for a minute.
const PROXY_PATIENCE: Duration = Duration::from_secs(55);

impl Config {
    /// One line for each setting that is valid but may not be meant: what is unusual, and what to do about it.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Warnings(vec![]);
        for variable in &self.unset {
            warnings.add(format!(
                "the environment variable {variable} is empty and counts as not set; give it a value, or remove it"
            ));
        }
        for sentence in &self.overridden {
            warnings.add(sentence.clone());
        }
        if self.is_demo && !self.listen.ip().is_loopback() {
            warnings.add(format!(
                "this is the demo: everyone who reaches {} may read and publish every topic of the embedded broker, which keeps \
                 nothing. A configuration file, broker.url, a [[topics]] rule or [auth] ends it",
                self.listen
            ));
        }
        let is_open = |rule: &Rule| admits(rule.read) || admits(rule.publish);
        if !self.topics.iter().any(is_open) {
            warnings.add(
                "nothing is exposed: no [[topics]] rule lets anyone read or publish; all requests get 404",
            );
        } else if self.auth.is_configured()
            && !self.topics.iter().any(|rule| needs_identity(rule.read) || needs_identity(rule.publish))
        {
            warnings.add("[auth] has no effect: no [[topics]] rule says \"token\" or \"granted\"");
        }
        for index in 0..self.topics.len() {
            self.warn_of_rule(index, &mut warnings);
        }
        self.warn_of_auth(&mut warnings);
        self.warn_of_listeners_and_streams(&mut warnings);
        self.warn_of_proxies(&mut warnings);
        self.warn_of_other_origins(&mut warnings);
        warnings.0
    }

    fn warn_of_rule(&self, index: usize, warnings: &mut Warnings) {
        let Some(rule) = self.topics.get(index) else { return };
        let public = !self.listen.ip().is_loopback();
        let name = format!("[[topics]] #{} ({})", index + 1, rule.pattern());
        let mut earlier = self.topics.iter().take(index).enumerate();
        if let Some((before, earlier)) = earlier.find(|(_, earlier)| earlier.filter.covers(&rule.filter)) {
            return warnings.add(format!(
                "{name} is never reached: #{} ({}) covers it and comes first; put the narrower rule first",
                before + 1,
                earlier.pattern()
            ));
        }
        if public && !self.is_demo && rule.publish == Access::Anyone {
            warnings.add(format!(
                "{name} lets anyone who reaches {} publish; is publish = \"nobody\" meant?",
                self.listen
            ));
        }
        if admits(rule.publish) && rule.filter.is_reserved() {
            warnings.add(format!(
                "{name} lets callers publish where the broker's own servers and clients listen; is publish = \"nobody\" \
                 meant?"
            ));
        }
        let real = self.broker.kind() != BrokerKind::Memory;
        if public && real && rule.read == Access::Anyone && rule.filter.as_str() == "**" {
            warnings
                .add(format!("{name} shows everything on the broker to anyone who reaches {}", self.listen));
        }
        if rule.publish == Access::Anyone && self.cors.origins.contains(&Origin::Any) {
            warnings.add(format!(
                "{name} and cors.origins = [\"*\"] together let every web page that a visitor opens publish"
            ));
        }
        for (key, field) in [("id", &rule.id), ("type", &rule.kind), ("end", &rule.end)] {
            if let (BrokerKind::Redis, Field::Header(header)) = (self.broker.kind(), field)
                && !rule.source.is_stored()
            {
                warnings.add(format!(
                    "{name} takes {key} from the header {header}, and Redis messages have none; \
                     write {{ pointer = \"/{key}\" }}"
                ));
            }
        }
        for (key, field) in [("id", &rule.id), ("type", &rule.kind)] {
            if rule.end != Field::Nowhere && is_same_place(field, &rule.end) {
                warnings.add(format!(
                    "{name} takes {key} and end from the same place, so that every message with {} ends its topic; name \
                     another place for one of them",
                    if key == "id" { "an id" } else { "a type" }
                ));
            }
        }
        self.warn_of_replay(&name, rule, warnings);
    }

    fn warn_of_replay(&self, name: &str, rule: &Rule, warnings: &mut Warnings) {
        if admits(rule.read) && rule.replay.linger < self.streams.retry.mul_f64(1.5) {
            warnings.add(format!(
                "{name} is forgotten {} after its last reader left, and that reader may reconnect later than that \
                 (after up to 150 % of streams.retry); raise replay.linger or lower streams.retry",
                humantime::format_duration(rule.replay.linger)
            ));
        }
        if rule.replay.bytes > self.limits.buffer {
            warnings.add(format!("{name}: replay.bytes is more than limits.buffer, so that less is held; lower the one or raise the other"));
        }
    }

    fn warn_of_auth(&self, warnings: &mut Warnings) {
        let backend = self.auth.forward.as_ref();
        if backend.is_some_and(|backend| url::is_plain_and_far(&backend.url.0)) {
            warnings.add(
                "auth.forward.url is http:// to another machine: cookies and credentials of all readers go there in \
                 the clear; write https://, unless nobody else can read the network between",
            );
        }
        if self.auth.token.query {
            warnings.add(
                "auth.token.query = true takes tokens from URLs, which browser histories and the logs of proxies keep; \
                 use a cookie if you can, or tokens that last for seconds (auth.jwt.until lets their streams last)",
            );
        }
    }

    fn warn_of_listeners_and_streams(&self, warnings: &mut Warnings) {
        if !self.admin.listen.ip().is_loopback() {
            warnings.add(format!(
                "admin.listen = {} is reachable from other hosts and asks for no password; keep it behind a firewall",
                self.admin.listen
            ));
        }
        if self.streams.heartbeat > PROXY_PATIENCE {
            warnings.add(format!(
                "streams.heartbeat = {} is longer than many proxies keep a silent connection (60s); 15s is safe",
                humantime::format_duration(self.streams.heartbeat)
            ));
        }
        if self.streams.max_age.is_some_and(|age| age < Duration::from_secs(60)) {
            warnings.add("streams.max_age is under a minute: every reader reconnects that often");
        }
        if self.limits.streams > self.limits.connections {
            warnings.add(
                "limits.streams is above limits.connections: with HTTP/1.1, a stream takes a connection",
            );
        }
    }

    fn warn_of_proxies(&self, warnings: &mut Warnings) {
        let trusted = &self.proxies.trusted;
        if trusted.is_empty() && self.is_likely_behind_a_proxy() {
            warnings.add(
                "it seems that a proxy is in front, and proxies.trusted is empty: all clients then share the limits of one \
                 address, such as limits.streams_per_address; name the proxy's network",
            );
        }
        if trusted.is_empty() && self.proxies.address != AddressSource::default() {
            warnings.add("proxies.address has no effect without proxies.trusted");
        }
        if let Some(network) = trusted.iter().find(|network| network.prefix_len() == 0) {
            warnings.add(format!(
                "proxies.trusted = [\"{network}\"] trusts everyone, so each client can choose its own address and escape its \
                 limits; name only the networks of the proxies"
            ));
        }
    }

    fn warn_of_other_origins(&self, warnings: &mut Warnings) {
        let cors = &self.cors;
        for (key, set) in [("cors.credentials", cors.credentials), ("cors.headers", !cors.headers.is_empty())]
        {
            if set && cors.origins.is_empty() {
                warnings.add(format!("{key} has no effect without cors.origins"));
            }
        }
        let wide = cors.origins.iter().find(|origin| matches!(origin, Origin::Subdomains { .. }));
        if let Some(wide) = wide.filter(|_| cors.credentials) {
            warnings.add(format!(
                "cors.origins has {wide} and cors.credentials is true: a page on any name below it acts with its \
                 visitor's cookies; if some of these names are not yours, list the origins one by one"
            ));
        }
    }

    /// Whether a proxy must be in front: the gateway listens on loopback and serves a name of the network, or pages of
    /// `https:` without TLS.
    fn is_likely_behind_a_proxy(&self) -> bool {
        let elsewhere = |host: &String| host != "localhost" && host.parse::<IpAddr>().is_err();
        let named = self.listen.ip().is_loopback() && self.hosts.iter().any(elsewhere);
        let secure = |origin: &Origin| origin.to_string().starts_with("https:");
        named || self.tls.is_none() && self.cors.origins.iter().any(secure)
    }
}

struct Warnings(Vec<String>);

impl Warnings {
    fn add(&mut self, text: impl Into<String>) {
        self.0.push(text.into());
    }
}

/// Whether both are in the same place of a message. Names of header fields have no case.
fn is_same_place(a: &Field, b: &Field) -> bool {
    match (a, b) {
        (Field::Header(a), Field::Header(b)) => a.eq_ignore_ascii_case(b),
        (a, b) => a == b,
    }
}

fn admits(access: Access) -> bool {
    access != Access::Nobody
}

/// Whether this access requires identified callers.
fn needs_identity(access: Access) -> bool {
    admits(access) && access != Access::Anyone
}
