//! Who reads a stream: the caller, the handle that wakes the stream, the clock that all streams share, and what one
//! client may use. It delivers nothing and knows no logs.

pub mod bucket;
pub mod clock;
pub mod handle;
pub mod quota;

use crate::auth::Caller;
use crate::protocol::codes::HttpVersion;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::sync::Arc;

/// Who reads a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reader {
    /// Where they come from, as far as it can be believed.
    pub address: IpAddr,
    /// Who they are.
    pub principal: Principal,
    /// What the stream goes out by.
    pub http: HttpVersion,
}

impl Default for Reader {
    /// Nobody in particular.
    fn default() -> Self {
        Reader {
            address: Ipv4Addr::UNSPECIFIED.into(),
            principal: Principal::Anyone,
            http: HttpVersion::Http11,
        }
    }
}

/// Who a reader is, as far as it had to be known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    /// Whoever they are, the rules did not ask.
    Anyone,
    /// As much of them as their stream is judged by.
    Caller(Arc<Caller>),
    /// One who looks on from the admin listener, where the rules have no part.
    Operator,
}

impl Reader {
    /// The subject of their token, or what the backend calls them.
    pub fn subject(&self) -> Option<&Arc<str>> {
        match &self.principal {
            Principal::Caller(caller) => caller.subject.as_ref(),
            Principal::Anyone | Principal::Operator => None,
        }
    }
}
