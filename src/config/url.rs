//! URLs: the kind of broker that a URL names, whether it can work, and how it is shown without its secrets; and the URLs
//! of HTTP servers.

use std::net::IpAddr;

use ::url::Url;

/// The kind of broker that a URL names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BrokerKind {
    /// The embedded broker, `memory:`.
    Memory,
    /// NATS, `nats://` or `tls://`.
    Nats,
    /// Redis, `redis://` or `rediss://`, or over a Unix socket `redis+unix://` or `unix://`.
    Redis,
}

impl BrokerKind {
    /// Its name for people.
    pub fn name(self) -> &'static str {
        match self {
            BrokerKind::Memory => "the embedded broker",
            BrokerKind::Nats => "NATS",
            BrokerKind::Redis => "Redis",
        }
    }

    pub(super) fn of(url: &str) -> Option<Self> {
        match url.trim_start().split_once(':')?.0 {
            "memory" => Some(BrokerKind::Memory),
            "nats" | "tls" => Some(BrokerKind::Nats),
            "redis" | "rediss" => Some(BrokerKind::Redis),
            scheme if is_socket(scheme) => Some(BrokerKind::Redis),
            _ => None,
        }
    }
}

/// Whether a URL of this scheme names a Unix socket.
fn is_socket(scheme: &str) -> bool {
    matches!(scheme, "redis+unix" | "unix")
}

/// The servers whose addresses a Redis URL has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// The single server.
    Server,
    /// Sentinels, which know the address of the server.
    Sentinels,
    /// Nodes of a cluster, which know the addresses of the others.
    Nodes,
}

/// The kind of broker that `text` names, or what is wrong with it. The error repeats no part that may be secret.
pub(super) fn check(text: &str, whose: Whose) -> Result<BrokerKind, String> {
    const FORMS: &str = "write memory:, nats://host:4222, tls://host:4222, redis://host:6379, rediss://host:6379 or \
         redis+unix:///path/of/the.sock";
    if text == "memory:" {
        return Ok(BrokerKind::Memory);
    }
    let (mut kind, mut first) = (None, None);
    for part in text.split(',').map(str::trim) {
        if !part.contains("://") {
            return Err(format!("has no scheme that is known here; {FORMS}"));
        }
        let this = BrokerKind::of(part).filter(|this| *this != BrokerKind::Memory);
        let Some(this) = this else { return Err(format!("has a scheme that is not known here; {FORMS}")) };
        if kind.is_some_and(|kind| kind != this) {
            return Err("names brokers of several kinds; name servers of one".to_owned());
        }
        if kind.is_some() && this == BrokerKind::Redis && whose == Whose::Server {
            return Err(
                "names several servers; Redis takes one, unless they are sentinels or nodes of a cluster: then set \
                 broker.sentinel or broker.cluster (a comma in a password is written %2C)"
                    .to_owned()
            );
        }
        kind = Some(this);
        let url = server(part, this)?;
        if is_socket(url.scheme()) && whose != Whose::Server {
            return Err(
                "names a Unix socket, and sentinels and nodes of a cluster name each other's hosts; write \
                        redis://host:6379"
                    .to_owned(),
            );
        }
        if this == BrokerKind::Redis && whose == Whose::Nodes {
            node(&url, first.get_or_insert_with(|| url.clone()))?;
        }
    }
    kind.ok_or_else(|| format!("is empty; {FORMS}"))
}

/// Nodes announce each other by address only, so everything else must be the same for all.
fn node(url: &Url, first: &Url) -> Result<(), String> {
    if !["", "0"].contains(&url.path().trim_start_matches('/')) {
        return Err("names a database, but a cluster has only one; write none, or /0".to_owned());
    }
    if url.scheme() != first.scheme() {
        return Err(
            "mixes redis:// and rediss://, but all nodes must use the same scheme; write one of them"
                .to_owned(),
        );
    }
    if (url.username(), url.password()) != (first.username(), first.password()) {
        return Err(
            "names several users, but all nodes need the same login; write the same one everywhere, or \
                    set broker.user and broker.password"
                .to_owned(),
        );
    }
    Ok(())
}

fn server(text: &str, kind: BrokerKind) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| {
        format!("is not a URL ({error}); characters such as @ / # in a password are percent-encoded")
    })?;
    if is_socket(url.scheme()) {
        return socket(url);
    }
    if url.host_str().unwrap_or_default().is_empty() {
        return Err("names no host; write one after the scheme, as in nats://127.0.0.1:4222".to_owned());
    }
    if url.port() == Some(0) {
        return Err("has port 0, where no server can be; write its port or none".to_owned());
    }
    if url.fragment().is_some() {
        return Err("has a # in it; in a password, write it %23".to_owned());
    }
    let path = url.path().trim_start_matches('/');
    match kind {
        BrokerKind::Redis if !path.is_empty() && path.parse::<u32>().is_err() => {
            Err("has a path that is not the number of a database; write none, or /0".to_owned())
        }
        BrokerKind::Redis if !url.username().is_empty() && url.password().is_none() => Err(
            "names a user without a password; write redis://user:password@host, or set broker.user and broker.password"
                .to_owned(),
        ),
        BrokerKind::Nats if !path.is_empty() || url.query().is_some() => {
            Err("has a path or a query, which NATS does not use; end it after the port".to_owned())
        }
        _ => Ok(url),
    }
}

