//! The client's address: the peer of the connection, or the client that a trusted proxy names.
//!
//! A header is trusted only as far as trusted proxies wrote it. It is read from its end: each trusted proxy vouches for
//! the address before its own, and the first address that is not a trusted proxy is the client. Everything before that
//! was chosen by the client. Trace headers are accepted from trusted proxies only.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{Extensions, HeaderMap, HeaderName, header};
use axum::middleware::Next;
use axum::response::Response;

use crate::config::{AddressSource, Proxies};
use crate::gateway::Gateway;

/// The client's address. It is in the extensions of every request. An IPv4 address is never in IPv6 form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ClientAddress(pub(super) IpAddr);

impl ClientAddress {
    pub(super) fn of(address: IpAddr) -> Self {
        ClientAddress(address.to_canonical())
    }
}

/// The address in a request's extensions.
pub(super) fn address(extensions: &Extensions) -> IpAddr {
    // Every connection inserts it; an unspecified address stands for none.
    extensions.get::<ClientAddress>().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |client| client.0)
}

/// The headers that name the trace of a request (W3C Trace Context). A client that could set them would decide what is
/// traced.
const TRACE: [&str; 2] = ["traceparent", "tracestate"];

/// The middleware: replaces the proxy's address with the client's, and removes trace headers that no trusted proxy
/// sent.
pub(super) async fn find(State(gateway): State<Arc<Gateway>>, mut request: Request, next: Next) -> Response {
    if let Some(ClientAddress(peer)) = request.extensions().get().copied() {
        let current = gateway.current();
        let proxies = &current.config.proxies;
        let address = behind(proxies, peer, request.headers());
        request.extensions_mut().insert(ClientAddress(address));
        if !proxies.trusts(peer) {
            TRACE.iter().for_each(|name| drop(request.headers_mut().remove(*name)));
        }
    }
    next.run(request).await
}

fn behind(proxies: &Proxies, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
    let (name, read): (HeaderName, fn(&str) -> Option<IpAddr>) = match proxies.address {
        AddressSource::XForwardedFor => (HeaderName::from_static("x-forwarded-for"), node),
        AddressSource::Forwarded => (header::FORWARDED, forwarded_for),
        AddressSource::ProxyProtocol => return peer, // it named the client before the first request
    };
    // Several lines form one list. A comma inside a quoted string also ends an element: then both halves are malformed.
    let lines = headers.get_all(name).iter().rev();
    let mut elements = lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','));
    let mut client = peer;
    while proxies.trusts(client)
        && let Some(element) = elements.next()
        // A trusted proxy wrote this element, but it cannot be parsed, so nothing beyond it is known.
        && let Some(address) = std::str::from_utf8(element).ok().and_then(read)
    {
        client = address;
    }
    client
}

/// Parses an element of `Forwarded`; its parameter `for` is the client. It is stricter about quotes than RFC 7239,
/// because a client chooses some of the quoted values, such as `Host`. It is more tolerant of unquoted values, because
/// proxies write ports and brackets without quotes.
fn forwarded_for(element: &str) -> Option<IpAddr> {
    let mut client = None;
    for parameter in element.split(';') {
        let (name, value) = parameter.trim().split_once('=')?;
        let quoted = value.strip_prefix('"').map(|value| value.strip_suffix('"'));
        let value = quoted.unwrap_or(Some(value))?;
        if value.contains(['"', '\\'])
            || (name.eq_ignore_ascii_case("for") && client.replace(value).is_some())
        {
            return None;
        }
    }
    node(client?)
}

