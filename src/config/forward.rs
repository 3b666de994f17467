//! `[auth.forward]`: the backend that is asked who may.

use std::time::Duration;

use super::parse::Check;
use super::raw::RawForward;
use super::{Secret, url};

/// Longer than that, whoever was shut out would be let in for too long.
const LONGEST_CACHE: Duration = Duration::from_secs(60);

/// `[auth.forward]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// `auth.forward.url`: `http://` or `https://`. Secret because a query may hold a key.
    pub url: Secret,
    /// `auth.forward.timeout`: how long the backend may take for an answer.
    pub timeout: Duration,
    /// `auth.forward.cache`: how long an answer is kept. Zero: every request is asked about.
    pub cache: Duration,
    /// `auth.forward.concurrency`: questions at once.
    pub concurrency: usize,
}

impl Forward {
    /// The defaults, with a backend.
    fn at(url: String) -> Self {
        Forward {
            url: Secret(url),
            timeout: Duration::from_secs(5),
            cache: Duration::from_secs(5),
            concurrency: 64,
        }
    }
}

impl Check<'_> {
    /// `None` if no backend is configured.
    pub(super) fn forward(&mut self, raw: RawForward) -> Option<Forward> {
        const URL: &str = "auth.forward.url";
        let Some(text) = raw.url else {
            if raw.timeout.is_some() || raw.cache.is_some() || raw.concurrency.is_some() {
                self.refuse(
                    URL,
                    "is missing; name the backend to ask, as in \"http://127.0.0.1:3000/allowed\"",
                );
            }
            return None;
        };
        if let Err(problem) = url::http(&text) {
            self.refuse(URL, problem);
        }
        let d = Forward::at(text);
        let shortest = Duration::from_millis(100);
        let longest = Duration::from_secs(60);
        Some(Forward {
            timeout: self.duration("auth.forward.timeout", raw.timeout, d.timeout, shortest, longest),
            cache: self.duration("auth.forward.cache", raw.cache, d.cache, Duration::ZERO, LONGEST_CACHE),
            concurrency: self.count("auth.forward.concurrency", raw.concurrency, d.concurrency),
            url: d.url,
        })
    }
}
