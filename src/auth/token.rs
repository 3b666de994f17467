//! Finds the token of a request: in `Authorization: Bearer`, a cookie or, if switched on, a query parameter. It does
//! not parse the token.

use std::borrow::Cow;

use axum::http::{HeaderMap, header};

use super::AuthError;
use crate::config::TokenPlaces;

/// The query parameter (RFC 6750, section 2.3).
const PARAMETER: &str = "access_token";

/// The token of a request. An empty token counts as none.
///
/// # Errors
/// Several tokens that differ: it is unclear which one is meant.
pub(super) fn find<'a>(
    places: &TokenPlaces,
    headers: &'a HeaderMap,
    query: Option<&'a str>,
) -> Result<Option<Cow<'a, [u8]>>, AuthError> {
    let bearers = headers.get_all(header::AUTHORIZATION).iter().filter_map(|value| bearer(value.as_bytes()));
    let cookies =
        headers.get_all(header::COOKIE).iter().flat_map(|value| value.as_bytes().split(|b| *b == b';'));
    let cookies = cookies.filter_map(|pair| cookie(pair, &places.cookie));
    let query = query.filter(|_| places.query).unwrap_or_default();
    let parameters = form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name == PARAMETER);
    let parameters = parameters.map(|(_, value)| match value {
        Cow::Borrowed(value) => Cow::Borrowed(value.as_bytes()),
        Cow::Owned(value) => Cow::Owned(value.into_bytes()),
    });
    let mut found: Option<Cow<'a, [u8]>> = None;
    for token in bearers.chain(cookies).map(Cow::Borrowed).chain(parameters) {
        match &found {
            _ if token.is_empty() => {}
            Some(other) if *other != token => return Err(AuthError::TwoTokens),
            _ => found = Some(token),
        }
    }
    Ok(found)
}

/// Other schemes are ignored: they may be meant for a proxy in between.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked("Bearer".len())?;
    let ours = scheme.eq_ignore_ascii_case(b"Bearer") && token.first().is_none_or(|byte| *byte == b' ');
    ours.then(|| token.trim_ascii())
}

fn cookie<'a>(pair: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let value = pair.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
    // A value may be quoted (RFC 6265, section 4.1.1).
    Some(value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value))
}
