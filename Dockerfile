# syntax=docker/dockerfile:1

# Alpine's Rust links against musl, statically: the final image needs no libc, and nothing else either.
FROM rust:1-alpine AS build
RUN apk add --no-cache musl-dev make
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY .cargo ./.cargo
COPY src ./src
# Not built; cargo wants to see each member of the workspace.
COPY bench ./bench
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin topicgate \
    && cp target/release/topicgate /topicgate

FROM scratch
# CA certificates, for brokers behind tls:// and rediss://.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /topicgate /usr/local/bin/topicgate
COPY LICENSE /usr/share/doc/topicgate/LICENSE

# topicgate.toml is looked for in the working directory: mount it there, or set TOPICGATE_… variables.
WORKDIR /etc/topicgate

# In a container the gateway has to listen on 0.0.0.0: its default, loopback, cannot be reached from outside.
# Being an environment variable, this wins over `listen` in topicgate.toml.
ENV TOPICGATE_LISTEN=0.0.0.0:8080
EXPOSE 8080

# Any id but root's; there is no /etc/passwd to name it in.
USER 65532:65532

# No HEALTHCHECK: the image has no shell or curl to run one with. Point the orchestrator's probes at /livez and
# /readyz of the admin listener, and set TOPICGATE_ADMIN__LISTEN to an address that they can reach.
ENTRYPOINT ["/usr/local/bin/topicgate"]
