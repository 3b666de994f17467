//! The machine codes of refusals: one closed set, which a client finds in the body, a dashboard in a label and a person in
//! the log. With those of [`CloseCode`] they are every answer to "why?"; docs/protocol.md has the table.

use axum::http::StatusCode;

/// Why a request will not work as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RefusalCode {
    /// The grammar of topics.
    BadTopic,
    /// A parameter of the query.
    BadQuery,
    /// Something else of the request: a message's id or type, more than one `Host`.
    BadRequest,
    /// The body broke off.
    BadBody,
    /// HTTP in the clear to an address that speaks TLS.
    TlsRequired,
    /// Tokens that differ.
    TwoTokens,
    /// No token where one is needed.
    NoToken,
    /// A token that does not hold.
    BadToken,
    /// A token that has expired.
    ExpiredToken,
    /// The backend of forward auth says no.
    BackendRefused,
    /// What the token grants is something else.
    MissingGrant,
    /// The topic is another subject's.
    WrongSubject,
    /// A page that may not use the gateway.
    BadOrigin,
    /// Nothing that anyone may know of.
    NotFound,
    /// A method that there is not here.
    BadMethod,
    /// `Accept` excludes event streams.
    NotAcceptable,
    /// The body did not arrive in time.
    Timeout,
    /// A message over `limits.message`.
    TooLarge,
    /// A `Host` that the gateway does not answer for.
    BadHost,
    /// The broker did not take the message.
    BrokerRefused,
    /// The broker did not confirm the message.
    BrokerAway,
}

impl RefusalCode {
    /// Every code, in the order of their statuses.
    pub const ALL: [RefusalCode; 21] = [
        RefusalCode::BadTopic,
        RefusalCode::BadQuery,
        RefusalCode::BadRequest,
        RefusalCode::BadBody,
        RefusalCode::TlsRequired,
        RefusalCode::TwoTokens,
        RefusalCode::NoToken,
        RefusalCode::BadToken,
        RefusalCode::ExpiredToken,
        RefusalCode::BackendRefused,
        RefusalCode::MissingGrant,
        RefusalCode::WrongSubject,
        RefusalCode::BadOrigin,
        RefusalCode::NotFound,
        RefusalCode::BadMethod,
        RefusalCode::NotAcceptable,
        RefusalCode::Timeout,
        RefusalCode::TooLarge,
        RefusalCode::BadHost,
        RefusalCode::BrokerRefused,
        RefusalCode::BrokerAway,
    ];

    /// As in bodies, in metrics and in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            RefusalCode::BadTopic => "bad_topic",
            RefusalCode::BadQuery => "bad_query",
            RefusalCode::BadRequest => "bad_request",
            RefusalCode::BadBody => "bad_body",
            RefusalCode::TlsRequired => "tls_required",
            RefusalCode::TwoTokens => "two_tokens",
            RefusalCode::NoToken => "no_token",
            RefusalCode::BadToken => "bad_token",
            RefusalCode::ExpiredToken => "expired_token",
            RefusalCode::BackendRefused => "backend_refused",
            RefusalCode::MissingGrant => "missing_grant",
            RefusalCode::WrongSubject => "wrong_subject",
            RefusalCode::BadOrigin => "bad_origin",
            RefusalCode::NotFound => "not_found",
            RefusalCode::BadMethod => "bad_method",
            RefusalCode::NotAcceptable => "not_acceptable",
            RefusalCode::Timeout => "timeout",
            RefusalCode::TooLarge => "too_large",
            RefusalCode::BadHost => "bad_host",
            RefusalCode::BrokerRefused => "broker_refused",
            RefusalCode::BrokerAway => "broker_away",
        }
    }

    /// The status that it comes with. A backend that refuses may choose 401 in place of 403.
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

/// Why: of a request that will not work, or of one that should come later and of a stream that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// It will not work as it is.
    Refused(RefusalCode),
    /// It passes, or the stream was one and has ended.
    Closed(CloseCode),
}

impl Code {
    /// Every code there is.
    pub fn all() -> impl Iterator<Item = Code> {
        let refused = RefusalCode::ALL.into_iter().map(Code::Refused);
        refused.chain(CloseCode::ALL.into_iter().map(Code::Closed))
    }

