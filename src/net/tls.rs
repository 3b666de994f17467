//! The gateway's own certificate and key, for browsers: checked at the start, and reloaded when the files change.
//! `http/handshake.rs` does the handshakes.
//!
//! New connections use the new pair; open connections keep the old one. A pair that cannot be used changes nothing. A
//! change is detected by reading both files, which are small: modification times are not enough, because Kubernetes
//! renews a secret by changing a symbolic link.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use ring::digest::{Context, SHA256};
use rustls::crypto::ring as provider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::version::{TLS12, TLS13};
use rustls::{InconsistentKeys, ServerConfig};
use simple_asn1::ASN1Block;
use thiserror::Error;

use crate::config;
use crate::metrics::{Listener, Metrics, ReloadResult};

/// How often the files are read. A change is applied once two reads in a row are equal.
pub const CERTIFICATE_CHECK: Duration = Duration::from_secs(2);

/// The protocols that we offer, in order of preference.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Why a certificate and its key cannot be used: the configuration key, its file, and the reason.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{key} = \"{file}\": {why}")]
pub struct TlsError {
    key: &'static str,
    file: String,
    why: String,
}

impl TlsError {
    fn new(key: &'static str, file: &Path, why: impl Into<String>) -> Self {
        TlsError { key, file: file.display().to_string(), why: why.into() }
    }
}

/// The certificate that is in use, and the files that it came from.
#[derive(Debug)]
pub struct Tls {
    files: RwLock<config::Tls>,
    metrics: Arc<Metrics>,
    current: RwLock<Arc<ServerConfig>>,
    watch: Mutex<Watch>,
}

/// The digests of both files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Watch {
    /// At the last read.
    seen: [u8; 32],
    /// When they were last applied or refused.
    judged: [u8; 32],
}

impl Tls {
    /// Reads and checks the pair.
    ///
    /// # Errors
    /// A file cannot be read or has the wrong content, or the two do not belong together.
    pub fn load(files: config::Tls, metrics: Arc<Metrics>) -> Result<Self, TlsError> {
        let pair = Pair::read(&files);
        let seen = digest(&pair);
        let (config, expires) = pair?.check(&files)?;
        note_expiry(&metrics, expires);
        let watch = Mutex::new(Watch { seen, judged: seen });
        Ok(Tls { files: RwLock::new(files), metrics, current: RwLock::new(config), watch })
    }

    /// The configuration for the next connection.
    pub fn current(&self) -> Arc<ServerConfig> {
        self.current.read().clone()
    }

    /// The metrics of the gateway.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Reads and checks the current pair of `files`, without applying it.
    ///
    /// # Errors
    /// As [`Tls::load`]; the failure is counted.
    pub fn read(&self, files: config::Tls) -> Result<Renewed, TlsError> {
        let pair = Pair::read(&files);
        let seen = digest(&pair);
        match pair.and_then(|pair| pair.check(&files)) {
            Ok((config, expires)) => Ok(Renewed { files, seen, config, expires }),
            Err(error) => {
                self.metrics.tls_certificate_reloads.inc(ReloadResult::Refused);
                let same = *self.files.read() == files;
                if same {
                    *self.watch.lock() = Watch { seen, judged: seen }; // the error is logged once
                }
                Err(error)
            }
        }
    }

    /// Applies a pair that was read, and watches its files from now on.
    pub fn renew(&self, renewed: Renewed) {
        let Renewed { files, seen, config, expires } = renewed;
        // Locked throughout, so that the old files are not read in between.
        let mut watch = self.watch.lock();
        *watch = Watch { seen, judged: seen };
        *self.files.write() = files.clone();
        self.take(&files, config, expires);
    }

    /// Applies the pair if it has changed. To be called every [`CERTIFICATE_CHECK`].
    pub fn reload_if_changed(&self) {
        let files = self.files.read().clone();
        let pair = Pair::read(&files);
        let seen = digest(&pair);
        let mut watch = self.watch.lock();
        if *self.files.read() != files {
            return; // a reload has named other files meanwhile
        }
        // A file that has just changed may be half written, or the other file may still be the old one.
        let settled = watch.seen == seen;
        watch.seen = seen;
        if settled && watch.judged != seen {
            watch.judged = seen;
            match pair.and_then(|pair| pair.check(&files)) {
                Ok((config, expires)) => self.take(&files, config, expires),
                Err(error) => {
                    self.metrics.tls_certificate_reloads.inc(ReloadResult::Refused);
                    tracing::error!(%error, "the new certificate cannot be used; the old one stays in use");
                }
            }
        }
    }

