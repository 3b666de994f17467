//! Turns a connection error into a sentence: what is wrong, and what to do. It is used for the brokers, the backend of
//! forward auth, the key set, the trace collector and `doctor`.
//!
//! Each library wraps errors in its own way; only the text is common to all. So this file matches the text, and tests
//! against real servers check what the libraries write. An unknown error keeps the library's text. The caller adds the
//! address.

use std::error::Error;

/// The kind of server, which determines the configuration keys to name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// A NATS server.
    Nats,
    /// A Redis server.
    Redis,
    /// The backend of forward auth.
    Backend,
    /// The server of the key set.
    Keys,
    /// The trace collector.
    Collector,
    /// A URL on the command line.
    Typed,
}

impl Peer {
    /// The configuration key of its address.
    fn url(self) -> &'static str {
        match self {
            Peer::Nats | Peer::Redis => "broker.url",
            Peer::Backend => "auth.forward.url",
            Peer::Keys => "auth.jwt.jwks_url",
            Peer::Collector => "traces.endpoint",
            Peer::Typed => "the URL",
        }
    }

    /// The place where a trusted authority is configured.
    fn authority(self) -> &'static str {
        match self {
            Peer::Nats | Peer::Redis => "broker.tls.ca",
            Peer::Backend | Peer::Keys | Peer::Collector => "the file in the variable SSL_CERT_FILE",
            Peer::Typed => "--ca",
        }
    }

    fn schemes(self) -> (&'static str, &'static str) {
        match self {
            Peer::Nats => ("nats://", "tls://"),
            Peer::Redis => ("redis://", "rediss://"),
            Peer::Backend | Peer::Keys | Peer::Collector | Peer::Typed => ("http://", "https://"),
        }
    }
}

/// The text for a connection that timed out.
pub const LATE: &str = "timed out";

/// The text for a connection that the other side closed.
pub const CLOSED: &str = "Connection reset";

/// The text for a name that cannot be resolved.
pub const UNRESOLVED: &str = "failed to lookup address";

/// What can be wrong with a connection.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Authority,
    Plain,
    Issuer,
    Expired,
    NotYet,
    Name,
    Revoked,
    OurCertificate,
    NoCommonTls,
    OtherProtocol,
    Login,
    Nothing,
    Unresolved,
    Unroutable,
    Closed,
    Late,
}

/// Texts and their meanings. The first match decides.
const WORDS: [(&str, Fault); 34] = [
    ("CaUsedAsEndEntity", Fault::Authority),
    ("InvalidContentType", Fault::Plain),
    ("UnknownIssuer", Fault::Issuer),
    ("BadSignature", Fault::Issuer),
    ("certificate expired", Fault::Expired),
    ("NotValidYet", Fault::NotYet),
    ("not valid yet", Fault::NotYet),
    ("not valid for name", Fault::Name),
    ("NotValidForName", Fault::Name),
    ("certificate: Expired", Fault::Expired),
    ("certificate: Revoked", Fault::Revoked),
    ("CertificateRequired", Fault::OurCertificate),
    ("fatal alert: BadCertificate", Fault::OurCertificate),
    ("fatal alert: UnknownCA", Fault::OurCertificate),
    ("fatal alert: DecryptError", Fault::OurCertificate),
    ("fatal alert: HandshakeFailure", Fault::NoCommonTls),
    ("fatal alert: ProtocolVersion", Fault::NoCommonTls),
    ("peer is incompatible", Fault::NoCommonTls),
    ("invalid HTTP", Fault::OtherProtocol),
    ("expected INFO", Fault::OtherProtocol),
    ("Response was of incompatible type", Fault::OtherProtocol),
    ("authorization violation", Fault::Login),
    ("authentication expired", Fault::Login),
    ("failed signing nonce", Fault::Login),
    ("Connection refused", Fault::Nothing),
    (UNRESOLVED, Fault::Unresolved),
    ("dns error", Fault::Unresolved),
    ("DNS error", Fault::Unresolved),
    ("No route to host", Fault::Unroutable),
    ("Network is unreachable", Fault::Unroutable),
    ("handshake eof", Fault::Closed),
    (CLOSED, Fault::Closed),
    ("Broken pipe", Fault::Closed),
    (LATE, Fault::Late),
];

