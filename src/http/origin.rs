//! Which web pages may use a listener: checks the `Host` of a request and the `Origin` of the page that sends it, and
//! answers CORS, by which browsers learn which pages may read the answers.
//!
//! A gateway on loopback trusts every client that can reach it, and any web page that a person visits can make the
//! browser send requests there. Two checks stop that. A `Host` that is not loopback is refused (DNS rebinding: the
//! page's own name, pointed at 127.0.0.1). A page of another origin is refused unless the configuration lists it,
//! whether it uses a script, a form, a frame or an image. A link that a person follows to the gateway is served.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::problem::Problem;
use crate::config::{Cors, Origin, is_loopback};
use crate::gateway::Gateway;
use crate::protocol::codes::RefusalCode;
use crate::stream::outcome;

/// What a page of a listed origin may send. The answer always has the whole list; requested names are never reflected.
const ALLOWED_METHODS: &str = "GET, HEAD, POST";
const ALLOWED_HEADERS: &str = "last-event-id, authorization, cache-control, content-type, event-id, event-type, traceparent, tracestate";

/// Response headers that the page may read in addition to those that browsers always expose.
const EXPOSED_HEADERS: &str = "retry-after, www-authenticate";

/// How long a browser may keep the answer to a preflight, in seconds.
const PREFLIGHT_MAX_AGE: &str = "3600";

/// The listener that received a request.
#[derive(Debug, Clone)]
pub(super) enum Listener {
    /// The listener of `listen`; whether only this machine can connect.
    Public(Arc<Gateway>, bool),
    /// The listener of `admin.listen`; likewise.
    Admin(Arc<Gateway>, bool),
    /// The routes of `admin.listen` for operators.
    Console(Arc<Gateway>),
}

/// What a listener accepts.
#[derive(Debug)]
struct Allowed<'a> {
    /// Names that `Host` may have. `None`: any.
    hosts: Option<Hosts<'a>>,
    cors: &'a Cors,
    /// The listener uses TLS, so the origin of its own pages is `https`.
    secure: bool,
    /// The listener is the admin listener, which has its own `hosts` and admits no pages of other origins.
    is_admin: bool,
}

