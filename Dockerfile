# syntax=docker/dockerfile:1

# Alpine's Rust links against musl, statically: the final image needs no libc, and nothing else either. Pinned, so that the
# same source makes the same image next year; to renew it, change the tag and the digest together.
FROM rust:1.95.0-alpine3.23@sha256:606fd313a0f49743ee2a7bd49a0914bab7deedb12791f3a846a34a4711db7ed2 AS build
# make and a C compiler build the allocator. Alpine keeps no old versions of a package, so one that is pinned is one that
# cannot be installed next month.
# hadolint ignore=DL3018
RUN apk add --no-cache ca-certificates make musl-dev
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY .cargo ./.cargo
COPY src ./src
# Not built; cargo wants to see each member of the workspace.
COPY bench ./bench
# jemalloc takes the page size of the machine that builds it, and does not start where pages are larger: on Arm they have 4, 16
# or 64 KiB.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    case "$(uname -m)" in aarch64) export JEMALLOC_SYS_WITH_LG_PAGE=16 ;; esac \
    && cargo build --profile dist --features jemalloc --locked --bin topicgate \
    && cp target/dist/topicgate /topicgate

FROM scratch
# CA certificates, for brokers, key sets and backends over TLS.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /topicgate /usr/local/bin/topicgate
COPY LICENSE /usr/share/doc/topicgate/LICENSE

# topicgate.toml is looked for in the working directory: mount it there, or set TOPICGATE_… variables. Nothing is ever
# written, so the root may be read-only (docker run --read-only).
WORKDIR /etc/topicgate

# In a container the gateway has to listen on 0.0.0.0: its default, loopback, cannot be reached from outside.
# Being an environment variable, this wins over `listen` in topicgate.toml. The admin listener stays on the container's own
# loopback, where the health check asks it; TOPICGATE_ADMIN__LISTEN=0.0.0.0:9090 lets others in the network ask as well.
ENV TOPICGATE_LISTEN=0.0.0.0:8080
# Without a file, a broker, a rule or [auth], everyone who reaches the container may use its embedded broker, which holds nothing
# but what they send; the page and the log say that it is the demo. It is a variable, so that the same binary on a machine never
# opens itself to a network.
ENV TOPICGATE_DEMO=true
EXPOSE 8080

# Any id but root's; there is no /etc/passwd to name it in.
USER 65532:65532

# Alive, not ready: replacing a gateway whose broker is away would only cut its readers off.
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s CMD ["/usr/local/bin/topicgate", "health"]
# SIGTERM begins the drain (10 seconds by default). Docker kills after 10: docker stop -t 20.
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/topicgate"]
