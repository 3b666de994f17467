//! `[cors]`: pages of other origins.

use super::input::Input;
use super::names::is_token;
use super::origin::Origin;
use super::value::Given;

/// `[cors]`: pages of other origins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cors {
    /// The origins whose pages may read and publish.
    pub origins: Vec<Origin>,
    /// Request headers that they may send in addition to those of topicgate, in lower case.
    pub headers: Vec<String>,
    /// Whether they may send cookies.
    pub credentials: bool,
}

impl Cors {
    pub(super) fn read(input: &mut Input<'_>) -> Self {
        let listed: Vec<String> = input.get("cors.origins");
        let credentials = input.get("cors.credentials");
        let mut origins = vec![];
        for text in &listed {
            match Origin::parse(text) {
                Ok(origin) => origins.push(origin),
                Err(problem) => input.refuse("cors.origins", format!("{text:?} {problem}")),
            }
        }
        if origins.contains(&Origin::Any) {
            if listed.len() > 1 {
                input.refuse("cors.origins", "\"*\" stands for every origin; name either it or the others");
            }
            if credentials {
                input.refuse(
                    "cors.credentials",
                    "true does not go with origins = [\"*\"], which browsers refuse; name the origins",
                );
            }
        }
        Cors { origins, headers: headers(input), credentials }
    }
}

fn headers(input: &mut Input<'_>) -> Vec<String> {
    let mut headers: Vec<String> = input.get("cors.headers");
    for name in headers.iter().filter(|name| name.as_str() == "*" || !is_token(name)) {
        let problem = format!("{name:?} is not the name of a request header; write each one, as in baggage");
        input.refuse("cors.headers", problem);
    }
    headers.iter_mut().for_each(|name| name.make_ascii_lowercase());
    input.set_in_force("cors.headers", Some(Given::List(headers.clone())));
    headers
}
