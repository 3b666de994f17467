//! What was found, line by line as it is found, and which setting of which proxy to change.

use std::io::{Write as _, stdout};
use std::process::ExitCode;

/// What is in the way, as far as a setting can take it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// No setting of a proxy is known to do this.
    None,
    /// No gateway is reached, or under another name.
    Unreachable,
    /// What the gateway writes is held back.
    Buffering,
    /// Silence ends the connection.
    IdleTimeout,
    /// Time ends it, whatever is sent.
    TotalTimeout,
    /// The stream is compressed.
    Compression,
    /// The answer may be stored.
    Caching,
    /// Fields for pages of other origins are lost, or there twice.
    Cors,
    /// The place to go on from does not arrive.
    LastEventId,
    /// The next request reaches another process.
    OtherReplica,
    /// TLS without HTTP/2.
    Http1,
}

impl Cause {
    /// One line for each proxy that is known to do this.
    fn cures(self) -> &'static [&'static str] {
        match self {
            Cause::None => &[],
            Cause::Unreachable => &[
                "nginx: proxy_pass http://GATEWAY:8080; proxy_set_header Host $host",
                "HAProxy: server gateway GATEWAY:8080",
                "Caddy: reverse_proxy GATEWAY:8080",
                "topicgate: hosts must have the name that the proxy sends as Host",
            ],
            Cause::Buffering => &[
                "nginx: proxy_buffering off, and no proxy_ignore_headers X-Accel-Buffering; proxy_http_version 1.1",
                "HAProxy: no http-response wait-for-body, no compression of text/event-stream",
                "Caddy: reverse_proxy { flush_interval -1 }",
                "Envoy: no buffer filter and no compressor on this route",
                "Traefik: no buffering middleware on this router; responseForwarding.flushInterval = \"1ms\"",
                "others: whatever scans or rewrites answers must let text/event-stream pass",
            ],
            Cause::IdleTimeout => &[
                "nginx: proxy_read_timeout 1h (60s by default; of each silence, not of the whole)",
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
                "HAProxy, Caddy, Envoy, Traefik: no CORS of their own on this route: two answers are none",
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
                "or ids of the publisher's own ([[topics]] id), which every replica finds",
            ],
            Cause::Http1 => &[
                "nginx: http2 on (before 1.25.1: listen 443 ssl http2)",
                "HAProxy: bind … ssl alpn h2,http/1.1",
            ],
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Report {
    found: bool,
}

impl Report {
    /// It is as it should be.
    pub(crate) fn fine(&mut self, about: &str, words: &str) {
        self.print("ok", about, words, Cause::None);
    }

    /// It works, and could be better.
    pub(crate) fn note(&mut self, about: &str, words: &str, cause: Cause) {
        self.print("note", about, words, cause);
    }

    /// It is in the way.
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
        // Whoever reads no further still gets the exit code.
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }

    /// 1 if something is in the way.
    pub(crate) fn exit_code(&self) -> ExitCode {
        if self.found { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }
}
