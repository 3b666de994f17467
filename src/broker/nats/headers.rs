//! Header fields, from async-nats and to it.

use std::str::FromStr;

use async_nats::header::{HeaderMap, HeaderName, HeaderValue};

use crate::broker::{BrokerError, Headers};

/// async-nats keeps fields in a hash map: the order received is lost, so it is by name, the same for every message. Of each
/// name in `added` the last value is left out: it is the server's.
pub(super) fn read_headers(fields: &HeaderMap, added: &[&str]) -> Headers {
    let mut sorted: Vec<_> = fields
        .iter()
        .flat_map(|(name, values)| {
            let published = values.len() - usize::from(added.contains(&name.as_ref())).min(values.len());
            values[..published].iter().map(|value| (name.to_string(), value))
        })
        .collect();
    sorted.sort_by(|a, b| a.0.cmp(&b.0)); // stable: values of one name keep their order
    let mut headers = Headers::default();
    for (name, value) in sorted {
        headers.insert(name, value.as_str());
    }
    headers
}

/// As async-nats wants them.
pub(super) fn write_headers(headers: &Headers) -> Result<HeaderMap, BrokerError> {
    let mut fields = HeaderMap::new();
    for (name, value) in headers.iter() {
        let bad = |error: String| BrokerError::Refused(format!("the header field {name:?}: {error}"));
        let key = HeaderName::from_str(name).map_err(|error| bad(error.to_string()))?;
        let value = HeaderValue::from_str(value).map_err(|error| bad(error.to_string()))?;
        fields.append(key, value);
    }
    Ok(fields)
}
