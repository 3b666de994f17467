//! A gateway that subscribes to topics of NATS or Redis and fans their messages out to browsers over Server-Sent Events,
//! with resume, and with a gap in the place of every message that is missing.
//!
//! To run the gateway on its own, use the `topicgate` binary. Use this library to run it inside your own program: load a
//! [`Config`], build a [`Server`], and run it until your program stops.
//!
//! ```
//! use tokio::sync::oneshot;
//! use topicgate::{Config, Server};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // The embedded broker needs no configuration. Port 0 is any free port.
//! let config = Config::from_toml(
//!     r#"
//!     listen = "127.0.0.1:0"
//!     admin.listen = "127.0.0.1:0"
//!     "#,
//! )?;
//! let server = Server::build(config).await?;
//! println!("curl -N http://{}/topics/hello", server.address()?);
//!
//! let (stop, stopped) = oneshot::channel::<()>();
//! let running = tokio::spawn(server.run(async {
//!     let _ = stopped.await;
//! }));
//!
//! // Your program runs. When it stops, the gateway closes its streams so that readers reconnect to another replica.
//! let _ = stop.send(());
//! running.await?;
//! # Ok(())
//! # }
//! ```
//!
//! # What is public
//!
//! [`Config`] and how to load it, [`Server`] and how to run it, [`Reloader`], and their errors. There is no function to
//! publish or to subscribe: your program uses HTTP for both, as every client does, and `docs/protocol.md` is the interface
//! that stays compatible. The rest of the crate is private, so that it can change in any version.

mod app;
mod auth;
mod broker;
mod cli;
mod config;
mod gateway;
mod http;
mod ingest;
mod log;
mod metrics;
mod net;
mod protocol;
mod reader;
mod stream;
mod traces;

pub use crate::app::reload::Reloader;
pub use crate::app::server::{BuildError, Server};
pub use crate::config::{Config, ConfigError, ConfigErrors, Sources};

/// What the binary, the tests and the benchmarks of this crate use of it. It is no API: do not use it in your program. It
/// can change in any version, also in a patch release.
#[doc(hidden)]
pub mod internals {
    pub mod app {
        pub mod logging {
            pub use crate::app::logging::init;
        }
    }
    pub mod broker {
        pub use crate::broker::{
            Broker, BrokerError, Change, EVENT_CAPACITY, Event, FETCH_MESSAGES, Fetched, Link, Message,
            Stored,
        };
    }
    pub mod cli {
        pub use crate::cli::{Cli, Command, Options};
        pub mod commands {
            pub use crate::cli::commands::{BAD_USAGE, Failure, run, unless_closed};
        }
    }
    pub mod config {
        pub use crate::config::{
            Access, Broker, BrokerTls, Config, ConfigErrors, Limits, Replay, Secret, Sources, is_loopback,
        };
    }
    pub mod ingest {
        pub mod encoder {
            pub use crate::ingest::encoder::Encoder;
        }
    }
    pub mod log {
        pub use crate::log::{
            BACKFILL_CAPACITY, BackfillRequest, Bounds, Cursors, EntryKind, Lease, RangeExtent, Read,
            Registry, StoredPosition, Subscription, seeks_needed,
        };
        pub mod message {
            pub use crate::log::message::{Extracted, FieldMapping, Format, Message};
        }
    }
    pub mod metrics {
        pub use crate::metrics::{Metrics, RuleMetrics};
    }
    pub mod protocol {
        pub mod codes {
            pub use crate::protocol::codes::{CloseCode, Code, GapReason, RefusalCode};
        }
        pub mod event_id {
            pub use crate::protocol::event_id::{
                Epoch, Sequence, Tag, is_before_first, pack_entry_id, unpack_entry_id,
            };
        }
        pub mod frame {
            pub use crate::protocol::frame::{Coding, message};
        }
        pub mod gzip {
            pub use crate::protocol::gzip::Content;
        }
        pub mod headers {
            pub use crate::protocol::headers::Headers;
        }
        pub mod publisher {
            pub use crate::protocol::publisher::PublisherId;
        }
        pub mod view {
            pub use crate::protocol::view::{Interval, View};
        }
        pub mod seek {
            pub use crate::protocol::seek::{Seek, SeekResult, Start};
        }
        pub mod seq {
            pub use crate::protocol::seq::Seq;
        }
        pub mod source {
            pub use crate::protocol::source::{Field, Source};
        }
        pub mod topic {
            pub use crate::protocol::topic::{Filter, Topic};
        }
    }
    pub mod reader {
        pub use crate::reader::Reader;
        pub mod handle {
            pub use crate::reader::handle::ReaderHandle;
        }
        pub mod quota {
            pub use crate::reader::quota::Clients;
        }
    }
    pub mod stream {
        pub use crate::stream::{Stream, StreamContext, StreamOptions};
        pub mod table {
            pub use crate::stream::table::Table;
        }
    }
}
