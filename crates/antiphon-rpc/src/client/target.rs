//! Names of what is called.

use std::fmt;
use std::str::FromStr;

/// Where calls go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `static:host:port,host:port`: these instances.
    Static(Vec<Authority>),
    /// `dns:///host:port`: every address that the name resolves to.
    Dns(Authority),
    /// `inproc:`: a service of this process.
    Inproc,
}

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Authority {
    /// A name or an address; IPv6 addresses in brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Static(instances) => {
                f.write_str("static:")?;
                for (at, instance) in instances.iter().enumerate() {
                    write!(f, "{}{instance}", if at == 0 { "" } else { "," })?;
                }
                Ok(())
            }
            Self::Dns(name) => write!(f, "dns:///{name}"),
            Self::Inproc => f.write_str("inproc:"),
        }
    }
}

/// The text is not a target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not a target: {reason}; write `static:HOST:PORT[,HOST:PORT…]`, `dns:///HOST:PORT` or `inproc:`"
)]
pub struct InvalidTarget {
    text: String,
    reason: &'static str,
}

impl FromStr for Target {
    type Err = InvalidTarget;

    fn from_str(text: &str) -> Result<Self, InvalidTarget> {
        let invalid = |reason| InvalidTarget { text: text.to_owned(), reason };
        if text == "inproc:" {
            return Ok(Self::Inproc);
        }
        if let Some(list) = text.strip_prefix("static:") {
            let instances: Result<Vec<_>, _> = list.split(',').map(authority).collect();
            return instances.map(Self::Static).map_err(invalid);
        }
        if let Some(name) = text.strip_prefix("dns:///") {
            return authority(name).map(Self::Dns).map_err(invalid);
        }
        Err(invalid("it has no known scheme"))
    }
}

fn authority(text: &str) -> Result<Authority, &'static str> {
    let (host, port) = text.trim().rsplit_once(':').ok_or("a port is missing")?;
    if host.is_empty() {
        return Err("a host is missing");
    }
    if host.contains(':') && !(host.starts_with('[') && host.ends_with(']')) {
        return Err("an IPv6 address needs brackets");
    }
    if host.contains(['/', '@', '?', '#', ' ']) {
        return Err("a host has characters that no host has");
    }
    match port.parse() {
        Ok(port) if port != 0 => Ok(Authority { host: host.to_owned(), port }),
        _ => Err("a port is not a number from 1 to 65535"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_round_trip() {
        for text in ["inproc:", "static:a:1,[::1]:2", "dns:///orders.internal:443"] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (text, reason) in [
            ("orders", "scheme"),
            ("static:", "port is missing"),
            ("static:a", "port is missing"),
            ("static:a:0", "1 to 65535"),
            ("static:a:99999", "1 to 65535"),
            ("dns:///:80", "host is missing"),
            ("dns:///::1:80", "brackets"),
            ("dns:///a/b:80", "characters"),
        ] {
            let error = text.parse::<Target>().unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
