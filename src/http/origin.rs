//! Whose pages may ask: the `Host` that was asked for and the `Origin` of the page that asks.
//!
//! A gateway on loopback trusts who can reach it, and any web page a person visits can make their browser send requests
//! there. Two things stop that: a `Host` that is not loopback is refused (DNS rebinding: the page's own name, pointed at
//! 127.0.0.1), and a page of another origin is refused unless the configuration lists it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::problem::Problem;
use crate::config::Cors;

/// How long a browser may keep the answer to a preflight.
const PREFLIGHT_MAX_AGE: Duration = Duration::from_secs(3600);

/// What is let in.
#[derive(Debug)]
pub(super) struct Allowed {
    /// Names that `Host` may carry. `None`: any.
    hosts: Option<Hosts>,
    origins: Vec<String>,
}

#[derive(Debug)]
enum Hosts {
    Loopback,
    Listed(Vec<String>),
}

impl Allowed {
    /// `hosts` and `origins` as configured; `loopback` is whether only this machine can connect.
    pub(super) fn new(hosts: &[String], origins: &[String], loopback: bool) -> Self {
        let hosts = match (hosts, loopback) {
            ([], true) => Some(Hosts::Loopback),
            ([], false) => None,
            (listed, _) => Some(Hosts::Listed(listed.to_vec())),
        };
        Allowed { hosts, origins: origins.to_vec() }
    }

    fn check(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
        let host = host(uri, headers);
        let allowed = match &self.hosts {
            None => true,
            // No browser leaves it out, and HTTP/1.0 may: some health checks do.
            Some(Hosts::Loopback) => host.is_none_or(is_loopback),
            Some(Hosts::Listed(listed)) => host
                .is_some_and(|host| listed.iter().any(|name| name.eq_ignore_ascii_case(without_port(host)))),
        };
        if !allowed {
            return Err(Problem::new(
                StatusCode::MISDIRECTED_REQUEST,
                "bad_host",
                "this gateway does not answer for the Host that was asked for; the configuration key hosts lists the names \
                 it answers for",
            ));
        }
        // A preflight carries no credentials and changes nothing; the CORS layer answers it.
        if method == Method::OPTIONS {
            return Ok(());
        }
        // Written by the browser alone. It holds behind a proxy too, where Host may be another than the page's.
        let site = headers.get("sec-fetch-site");
        let same_site = site.is_some_and(|site| site == "same-origin" || site == "none");
        let refused = || {
            Problem::new(
                StatusCode::FORBIDDEN,
                "bad_origin",
                "pages of this origin may not use this gateway; the configuration key cors.origins lists those that may",
            )
        };
        let Some(origin) = headers.get(header::ORIGIN) else {
            // An <img> or a <script> sends no Origin. Its page cannot read the answer, but a stream would stay open.
            let embedded = headers.get("sec-fetch-mode").is_some_and(|mode| mode == "no-cors");
            return if embedded && site.is_some() && !same_site { Err(refused()) } else { Ok(()) };
        };
        let same_host = || {
            let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
            origin.zip(host).is_some_and(|((_, origin), host)| origin.eq_ignore_ascii_case(host))
        };
        if same_site
            || self.origins.iter().any(|listed| listed == "*" || listed.as_bytes() == origin.as_bytes())
            || same_host()
        {
            return Ok(());
        }
        Err(refused())
    }
}

/// The middleware: refuses before anything is subscribed or published.
pub(super) async fn check(State(allowed): State<Arc<Allowed>>, request: Request, next: Next) -> Response {
    // RFC 9112, section 3.2. With two of them a proxy before us may have gone by the other one.
    if request.version() == Version::HTTP_11 && request.headers().get_all(header::HOST).iter().count() != 1 {
        let detail = "a request of HTTP/1.1 has exactly one Host";
        return Problem::new(StatusCode::BAD_REQUEST, "bad_request", detail).into_response();
    }
    match allowed.check(request.method(), request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

/// Tells browsers which pages may read the answers, if any of other origins may.
pub(super) fn cors_layer(cors: &Cors) -> Option<CorsLayer> {
    if cors.origins.is_empty() {
        return None;
    }
    let origins: Vec<HeaderValue> = cors.origins.iter().filter_map(|origin| origin.parse().ok()).collect();
    let origins = if cors.origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins)
    };
    let asked_for =
        ["last-event-id", "authorization", "cache-control", "content-type", "event-id", "event-type"];
    Some(
        CorsLayer::new()
            .allow_origin(origins)
            .allow_credentials(cors.credentials)
            .allow_methods([Method::GET, Method::HEAD, Method::POST])
            .allow_headers(asked_for.map(HeaderName::from_static))
            .max_age(PREFLIGHT_MAX_AGE),
    )
}

/// The authority that was asked for: HTTP/2 has it in the URI.
fn host<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Option<&'a str> {
    match uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => headers.get(header::HOST)?.to_str().ok(),
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => host,
    }
}

fn is_loopback(host: &str) -> bool {
    let name = without_port(host);
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    let lower = name.to_ascii_lowercase();
    // Names under .localhost never leave the machine (RFC 6761, section 6.3).
    lower == "localhost"
        || lower.ends_with(".localhost")
        || address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(allowed: &Allowed, host: &str, origin: Option<&str>) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        origin.map(|origin| headers.insert(header::ORIGIN, origin.parse().unwrap()));
        allowed.check(&Method::GET, &Uri::from_static("/topics/a"), &headers).is_ok()
    }

    #[test]
    fn on_loopback_only_loopback_names_are_answered() {
        let allowed = Allowed::new(&[], &[], true);
        for host in
            ["localhost", "LOCALHOST:8080", "127.0.0.1:8080", "127.9.9.9", "[::1]:8080", "app.localhost:1"]
        {
            assert!(verdict(&allowed, host, None), "{host}");
        }
        for host in [
            "attacker.example",
            "127.0.0.1.attacker.example",
            "localhost.attacker.example",
            "[::2]",
            "10.0.0.1",
            "",
        ] {
            assert!(!verdict(&allowed, host, None), "{host}");
        }
    }

    #[test]
    fn listed_hosts_are_answered_and_no_others() {
        let allowed = Allowed::new(&["events.example.com".into()], &[], true);
        assert!(verdict(&allowed, "events.example.com:443", None));
        assert!(!verdict(&allowed, "localhost", None));
        assert!(verdict(&Allowed::new(&[], &[], false), "anything.example", None));
    }

    #[test]
    fn an_origin_is_let_in_if_it_is_ours_or_listed_exactly() {
        let allowed = Allowed::new(&[], &["https://good.example".into()], false);
        assert!(verdict(&allowed, "gate.example", Some("https://good.example")));
        assert!(verdict(&allowed, "gate.example:8080", Some("http://gate.example:8080")));
        for origin in [
            "https://evil.example",
            "null",
            "https://good.example.evil.com",
            "https://goodXexample",
            "http://good.example",
            "https://good.example:8443",
            "http://gate.example",
        ] {
            assert!(!verdict(&allowed, "gate.example:8080", Some(origin)), "{origin}");
        }
    }
}
