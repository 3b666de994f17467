//! What the counters stand at, for the admin listener's own page.

use super::Metrics;
use crate::protocol::codes::{CloseCode, Code, GapReason, HttpVersion, RefusalCode};

impl Metrics {
    /// Streams opened so far.
    pub fn streams_opened(&self) -> u64 {
        let versions = [HttpVersion::Http10, HttpVersion::Http11, HttpVersion::Http2];
        versions.iter().map(|http| self.opened.get_or_create(&http.label()).get()).sum()
    }

    /// Gaps so far, by reason.
    pub fn gaps_told(&self) -> impl Iterator<Item = (&'static str, u64)> {
        GapReason::ALL.into_iter().map(|reason| {
            let reason = reason.as_str();
            (reason, self.gaps.get_or_create(&[("reason", reason)]).get())
        })
    }

    /// Streams ended so far, and requests told to come back, by code.
    pub fn streams_closed(&self) -> impl Iterator<Item = (&'static str, u64)> {
        CloseCode::ALL.into_iter().map(|code| {
            let code = code.as_str();
            (code, self.closed.get_or_create(&[("code", code)]).get())
        })
    }

    /// Requests refused so far as they will not work, by code.
    pub fn requests_refused(&self) -> impl Iterator<Item = (&'static str, u64)> {
        RefusalCode::ALL.into_iter().map(|code| {
            let code = Code::from(code).as_str();
            (code, self.refused_requests.get_or_create(&[("code", code)]).get())
        })
    }

    /// Connections to the broker lost so far.
    pub fn losses(&self) -> u64 {
        self.upstream_losses.get()
    }
}