#[derive(Debug)]
enum Hosts<'a> {
    Loopback,
    /// Loopback names, addresses, and names that are listed.
    Addresses(&'a [String]),
    /// The same, and names without a dot: no attacker can have such a name resolved for a page.
    Local(&'a [String]),
    Listed(&'a [String]),
}

/// The admin listener admits no pages of other origins.
const NO_PAGES: &Cors = &Cors { origins: vec![], headers: vec![], credentials: false };

impl<'a> Allowed<'a> {
    /// The policy of the public listener. `hosts` and `cors` are as configured, `loopback` says whether only this
    /// machine can connect, `secure` whether it uses TLS.
    fn new(hosts: &'a [String], cors: &'a Cors, loopback: bool, secure: bool) -> Self {
        let hosts = match (hosts, loopback) {
            ([], true) => Some(Hosts::Loopback),
            ([], false) => None,
            (listed, _) => Some(Hosts::Listed(listed)),
        };
        Allowed { hosts, cors, secure, is_admin: false }
    }

    /// The policy of the console: no page of another origin, and only addresses, loopback names and listed names as the
    /// `Host`. A page that points its own name at us (DNS rebinding) sends that name as the `Host`.
    fn addresses(listed: &'a [String]) -> Self {
        Allowed { hosts: Some(Hosts::Addresses(listed)), cors: NO_PAGES, secure: false, is_admin: true }
    }

    /// The policy of metrics and probes: the same, and machines of the same network may use the name that they know us
    /// by. A probe is answered under any name: load balancers send some `Host`, and the answer reveals nothing.
    fn local(listed: &'a [String], loopback: bool, is_probe: bool) -> Self {
        let hosts = match (loopback, listed.is_empty()) {
            (true, true) => Hosts::Loopback,
            (true, false) => Hosts::Addresses(listed),
            (false, _) => Hosts::Local(listed),
        };
        let hosts = Some(hosts).filter(|_| loopback || !is_probe);
        Allowed { hosts, cors: NO_PAGES, secure: false, is_admin: true }
    }

    fn check(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
        let host = host(uri, headers);
        let allowed = match &self.hosts {
            None => true,
            // No browser omits it, but HTTP/1.0 may: some health checks do.
            Some(Hosts::Loopback) => host.is_none_or(|host| is_loopback(without_port(host))),
            Some(Hosts::Addresses(listed)) => {
                host.is_none_or(|host| is_address(without_port(host)) || is_listed(listed, host))
            }
            Some(Hosts::Local(listed)) => host.is_none_or(|host| {
                let name = without_port(host);
                is_address(name) || is_single_label(name) || is_listed(listed, host)
            }),
            Some(Hosts::Listed(listed)) => host.is_some_and(|host| is_listed(listed, host)),
        };
        if !allowed {
            return Err(self.bad_host(host));
        }
        if self.listed(headers).is_some() || self.is_own(method, host, headers) {
            return Ok(());
        }
        Err(self.bad_origin(headers.get(header::ORIGIN)))
    }

    fn bad_host(&self, host: Option<&str>) -> Problem {
        let host = host
            .map_or("a request without Host".into(), |host| format!("the Host {}", outcome::quoted(host)));
        let detail = if self.is_admin {
            format!(
                "this listener does not answer for {host}; use its address, or add the name to admin.hosts"
            )
        } else {
            format!("this gateway does not answer for {host}; add the name to the configuration key hosts")
        };
        Problem::new(RefusalCode::BadHost, detail)
    }

    fn bad_origin(&self, origin: Option<&HeaderValue>) -> Problem {
        let detail = match (origin, self.is_admin) {
            (_, true) => {
                "the admin listener answers no pages of other sites; open the console at the listener's own address"
            }
            (None, false) => {
                "a page of another site embeds this, which is not allowed; add its origin to the configuration key \
                 cors.origins, and use fetch or EventSource"
            }
            (Some(_), false) => {
                "pages of this origin may not use this gateway; add the origin to the configuration key cors.origins, as \
                 the browser writes it: scheme, host and port"
            }
        };
        let problem = Problem::new(RefusalCode::BadOrigin, detail);
        let Some(origin) = origin else { return problem };
        let origin = String::from_utf8_lossy(origin.as_bytes());
        problem.note(format!("pages of {} may not", outcome::quoted(&origin)))
    }

    /// Whether the request comes from a page of the gateway's own origin, from a person, or from no page at all.
    fn is_own(&self, method: &Method, host: Option<&str>, headers: &HeaderMap) -> bool {
        // Only the browser writes this field. It is right even behind a proxy, where Host may differ from the page's.
        match (headers.get("sec-fetch-site"), headers.get(header::ORIGIN)) {
            // `none`: typed, or a bookmark.
            (Some(site), _) if site == "same-origin" || site == "none" => true,
            (Some(_), Some(_)) => false,
            // A frame or an image sends no Origin. Its page cannot read the answer, but a stream would stay open, with
            // the visitor's cookies.
            (Some(_), None) => is_followed_link(method, headers),
            // Browsers omit the field on plain HTTP to another machine; then only the Host is left to compare with.
            (None, Some(origin)) => {
                let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
                origin.zip(host).is_some_and(|((scheme, origin), host)| {
                    // Without TLS here, a proxy in front may use TLS, and then its pages are of https.
                    (scheme == "https" || !self.secure) && origin.eq_ignore_ascii_case(host)
                })
            }
            (None, None) => true,
        }
    }

    /// Whether the credentials that a browser adds by itself count. For a page of another origin they do only if the
    /// configuration says so: such a page cannot read the answer, but its request would still take effect.
    fn takes_credentials(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> bool {
        self.cors.credentials || self.is_own(method, host(uri, headers), headers)
    }

    /// The origin of the requesting page, if the configuration lists it.
    fn listed<'h>(&self, headers: &'h HeaderMap) -> Option<&'h HeaderValue> {
        let origin = headers.get(header::ORIGIN)?;
        let text = origin.to_str().ok()?;
        self.cors.origins.iter().any(|entry| entry.admits(text)).then_some(origin)
    }

    /// The request headers that a page may send: ours, and those of `cors.headers`.
    fn allowed_headers(&self) -> String {
        let ours = std::iter::once(ALLOWED_HEADERS);
        ours.chain(self.cors.headers.iter().map(String::as_str)).collect::<Vec<_>>().join(", ")
    }

    /// The CORS headers of an answer.
    fn cors_headers(&self, request: &HeaderMap, preflight: bool) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let Some(origin) = self.listed(request) else { return headers };
        let any = self.cors.origins.contains(&Origin::Any);
        let origin = if any { HeaderValue::from_static("*") } else { origin.clone() };
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        if preflight && let Ok(allowed) = HeaderValue::try_from(self.allowed_headers()) {
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, allowed);
        }
        let mut add = |name, value| headers.insert(name, HeaderValue::from_static(value));
        if self.cors.credentials {
            add(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, "true");
        }
        if preflight {
            add(header::ACCESS_CONTROL_ALLOW_METHODS, ALLOWED_METHODS);
            add(header::ACCESS_CONTROL_MAX_AGE, PREFLIGHT_MAX_AGE);
        } else {
            add(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED_HEADERS);
        }
        headers
    }
}

