//! A host and a port.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

/// A host and a port: what is connected to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Authority {
    /// A name or an address; IPv6 addresses in brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// The text is not a host and a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidAuthority(pub(crate) &'static str);

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl From<SocketAddr> for Authority {
    fn from(address: SocketAddr) -> Self {
        let host = match address {
            SocketAddr::V4(v4) => v4.ip().to_string(),
            SocketAddr::V6(v6) => format!("[{}]", v6.ip()),
        };
        Self { host, port: address.port() }
    }
}

impl FromStr for Authority {
    type Err = InvalidAuthority;

    fn from_str(text: &str) -> Result<Self, InvalidAuthority> {
        let (host, port) =
            text.trim().rsplit_once(':').ok_or(InvalidAuthority("a port is missing"))?;
        if host.is_empty() {
            return Err(InvalidAuthority("a host is missing"));
        }
        let bare = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(bare) if bare.parse::<std::net::Ipv6Addr>().is_ok() => "",
            Some(_) => return Err(InvalidAuthority("what is in brackets is no IPv6 address")),
            None if host.contains(':') => {
                return Err(InvalidAuthority("an IPv6 address needs brackets"));
            }
            None => host,
        };
        let odd = |c: char| c.is_control() || c.is_whitespace() || "/@?#[]%\\\"'".contains(c);
        if bare.contains(odd) {
            return Err(InvalidAuthority("a host has characters that no host has"));
        }
        match port.parse() {
            // `+1` is a number to the parser, and no port.
            Ok(port) if port != 0 && !text.contains('+') => {
                Ok(Self { host: host.to_owned(), port })
            }
            _ => Err(InvalidAuthority("a port is not a number from 1 to 65535")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_round_trip() {
        for text in ["a:1", "[::1]:2", "orders.internal:443", "10.0.0.1:65535"] {
            assert_eq!(text.parse::<Authority>().unwrap().to_string(), text);
        }
        let address: SocketAddr = "[2001:db8::7]:80".parse().unwrap();
        assert_eq!(Authority::from(address).to_string(), "[2001:db8::7]:80");
    }

    #[test]
    fn mistakes_are_named() {
        for (text, reason) in [
            ("", "port is missing"),
            ("a", "port is missing"),
            ("a:0", "1 to 65535"),
            ("a:+1", "1 to 65535"),
            ("a:99999", "1 to 65535"),
            (":80", "host is missing"),
            ("::1:80", "brackets"),
            ("[nonsense]:80", "brackets"),
            ("a/b:80", "characters"),
            ("a b:80", "characters"),
        ] {
            let error = text.parse::<Authority>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