impl Fault {
    /// What is wrong, and what to do. `words` is the library's text.
    fn in_words(self, peer: Peer, words: &str) -> String {
        let (url, authority, (plain, encrypted)) = (peer.url(), peer.authority(), peer.schemes());
        match self {
            Fault::Authority => format!(
                "its certificate is an authority's (CA:TRUE, as openssl req -x509 creates it), which a server must not \
                 use; give the server one with CA:FALSE, and add its issuer to {authority}"
            ),
            Fault::Plain => {
                format!("it answers without TLS; write {plain} in {url}, or the port that speaks TLS")
            }
            Fault::Issuer => format!(
                "the issuer of its certificate is not trusted; add the certificate of that authority to {authority}"
            ),
            Fault::Expired => {
                "its certificate has expired; renew it, or correct the clock of this machine".into()
            }
            Fault::NotYet => {
                "its certificate is not valid yet; correct the clock of this machine or of the issuer".into()
            }
            Fault::Name => {
                let names = words.split_once("only valid for ").map(|(_, names)| format!(", {names}"));
                format!(
                    "its certificate does not have the name in {url}; use a name that it has{}",
                    names.unwrap_or_default()
                )
            }
            Fault::Revoked => "its certificate was revoked; give the server a new one".into(),
            Fault::OurCertificate => match peer {
                Peer::Nats | Peer::Redis => {
                    "it requires a client certificate from an issuer that it trusts; set broker.tls.cert and \
                     broker.tls.key"
                        .into()
                }
                _ => "it requires a client certificate, which topicgate does not have for this server".into(),
            },
            Fault::NoCommonTls => {
                "it supports no TLS version or cipher of topicgate, which supports TLS 1.2 and 1.3".into()
            }
            Fault::OtherProtocol => {
                format!("it does not speak the protocol of {plain} or {encrypted}; check the port in {url}")
            }
            Fault::Login => "it refuses the login, or requires one; check broker.user and broker.password, \
                             broker.token, broker.nkey or broker.credentials"
                .into(),
            Fault::Nothing => {
                format!(
                    "nothing listens at this address; start the server, or correct the host and port in {url}"
                )
            }
            Fault::Unresolved => format!("its name has no address; check the host in {url}, and DNS"),
            Fault::Unroutable => format!("it is unreachable; check the address in {url}, and the network"),
            Fault::Closed => format!(
                "it closed the connection at once; check in {url} that the port is right, and whether it \
                 speaks TLS ({encrypted}) or not ({plain})"
            ),
            Fault::Late => format!(
                "it does not answer in time; check in {url} that the host and port are right, and whether it speaks \
                 TLS ({encrypted}) or not ({plain}); a firewall may drop the packets"
            ),
        }
    }
}

/// The sentence for a library's text, followed by the words that were recognized; or the library's text.
pub fn sentence(words: &str, peer: Peer) -> String {
    let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
    let said = words.to_lowercase();
    match WORDS.iter().find(|(known, _)| said.contains(&known.to_lowercase())) {
        Some((known, fault)) => format!("{} ({known})", fault.in_words(peer, &words)),
        None => words,
    }
}

/// The text of an error and its sources, without repetitions.
pub fn chain(error: &dyn Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !words.ends_with(&more) {
            words = format!("{words}: {more}");
        }
        source = error.source();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_errors_become_a_sentence_and_others_are_passed_on() {
        let text = sentence("authorization violation: nats: authorization violation", Peer::Nats);
        assert_eq!(text.matches("authorization violation").count(), 1, "{text}");
        assert!(sentence("x: Connection refused (os error 111)", Peer::Keys).contains("auth.jwt.jwks_url"));
        assert_eq!(sentence("out of\n cheese", Peer::Redis), "out of cheese");
    }

    #[test]
    fn a_source_that_its_error_repeats_is_printed_once() {
        let inner = std::io::Error::other("no cheese");
        let outer = std::io::Error::other(inner);
        assert_eq!(chain(&outer), "no cheese");
    }
}
