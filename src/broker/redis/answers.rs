//! The meaning of the server's errors, and their texts for people.

use redis::{ErrorKind, RedisError};

use super::SessionEnd;
use crate::broker::BrokerError;
use crate::net::reason::{Peer, chain, sentence};

/// Whether this is an error of the server, so that the connection works.
pub(super) fn is_answer(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension)
}

/// The broker error for an error of one command.
pub(super) fn fault(error: &RedisError) -> BrokerError {
    match error.code() {
        // The error is about the server or the session, not about the command.
        Some(
            "NOAUTH" | "LOADING" | "BUSY" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" | "READONLY" | "MOVED"
            | "ASK",
        ) => BrokerError::Away(words(error)),
        _ if is_answer(error) => BrokerError::Refused(words(error)),
        _ => BrokerError::Away(lost(error)),
    }
}

/// Why a connection that had worked is lost. The advice of [`words`] is for a connection that cannot be made.
pub(super) fn lost(error: &RedisError) -> String {
    if error.is_timeout() {
        SessionEnd::Silent.to_string()
    } else if error.is_connection_dropped() {
        SessionEnd::Closed.to_string()
    } else {
        words(error)
    }
}

/// The server's text, with advice if the error is known; or the reason why there is no connection. In one line without
/// secrets.
pub(super) fn words(error: &RedisError) -> String {
    if error.kind() == ErrorKind::AuthenticationFailed {
        return "it refuses the login; check broker.user and broker.password (WRONGPASS)".into();
    }
    let Some(code) = error.code() else { return sentence(&chain(error), Peer::Redis) };
    let text = format!("{code} {}", error.detail().unwrap_or_default());
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let right = match code {
        "NOAUTH" => "it requires a login; set broker.password, and broker.user if it has users",
        "NOPERM" => "the ACL of our user has to allow it, as docs/security.md lists",
        "READONLY" => {
            "this server is a replica; if no failover is in progress, name its master in broker.url, or have \
             sentinels name it (broker.sentinel)"
        }
        "DENIED" => "it is in protected mode; set a password there, or bind it to an address",
        _ => return text,
    };
    format!("{}: {right}", text.trim_end_matches('.'))
}
