//! `[proxies]`: which proxies are trusted to name the address of a client.

use std::net::IpAddr;

use ipnet::IpNet;

use super::input::Input;
use super::value::Given;

/// `[proxies]`: the proxies in front, and how they name the client's address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    /// `proxies.trusted`: networks from which only our proxies connect. No other peer is trusted.
    pub trusted: Vec<IpNet>,
    /// `proxies.address`.
    pub address: AddressSource,
}

/// Where a proxy names the client's address.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AddressSource {
    /// In the header `X-Forwarded-For`.
    #[default]
    XForwardedFor,
    /// In the header `Forwarded` (RFC 7239).
    Forwarded,
    /// Before everything else on the connection, by the PROXY protocol, version 2.
    ProxyProtocol,
}

impl AddressSource {
    const WORDS: [(&str, AddressSource); 3] = [
        ("x-forwarded-for", AddressSource::XForwardedFor),
        ("forwarded", AddressSource::Forwarded),
        ("proxy-protocol", AddressSource::ProxyProtocol),
    ];
}

impl Proxies {
    /// Whether the peer `address` is trusted to name its clients. `address` is never an IPv4 address in IPv6 form.
    pub fn trusts(&self, address: IpAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(&address))
    }

    pub(super) fn in_words(&self) -> String {
        if self.trusted.is_empty() {
            return "Client addresses come from the TCP connection; no proxy is trusted (proxies.trusted is empty).".into();
        }
        let networks: Vec<String> = self.trusted.iter().map(IpNet::to_string).collect();
        let how = match self.address {
            AddressSource::XForwardedFor => "in X-Forwarded-For",
            AddressSource::Forwarded => "in Forwarded",
            AddressSource::ProxyProtocol => {
                "by the PROXY protocol, with which each of their connections must begin"
            }
        };
        format!("Proxies in {} are trusted; they name the address of a client {how}.", networks.join(", "))
    }
}

impl Proxies {
    pub(super) fn read(input: &mut Input<'_>) -> Self {
        const TRUSTED: &str = "proxies.trusted";
        let mut trusted = vec![];
        for text in input.get::<Vec<String>>(TRUSTED) {
            match network(&text) {
                Ok(network) => trusted.push(network),
                Err(problem) => input.refuse(TRUSTED, format!("{text:?} {problem}")),
            }
        }
        input.set_in_force(TRUSTED, Some(Given::List(trusted.iter().map(IpNet::to_string).collect())));
        let address = input.choice("proxies.address", AddressSource::default(), &AddressSource::WORDS);
        Proxies { trusted, address }
    }
}

fn network(text: &str) -> Result<IpNet, String> {
    let network: Result<IpNet, _> = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    match network {
        // An address in this form is converted to IPv4 before it is compared, so this network would match nothing.
        Ok(IpNet::V6(mapped)) if mapped.addr().to_ipv4_mapped().is_some() => {
            Err("is an IPv4 network in IPv6 form; write it as IPv4, as in 10.0.0.0/8".into())
        }
        // It may be meant as one address, and would trust the whole network.
        Ok(network) if network != network.trunc() => Err(format!(
            "is an address with the prefix of a network; write {} for the network, or {} for this address alone",
            network.trunc(),
            network.addr()
        )),
        Ok(network) => Ok(network),
        Err(_) => Err(
            "is not a network; write an address, with the length of its prefix, as in 10.0.0.0/8 or fd00::/8"
                .into(),
        ),
    }
}
