//! The question to the backend: a GET request with the caller's credentials, its address, and the requested action and
//! topics. Nothing else of the caller's request is passed on.

use std::net::IpAddr;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ACCEPT, AUTHORIZATION, COOKIE, HeaderMap, HeaderName, HeaderValue, ORIGIN};
use hyper::{Request, Uri};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ring::hmac;

use crate::auth::{AccessRequest, Action};
use crate::protocol::topic::Filter;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const ACTION: HeaderName = HeaderName::from_static("x-topicgate-action");
const TOPICS: HeaderName = HeaderName::from_static("x-topicgate-topics");

/// The longest list of topics, in bytes. Common servers accept 8 KiB per header field and 16 KiB per head, which must
/// also hold a cookie.
pub(super) const MAX_TOPICS: usize = 8 * 1024;

/// Characters to encode in the list. The comma is one of them, because it separates topics.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'/')
    .remove(b'*')
    .remove(b'$');

/// One question, ready to be sent.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) action: Action,
    pub(super) topics: Vec<Filter>,
    /// The address of the caller.
    pub(super) client: IpAddr,
    headers: HeaderMap,
}

impl Question {
    /// Builds the question. `None` if its list of topics is longer than [`MAX_TOPICS`].
    pub(super) fn new(request: &AccessRequest<'_>) -> Option<Self> {
        let encode = |topic: &Filter| utf8_percent_encode(topic.as_str(), ENCODED).to_string();
        let list = request.filters.iter().map(encode).collect::<Vec<_>>().join(",");
        if list.len() > MAX_TOPICS {
            return None;
        }
        let mut headers = HeaderMap::new();
        // Some frameworks redirect callers who are not signed in to a login page, unless the request is not for a page.
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        // HTTP/2 may send one field per cookie; in HTTP/1 they share one field (RFC 9113, section 8.2.3).
        let cookies: Vec<&[u8]> = request.headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
        let cookies = (!cookies.is_empty()).then(|| HeaderValue::from_bytes(&cookies.join(&b"; "[..])));
        let secret = |value: &HeaderValue| {
            let mut value = value.clone();
            value.set_sensitive(true); // redacted in debug output
            value
        };
        for (name, value) in [
            (COOKIE, cookies.and_then(Result::ok).as_ref().map(secret)),
            (AUTHORIZATION, request.headers.get(AUTHORIZATION).map(secret)),
            // The first one, which `http::origin` has checked.
            (ORIGIN, request.headers.get(ORIGIN).cloned()),
            (FORWARDED_FOR, HeaderValue::try_from(request.client.to_string()).ok()),
            (ACTION, Some(HeaderValue::from_static(request.action.as_str()))),
            (TOPICS, HeaderValue::try_from(list).ok()),
        ] {
            if let Some(value) = value {
                headers.insert(name, value);
            }
        }
        let (action, topics, client) = (request.action, request.filters.to_vec(), request.client);
        Some(Question { action, topics, client, headers })
    }

    /// The request to send.
    pub(super) fn request(&self, uri: &Uri) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::default());
        *request.uri_mut() = uri.clone();
        request.headers_mut().clone_from(&self.headers);
        request
    }

    /// The key of this question in the cache. It covers everything that the backend receives, the client's address
    /// included, because the answer may depend on any of it. It is keyed with `secret`, so that credentials cannot be
    /// guessed from it.
    pub(super) fn digest(&self, secret: &hmac::Key) -> [u8; 32] {
        let mut context = hmac::Context::with_key(secret);
        for name in [COOKIE, AUTHORIZATION, ORIGIN, FORWARDED_FOR, ACTION, TOPICS] {
            // Each value with its length, so that different questions never produce the same input. Absent differs from
            // empty.
            match self.headers.get(name) {
                Some(value) => {
                    context.update(&(value.len() as u64).to_be_bytes());
                    context.update(value.as_bytes());
                }
                None => context.update(&u64::MAX.to_be_bytes()),
            }
        }
        let mut digest = [0; 32];
        digest.copy_from_slice(context.sign().as_ref());
        digest
    }
}