    fn take(&self, files: &config::Tls, config: Arc<ServerConfig>, expires: Option<i64>) {
        *self.current.write() = config;
        self.metrics.tls_certificate_reloads.inc(ReloadResult::Done);
        note_expiry(&self.metrics, expires);
        tracing::info!(cert = %files.cert.display(), "new connections use the new certificate");
    }
}

/// A pair that was checked and can be applied.
#[derive(Debug)]
pub struct Renewed {
    files: config::Tls,
    seen: [u8; 32],
    config: Arc<ServerConfig>,
    expires: Option<i64>,
}

fn note_expiry(metrics: &Metrics, expires: Option<i64>) {
    if let Some(expires) = expires {
        metrics.tls_certificate_expires.of(Listener::Public).set(expires);
    }
}

/// The contents of the two files.
struct Pair {
    cert: Vec<u8>,
    key: Vec<u8>,
}

impl Pair {
    /// These are small local files that are read rarely, so this blocks.
    fn read(files: &config::Tls) -> Result<Self, TlsError> {
        let read = |key, file: &Path| {
            std::fs::read(file).map_err(|error| TlsError::new(key, file, format!("cannot be read: {error}")))
        };
        Ok(Pair { cert: read("tls.cert", &files.cert)?, key: read("tls.key", &files.key)? })
    }

    /// Checks the pair. Returns the server configuration, and the unix time at which the certificate expires, if it can
    /// be parsed.
    fn check(&self, files: &config::Tls) -> Result<(Arc<ServerConfig>, Option<i64>), TlsError> {
        let bad_cert = |why: String| TlsError::new("tls.cert", &files.cert, why);
        let bad_key = |why: String| TlsError::new("tls.key", &files.key, why);
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&self.cert)
            .collect::<Result<_, _>>()
            .map_err(|error| bad_cert(format!("is not PEM: {error}")))?;
        let Some(own) = chain.first() else {
            return Err(bad_cert("has no certificate; put one in PEM here, followed by its chain".into()));
        };
        let expires = expiry(own);
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|error| match error {
            pem::Error::NoItemsFound => {
                bad_key("has no private key; put one in PEM here, not encrypted".into())
            }
            error => bad_key(format!("is not PEM: {error}")),
        })?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(provider::default_provider()))
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(|error| bad_cert(error.to_string()))?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(|error| match error {
                rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => bad_key(format!(
                    "is not the key of the certificate in tls.cert = \"{}\"",
                    files.cert.display()
                )),
                rustls::Error::InvalidCertificate(why) => bad_cert(format!("cannot be used: {why}")),
                error => bad_key(format!("cannot be used: {error}")),
            })?;
        config.alpn_protocols = ALPN.map(<[u8]>::to_vec).to_vec();
        // Clients keep the sessions (tickets): when a crowd reconnects, a table on our side would have only a few of
        // them.
        config.ticketer = provider::Ticketer::new().map_err(|error| bad_key(error.to_string()))?;
        Ok((Arc::new(config), expires))
    }
}

fn digest(pair: &Result<Pair, TlsError>) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    match pair {
        Ok(pair) => {
            context.update(&pair.cert.len().to_be_bytes());
            context.update(&pair.cert);
            context.update(&pair.key);
        }
        Err(error) => context.update(error.to_string().as_bytes()),
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref()); // SHA-256 has 32 bytes
    digest
}

/// `notAfter` of a certificate (RFC 5280, section 4.1), as unix time. Only for the metric; it decides nothing.
fn expiry(certificate: &[u8]) -> Option<i64> {
    let sequence = |block: ASN1Block| match block {
        ASN1Block::Sequence(_, blocks) => Some(blocks),
        _ => None,
    };
    let certificate = sequence(simple_asn1::from_der(certificate).ok()?.into_iter().next()?)?;
    let mut fields = sequence(certificate.into_iter().next()?)?.into_iter().peekable();
    // The version comes first if it is not 1, then serial number, signature and issuer.
    fields.next_if(|field| matches!(field, ASN1Block::Explicit(..)));
    let validity = sequence(fields.nth(3)?)?;
    match validity.into_iter().nth(1)? {
        ASN1Block::UTCTime(_, time) | ASN1Block::GeneralizedTime(_, time) => {
            Some(time.assume_utc().unix_timestamp())
        }
        _ => None,
    }
}
