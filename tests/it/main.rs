//! Every test that goes through the door a user uses: a real socket, real brokers as child processes, a real browser. One
//! binary, since each of its own would link the whole gateway again.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

#[path = "../common/mod.rs"]
mod common;

mod admin;
mod auth;
mod brokers;
mod client_address;
mod client_limits;
mod clients;
mod clocks;
mod commands;
mod config;
mod console;
mod cors;
mod deploy;
mod doctor;
mod documents;
mod expiry;
mod faults;
mod feeds;
mod forward_auth;
mod health;
mod hostile_connections;
mod hostile_files;
mod hostile_http;
mod hostile_http2;
mod hostile_messages;
mod hostile_tokens;
mod hostile_topics;
mod jetstream;
mod jetstream_corners;
mod jetstream_streams;
mod jwks;
mod kills;
mod kubernetes;
mod kv;
mod limits;
mod metrics;
mod monitoring;
mod nats_cluster;
mod nats_headers;
mod nats_routes;
mod permissions;
mod process;
mod proxies;
mod reasons;
mod recipes;
mod redis_broker;
mod redis_cluster;
mod redis_sentinel;
mod redis_stream_readers;
mod redis_streams;
mod reload;
mod replay;
mod resume;
mod sighup;
mod starts;
mod streams;
mod tls;
mod traces;
mod turns;
mod why;
