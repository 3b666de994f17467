//! Connections to others and their encryption: the HTTP client, the authorities that are trusted, and the gateway's own
//! certificate. It knows no broker.

pub mod address;
pub mod client;
pub mod reason;
pub mod roots;
pub mod tls;
pub mod turns;
