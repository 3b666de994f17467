//! What the server's errors mean.

use redis::{ErrorKind, RedisError};

use crate::broker::BrokerError;

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

/// The server's words as it sent them, or the library's on one line. Neither ever holds a secret.
pub(super) fn words(error: &RedisError) -> String {
    if error.kind() == ErrorKind::AuthenticationFailed {
        return "the server does not log us in; check broker.user and broker.password".into();
    }
    let text = match error.code() {
        Some(code) => format!("{code} {}", error.detail().unwrap_or_default()),
        None => error.to_string(),
    };
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
