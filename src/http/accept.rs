//! What a request for topics accepts (RFC 9110, section 12.5): an event stream or one answer as JSON, and in which content
//! coding.

use axum::http::{HeaderMap, header};

use crate::protocol::gzip::Content;

/// The answer that the `Accept` of a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accepted {
    /// An event stream. If the client names `text/event-stream`, as every EventSource does (HTML standard, section
    /// 9.2.2), it cannot handle a status that means "later".
    Stream { by_name: bool },
    /// One answer as JSON, because the client prefers `application/json`.
    Json,
    /// Neither.
    Nothing,
}

/// How much a client wants a media type: its weight, then how precisely it names the type.
type Wish = (u16, u8);

impl Accepted {
    /// Reads the `Accept` of a request. Without one, anything is accepted, and the answer is a stream.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut ranges = Vec::new();
        for value in headers.get_all(header::ACCEPT) {
            // An empty list excludes nothing, and neither does a list that is not text.
            let list = value.to_str().unwrap_or_default().split(',');
            ranges.extend(list.filter(|range| !range.trim().is_empty()).map(range_of));
        }
        if ranges.is_empty() {
            return Accepted::Stream { by_name: false };
        }
        let stream = wish(&ranges, "text/event-stream", "text/*");
        let json = wish(&ranges, "application/json", "application/*");
        match (stream, json) {
            // Of two with equal weight, the one that the client names: a `*/*` beside it stands for anything else.
            (stream, Some(json)) if stream.is_none_or(|stream| json > stream) => Accepted::Json,
            (Some((_, precision)), _) => Accepted::Stream { by_name: precision == NAMED },
            (None, _) => Accepted::Nothing,
        }
    }

    /// Whether the client is an EventSource, which gives up for good on any status but 200.
    pub(super) fn is_event_source(self) -> bool {
        self == Accepted::Stream { by_name: true }
    }
}

const NAMED: u8 = 3;

/// A media range in lower case, and its weight in thousandths.
fn range_of(text: &str) -> (String, u16) {
    let mut parts = text.split(';').map(str::trim);
    let name = parts.next().unwrap_or_default().to_ascii_lowercase();
    let weight = |part: &str| {
        let (name, value) = part.split_once('=')?;
        let value = name.trim().eq_ignore_ascii_case("q").then(|| value.trim().parse::<f32>().ok())??;
        Some((value.clamp(0.0, 1.0) * 1000.0) as u16)
    };
    (name, parts.find_map(weight).unwrap_or(1000))
}

/// How much a media type is wanted: by the most precise range that covers it. `None`: it is not accepted.
fn wish(ranges: &[(String, u16)], name: &str, group: &str) -> Option<Wish> {
    let precise = |range: &str| match range {
        range if range == name => Some(NAMED),
        range if range == group => Some(2),
        "*/*" => Some(1),
        _ => None,
    };
    let found = ranges.iter().filter_map(|(range, weight)| Some((precise(range)?, *weight)));
    let (precision, weight) = found.max()?;
    (weight > 0).then_some((weight, precision))
}

/// The content coding that a request prefers (RFC 9110, section 12.5.3). Without the field, a client may know none.
pub(super) fn preferred_content(headers: &HeaderMap) -> Content {
    let (mut gzip, mut identity, mut any) = (None, None, None);
    for value in headers.get_all(header::ACCEPT_ENCODING) {
        for range in value.to_str().unwrap_or_default().split(',') {
            let mut parts = range.split(';').map(str::trim);
            let weight = match parts.next().map(str::to_ascii_lowercase).as_deref() {
                Some("gzip" | "x-gzip") => &mut gzip,
                Some("identity") => &mut identity,
                Some("*") => &mut any,
                _ => continue,
            };
            *weight = Some(parts.find_map(quality).unwrap_or(1.0));
        }
    }
    // A client that names no weight for `identity` prefers what it names.
    let (gzip, identity) = (gzip.or(any).unwrap_or(0.0), identity.unwrap_or(0.0));
    if gzip > 0.0 && gzip >= identity { Content::Gzip } else { Content::Identity }
}

/// The weight in a parameter `q=…`. If it cannot be read, the client does not accept it for sure.
fn quality(parameter: &str) -> Option<f32> {
    let (name, value) = parameter.split_once('=')?;
    name.trim().eq_ignore_ascii_case("q").then(|| value.trim().parse().unwrap_or(0.0))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn accepted(value: &'static str) -> Accepted {
        Accepted::of(&HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(value))]))
    }

    #[test]
    fn only_clients_that_prefer_json_are_answered_with_json() {
        for json in [
            "application/json",
            "application/*",
            "APPLICATION/JSON; q=0.5",
            "application/json, text/event-stream;q=0.9",
            "text/event-stream;q=0, */*",
            // As axios asks.
            "application/json, text/plain, */*",
        ] {
            assert_eq!(accepted(json), Accepted::Json, "{json}");
        }
        for stream in [
            "application/json, text/event-stream",
            "text/event-stream, application/json",
            "application/json;q=0.5, text/event-stream;q=0.6",
            "application/json;q=0, text/event-stream",
            "application/json;q=0.5, TEXT/Event-Stream ; q=0.7, */*",
        ] {
            assert_eq!(accepted(stream), Accepted::Stream { by_name: true }, "{stream}");
        }
        for anything in ["*/*", "text/*", "text/html, */*;q=0.1", "application/json;q=0.1, */*", ""] {
            assert_eq!(accepted(anything), Accepted::Stream { by_name: false }, "{anything}");
        }
        assert_eq!(Accepted::of(&HeaderMap::new()), Accepted::Stream { by_name: false });
    }

    #[test]
    fn only_an_accept_that_excludes_both_is_refused() {
        for nothing in ["text/html", "*/*;q=0", "text/event-streams", "application/jsonx", "image/*"] {
            assert_eq!(accepted(nothing), Accepted::Nothing, "{nothing}");
        }
    }

    fn content(fields: &[&'static str]) -> Content {
        let field = |value: &&'static str| (header::ACCEPT_ENCODING, HeaderValue::from_static(value));
        let mut headers = HeaderMap::new();
        fields.iter().map(field).for_each(|(name, value)| _ = headers.append(name, value));
        preferred_content(&headers)
    }

    #[test]
    fn only_clients_that_accept_gzip_and_do_not_prefer_identity_get_gzip() {
        for yes in [
            "gzip",
            "gzip, deflate, br, zstd",
            "deflate, GZIP;q=0.001",
            "x-gzip",
            "br;q=1.0, gzip ; q=0.8, *;q=0.1",
            "*",
            "gzip;q=0.5, identity;q=0.5",
            "identity;q=0, gzip;q=0.1",
        ] {
            assert_eq!(content(&[yes]), Content::Gzip, "{yes}");
        }
        assert_eq!(content(&["br", "gzip"]), Content::Gzip);
        for no in [
            "",
            "br, deflate",
            "gzip;q=0",
            "gzip;q=0.000, *",
            "gzip; Q=0",
            "*;q=0",
            "identity",
            "identity, gzip;q=0.5",
            "gzip;q=zero",
            "gzipped",
        ] {
            assert_eq!(content(&[no]), Content::Identity, "{no}");
        }
        assert_eq!(content(&[]), Content::Identity);
    }
}
