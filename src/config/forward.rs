//! `[auth.forward]`: the backend that is asked whether a caller is allowed.

use std::time::Duration;

use super::input::Input;
use super::secret::Secret;
use super::url;

/// `[auth.forward]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// `auth.forward.url`: `http://` or `https://`. Secret because a query may hold a key.
    pub url: Secret,
    /// `auth.forward.timeout`: the time in which the backend must answer.
    pub timeout: Duration,
    /// `auth.forward.cache`: how long an answer is cached. Zero: the backend is asked for every request.
    pub cache: Duration,
    /// `auth.forward.concurrency`: the most questions at the same time.
    pub concurrency: usize,
}

impl Forward {
    /// `None` if no backend is configured.
    pub(super) fn read(input: &mut Input<'_>) -> Option<Self> {
        const URL: &str = "auth.forward.url";
        if !input.has_table("auth.forward") {
            return None;
        }
        let Some(Secret(text)) = input.get_if_any(URL) else {
            input.refuse(URL, "is missing; name the backend to ask, as in \"http://127.0.0.1:3000/allowed\"");
            return None;
        };
        if let Err(problem) = url::http(&text) {
            input.refuse(URL, problem);
        }
        Some(Forward {
            url: Secret(text),
            timeout: input.get("auth.forward.timeout"),
            cache: input.get("auth.forward.cache"),
            concurrency: input.get("auth.forward.concurrency"),
        })
    }
}
