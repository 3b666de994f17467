//! The certificate authorities that the gateway trusts as a TLS client: the system's (`SSL_CERT_FILE` names others),
//! and those in an extra file. The broker libraries have their own.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

/// The configuration of a TLS client, without ALPN.
///
/// # Errors
/// Why `ca` cannot be used, or TLS cannot be set up, in one line. The current library never fails at the latter.
pub fn client_config(ca: Option<&Path>) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    // A system without root certificates is not an error as long as none is needed; otherwise the handshake fails.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(file) = ca {
        let certificates =
            CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let certificates =
            certificates.map_err(|error| format!("{} cannot be read: {error}", file.display()))?;
        if roots.add_parsable_certificates(certificates).0 == 0 {
            return Err(format!("{} has no certificate of an authority in PEM", file.display()));
        }
    }
    // The provider is explicit, so that no other library's default can make it ambiguous.
    let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS cannot be set up: {error}"))?;
    Ok(tls.with_root_certificates(roots).with_no_client_auth())
}