/// The middleware: refuses requests before anything is subscribed or published, answers preflights, and lets listed
/// pages read every answer, refusals too. It must wrap all the routes.
pub(super) async fn guard(State(listener): State<Listener>, mut request: Request, next: Next) -> Response {
    let current;
    let allowed = match listener {
        Listener::Public(gateway, loopback) => {
            current = gateway.current();
            let config = &current.config;
            Allowed::new(&config.hosts, &config.cors, loopback, config.tls.is_some())
        }
        Listener::Admin(gateway, loopback) => {
            current = gateway.current();
            let is_probe = matches!(request.uri().path(), "/livez" | "/readyz");
            Allowed::local(&current.config.admin.hosts, loopback, is_probe)
        }
        Listener::Console(gateway) => {
            current = gateway.current();
            Allowed::addresses(&current.config.admin.hosts)
        }
    };
    let preflight = is_preflight(request.method(), request.headers());
    let cors = allowed.cors_headers(request.headers(), preflight);
    // RFC 9112, section 3.2. With two of them, a proxy in front may have used the other one.
    let one_host =
        request.version() != Version::HTTP_11 || request.headers().get_all(header::HOST).iter().count() == 1;
    let mut response = if !one_host {
        let detail = "an HTTP/1.1 request must have exactly one Host";
        Problem::new(RefusalCode::BadRequest, detail).into_response()
    } else if let Err(problem) = allowed.check(request.method(), request.uri(), request.headers()) {
        let mut response = problem.into_response();
        // Otherwise a page could hold connections by repeating its request, and the admin listener has few. On HTTP/2 a
        // page has only one connection, and the field is forbidden.
        if request.version() != Version::HTTP_2 {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    } else if preflight {
        // The answer is the same for every path: a preflight carries no credentials, and must not reveal what exists.
        StatusCode::NO_CONTENT.into_response()
    } else {
        if !allowed.takes_credentials(request.method(), request.uri(), request.headers()) {
            drop_credentials(request.headers_mut());
        }
        next.run(request).await
    };
    response.headers_mut().extend(cors);
    vary_by_origin(response.headers_mut());
    response
}

/// Says on every answer that it depends on the origin: a cache that ignores no-store must not give one origin's answer to
/// another.
fn vary_by_origin(headers: &mut HeaderMap) {
    let others: Vec<&str> =
        headers.get_all(header::VARY).iter().filter_map(|vary| vary.to_str().ok()).collect();
    let all = [&["origin"], &others[..]].concat().join(", ");
    if let Ok(vary) = HeaderValue::try_from(all) {
        headers.insert(header::VARY, vary);
    }
}

/// Whether a person has followed a link from a page of another origin: a top-level navigation. Frames, objects and
/// embeds also navigate, but not at the top level; a prefetch is the page's own doing; and a form that posts is not a
/// link.
fn is_followed_link(method: &Method, headers: &HeaderMap) -> bool {
    let says = |name: &str, value: &str| headers.get(name).is_some_and(|found| found == value);
    (method == Method::GET || method == Method::HEAD)
        && says("sec-fetch-mode", "navigate")
        && says("sec-fetch-dest", "document")
        && !headers.contains_key("sec-purpose")
}

/// Removes the credentials that a browser adds by itself: cookies, and `Authorization` of any scheme that it signs in
/// with (Basic, Digest, Negotiate, NTLM). A Bearer token stays: only a script can set it.
fn drop_credentials(headers: &mut HeaderMap) {
    headers.remove(header::COOKIE);
    let is_bearer = |value: &&HeaderValue| {
        let scheme = value.as_bytes().split(|byte| *byte == b' ').next().unwrap_or_default();
        scheme.eq_ignore_ascii_case(b"bearer")
    };
    let set_by_script: Vec<HeaderValue> =
        headers.get_all(header::AUTHORIZATION).iter().filter(is_bearer).cloned().collect();
    headers.remove(header::AUTHORIZATION);
    for value in set_by_script {
        headers.append(header::AUTHORIZATION, value);
    }
}

/// The Fetch standard's CORS-preflight request. Any other OPTIONS is a request like all others.
fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    method == Method::OPTIONS
        && headers.contains_key(header::ORIGIN)
        && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// The requested authority. On HTTP/2 it is in the URI.
fn host<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Option<&'a str> {
    match uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => headers.get(header::HOST)?.to_str().ok(),
    }
}

