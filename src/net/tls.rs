//! TLS towards browsers: the certificate and its key, checked at the start and renewed while the gateway runs. The
//! handshake itself is in `http/handshake.rs`.
//!
//! A new pair is for new connections; those that are open keep what they began with. A pair that cannot be used changes
//! nothing. A change is found by reading both files, which are small: a time of modification says little of a
//! symbolic link that now points elsewhere, which is how Kubernetes renews a secret.

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
use crate::metrics::Metrics;

/// How often the files are looked at. A change is taken when it looks the same twice in a row.
pub const LOOK: Duration = Duration::from_secs(2);

/// What we speak, in the order of our liking.
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

/// See the module.
#[derive(Debug)]
pub struct Tls {
    files: RwLock<config::Tls>,
    metrics: Arc<Metrics>,
    current: RwLock<Arc<ServerConfig>>,
    watch: Mutex<Watch>,
}

/// Both files, by their digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Watch {
    /// As they were seen last.
    seen: [u8; 32],
    /// As they were when they were last taken or refused.
    judged: [u8; 32],
}

impl Tls {
    /// Reads and checks the pair.
    ///
    /// # Errors
    /// A file cannot be read or holds something else, or the two do not belong together.
    pub fn load(files: config::Tls, metrics: Arc<Metrics>) -> Result<Self, TlsError> {
        let pair = Pair::read(&files);
        let seen = digest(&pair);
        let (config, expires) = pair?.check(&files)?;
        note_expiry(&metrics, expires);
        let watch = Mutex::new(Watch { seen, judged: seen });
        Ok(Tls { files: RwLock::new(files), metrics, current: RwLock::new(config), watch })
    }

    /// What the next connection begins with.
    pub fn current(&self) -> Arc<ServerConfig> {
        self.current.read().clone()
    }

    /// Counters.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The pair of `files` as it is now, to be taken or left.
    ///
    /// # Errors
    /// As [`Tls::load`]; counted.
    pub fn read(&self, files: config::Tls) -> Result<Renewed, TlsError> {
        let pair = Pair::read(&files);
        let seen = digest(&pair);
        match pair.and_then(|pair| pair.check(&files)) {
            Ok((config, expires)) => Ok(Renewed { files, seen, config, expires }),
            Err(error) => {
                self.metrics.certificate_reloaded("refused");
                let same = *self.files.read() == files;
                if same {
                    *self.watch.lock() = Watch { seen, judged: seen }; // said once
                }
                Err(error)
            }
        }
    }

    /// Takes a pair that was read, and looks at its files from now on.
    pub fn renew(&self, renewed: Renewed) {
        let Renewed { files, seen, config, expires } = renewed;
        // Held throughout, so that no look at the old files comes in between.
        let mut watch = self.watch.lock();
        *watch = Watch { seen, judged: seen };
        *self.files.write() = files.clone();
        self.take(&files, config, expires);
    }

    /// Takes the pair if it has changed. To be called every [`LOOK`].
    pub fn look(&self) {
        let files = self.files.read().clone();
        let pair = Pair::read(&files);
        let seen = digest(&pair);
        let mut watch = self.watch.lock();
        if *self.files.read() != files {
            return; // a reload has named others meanwhile
        }
        // One that has just changed may be half written, or the first of the two files.
        let settled = watch.seen == seen;
        watch.seen = seen;
        if settled && watch.judged != seen {
            watch.judged = seen;
            match pair.and_then(|pair| pair.check(&files)) {
                Ok((config, expires)) => self.take(&files, config, expires),
                Err(error) => {
                    self.metrics.certificate_reloaded("refused");
                    tracing::error!(%error, "the new certificate cannot be used; the one that was read before stays");
                }
            }
        }
    }

    fn take(&self, files: &config::Tls, config: Arc<ServerConfig>, expires: Option<i64>) {
        *self.current.write() = config;
        self.metrics.certificate_reloaded("done");
        note_expiry(&self.metrics, expires);
        tracing::info!(cert = %files.cert.display(), "new connections get the certificate that was just read");
    }
}

/// A pair that was read and can be used.
#[derive(Debug)]
pub struct Renewed {
    files: config::Tls,
    seen: [u8; 32],
    config: Arc<ServerConfig>,
    expires: Option<i64>,
}

fn note_expiry(metrics: &Metrics, expires: Option<i64>) {
    if let Some(expires) = expires {
        metrics.certificate_expires(expires);
    }
}

/// What the two files hold.
struct Pair {
    cert: Vec<u8>,
    key: Vec<u8>,
}

impl Pair {
    /// Small local files, now and then: not worth a thread of their own.
    fn read(files: &config::Tls) -> Result<Self, TlsError> {
        let read = |key, file: &Path| {
            std::fs::read(file).map_err(|error| TlsError::new(key, file, format!("cannot be read: {error}")))
        };
        Ok(Pair { cert: read("tls.cert", &files.cert)?, key: read("tls.key", &files.key)? })
    }

    /// What connections are served with, and the unix time at which the certificate expires, where that can be read.
    fn check(&self, files: &config::Tls) -> Result<(Arc<ServerConfig>, Option<i64>), TlsError> {
        let bad_cert = |why: String| TlsError::new("tls.cert", &files.cert, why);
        let bad_key = |why: String| TlsError::new("tls.key", &files.key, why);
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&self.cert)
            .collect::<Result<_, _>>()
            .map_err(|error| bad_cert(format!("is not PEM: {error}")))?;
        let Some(own) = chain.first() else {
            return Err(bad_cert("holds no certificate; write one in PEM, with its chain behind it".into()));
        };
        let expires = expiry(own);
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|error| match error {
            pem::Error::NoItemsFound => {
                bad_key("holds no private key; write one in PEM, not encrypted".into())
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
        // Sessions are kept by the clients: when a crowd comes back at once, a table of ours would hold a few of them.
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

/// `notAfter` of a certificate (RFC 5280, section 4.1), as unix time. For the metric alone: what browsers think of
/// a certificate is their affair.
fn expiry(certificate: &[u8]) -> Option<i64> {
    let sequence = |block: ASN1Block| match block {
        ASN1Block::Sequence(_, blocks) => Some(blocks),
        _ => None,
    };
    let certificate = sequence(simple_asn1::from_der(certificate).ok()?.into_iter().next()?)?;
    let mut fields = sequence(certificate.into_iter().next()?)?.into_iter().peekable();
    // The version comes first, where it is not 1; then serial number, signature and issuer.
    fields.next_if(|field| matches!(field, ASN1Block::Explicit(..)));
    let validity = sequence(fields.nth(3)?)?;
    match validity.into_iter().nth(1)? {
        ASN1Block::UTCTime(_, time) | ASN1Block::GeneralizedTime(_, time) => {
            Some(time.assume_utc().unix_timestamp())
        }
        _ => None,
    }
}
