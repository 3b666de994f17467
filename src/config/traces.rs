//! `[traces]`: where spans are sent.

use ::url::Url;

use super::parse::Check;
use super::raw::RawTraces;
use super::{Secret, url};

/// What OTLP over HTTP appends to the address of a collector.
const PATH: &str = "/v1/traces";

/// `[traces]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Traces {
    /// `traces.endpoint`, with the path of OTLP. Secret because a query may hold a key.
    pub endpoint: Secret,
    /// `traces.sample`: the share of the requests that come without a trace of their own, from 0 to 1.
    pub sample: f64,
}

impl Check<'_> {
    /// `None`: nothing is traced.
    pub(super) fn traces(&mut self, raw: RawTraces) -> Option<Traces> {
        const ENDPOINT: &str = "traces.endpoint";
        let sample = raw.sample.as_ref().map_or(1.0, |share| share.0);
        if !(0.0..=1.0).contains(&sample) {
            let problem = format!("{sample} is not a share; write one from 0 to 1, such as 0.1 for a tenth");
            self.refuse("traces.sample", problem);
        }
        let Some(text) = raw.endpoint else {
            if raw.sample.is_some() {
                self.refuse(ENDPOINT, "is missing; name the collector, as in \"http://127.0.0.1:4318\"");
            }
            return None;
        };
        match collector(&text) {
            Ok(endpoint) => Some(Traces { endpoint: Secret(endpoint), sample }),
            Err(problem) => {
                self.refuse(ENDPOINT, problem);
                None
            }
        }
    }
}

/// The URL that spans are sent to, or what is wrong with the one of its collector.
fn collector(text: &str) -> Result<String, String> {
    url::http(text)?;
    let mut url = Url::parse(text).map_err(|error| error.to_string())?;
    if url.port() == Some(4317) {
        return Err("has port 4317, where collectors speak gRPC; OTLP over HTTP is on 4318".to_owned());
    }
    let base = url.path().trim_end_matches('/').to_owned();
    if !base.ends_with(PATH) {
        url.set_path(&format!("{base}{PATH}"));
    }
    Ok(url.into())
}
