//! topicgate: a gateway that streams topics of a message broker (NATS or Redis) to browsers over Server-Sent Events.
//!
//! The binary is a thin shell over this library. `docs/architecture.md` shows the pipeline, and which folder may import
//! which.

pub mod app;
pub mod auth;
pub mod broker;
pub mod cli;
pub mod config;
pub mod gateway;
mod http;
pub mod ingest;
pub mod log;
pub mod metrics;
pub mod net;
pub mod protocol;
pub mod reader;
pub mod stream;
pub mod traces;
