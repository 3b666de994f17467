//! `[broker]`: the broker, and the login for it.

use std::path::PathBuf;
use std::time::Duration;

use super::input::Input;
use super::secret::Secret;
use super::url::{self, BrokerKind, Whose, masked};

/// `[broker]`: the broker, and the login for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Broker {
    /// `broker.url`: `memory:`; or one or more (comma-separated) of `nats://` `tls://`; or one `redis://` `rediss://`
    /// `redis+unix://`. With `broker.sentinel`, one or more sentinels; with `broker.cluster`, one or more nodes.
    pub url: Secret,
    /// `broker.user`.
    pub user: Option<String>,
    /// `broker.password`.
    pub password: Option<Secret>,
    /// `broker.token` (NATS).
    pub token: Option<Secret>,
    /// `broker.nkey`: an NKey seed (NATS).
    pub nkey: Option<Secret>,
    /// `broker.credentials`: path of a `.creds` file (NATS).
    pub credentials: Option<PathBuf>,
    /// `broker.separator`: the separator of the segments of a channel (Redis); NATS has `.`.
    pub separator: char,
    /// `broker.sentinel`: the name of the master that the sentinels of `url` watch (Redis).
    pub sentinel: Option<String>,
    /// `broker.cluster`: whether `url` names nodes of a Redis Cluster.
    pub cluster: bool,
    /// `broker.settle`: how long a subscription takes to reach every server of a cluster (NATS).
    pub settle: Duration,
    /// `broker.jetstream.domain`, or the prefix that `broker.jetstream.prefix` names (NATS).
    pub jetstream: JetStreamApi,
    /// `[broker.tls]`.
    pub tls: BrokerTls,
}

/// `[broker.jetstream]`: the JetStream to use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum JetStreamApi {
    /// The JetStream of the server, or of the leaf node's hub if the server has none.
    #[default]
    Own,
    /// `broker.jetstream.domain`: the JetStream of this domain.
    Domain(String),
    /// `broker.jetstream.prefix`: the JetStream under this prefix, such as one imported from another account.
    Prefix(String),
}

impl JetStreamApi {
    /// The prefix of the subjects of its API.
    pub fn prefix(&self) -> String {
        match self {
            JetStreamApi::Own => "$JS.API".into(),
            JetStreamApi::Domain(domain) => format!("$JS.{domain}.API"),
            JetStreamApi::Prefix(prefix) => prefix.clone(),
        }
    }

    fn read(input: &mut Input<'_>) -> Self {
        const DOMAIN: &str = "broker.jetstream.domain";
        const PREFIX: &str = "broker.jetstream.prefix";
        let is_token = |token: &str| {
            !token.is_empty()
                && !token.contains(|c: char| c.is_whitespace() || c.is_control() || "*>".contains(c))
        };
        let (domain, prefix): (Option<String>, Option<String>) =
            (input.get_if_any(DOMAIN), input.get_if_any(PREFIX));
        if let Some(domain) = domain.as_deref().filter(|domain| domain.contains('.') || !is_token(domain)) {
            input
                .refuse(DOMAIN, format!("{domain:?} is not the name of a domain; write one word, as in hub"));
        }
        if let Some(prefix) = prefix.as_deref().filter(|prefix| !prefix.split('.').all(is_token)) {
            input.refuse(
                PREFIX,
                format!("{prefix:?} is not a prefix of subjects; write one as in $JS.hub.API"),
            );
        }
        match (domain, prefix) {
            (Some(_), Some(_)) => {
                input.refuse(
                    "broker.jetstream",
                    "has a domain and a prefix, which both name an API; keep one",
                );
                JetStreamApi::Own
            }
            (Some(domain), None) => JetStreamApi::Domain(domain),
            (None, Some(prefix)) => JetStreamApi::Prefix(prefix),
            (None, None) => JetStreamApi::Own,
        }
    }
}

/// `[broker.tls]`: trusted authorities in addition to the system's, and the client certificate.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BrokerTls {
    /// `broker.tls.ca`: path of a PEM file with the authorities to trust.
    pub ca: Option<PathBuf>,
    /// `broker.tls.cert`: path of our certificate, PEM.
    pub cert: Option<PathBuf>,
    /// `broker.tls.key`: path of its key, PEM.
    pub key: Option<PathBuf>,
}

impl Broker {
    /// The kind of broker that `url` names.
    pub fn kind(&self) -> BrokerKind {
        // A configuration whose URL has no known scheme is refused while it is read. If one gets here nevertheless, it must
        // not become the embedded broker, which would accept messages for nobody: NATS refuses it with the reason.
        BrokerKind::of(&self.url.0).unwrap_or(BrokerKind::Nats)
    }

    /// The separator that people may write instead of `/` between the segments of a topic: the broker's own.
    pub fn alias(&self) -> Option<char> {
        match self.kind() {
            BrokerKind::Memory => None,
            BrokerKind::Nats => Some('.'),
            BrokerKind::Redis => Some(self.separator),
        }
    }

    /// Whether messages have header fields.
    pub fn has_headers(&self) -> bool {
        self.kind() != BrokerKind::Redis
    }

    /// `url` without its secrets: `nats://***@host:4222`.
    pub fn masked_url(&self) -> String {
        masked(&self.url.0)
    }

