//! topicgate: a gateway from topics of a message broker (NATS, Redis) to browsers, over Server-Sent Events.
//!
//! The binary is a thin shell over this library. `docs/architecture.md` draws the pipeline and says who may import whom.

pub mod auth;
pub mod broker;
pub mod bucket;
pub mod cli;
pub mod clients;
pub mod code;
pub mod commands;
pub mod config;
pub mod current;
mod descriptors;
pub mod encoder;
pub mod filter_index;
pub mod gateway;
pub mod health;
pub mod history;
mod http;
mod http_client;
pub mod ingest;
pub mod log;
pub mod logging;
pub mod message;
pub mod metrics;
pub mod position;
pub mod reason;
pub mod recall;
pub mod reload;
pub mod server;
pub mod signal;
pub mod sse;
pub mod tls;
pub mod topic;
pub mod traces;
pub mod trust;
pub mod turns;
pub mod why;
