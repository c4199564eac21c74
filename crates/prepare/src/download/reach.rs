//! Rejects hosts that are not public.
//!
//! An untrusted list must not reach services of this machine or its network. So every connection, also after a
//! redirect, is checked by the addresses to which its host resolved.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use ureq::{
    Error,
    unversioned::transport::{ConnectionDetails, Connector},
};

/// A connector of ureq, before the one that connects: rejects targets that are not public.
#[derive(Debug)]
pub(crate) struct PublicOnly {
    /// Host of a proxy from the environment. Connections to the proxy itself are always allowed.
    pub(crate) proxy: Option<String>,
}

/// Error for a host that is not public.
#[derive(Debug, thiserror::Error)]
#[error("{host} is {kind}, which needs private hosts to be allowed")]
pub struct NotPublic {
    host: String,
    kind: &'static str,
}

impl Connector for PublicOnly {
    type Out = ();

    fn connect(&self, details: &ConnectionDetails<'_>, _: Option<()>) -> Result<Option<()>, Error> {
        let host = details.uri.host().unwrap_or_default();
        // For its connection to the proxy, ureq uses a configuration without one. Addresses of the list keep theirs,
        // also if they name the proxy's host.
        if self.proxy.as_deref() == Some(host) && details.config.proxy().is_none() {
            return Ok(None);
        }
        // A proxy resolves names itself; then only the host in the address can be checked.
        let resolved = details.addrs.iter().map(|address| address.ip());
        match resolved.chain(literal(host)).find_map(kind).or(kind_of_name(host)) {
            Some(kind) => Err(Error::Other(Box::new(NotPublic { host: host.into(), kind }))),
            None => Ok(None),
        }
    }
}

/// Parses a host as an IP address.
fn literal(host: &str) -> Option<IpAddr> {
    host.trim_matches(['[', ']']).parse().ok()
}

/// Returns why a name is not public; `None` if the name does not show it.
fn kind_of_name(host: &str) -> Option<&'static str> {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let last = host.rsplit('.').next().unwrap_or_default();
    if last == "localhost" {
        return Some("this machine");
    }
    // Resolvers accept `127.1` and `0x7f000001` as addresses; names do not end in numbers.
    let is_number = last.starts_with(|c: char| c.is_ascii_digit()) && literal(&host).is_none();
    is_number.then_some("an address in an unusual form")
}

/// Returns why an address is not public; `None` for public ones.
fn kind(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => kind_v4(address),
        IpAddr::V6(address) => kind_v6(address),
    }
}

/// Returns why an IPv4 address is not public; `None` for public ones. Source: IANA's registry of
/// special-purpose IPv4 addresses (RFC 6890).
fn kind_v4(address: Ipv4Addr) -> Option<&'static str> {
    let [a, b, c, _] = address.octets();
    if address.is_loopback() || a == 0 {
        return Some("this machine");
    }
    if address.is_private() || (a == 100 && (64..128).contains(&b)) {
        return Some("a private address");
    }
    if address.is_link_local() {
        return Some("a link-local address");
    }
    let is_reserved = address.is_multicast()
        || address.is_documentation()
        || a >= 240
        || [a, b, c] == [192, 0, 0]
        || (a == 198 && [18, 19].contains(&b));
    is_reserved.then_some("a reserved address")
}

/// Returns why an IPv6 address is not public; `None` for public ones. Source: IANA's registry of
/// special-purpose IPv6 addresses (RFC 6890).
fn kind_v6(address: Ipv6Addr) -> Option<&'static str> {
    if address.is_loopback() || address.is_unspecified() {
        return Some("this machine");
    }
    let parts = address.segments();
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        kind_v4(Ipv4Addr::new(a, b, c, d))
    };
    match parts {
        // Mapped, compatible, translated (RFC 6052) and tunnelled (RFC 3056) addresses of IPv4.
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            v4(high, low)
        }
        [0x2002, high, low, ..] => v4(high, low),
        [first, ..] if first & 0xfe00 == 0xfc00 || first & 0xffc0 == 0xfec0 => {
            Some("a private address")
        }
        [first, ..] if first & 0xffc0 == 0xfe80 => Some("a link-local address"),
        [first, ..] if first & 0xff00 == 0xff00 => Some("a reserved address"),
        [0x2001, second, ..] if second < 0x200 || second == 0xdb8 => Some("a reserved address"),
        [0x64, 0xff9b, ..] => Some("a reserved address"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_of_this_machine_opens_no_way_to_its_other_ports() {
        use std::io::{BufRead, BufReader};
        use ureq::{
            Agent, Proxy,
            unversioned::{resolver::DefaultResolver, transport::DefaultConnector},
        };
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Proxy::new(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let config = Agent::config_builder().proxy(Some(proxy)).build();
        let public = PublicOnly { proxy: Some("127.0.0.1".into()) };
        let connector = public.chain(DefaultConnector::new());
        let agent = Agent::with_parts(config, connector, DefaultResolver::default());
        let error = agent.get("http://127.0.0.1:9/x.mp4").call().unwrap_err();
        assert!(matches!(&error, Error::Other(error) if error.is::<NotPublic>()), "{error}");
        // The proxy itself is reached.
        let asked = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).unwrap();
            line
        });
        assert!(agent.get("http://a.example/x.mp4").call().is_err());
        let asked = asked.join().unwrap();
        assert!(asked.starts_with("CONNECT a.example:80"), "{asked}");
    }

    #[test]
    fn only_public_addresses_pass() {
        for public in ["93.184.216.34", "8.8.8.8", "100.128.0.1", "172.32.0.1", "2606:4700::1111"] {
            assert_eq!(literal(public).and_then(kind), None, "{public}");
            assert_eq!(kind_of_name(public), None, "{public}");
        }
        for private in [
            "127.0.0.1",
            "127.8.8.8",
            "0.0.0.0",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
            "198.18.0.1",
            "[::1]",
            "[::]",
            "[::ffff:127.0.0.1]",
            "[::ffff:169.254.169.254]",
            "[64:ff9b::10.0.0.1]",
            "[2002:7f00:1::]",
            "[fe80::1]",
            "[fd00:ec2::254]",
            "[ff02::1]",
            "[2001:db8::1]",
        ] {
            assert!(literal(private).and_then(kind).is_some(), "{private}");
        }
        for name in ["localhost", "LOCALHOST.", "a.localhost", "127.1", "0x7f000001", "2130706433"]
        {
            assert!(kind_of_name(name).is_some(), "{name}");
        }
        for name in ["a.example", "1.a.example", "x1"] {
            assert_eq!(kind_of_name(name), None, "{name}");
        }
    }
}