fn is_listed(listed: &[String], host: &str) -> bool {
    listed.iter().any(|name| name.eq_ignore_ascii_case(without_port(host)))
}

/// Whether it is an IP address or a loopback name.
fn is_address(name: &str) -> bool {
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    is_loopback(name) || bare.parse::<IpAddr>().is_ok()
}

fn is_single_label(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(allowed: &Allowed<'_>, host: &str) -> bool {
        let headers = HeaderMap::from_iter([(header::HOST, host.parse().unwrap())]);
        allowed.check(&Method::GET, &Uri::from_static("/topics/a"), &headers).is_ok()
    }

    #[test]
    fn on_loopback_only_loopback_names_are_answered() {
        let allowed = Allowed::new(&[], NO_PAGES, true, false);
        for host in
            ["localhost", "LOCALHOST:8080", "127.0.0.1:8080", "127.9.9.9", "[::1]:8080", "app.localhost:1"]
        {
            assert!(verdict(&allowed, host), "{host}");
        }
        for host in [
            "attacker.example",
            "127.0.0.1.attacker.example",
            "localhost.attacker.example",
            "[::2]",
            "10.0.0.1",
            "",
            "evil.com:80#.localhost",
            "evil.com/.localhost",
            "evil.com@app.localhost",
            "evil.com:80 .localhost:80",
        ] {
            assert!(!verdict(&allowed, host), "{host}");
        }
    }

    #[test]
    fn pages_for_people_are_served_under_any_address_and_under_no_foreign_name() {
        for host in ["localhost:9090", "127.0.0.1", "10.0.0.5:9090", "[2001:db8::1]:9090", "[::1]"] {
            assert!(verdict(&Allowed::addresses(&[]), host), "{host}");
        }
        for host in ["attacker.example", "attacker.example:9090", "10.0.0.5.attacker.example", "topicgate"] {
            assert!(!verdict(&Allowed::addresses(&[]), host), "{host}");
        }
    }

    #[test]
    fn metrics_are_served_under_addresses_names_without_a_dot_and_listed_hosts() {
        let listed = ["topicgate.monitoring.svc".to_owned()];
        let allowed = Allowed::local(&listed, false, false);
        for host in [
            "localhost:9090",
            "10.0.0.5:9090",
            "[2001:db8::1]:9090",
            "topicgate:9090",
            "topicgate.monitoring.svc:1",
        ] {
            assert!(verdict(&allowed, host), "{host}");
        }
        for host in
            ["attacker.example:9090", "10.0.0.5.attacker.example", "topicgate.other", "a#b", "evil.com:1#x"]
        {
            assert!(!verdict(&allowed, host), "{host}");
        }
        assert!(
            !verdict(&Allowed::local(&[], true, true), "topicgate:9090"),
            "only this machine asks for itself"
        );
        assert!(verdict(&Allowed::local(&[], false, true), "balancer.example"), "a probe");
    }

    #[test]
    fn listed_hosts_are_answered_and_no_others() {
        let hosts = ["events.example.com".to_owned()];
        let allowed = Allowed::new(&hosts, NO_PAGES, true, false);
        assert!(verdict(&allowed, "events.example.com:443"));
        assert!(!verdict(&allowed, "localhost"));
        assert!(verdict(&Allowed::new(&[], NO_PAGES, false, false), "anything.example"));
    }
}
