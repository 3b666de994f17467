//! The machine-readable codes: why a request is refused, why a stream ends, why messages are missing. Each is a closed
//! set; the same code is on the wire, in metric labels and in the log. docs/protocol.md has the table.

use axum::http::StatusCode;
use strum::{FromRepr, IntoStaticStr, VariantArray};

/// Why a request can never succeed as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, VariantArray, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum RefusalCode {
    /// The topic is not valid.
    BadTopic,
    /// A parameter of the query is not valid.
    BadQuery,
    /// Another part of the request is not valid: a message's id or type, or more than one `Host`.
    BadRequest,
    /// The body broke off.
    BadBody,
    /// HTTP without TLS on a TLS listener.
    TlsRequired,
    /// Several tokens that differ.
    TwoTokens,
    /// A token is required and missing.
    NoToken,
    /// A token that is not valid.
    BadToken,
    /// A token that has expired.
    ExpiredToken,
    /// The backend of forward auth refused.
    BackendRefused,
    /// The caller's grants do not cover the topic.
    MissingGrant,
    /// The topic belongs to another subject.
    WrongSubject,
    /// A page of an origin that is not allowed.
    BadOrigin,
    /// No such path, or no rule that exposes the topic.
    NotFound,
    /// A method that the path does not have.
    BadMethod,
    /// `Accept` excludes event streams.
    NotAcceptable,
    /// The body did not arrive in time.
    Timeout,
    /// A message over `limits.message`.
    TooLarge,
    /// A `Host` that the gateway does not serve.
    BadHost,
    /// The broker refused the message.
    BrokerRefused,
    /// The broker did not confirm the message.
    BrokerAway,
}

impl RefusalCode {
    /// The code as written in bodies, metrics and the log.
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// The HTTP status of the code. A backend that refuses may choose 401 instead of 403.
    pub fn status(self) -> StatusCode {
        match self {
            RefusalCode::BadTopic
            | RefusalCode::BadQuery
            | RefusalCode::BadRequest
            | RefusalCode::BadBody
            | RefusalCode::TlsRequired
            | RefusalCode::TwoTokens => StatusCode::BAD_REQUEST,
            RefusalCode::NoToken | RefusalCode::BadToken | RefusalCode::ExpiredToken => {
                StatusCode::UNAUTHORIZED
            }
            RefusalCode::BackendRefused
            | RefusalCode::MissingGrant
            | RefusalCode::WrongSubject
            | RefusalCode::BadOrigin => StatusCode::FORBIDDEN,
            RefusalCode::NotFound => StatusCode::NOT_FOUND,
            RefusalCode::BadMethod => StatusCode::METHOD_NOT_ALLOWED,
            RefusalCode::NotAcceptable => StatusCode::NOT_ACCEPTABLE,
            RefusalCode::Timeout => StatusCode::REQUEST_TIMEOUT,
            RefusalCode::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            RefusalCode::BadHost => StatusCode::MISDIRECTED_REQUEST,
            RefusalCode::BrokerRefused => StatusCode::BAD_GATEWAY,
            RefusalCode::BrokerAway => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// A code of either set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// A request that can never succeed as it is.
    Refused(RefusalCode),
    /// A temporary refusal, or the end of a stream.
    Closed(CloseCode),
}

impl Code {
    /// Every code of both sets.
    pub fn all() -> impl Iterator<Item = Code> {
        Code::refusals().chain(CloseCode::VARIANTS.iter().copied().map(Code::Closed))
    }

    /// Every code of a refused request.
    pub fn refusals() -> impl Iterator<Item = Code> {
        RefusalCode::VARIANTS.iter().copied().map(Code::Refused)
    }

    /// The code as written on the wire, in metrics and in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Code::Refused(code) => code.as_str(),
            Code::Closed(code) => code.as_str(),
        }
    }
}

impl From<Code> for &'static str {
    fn from(code: Code) -> Self {
        code.as_str()
    }
}

impl From<RefusalCode> for Code {
    fn from(code: RefusalCode) -> Self {
        Code::Refused(code)
    }
}

impl From<CloseCode> for Code {
    fn from(code: CloseCode) -> Self {
        Code::Closed(code)
    }
}

/// Why the server ends a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, VariantArray, IntoStaticStr, FromRepr)]
#[strum(serialize_all = "snake_case")]
#[repr(u8)]
pub enum CloseCode {
    /// The process is shutting down.
    Draining = 1,
    /// A limit is reached.
    Overloaded = 2,
    /// The broker is away, so that the stream cannot promise anything.
    Unavailable = 3,
    /// The broker does not allow the gateway to read this topic.
    Refused = 4,
    /// `streams.max_age` is reached.
    MaxAge = 5,
    /// The reader took no bytes for `streams.write_timeout`, or is unreachable. It cannot receive the code.
    Slow = 6,
    /// The reader left.
    Gone = 7,
    /// The permission from the reader's token or the backend has expired.
    Expired = 8,
    /// Permission could not be checked: the backend or the URL of the keys did not answer.
    AuthUnavailable = 9,
    /// The client's address has the most streams that it may have.
    TooManyStreams = 10,
    /// The streams of the client's address have the most topics that they may have.
    TooManyTopics = 11,
    /// The token's subject has the most streams that it may have.
    TooManySubjectStreams = 12,
    /// The client's address opens streams, requests topics or publishes too fast.
    TooFast = 13,
    /// The stored source was deleted, or another one has its name.
    Restarted = 14,
    /// An operator ended the stream.
    Closed = 15,
    /// Since a reload, the reader is no longer allowed, or the source of its identity is no longer trusted.
    Revoked = 16,
    /// It was a read, and has its answer. It is not sent.
    Answered = 17,
    /// Every topic of the stream has ended. The only code after which a client does not reconnect.
    Ended = 18,
}

impl CloseCode {
    /// The code as written on the wire, in metrics and in the log.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// Why messages are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, VariantArray, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum GapReason {
    /// The replay buffer no longer has the requested messages.
    Evicted,
    /// Neither a gateway nor a publisher wrote the cursor.
    UnknownId,
    /// The cursor comes from a gateway process that has ended, or from another replica.
    Restarted,
    /// The reader was too slow, and messages were evicted.
    Slow,
    /// The broker, or the connection to it, may have lost messages.
    Broker,
    /// A message was larger than `limits.message`.
    TooLarge,
}

impl GapReason {
    /// The reason as written on the wire and in metrics.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// The HTTP versions of streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, VariantArray, IntoStaticStr)]
pub enum HttpVersion {
    /// HTTP/1.0.
    #[strum(serialize = "1.0")]
    Http10,
    /// HTTP/1.1.
    #[strum(serialize = "1.1")]
    Http11,
    /// HTTP/2.
    #[strum(serialize = "2")]
    Http2,
}

impl HttpVersion {
    /// The version as written in metrics.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_two_codes_have_one_name() {
        let names: HashSet<&str> = Code::all().map(Code::as_str).collect();
        assert_eq!(names.len(), Code::all().count());
    }
}
