//! What the server's errors mean.

use redis::{ErrorKind, RedisError};

use crate::broker::BrokerError;
use crate::net::reason::{Peer, chain, sentence};

/// Whether the server said this, so that the connection is fine.
pub(super) fn is_answer(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension)
}

/// What an error of one command means to its caller.
pub(super) fn fault(error: &RedisError) -> BrokerError {
    match error.code() {
        // It says so of itself, or of our session, not of what was asked.
        Some(
            "NOAUTH" | "LOADING" | "BUSY" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" | "READONLY" | "MOVED"
            | "ASK",
        ) => BrokerError::Away(words(error)),
        _ if is_answer(error) => BrokerError::Refused(words(error)),
        _ => BrokerError::Away(words(error)),
    }
}

/// The server's words as it sent them, with what would be right where that is known; or why there is no connection, on one
/// line. Neither ever holds a secret.
pub(super) fn words(error: &RedisError) -> String {
    if error.kind() == ErrorKind::AuthenticationFailed {
        return "it refuses the login; check broker.user and broker.password (WRONGPASS)".into();
    }
    let Some(code) = error.code() else { return sentence(&chain(error), Peer::Redis) };
    let text = format!("{code} {}", error.detail().unwrap_or_default());
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let right = match code {
        "NOAUTH" => "it wants a login; set broker.password, and broker.user if it has users",
        "NOPERM" => "the ACL of our user has to allow it, as docs/security.md lists",
        "DENIED" => "it is in protected mode; set a password there, or bind it to an address",
        _ => return text,
    };
    format!("{}: {right}", text.trim_end_matches('.'))
}
