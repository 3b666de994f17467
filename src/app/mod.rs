//! The process: it builds the parts, runs them, reloads the configuration and drains.

pub mod descriptors;
mod first_look;
pub mod logging;
pub mod reload;
pub mod server;
