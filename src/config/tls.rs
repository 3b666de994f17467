//! `[tls]`: the certificate that browsers are shown.

use std::path::PathBuf;

use super::parse::Check;
use super::raw::RawTls;

/// `[tls]`: TLS towards browsers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// `tls.cert`: path of the certificate with the chain behind it, PEM.
    pub cert: PathBuf,
    /// `tls.key`: path of its private key, PEM.
    pub key: PathBuf,
}

impl Check<'_> {
    pub(super) fn tls(&mut self, raw: RawTls) -> Option<Tls> {
        match (raw.cert, raw.key) {
            (Some(cert), Some(key)) => return Some(Tls { cert, key }),
            (Some(_), None) if !self.failed.contains("tls.key") => {
                self.refuse("tls.cert", "has no tls.key beside it; set both");
            }
            (None, Some(_)) if !self.failed.contains("tls.cert") => {
                self.refuse("tls.key", "has no tls.cert beside it; set both");
            }
            _ => {}
        }
        None
    }
}
