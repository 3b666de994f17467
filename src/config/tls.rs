//! `[tls]`: the certificate that browsers are shown.

use std::path::PathBuf;

use super::input::Input;

/// `[tls]`: TLS towards browsers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// `tls.cert`: path of the certificate with the chain behind it, PEM.
    pub cert: PathBuf,
    /// `tls.key`: path of its private key, PEM.
    pub key: PathBuf,
}

impl Tls {
    pub(super) fn read(input: &mut Input<'_>) -> Option<Self> {
        let [cert, key] = ["tls.cert", "tls.key"];
        match (input.is_set(cert), input.is_set(key)) {
            (true, true) => return Some(Tls { cert: input.get(cert), key: input.get(key) }),
            (true, false) if !input.has_failed(key) => {
                input.refuse(cert, "is set without tls.key; set both");
            }
            (false, true) if !input.has_failed(cert) => {
                input.refuse(key, "is set without tls.cert; set both");
            }
            _ => {}
        }
        None
    }
}
