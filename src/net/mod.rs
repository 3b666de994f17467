//! Connections to other servers, and TLS: the HTTP client, the trusted certificate authorities, and the gateway's own
//! certificate. It knows no broker.

pub mod address;
pub mod client;
mod progress;
pub mod reason;
pub mod roots;
pub mod tls;
pub mod tls_stream;
pub mod turns;
