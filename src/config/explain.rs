//! Says in plain words what a configuration would do. Secrets are named, never shown.

use std::fmt::Write as _;
use std::time::Duration;

use bytesize::ByteSize;
use humantime::format_duration;

use super::{Access, BrokerKind, Config, Field, LogFormat, Rule};

impl Config {
    /// A page of text for people: listeners, broker, rules, limits, and what is unwise.
    pub fn explain(&self) -> String {
        let mut page = String::new();
        // Writing to a String does not fail, so the results are not looked at.
        let mut line = |text: String| {
            let _ = writeln!(page, "{text}");
        };
        line(format!("Browsers connect to {}; {}.", self.listen, self.hosts_in_words()));
        line(format!("Probes and metrics are on {}.", self.admin.listen));
        line(format!("Messages come from {}.", self.broker_in_words()));
        line(String::new());
        line("Topics (the first rule that matches decides; everything else is answered 404):".into());
        for (index, rule) in self.topics.iter().enumerate() {
            line(format!("  {}. {}", index + 1, rule.in_words()));
        }
        if self.topics.is_empty() {
            line("  none".into());
        }
        line(String::new());
        let s = &self.streams;
        line(format!(
            "A silent stream gets a comment every {}. A reader that takes nothing for {} is closed. Readers come back \
             after about {}.{}",
            format_duration(s.heartbeat),
            format_duration(s.write_timeout),
            format_duration(s.retry),
            s.max_age.map_or(String::new(), |age| format!(" A stream lasts about {}.", format_duration(age)))
        ));
        let l = &self.limits;
        line(format!(
            "At most {} streams, {} connections and {} topics at once; {} topics a stream, {} bytes a topic, {} a \
             message, {} of messages held in all; a request head of {} within {}.",
            l.streams,
            l.connections,
            l.topics,
            l.topics_per_stream,
            l.topic_length,
            ByteSize(l.message),
            ByteSize(l.buffer),
            ByteSize(l.head),
            format_duration(l.head_timeout)
        ));
        let origins: Vec<String> = self.cors.origins.iter().map(ToString::to_string).collect();
        line(match (origins.is_empty(), self.cors.credentials) {
            (true, _) => "Pages of other origins may not use it.".into(),
            (false, false) => {
                format!("Pages of these origins may use it, without cookies: {}.", origins.join(", "))
            }
            (false, true) => {
                format!("Pages of these origins may use it, with cookies: {}.", origins.join(", "))
            }
        });
        let format = match self.log.format {
            LogFormat::Text => "text",
            LogFormat::Json => "JSON",
        };
        line(format!("Logs go to standard error as {format}, level {}.", self.log.level));
        line(format!("On SIGTERM, open streams are closed over {}.", format_duration(self.drain)));
        let warnings = self.warnings();
        if !warnings.is_empty() {
            line(String::new());
        }
        for warning in warnings {
            line(format!("warning: {warning}"));
        }
        page
    }

    fn hosts_in_words(&self) -> String {
        match (self.hosts.as_slice(), self.listen.ip().is_loopback()) {
            ([], true) => "requests must name a loopback host, such as localhost".into(),
            ([], false) => "requests may name any host".into(),
            (hosts, _) => format!("requests must name one of these hosts: {}", hosts.join(", ")),
        }
    }

    fn broker_in_words(&self) -> String {
        let broker = &self.broker;
        let sign_in = if broker.token.is_some() {
            ", signed in with a token".into()
        } else if broker.nkey.is_some() {
            ", signed in with an NKey".into()
        } else if let Some(path) = &broker.credentials {
            format!(", signed in with the credentials in {}", path.display())
        } else if let Some(user) = &broker.user {
            format!(", signed in as {user}")
        } else if broker.password.is_some() {
            ", signed in with a password".into()
        } else {
            String::new()
        };
        match broker.kind() {
            BrokerKind::Memory => "the embedded broker (memory:): what is published here is read here".into(),
            BrokerKind::Nats => format!("NATS at {}{sign_in}", broker.masked_url()),
            BrokerKind::Redis => format!(
                "Redis at {}{sign_in}; channels separate their segments with {:?}",
                broker.masked_url(),
                broker.separator
            ),
        }
    }
}

impl Rule {
    fn in_words(&self) -> String {
        let who = |access| match access {
            Access::Anyone => "anyone",
            Access::Nobody => "nobody",
        };
        let wherefrom = |field: &Field| match field {
            Field::Header(name) => format!("the header {name}"),
            Field::Pointer(pointer) => format!("the JSON field {pointer}"),
        };
        let r = &self.replay;
        let linger = match r.linger {
            Duration::ZERO => "let go at once when the last reader leaves".into(),
            linger => format!("let go {} after the last reader left", format_duration(linger)),
        };
        format!(
            "{}: {} may read, {} may publish. Each topic holds up to {} messages, {} and {} for those who come back; \
             it is {linger}{}. Ids are in {}, types in {}.",
            self.filter,
            who(self.read),
            who(self.publish),
            r.messages,
            ByteSize(r.bytes),
            format_duration(r.age),
            if r.warm { ", and subscribed from the start" } else { "" },
            wherefrom(&self.id),
            wherefrom(&self.kind)
        )
    }
}
