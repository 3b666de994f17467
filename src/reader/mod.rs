//! The reader of a stream: its identity, the handle that wakes the stream, the clock that all streams share, and the
//! quotas of clients. It delivers nothing and knows no logs.

pub mod bucket;
pub mod clock;
pub mod connections;
pub mod handle;
pub mod quota;
pub mod ticks;

use crate::auth::Caller;
use crate::protocol::codes::HttpVersion;
use crate::protocol::view::View;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::sync::Arc;

/// The client that reads a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reader {
    /// The client's address.
    pub address: IpAddr,
    /// The client's identity.
    pub principal: Principal,
    /// The HTTP version by which the stream is sent.
    pub http: HttpVersion,
    /// Its view; `None`: all messages, unchanged.
    pub view: Option<Arc<View>>,
}

impl Default for Reader {
    /// An anonymous reader without an address, for tests and benchmarks.
    fn default() -> Self {
        Reader {
            address: Ipv4Addr::UNSPECIFIED.into(),
            principal: Principal::Anyone,
            http: HttpVersion::Http11,
            view: None,
        }
    }
}

/// The identity of a reader, as far as the rules required it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    /// Not identified, because no rule required it.
    Anyone,
    /// The part of the caller that matters to its stream.
    Caller(Arc<Caller>),
    /// An operator on the admin listener, where the access rules do not apply.
    Operator,
}

impl Reader {
    /// The subject of the token, or the one that the backend named.
    pub fn subject(&self) -> Option<&Arc<str>> {
        match &self.principal {
            Principal::Caller(caller) => caller.subject.as_ref(),
            Principal::Anyone | Principal::Operator => None,
        }
    }
}
