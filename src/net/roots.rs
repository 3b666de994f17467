//! Whose certificates we believe where we are the client of a TLS connection: the authorities that the system trusts
//! (`SSL_CERT_FILE` names others), and those of a file beside them. The libraries of the brokers have their own.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

/// How a TLS connection is begun, without a preference for a version of HTTP.
///
/// # Errors
/// `ca` cannot be read or holds no certificate; or, which the library used here has no cause for today, TLS cannot be set
/// up. One line that says so.
pub fn client_config(ca: Option<&Path>) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    // A system without roots is no fault as long as no certificate needs them; then the handshake says so.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(file) = ca {
        let certificates =
            CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let certificates =
            certificates.map_err(|error| format!("{} cannot be read: {error}", file.display()))?;
        if roots.add_parsable_certificates(certificates).0 == 0 {
            return Err(format!("{} holds no certificate of an authority in PEM", file.display()));
        }
    }
    // Named here rather than taken from the process, so that no other library's choice can make it ambiguous.
    let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS cannot be set up: {error}"))?;
    Ok(tls.with_root_certificates(roots).with_no_client_auth())
}
