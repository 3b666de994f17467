//! What a request for topics accepts (RFC 9110, section 12.5.1): an event stream, or one answer as JSON.

use axum::http::{HeaderMap, header};

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
            // Of two that are wanted equally, the one that the client names: `*/*` beside it stands for whatever else.
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

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn accepted(value: &'static str) -> Accepted {
        Accepted::of(&HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(value))]))
    }

    #[test]
    fn json_is_answered_only_to_those_who_prefer_it() {
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
}