/// `192.0.2.1`, `192.0.2.1:4711`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:4711`. Not `unknown`, and not a name
/// that a proxy invented.
fn node(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bracketed = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let address = match bracketed {
        Some(address) => IpAddr::V6(address.parse().ok()?),
        None => text.parse().or_else(|_| text.parse::<SocketAddr>().map(|socket| socket.ip())).ok()?,
    };
    Some(address.to_canonical())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    const PEER: &str = "10.0.0.1";

    fn proxies(address: AddressSource) -> Proxies {
        Proxies { trusted: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()], address }
    }

    /// The client according to these lines of the header, from a trusted peer.
    fn client(source: AddressSource, lines: &[&[u8]]) -> String {
        let name = if source == AddressSource::Forwarded { "forwarded" } else { "x-forwarded-for" };
        let headers = lines
            .iter()
            .map(|line| (name.parse().unwrap(), HeaderValue::from_bytes(line).unwrap()))
            .collect();
        behind(&proxies(source), PEER.parse().unwrap(), &headers).to_string()
    }

    #[test]
    fn x_forwarded_for_is_trusted_up_to_the_first_address_that_is_no_trusted_proxy() {
        for (line, expected) in [
            ("203.0.113.9", "203.0.113.9"),
            ("6.6.6.6, 203.0.113.9", "203.0.113.9"),
            ("6.6.6.6,203.0.113.9 , 10.1.1.1,fd00::1", "203.0.113.9"),
            ("203.0.113.9:4711, [fd00::1]:80, 10.0.0.9:1", "203.0.113.9"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:4711", "2001:db8::1"),
            ("2001:db8::1", "2001:db8::1"),
            ("::ffff:203.0.113.9", "203.0.113.9"),
            ("203.0.113.9, ::ffff:10.0.0.9", "203.0.113.9"),
            ("10.9.9.9, 10.0.0.9", "10.9.9.9"), // only proxies
            ("", PEER),
            ("6.6.6.6, ", PEER),
            ("6.6.6.6, unknown", PEER),
            ("6.6.6.6, unix:", PEER),
            ("6.6.6.6, unknown, 10.0.0.9", "10.0.0.9"),
            ("6.6.6.6, 1.2.3", PEER),
            ("6.6.6.6, 1.2.3.4:99999", PEER),
            ("6.6.6.6, \"1.2.3.4\"", PEER),
            ("6.6.6.6, [1.2.3.4]", PEER),
            ("6.6.6.6, fe80::1%eth0", PEER),
        ] {
            assert_eq!(client(AddressSource::XForwardedFor, &[line.as_bytes()]), expected, "{line}");
        }
        assert_eq!(client(AddressSource::XForwardedFor, &[]), PEER);
        assert_eq!(
            client(AddressSource::XForwardedFor, &[b"6.6.6.6", b"203.0.113.9", b"10.0.0.2"]),
            "203.0.113.9"
        );
        assert_eq!(client(AddressSource::XForwardedFor, &[b"\xff\xfe, 203.0.113.9"]), "203.0.113.9");
        assert_eq!(client(AddressSource::XForwardedFor, &[b"6.6.6.6, \xff"]), PEER);
    }

    #[test]
    fn forwarded_is_trusted_in_the_same_way_with_every_kind_of_quoting() {
        for (line, expected) in [
            ("for=203.0.113.9", "203.0.113.9"),
            ("For=6.6.6.6, FOR=\"203.0.113.9:4711\";proto=https;by=10.0.0.2", "203.0.113.9"),
            ("for=\"[2001:db8::1]:4711\"", "2001:db8::1"),
            ("for=\"[2001:db8::1]\" ; host=\"a.example\", for=10.0.0.3", "2001:db8::1"),
            ("for=203.0.113.9:4711, for=[fd00::1]", "203.0.113.9"),
            ("for=6.6.6.6, for=unknown", PEER),
            ("for=6.6.6.6, for=_hidden", PEER),
            ("for=6.6.6.6, for=\"_hidden:80\"", PEER),
            ("for=6.6.6.6, proto=https", PEER),
            ("for=6.6.6.6, for=1.2.3.4;for=5.6.7.8", PEER),
            ("for=6.6.6.6, for=1.2.3.4;secret", PEER),
            ("for=6.6.6.6, for=\"1.2.3.4", PEER),
            ("for=6.6.6.6, for=1.2.3.4\"", PEER),
            ("for=6.6.6.6, for=\"", PEER),
            ("for=6.6.6.6, for=\"1.2.3.4\\\"", PEER),
            // A quote that a client opens swallows nothing that the proxies add,
            ("for=\"6.6.6.6, for=203.0.113.9", "203.0.113.9"),
            // and the host that a client chose is not taken for an element.
            ("for=203.0.113.9;host=\"x, for=6.6.6.6\"", PEER),
            ("for=203.0.113.9;host=\"x, for=6.6.6.6;a=\";proto=http", PEER),
            ("for=203.0.113.9;host=\"x, for=6.6.6.6;a=\\\"\"", PEER),
            ("for=203.0.113.9;host=\"x, for=6.6.6.6;a=\\\"b\"", PEER),
        ] {
            assert_eq!(client(AddressSource::Forwarded, &[line.as_bytes()]), expected, "{line}");
        }
    }

    #[test]
    fn the_header_fields_of_an_untrusted_peer_are_ignored() {
        let headers = HeaderMap::from_iter([(
            HeaderName::from_static("x-forwarded-for"),
            HeaderValue::from_static("6.6.6.6"),
        )]);
        let peer: IpAddr = "203.0.113.1".parse().unwrap();
        assert_eq!(behind(&proxies(AddressSource::XForwardedFor), peer, &headers), peer);
        assert_eq!(behind(&Proxies::default(), peer, &headers), peer);
    }

    /// One element of either header, and the address in it.
    fn element() -> impl Strategy<Value = (String, Option<IpAddr>)> {
        let address = prop_oneof![
            any::<[u8; 4]>().prop_map(IpAddr::from),
            any::<[u8; 3]>().prop_map(|[a, b, c]| IpAddr::from([10, a, b, c])),
            any::<u128>().prop_map(|bits| IpAddr::from(bits.to_be_bytes())),
            any::<u64>().prop_map(|bits| IpAddr::from((0xfd << 120 | u128::from(bits)).to_be_bytes())),
        ];
        prop_oneof![
            8 => address.prop_map(|address| (address.to_string(), Some(address.to_canonical()))),
            1 => "[ -~]{0,12}".prop_filter_map("might be an address", |text| {
                let junk = !text.contains([',', '.', ':']);
                junk.then_some((text, None))
            }),
        ]
    }

    proptest! {
        #[test]
        fn addresses_left_of_an_untrusted_hop_are_never_trusted(
            elements in proptest::collection::vec(element(), 0..8),
            lines in any::<u8>(),
        ) {
            // The expected client: read from the end, for as long as the proxies are trusted.
            let mut expected: IpAddr = PEER.parse().unwrap();
            for (_, address) in elements.iter().rev() {
                let Some(address) = address else { break };
                expected = *address;
                if !proxies(AddressSource::XForwardedFor).trusts(expected) {
                    break;
                }
            }
            for source in [AddressSource::XForwardedFor, AddressSource::Forwarded] {
                let mut header = vec![String::new()];
                for (index, (text, address)) in elements.iter().enumerate() {
                    let text = match (source, address) {
                        (AddressSource::Forwarded, Some(IpAddr::V6(_))) => format!("for=\"[{text}]\";proto=http"),
                        (AddressSource::Forwarded, Some(IpAddr::V4(_))) if text.contains(':') => {
                            format!("for=\"[{text}]\"")
                        }
                        (AddressSource::Forwarded, Some(IpAddr::V4(_))) => format!("for={text}"),
                        (AddressSource::Forwarded, None) => format!("for={text}"),
                        _ => text.clone(),
                    };
                    let last = header.last_mut().unwrap();
                    match (index, lines >> (index % 8) & 1) {
                        (0, _) => *last = text,
                        (_, 0) => *last = format!("{last}, {text}"),
                        _ => header.push(text),
                    }
                }
                let header: Vec<&[u8]> =
                    if elements.is_empty() { vec![] } else { header.iter().map(|line| line.as_bytes()).collect() };
                prop_assert_eq!(client(source, &header), expected.to_string(), "{:?}", header);
            }
        }

        #[test]
        fn any_bytes_in_the_header_fields_are_read_without_a_panic(
            lines in proptest::collection::vec(
                proptest::collection::vec(prop_oneof![Just(b'\t'), 32..=126_u8, 128_u8..], 0..60),
                0..4,
            ),
        ) {
            let lines: Vec<&[u8]> = lines.iter().map(Vec::as_slice).collect();
            client(AddressSource::XForwardedFor, &lines);
            client(AddressSource::Forwarded, &lines);
        }
    }
}
