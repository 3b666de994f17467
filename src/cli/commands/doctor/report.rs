//! The report of `doctor`: prints each finding at once, and names the setting of each proxy that would change it.

use std::io::{Write as _, stdout};
use std::process::ExitCode;

/// The cause of a finding, as far as a setting can remove it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// No proxy setting is known to cause this.
    None,
    /// The request does not reach a gateway, or reaches it under another name.
    Unreachable,
    /// Events are held back.
    Buffering,
    /// A timeout ends a silent connection.
    IdleTimeout,
    /// A timeout ends every connection, silent or not.
    TotalTimeout,
    /// The stream is compressed.
    Compression,
    /// The answer may be cached.
    Caching,
    /// The CORS headers are missing or present twice.
    Cors,
    /// The cursor does not reach the gateway.
    LastEventId,
    /// The next request reaches another replica.
    OtherReplica,
    /// TLS without HTTP/2.
    Http1,
}

impl Cause {
    /// The settings to change, one line for each proxy that is known to cause this.
    fn cures(self) -> &'static [&'static str] {
        match self {
            Cause::None => &[],
            Cause::Unreachable => &[
                "nginx: proxy_pass http://GATEWAY:8080; proxy_set_header Host $host",
                "HAProxy: server gateway GATEWAY:8080",
                "Caddy: reverse_proxy GATEWAY:8080",
                "topicgate: hosts must contain the name that the proxy sends as Host",
            ],
            Cause::Buffering => &[
                "nginx: proxy_buffering off, and no proxy_ignore_headers X-Accel-Buffering; proxy_http_version 1.1",
                "HAProxy: no http-response wait-for-body, no compression of text/event-stream",
                "Caddy: reverse_proxy { flush_interval -1 }",
                "Envoy: no buffer filter and no compressor on this route",
                "Traefik: no buffering middleware on this router; responseForwarding.flushInterval = \"1ms\"",
                "others: anything that scans or rewrites responses must pass text/event-stream through",
            ],
            Cause::IdleTimeout => &[
                "nginx: proxy_read_timeout 1h (60s by default; applies to each silence)",
                "HAProxy: timeout server and timeout client, longer than the heartbeat",
                "Caddy: reverse_proxy { transport http { read_timeout 1h } }, where it is set",
                "Envoy: stream_idle_timeout of the connection manager, idle_timeout of the route",
                "a load balancer of a cloud: its idle timeout",
                "topicgate: streams.heartbeat (15s), shorter than each of them",
            ],
            Cause::TotalTimeout => &[
                "Envoy: timeout: 0s in the route (15s by default)",
                "Caddy: servers { timeouts { write } }, where it is set",
                "Traefik: respondingTimeouts.writeTimeout = 0 of the entry point",
                "HAProxy: no timeout tunnel on this backend shorter than a stream may last",
                "a load balancer of a cloud: the timeout of its backend service",
            ],
            Cause::Compression => &[
                "nginx: take text/event-stream out of gzip_types and brotli_types, or gzip off in this location",
                "HAProxy: take text/event-stream out of compression type",
                "Caddy: encode { match { not header Content-Type text/event-stream* } }",
                "Envoy: take text/event-stream out of the compressor's content_type",
                "Traefik: excludedContentTypes = [\"text/event-stream\"] of the compress middleware",
            ],
            Cause::Caching => &[
                "nginx: proxy_cache off; no add_header or expires that sets Cache-Control",
                "HAProxy: no http-request cache-use and no http-response set-header Cache-Control here",
                "others: nothing may store text/event-stream, nor change Cache-Control",
            ],
            Cause::Cors => &[
                "topicgate: cors.origins must list the origin; then it answers everything itself",
                "nginx: no add_header Access-Control-… and no answer of its own to OPTIONS",
                "HAProxy, Caddy, Envoy, Traefik: no CORS of their own on this route: browsers reject two answers",
            ],
            Cause::LastEventId => &[
                "nginx: no proxy_pass_request_headers off, no proxy_set_header Last-Event-ID",
                "HAProxy: no http-request del-header Last-Event-ID",
                "others: the request header Last-Event-ID must pass",
            ],
            Cause::OtherReplica => &[
                "nginx: ip_hash or hash in the upstream",
                "HAProxy: balance source, or cookie",
                "Caddy: reverse_proxy { lb_policy client_ip_hash }",
                "or use publisher ids ([[topics]] id), which every replica finds",
            ],
            Cause::Http1 => &[
                "nginx: http2 on (before 1.25.1: listen 443 ssl http2)",
                "HAProxy: bind … ssl alpn h2,http/1.1",
            ],
        }
    }
}

/// The findings so far.
#[derive(Debug, Default)]
pub(crate) struct Report {
    found: bool,
}

impl Report {
    /// Prints a check that passed.
    pub(crate) fn fine(&mut self, about: &str, words: &str) {
        self.print("ok", about, words, Cause::None);
    }

    /// Prints a check that works but could be better.
    pub(crate) fn note(&mut self, about: &str, words: &str, cause: Cause) {
        self.print("note", about, words, cause);
    }

    /// Prints a problem.
    pub(crate) fn found(&mut self, about: &str, words: &str, cause: Cause) {
        self.found = true;
        self.print("FOUND", about, words, cause);
    }

    fn print(&self, verdict: &str, about: &str, words: &str, cause: Cause) {
        let mut out = stdout().lock();
        let mut text = format!("{verdict:<6} {about}: {words}\n");
        for cure in cause.cures() {
            text += &format!("         {cure}\n");
        }
        // If the output is closed, the exit code still tells the result.
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }

    /// 1 if a problem was found, otherwise 0.
    pub(crate) fn exit_code(&self) -> ExitCode {
        if self.found { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }
}