/// Checks that the URL of a Unix socket has a path, and nothing else except the number of a database.
fn socket(url: Url) -> Result<Url, String> {
    if url.host_str().is_some_and(|host| !host.is_empty()) || is_signed_in(&url) || url.path().len() < 2 {
        return Err(
            "has more than the path of a socket; write redis+unix:///run/redis/redis.sock, and the user \
                    and the password in broker.user and broker.password"
                .to_owned(),
        );
    }
    let is_db = |(key, value): (_, std::borrow::Cow<'_, str>)| key == "db" && value.parse::<u32>().is_ok();
    if !url.query_pairs().all(is_db) || url.fragment().is_some() {
        return Err("has something after the path other than the number of a database; write none, or ?db=2"
            .to_owned());
    }
    Ok(url)
}

/// Parses the URL of an HTTP server, or says what is wrong with it. The error repeats no part that may be secret.
pub(super) fn http(text: &str) -> Result<(), String> {
    const FORM: &str = "write one as in http://127.0.0.1:3000/allowed or https://login.example.com/keys";
    let url = Url::parse(text).map_err(|error| format!("is not a URL ({error}); {FORM}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("has a scheme that is not HTTP; {FORM}"));
    }
    if is_signed_in(&url) {
        return Err("carries a user or a password, which are not sent; remove them".to_owned());
    }
    if url.port() == Some(0) {
        return Err("has port 0, where no server can be; write its port or none".to_owned());
    }
    if url.fragment().is_some() {
        return Err("has a # in it, and what follows is never sent; remove it".to_owned());
    }
    Ok(())
}

/// Whether requests to a URL, and answers from it, can be read and changed on their way.
pub(super) fn is_plain_and_far(text: &str) -> bool {
    Url::parse(text).is_ok_and(|url| url.scheme() == "http" && !url.host_str().is_some_and(is_loopback))
}

/// Whether a host, without port, is this machine: an address, in brackets for IPv6, or a name.
pub fn is_loopback(host: &str) -> bool {
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    // A host with other characters is not a name that our clients would resolve.
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if address.parse::<IpAddr>().is_err() && !host.bytes().all(is_name) {
        return false;
    }
    let lower = host.to_ascii_lowercase();
    // Names under .localhost never leave the machine (RFC 6761, section 6.3).
    lower == "localhost"
        || lower.ends_with(".localhost")
        || address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Whether `text` has a user, a password or a token.
pub(super) fn has_user_info(text: &str) -> bool {
    text.split(',').filter_map(|part| Url::parse(part.trim()).ok()).any(|url| is_signed_in(&url))
}

fn is_signed_in(url: &Url) -> bool {
    !url.username().is_empty() || url.password().is_some()
}

/// `text`, one or more broker URLs separated by commas, without secrets: `nats://***@host:4222`. A query is masked too,
/// because it may have a password. If `text` is not a URL, nothing of it is shown.
pub fn masked(text: &str) -> String {
    let mask = |part: &str| {
        let Ok(url) = Url::parse(part.trim()) else { return "***".to_owned() };
        let Some(host) = url.host_str().filter(|_| !is_socket(url.scheme())) else {
            if is_socket(url.scheme()) && !is_signed_in(&url) {
                let query = if url.query().is_some() { "?***" } else { "" };
                return format!("{}://{}{query}", url.scheme(), url.path());
            }
            return if url.scheme() == "memory" { "memory:".to_owned() } else { "***".to_owned() };
        };
        let user = if is_signed_in(&url) { "***@" } else { "" };
        let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
        let query = if url.query().is_some() { "?***" } else { "" };
        format!("{}://{user}{host}{port}{}{query}", url.scheme(), url.path())
    };
    text.split(',').map(mask).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_url_is_shown_without_its_secrets() {
        for (url, shown) in [
            ("memory:", "memory:"),
            ("nats://host:4222", "nats://host:4222"),
            ("nats://s3cret@host:4222", "nats://***@host:4222"),
            ("nats://me:s3cret@a:1, tls://s3cret@b", "nats://***@a:1,tls://***@b"),
            ("redis://:s3cret@host/2?password=s3cret", "redis://***@host/2?***"),
            ("redis://host/2#s3cret", "redis://host/2"),
            ("nats://me:s3,cret@host", "***,***"),
            ("redis+unix:///run/redis.sock?pass=s3cret#s3cret", "redis+unix:///run/redis.sock?***"),
            ("unix:///run/redis.sock", "unix:///run/redis.sock"),
            ("unix://me:s3cret@host/run/redis.sock", "***"),
            ("s3cret", "***"),
            ("data:s3cret", "***"),
        ] {
            assert_eq!(masked(url), shown);
        }
    }

    #[test]
    fn an_error_in_a_url_is_explained_without_repeating_the_url() {
        for url in
            ["s3cret", "s3cret://h", "nats://s3cret@", "nats://a:s3cret/x", "redis://s3cret@h/s3cret", ""]
        {
            let problem = check(url, Whose::Server).unwrap_err();
            assert!(!problem.contains("s3cret"), "{url}: {problem}");
        }
        let nodes = "redis://a:s3cret@h,redis://b:s3cret@h";
        for url in [nodes, "rediss://:s3cret@h, redis://:s3cret@h", "redis://h,redis://:s3cret@h/1"] {
            let problem = check(url, Whose::Nodes).unwrap_err();
            assert!(!problem.contains("s3cret"), "{url}: {problem}");
        }
        assert_eq!(check(nodes, Whose::Sentinels), Ok(BrokerKind::Redis));
    }
}
