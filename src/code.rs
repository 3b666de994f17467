//! The machine codes of refusals: one closed set, which a client finds in the body, a dashboard in a label and a person in
//! the log. With those of [`CloseCode`] they are every answer to "why?"; docs/protocol.md has the table.

use axum::http::StatusCode;

use crate::signal::CloseCode;

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
