//! `[discovery.dns]`: who is asked for names.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The port of name servers.
const PORT: u16 = 53;

/// Who is asked for names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct DnsSettings {
    /// The name servers of targets that name none themselves: `10.0.0.53`, or `10.0.0.53:5353` where
    /// the port is not 53. When one does not answer, another one is asked. Those of the system unless
    /// set.
    pub servers: Vec<NameServer>,
}

/// The address of a name server, written as `IP` or `IP:PORT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct NameServer(pub SocketAddr);

/// The text is no address of a name server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not the address of a name server; write an IP address such as 10.0.0.53, with a port \
     where that is not 53: 10.0.0.53:5353 or [2001:db8::53]:5353"
)]
pub struct InvalidNameServer(String);

impl FromStr for NameServer {
    type Err = InvalidNameServer;

    fn from_str(text: &str) -> Result<Self, InvalidNameServer> {
        let text = text.trim();
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let address = match bare.unwrap_or(text).parse::<IpAddr>() {
            Ok(ip) if bare.is_none() || ip.is_ipv6() => Some(SocketAddr::new(ip, PORT)),
            _ => text.parse().ok(),
        };
        let usable = |address: &SocketAddr| address.port() != 0 && !address.ip().is_unspecified();
        address.filter(usable).map(Self).ok_or_else(|| InvalidNameServer(text.to_owned()))
    }
}

impl TryFrom<String> for NameServer {
    type Error = InvalidNameServer;

    fn try_from(text: String) -> Result<Self, InvalidNameServer> {
        text.parse()
    }
}

impl From<NameServer> for String {
    fn from(server: NameServer) -> Self {
        server.to_string()
    }
}

impl fmt::Display for NameServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use antiphon_config::{Settings, Sources};

    use super::*;

    #[test]
    fn name_servers_have_addresses_and_the_usual_port_unless_said() {
        for (text, server) in [
            ("10.0.0.53", "10.0.0.53:53"),
            ("127.0.0.1:5353", "127.0.0.1:5353"),
            ("2001:db8::53", "[2001:db8::53]:53"),
            ("[2001:db8::53]", "[2001:db8::53]:53"),
            (" [::1]:5353 ", "[::1]:5353"),
        ] {
            assert_eq!(text.parse::<NameServer>().unwrap().to_string(), server);
        }
        for text in [
            "",
            "ns.internal",
            "ns.internal:53",
            "10.0.0.53:0",
            "10.0.0.53:",
            "[10.0.0.53]",
            "0.0.0.0",
        ] {
            let error = text.parse::<NameServer>().unwrap_err().to_string();
            assert!(error.contains("10.0.0.53:5353"), "{text}: {error}");
        }
    }

    fn read(text: &str) -> Result<DnsSettings, String> {
        let settings = Settings::load(&Sources::new().text("antiphon.toml", text)).unwrap();
        let section: crate::Settings =
            settings.section("discovery").map_err(|error| error.to_string())?;
        Ok(section.dns)
    }

    #[test]
    fn settings_name_servers_and_mistakes_are_told_with_their_place() {
        let servers = read("[discovery.dns]\nservers = ['10.0.0.53', '[::1]:5353']\n").unwrap();
        assert_eq!(servers.servers.len(), 2);
        assert_eq!(read("").unwrap(), DnsSettings::default());
        for (text, words) in [
            (
                "[discovery.dns]\nservers = ['10.0.0.53', 'ns.internal']",
                "antiphon.toml:2:25: `discovery.dns.servers[1]`: `ns.internal` is not",
            ),
            (
                "[discovery.dns]\nservers = '10.0.0.53'",
                "antiphon.toml:2:11: `discovery.dns.servers`: expected",
            ),
            (
                "[discovery.dns]\nserver = ['10.0.0.53']",
                "antiphon.toml:2:1: `discovery.dns.server`: unknown setting; did you mean `servers`?",
            ),
        ] {
            let said = read(text).unwrap_err();
            assert!(said.starts_with(words), "{said}");
        }
    }
}
