//! `[traces]`: where spans are sent.

use ::url::Url;

use super::input::Input;
use super::secret::Secret;
use super::url;
use super::value::Given;

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

impl Traces {
    /// `None`: nothing is traced.
    pub(super) fn read(input: &mut Input<'_>) -> Option<Self> {
        const ENDPOINT: &str = "traces.endpoint";
        const SAMPLE: &str = "traces.sample";
        if !input.is_set(ENDPOINT) && !input.is_set(SAMPLE) {
            return None;
        }
        let sample = input.get(SAMPLE);
        if !(0.0..=1.0).contains(&sample) {
            let problem = format!("{sample} is not a share; write one from 0 to 1, such as 0.1 for a tenth");
            input.refuse(SAMPLE, problem);
        }
        let Some(Secret(text)) = input.get_if_any(ENDPOINT) else {
            input.refuse(ENDPOINT, "is missing; name the collector, as in \"http://127.0.0.1:4318\"");
            return None;
        };
        match collector(&text) {
            Ok(endpoint) => {
                let endpoint = Secret(endpoint);
                input.set_in_force(ENDPOINT, Some(Given::Url(endpoint.clone())));
                Some(Traces { endpoint, sample })
            }
            Err(problem) => {
                input.refuse(ENDPOINT, problem);
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