    /// As on the wire, in metrics and in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Code::Refused(code) => code.as_str(),
            Code::Closed(code) => code.as_str(),
        }
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum CloseCode {
    /// The process is ending.
    Draining = 1,
    /// A limit is reached.
    Overloaded = 2,
    /// The broker is away, so that the stream cannot promise anything.
    Unavailable = 3,
    /// The broker does not let the gateway read this topic.
    Refused = 4,
    /// `streams.max_age` is reached.
    MaxAge = 5,
    /// The reader took nothing for `streams.write_timeout`, or cannot be reached any more. Nothing can be said to it.
    Slow = 6,
    /// The reader left.
    Gone = 7,
    /// What the reader's token, or the backend, granted has ended.
    Expired = 8,
    /// Who may read could not be asked: the backend, or the place of the keys, did not answer.
    AuthUnavailable = 9,
    /// The client's address has as many streams as it may.
    TooManyStreams = 10,
    /// The streams of the client's address have as many topics as they may.
    TooManyTopics = 11,
    /// The token's subject has as many streams as it may.
    TooManySubjectStreams = 12,
    /// The client's address opens streams faster than it may.
    TooFast = 13,
    /// The history that the stream was read from was deleted, or another one has its name.
    Restarted = 14,
    /// Somebody who runs the gateway ended it.
    Closed = 15,
    /// What is in force since a reload does not let the reader in, or no longer trusts who said that it may.
    Revoked = 16,
}

impl CloseCode {
    /// Every code, for metrics that show zero before the first one.
    pub const ALL: [CloseCode; 16] = [
        CloseCode::Draining,
        CloseCode::Overloaded,
        CloseCode::Unavailable,
        CloseCode::Refused,
        CloseCode::MaxAge,
        CloseCode::Slow,
        CloseCode::Gone,
        CloseCode::Expired,
        CloseCode::AuthUnavailable,
        CloseCode::TooManyStreams,
        CloseCode::TooManyTopics,
        CloseCode::TooManySubjectStreams,
        CloseCode::TooFast,
        CloseCode::Restarted,
        CloseCode::Closed,
        CloseCode::Revoked,
    ];

    /// As on the wire, in metrics and in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            CloseCode::Draining => "draining",
            CloseCode::Overloaded => "overloaded",
            CloseCode::Unavailable => "unavailable",
            CloseCode::Refused => "refused",
            CloseCode::MaxAge => "max_age",
            CloseCode::Slow => "slow",
            CloseCode::Gone => "gone",
            CloseCode::Expired => "expired",
            CloseCode::AuthUnavailable => "auth_unavailable",
            CloseCode::TooManyStreams => "too_many_streams",
            CloseCode::TooManyTopics => "too_many_topics",
            CloseCode::TooManySubjectStreams => "too_many_subject_streams",
            CloseCode::TooFast => "too_fast",
            CloseCode::Restarted => "restarted",
            CloseCode::Closed => "closed",
            CloseCode::Revoked => "revoked",
        }
    }
}

/// Why messages are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GapReason {
    /// The replay buffer no longer holds what the client asked for.
    Evicted,
    /// The cursor is not one that this gateway or a publisher wrote.
    UnknownId,
    /// The cursor is of a gateway process that is gone, or of another replica.
    Restarted,
    /// The reader was too slow, and the buffer moved on.
    Slow,
    /// The broker, or the connection to it, may have lost messages.
    Broker,
    /// A message was larger than `limits.message`.
    TooLarge,
}

impl GapReason {
    /// Every reason, for metrics that show zero before the first one.
    pub const ALL: [GapReason; 6] = [
        GapReason::Evicted,
        GapReason::UnknownId,
        GapReason::Restarted,
        GapReason::Slow,
        GapReason::Broker,
        GapReason::TooLarge,
    ];

    /// As on the wire and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            GapReason::Evicted => "evicted",
            GapReason::UnknownId => "unknown_id",
            GapReason::Restarted => "restarted",
            GapReason::Slow => "slow",
            GapReason::Broker => "broker",
            GapReason::TooLarge => "too_large",
        }
    }
}

/// HTTP versions that streams come by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HttpVersion {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2.
    Http2,
}

impl HttpVersion {
    /// As in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            HttpVersion::Http10 => "1.0",
            HttpVersion::Http11 => "1.1",
            HttpVersion::Http2 => "2",
        }
    }

    /// As a label of metrics.
    pub(crate) fn label(self) -> [(&'static str, &'static str); 1] {
        [("http", self.as_str())]
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
