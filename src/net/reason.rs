//! Why a connection to another server cannot be made, as a sentence: what is wrong, and what would be right. One place for
//! the brokers, the backend of forward auth, the keys of tokens, the collector of traces and `doctor`.
//!
//! Libraries box their errors, each in its own way, and what all of them keep is the text. So it goes by the text, and
//! tests against real servers hold what the libraries write. What it does not know is passed on in the library's words.
//! It knows no address: whoever connects puts that before the sentence.

use std::error::Error;

/// Who was to be reached, and so which keys of the configuration are about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// A server of NATS.
    Nats,
    /// A server of Redis.
    Redis,
    /// The backend of forward auth.
    Backend,
    /// Whoever publishes the keys of tokens.
    Keys,
    /// The collector of traces.
    Collector,
    /// What somebody typed as a URL.
    Typed,
}

impl Peer {
    /// Where its address is written.
    fn url(self) -> &'static str {
        match self {
            Peer::Nats | Peer::Redis => "broker.url",
            Peer::Backend => "auth.forward.url",
            Peer::Keys => "auth.jwt.jwks_url",
            Peer::Collector => "traces.endpoint",
            Peer::Typed => "the URL",
        }
    }

    /// Where an authority to trust is named.
    fn authority(self) -> &'static str {
        match self {
            Peer::Nats | Peer::Redis => "broker.tls.ca",
            Peer::Backend | Peer::Keys | Peer::Collector => "the file of the variable SSL_CERT_FILE",
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

/// What a connection is like that was not made in time.
pub const LATE: &str = "timed out";

/// What it is like when the other side closed it.
pub const CLOSED: &str = "Connection reset";

/// What it is like where a name leads nowhere.
pub const UNRESOLVED: &str = "failed to lookup address";

/// What can be wrong with a connection, by the words that tell it.
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

/// The first that is found decides.
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
    /// What is wrong, and what would be right. `words` are the library's.
    fn in_words(self, peer: Peer, words: &str) -> String {
        let (url, authority, (plain, encrypted)) = (peer.url(), peer.authority(), peer.schemes());
        match self {
            Fault::Authority => format!(
                "its certificate is that of an authority (CA:TRUE, as openssl req -x509 makes them), which no server may \
                 show; give it one with CA:FALSE, and name its issuer in {authority}"
            ),
            Fault::Plain => {
                format!("it answers without TLS; write {plain} in {url}, or the port that speaks TLS")
            }
            Fault::Issuer => format!(
                "the issuer of its certificate is not trusted; put the certificate of that authority into {authority}"
            ),
            Fault::Expired => "its certificate has expired; renew it, or correct the clock of this machine".into(),
            Fault::NotYet => {
                "its certificate is not valid yet; correct the clock of this machine, or that of its issuer".into()
            }
            Fault::Name => {
                let names = words.split_once("only valid for ").map(|(_, names)| format!(", {names}"));
                format!(
                    "its certificate is for other names than the one in {url}; write a name that it has{}",
                    names.unwrap_or_default()
                )
            }
            Fault::Revoked => "its certificate was revoked; give it another".into(),
            Fault::OurCertificate => match peer {
                Peer::Nats | Peer::Redis => {
                    "it wants a certificate of topicgate from an issuer that it trusts; set broker.tls.cert and \
                     broker.tls.key"
                        .into()
                }
                _ => "it wants a certificate of its client, and topicgate shows none there".into(),
            },
            Fault::NoCommonTls => {
                "it has no version or cipher of TLS in common with topicgate, which speaks TLS 1.2 and 1.3".into()
            }
            Fault::OtherProtocol => {
                format!("it speaks another protocol than that of {plain} or {encrypted}; check the port in {url}")
            }
            Fault::Login => "it refuses the login, or wants one; check broker.user and broker.password, broker.token, \
                             broker.nkey or broker.credentials"
                .into(),
            Fault::Nothing => {
                format!("nothing listens there; start the server, or correct host and port in {url}")
            }
            Fault::Unresolved => format!("its name has no address; check the host in {url}, and DNS"),
            Fault::Unroutable => format!("there is no way to it; check the address in {url}, and the network"),
            Fault::Closed => format!(
                "it closed the connection before it was made; check in {url} that the port is right, and whether it \
                 speaks TLS ({encrypted}) or not ({plain})"
            ),
            Fault::Late => format!(
                "it does not answer in time; check in {url} that host and port are right, and whether it speaks TLS \
                 ({encrypted}) or not ({plain}); or a firewall drops packets on the way"
            ),
        }
    }
}

/// The sentence for what a library said, with the words by which it is known; or what the library said.
pub fn sentence(words: &str, peer: Peer) -> String {
    let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
    let said = words.to_lowercase();
    match WORDS.iter().find(|(known, _)| said.contains(&known.to_lowercase())) {
        Some((known, fault)) => format!("{} ({known})", fault.in_words(peer, &words)),
        None => words,
    }
}

/// An error and its sources, of which each says only its own part, or repeats that of the next.
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
    fn what_is_known_is_a_sentence_and_anything_else_is_passed_on() {
        let told = sentence("authorization violation: nats: authorization violation", Peer::Nats);
        assert_eq!(told.matches("authorization violation").count(), 1, "{told}");
        assert!(sentence("x: Connection refused (os error 111)", Peer::Keys).contains("auth.jwt.jwks_url"));
        assert_eq!(sentence("out of\n cheese", Peer::Redis), "out of cheese");
    }

    #[test]
    fn a_source_that_its_error_has_repeated_is_said_once() {
        let inner = std::io::Error::other("no cheese");
        let outer = std::io::Error::other(inner);
        assert_eq!(chain(&outer), "no cheese");
    }
}