    /// The second value is `None` if the URL does not name a kind: then no other key can be checked against it.
    pub(super) fn read(input: &mut Input<'_>) -> (Self, Option<BrokerKind>) {
        let broker = Broker {
            url: input.get("broker.url"),
            user: input.get_if_any("broker.user"),
            password: input.get_if_any("broker.password"),
            token: input.get_if_any("broker.token"),
            nkey: input.get_if_any("broker.nkey"),
            credentials: input.get_if_any("broker.credentials"),
            separator: separator(input),
            sentinel: input.get_if_any("broker.sentinel"),
            cluster: input.get("broker.cluster"),
            settle: input.get("broker.settle"),
            jetstream: JetStreamApi::read(input),
            tls: BrokerTls {
                ca: input.get_if_any("broker.tls.ca"),
                cert: input.get_if_any("broker.tls.cert"),
                key: input.get_if_any("broker.tls.key"),
            },
        };
        let kind = broker.check_url(input);
        if let Some(kind) = kind {
            broker.check_fit(input, kind);
        }
        broker.check_sign_in(input, kind);
        broker.check_pairs(input);
        (broker, kind)
    }

    fn check_url(&self, input: &mut Input<'_>) -> Option<BrokerKind> {
        let whose = match (&self.sentinel, self.cluster) {
            (Some(_), _) => Whose::Sentinels,
            (None, true) => Whose::Nodes,
            (None, false) => Whose::Server,
        };
        match url::check(&self.url.0, whose) {
            Ok(kind) => (!input.has_failed("broker.url")).then_some(kind),
            Err(problem) => {
                input.refuse("broker.url", problem);
                None
            }
        }
    }

    /// Refuses keys that are for another broker.
    fn check_fit(&self, input: &mut Input<'_>, kind: BrokerKind) {
        use BrokerKind::{Nats, Redis};
        let has_tls = input.has_table("broker.tls");
        for (path, given, fits) in [
            ("broker.user", self.user.is_some(), &[Nats, Redis][..]),
            ("broker.password", self.password.is_some(), &[Nats, Redis]),
            ("broker.token", self.token.is_some(), &[Nats]),
            ("broker.nkey", self.nkey.is_some(), &[Nats]),
            ("broker.credentials", self.credentials.is_some(), &[Nats]),
            ("broker.separator", input.is_set("broker.separator"), &[Redis]),
            ("broker.sentinel", self.sentinel.is_some(), &[Redis]),
            ("broker.cluster", self.cluster, &[Redis]),
            ("broker.settle", input.is_set("broker.settle"), &[Nats]),
            ("broker.jetstream.domain", input.is_set("broker.jetstream.domain"), &[Nats]),
            ("broker.jetstream.prefix", input.is_set("broker.jetstream.prefix"), &[Nats]),
            ("broker.tls", has_tls, &[Nats, Redis]),
        ] {
            if fits.contains(&kind) {
                continue;
            }
            if given {
                let fits = fits.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(" and ");
                input.refuse(
                    path,
                    format!("is a setting for {fits}, but broker.url names {}; remove it", kind.name()),
                );
            }
            input.set_in_force(path, None);
        }
        if kind == Redis && !self.url.0.starts_with("rediss://") && has_tls {
            input.refuse("broker.tls", "has no effect without TLS; write rediss:// in broker.url");
        }
    }

    fn check_sign_in(&self, input: &mut Input<'_>, kind: Option<BrokerKind>) {
        let ways: Vec<&str> = [
            // The user of the sentinels is not the user of the servers that they name.
            ("a user in broker.url", url::has_user_info(&self.url.0) && self.sentinel.is_none()),
            ("broker.user and broker.password", self.user.is_some() || self.password.is_some()),
            ("broker.token", self.token.is_some()),
            ("broker.nkey", self.nkey.is_some()),
            ("broker.credentials", self.credentials.is_some()),
        ]
        .into_iter()
        .filter_map(|(way, given)| given.then_some(way))
        .collect();
        if ways.len() > 1 {
            input.refuse("broker", format!("has several ways to sign in: {}; keep one", ways.join(", ")));
        }
        match (&self.user, &self.password) {
            (Some(_), None) if !input.has_failed("broker.password") => {
                input.refuse("broker.user", "is set without broker.password; set both");
            }
            // Redis has a default user; NATS has none.
            (None, Some(_)) if kind == Some(BrokerKind::Nats) && !input.has_failed("broker.user") => {
                input.refuse("broker.password", "is set without broker.user; set both");
            }
            _ => {}
        }
        if self.nkey.as_ref().is_some_and(|Secret(seed)| !seed.starts_with("SU") || seed.len() != 58) {
            input.refuse("broker.nkey", "is not the seed of a user; write 58 characters that begin with SU");
        }
    }

    fn check_pairs(&self, input: &mut Input<'_>) {
        match (&self.tls.cert, &self.tls.key) {
            (Some(_), None) => input.refuse("broker.tls.cert", "is set without broker.tls.key; set both"),
            (None, Some(_)) => input.refuse("broker.tls.key", "is set without broker.tls.cert; set both"),
            _ => {}
        }
        if self.sentinel.as_deref() == Some("") {
            input.refuse(
                "broker.sentinel",
                "is empty; name the master that the sentinels watch, as in mymaster",
            );
        }
        if self.cluster && self.sentinel.is_some() {
            input.refuse(
                "broker.cluster",
                "does not go with broker.sentinel: a cluster watches over its nodes itself; keep the one that you have",
            );
        }
    }
}

fn separator(input: &mut Input<'_>) -> char {
    const KEY: &str = "broker.separator";
    let text: String = input.get(KEY);
    let mut chars = text.chars();
    let one = chars.next().filter(|c| chars.next().is_none() && c.is_ascii_punctuation());
    one.filter(|c| !"*>?[]\\%".contains(*c)).unwrap_or_else(|| {
        input.refuse(
            KEY,
            format!(
                "{text:?} cannot separate; write one character such as : . / - \
                 (no letter, digit or wildcard)"
            ),
        );
        ':'
    })
}
