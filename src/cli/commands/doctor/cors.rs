//! What a page of another origin needs: an answer to the preflight of its browser, and permission to read the stream.

use bytes::Bytes;
use hyper::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, HeaderMap, ORIGIN,
};
use hyper::{Method, StatusCode};
use tokio::time::timeout;
use url::Url;

use super::report::Cause;
use super::{Examination, PATIENCE};
use crate::cli::commands::http;

/// Request headers that need a preflight. An EventSource sends the first.
const FIELDS: [&str; 3] = ["last-event-id", "cache-control", "authorization"];

impl Examination {
    /// Does what the browser of a page of `origin` does: the preflight, then a stream.
    pub(crate) async fn cors(&mut self, origin: &str) {
        if Url::parse(origin).is_ok_and(|origin| origin.origin() == self.url.origin()) {
            return self.same_origin(origin).await;
        }
        let preflight = self.client.request(Method::OPTIONS, &self.url).header(ORIGIN, origin);
        let preflight = preflight
            .header(ACCESS_CONTROL_REQUEST_METHOD, "GET")
            .header(ACCESS_CONTROL_REQUEST_HEADERS, FIELDS.join(","));
        let plain = self.client.stream(&self.url, "").header(ORIGIN, origin);
        let mut good = true;
        for (name, request, asks_first) in [("preflight", preflight, true), ("stream", plain, false)] {
            let answer = timeout(PATIENCE, self.client.send(request, Bytes::new())).await;
            let wrong = match answer {
                Err(_) => Some(format!("no answer within {} s", PATIENCE.as_secs())),
                Ok(Err(why)) => Some(why),
                Ok(Ok(response)) => {
                    let (status, headers) = (response.status(), response.headers().clone());
                    let fitting = if asks_first { status.is_success() } else { status == StatusCode::OK };
                    if fitting {
                        wrong_with(&headers, origin, asks_first)
                    } else {
                        Some(http::refusal(response).await)
                    }
                }
            };
            if let Some(wrong) = wrong {
                good = false;
                self.report.found("CORS", &format!("{name} of {origin}: {wrong}"), Cause::Cors);
            }
        }
        if good {
            self.report.fine("CORS", &format!("pages of {origin} may read"));
        }
    }

    /// Does what the browser of a page of the URL's own origin does: a stream, without a preflight and without an `Origin`.
    async fn same_origin(&mut self, origin: &str) {
        let request = self.client.stream(&self.url, "").header("sec-fetch-site", "same-origin");
        let wrong = match timeout(PATIENCE, self.client.send(request, Bytes::new())).await {
            Err(_) => format!("no answer within {} s", PATIENCE.as_secs()),
            Ok(Err(why)) => why,
            Ok(Ok(response)) if response.status() == StatusCode::OK => {
                let words = format!("pages of {origin} may read: the URL has the same origin");
                return self.report.fine("CORS", &words);
            }
            Ok(Ok(response)) => http::refusal(response).await,
        };
        self.report.found("CORS", &format!("stream of {origin}: {wrong}"), Cause::None);
    }
}

fn wrong_with(headers: &HeaderMap, origin: &str, asks_first: bool) -> Option<String> {
    let allowed: Vec<_> = headers.get_all(ACCESS_CONTROL_ALLOW_ORIGIN).iter().collect();
    match allowed[..] {
        [] => return Some("Access-Control-Allow-Origin is missing".into()),
        [one] if one == origin || one == "*" => {}
        [one] => return Some(format!("Access-Control-Allow-Origin is {one:?}")),
        _ => return Some("Access-Control-Allow-Origin is present twice, and browsers accept neither".into()),
    }
    let fields = headers.get_all(ACCESS_CONTROL_ALLOW_HEADERS).iter().filter_map(|value| value.to_str().ok());
    let fields = fields.collect::<Vec<_>>().join(",").to_ascii_lowercase();
    let missing = |field: &&&str| !fields.split(',').any(|allowed| allowed.trim() == **field);
    let missing = FIELDS.iter().find(missing).filter(|_| asks_first)?;
    Some(format!("Access-Control-Allow-Headers lacks {missing}"))
}
