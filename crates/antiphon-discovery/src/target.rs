//! Names of what is called.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use crate::Authority;

/// Where calls go.
///
/// | written | means |
/// |---|---|
/// | `orders` | the service of that name in the registry that the settings name |
/// | `consul:///orders`, `kubernetes:///shop/orders` | the service of that name in that registry; any word is a scheme that an adapter can stand for |
/// | `static:host:port,host:port` | these instances |
/// | `dns:///host:port`, `dns://server:port/host:port` | every address that the name has, asked of the system's name servers or of that one |
/// | `dns+srv:///_grpc._tcp.orders.internal` | the hosts and ports of the SRV records; a server as above |
/// | `file:///etc/instances.toml#orders` | the instances listed in a file, which may change; without `#`, its list `instances` |
/// | `inproc:` | a service of this process |
///
/// The forms with `///` are those of gRPC's naming (`doc/naming.md` of gRPC).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// `static:`: these instances.
    Static(Vec<Authority>),
    /// `dns:`: every address that the name has.
    Dns {
        /// The name server to ask; the system's without it.
        server: Option<SocketAddr>,
        /// The name, and the port of all instances.
        name: Authority,
    },
    /// `dns+srv:`: the hosts and ports of the SRV records of a name.
    Srv {
        /// The name server to ask; the system's without it.
        server: Option<SocketAddr>,
        /// The name.
        name: String,
    },
    /// `file:`: what a file lists.
    File {
        /// The file.
        path: PathBuf,
        /// The list in the file.
        list: String,
    },
    /// `inproc:`: a service of this process.
    Inproc,
    /// A service in a registry.
    Registry {
        /// Which registry; the one that the settings name without it.
        scheme: Option<String>,
        /// The service, as the registry knows it.
        name: String,
    },
}

/// The list of a file that is meant when a target names none.
const LIST: &str = "instances";

/// The schemes that are no registries.
pub(crate) const BUILT_IN: [&str; 5] = ["static", "dns", "dns+srv", "file", "inproc"];

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let server = |server: &Option<SocketAddr>| {
            server.map_or_else(String::new, |server| server.to_string())
        };
        match self {
            Self::Static(instances) => {
                f.write_str("static:")?;
                for (at, instance) in instances.iter().enumerate() {
                    write!(f, "{}{instance}", if at == 0 { "" } else { "," })?;
                }
                Ok(())
            }
            Self::Dns { server: at, name } => write!(f, "dns://{}/{name}", server(at)),
            Self::Srv { server: at, name } => write!(f, "dns+srv://{}/{name}", server(at)),
            Self::File { path, list } if list == LIST => write!(f, "file://{}", path.display()),
            Self::File { path, list } => write!(f, "file://{}#{list}", path.display()),
            Self::Inproc => f.write_str("inproc:"),
            Self::Registry { scheme: None, name } => f.write_str(name),
            Self::Registry { scheme: Some(scheme), name } => write!(f, "{scheme}:///{name}"),
        }
    }
}

/// The text is not a target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not a target: {reason}; write a service's name, `REGISTRY:///NAME`, \
     `static:HOST:PORT[,HOST:PORT…]`, `dns:///HOST:PORT`, `dns+srv:///NAME`, `file:///PATH[#LIST]` or \
     `inproc:`"
)]
pub struct InvalidTarget {
    text: String,
    reason: &'static str,
}

impl FromStr for Target {
    type Err = InvalidTarget;

    fn from_str(text: &str) -> Result<Self, InvalidTarget> {
        parse(text).map_err(|reason| InvalidTarget { text: text.to_owned(), reason })
    }
}

fn parse(text: &str) -> Result<Target, &'static str> {
    let Some((scheme, rest)) = text.split_once(':') else {
        return Ok(Target::Registry { scheme: None, name: service(text)? });
    };
    match scheme {
        "inproc" if rest.is_empty() => Ok(Target::Inproc),
        "inproc" => Err("nothing follows `inproc:`"),
        "static" => {
            let instances: Result<Vec<_>, _> = rest.split(',').map(authority).collect();
            instances.map(Target::Static)
        }
        "dns" => {
            let (server, name) = asked(rest)?;
            Ok(Target::Dns { server, name: authority(name)? })
        }
        "dns+srv" => {
            let (server, name) = asked(rest)?;
            if name.contains([':', '/']) {
                return Err("SRV records are asked for by a name alone; they know the ports");
            }
            Ok(Target::Srv { server, name: service(name)? })
        }
        "file" => file(rest),
        _ => {
            let name = rest
                .strip_prefix("///")
                .ok_or("its scheme is not known, or `///` is missing before a name")?;
            if !is_scheme(scheme) {
                return Err("a scheme is made of lower-case letters, digits, `+` and `-`");
            }
            Ok(Target::Registry { scheme: Some(scheme.to_owned()), name: service(name)? })
        }
    }
}

/// The name server, and what to ask it for.
fn asked(rest: &str) -> Result<(Option<SocketAddr>, &str), &'static str> {
    let rest = rest.strip_prefix("//").ok_or("`///` is missing before a name")?;
    let (server, name) = rest.split_once('/').ok_or("`///` is missing before a name")?;
    if server.is_empty() {
        return Ok((None, name));
    }
    let server = server.parse().map_err(|_| "a name server is an IP address with a port")?;
    Ok((Some(server), name))
}

fn file(rest: &str) -> Result<Target, &'static str> {
    let rest = rest.strip_prefix("//").ok_or("`//` is missing before a path")?;
    let (path, list) = rest.rsplit_once('#').unwrap_or((rest, LIST));
    if !path.starts_with('/') || path.ends_with('/') {
        return Err("a file has an absolute path");
    }
    if list.is_empty() {
        return Err("a list is missing after `#`");
    }
    Ok(Target::File { path: path.into(), list: list.to_owned() })
}

fn authority(text: &str) -> Result<Authority, &'static str> {
    text.parse().map_err(|error: crate::InvalidAuthority| error.0)
}

/// A service's name: words, perhaps several with `/` between.
fn service(name: &str) -> Result<String, &'static str> {
    if name.split('/').any(str::is_empty) {
        return Err("a name is missing");
    }
    if name.contains(|c: char| c.is_control() || c.is_whitespace() || "?#".contains(c)) {
        return Err("a name has characters that no name has");
    }
    Ok(name.to_owned())
}

pub(crate) fn is_scheme(scheme: &str) -> bool {
    scheme.starts_with(|c: char| c.is_ascii_lowercase())
        && scheme.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_round_trip() {
        for text in [
            "inproc:",
            "orders",
            "shop.orders.v1.OrderService",
            "consul:///orders",
            "my-registry2:///shop/orders",
            "static:a:1,[::1]:2",
            "dns:///orders.internal:443",
            "dns://127.0.0.1:5353/orders.internal:443",
            "dns+srv:///_grpc._tcp.orders.internal",
            "dns+srv://[::1]:53/orders.internal",
            "file:///etc/antiphon/instances.toml",
            "file:///etc/odd#name.json#orders",
        ] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_a_target_means() {
        let registry = |scheme: Option<&str>, name: &str| Target::Registry {
            scheme: scheme.map(str::to_owned),
            name: name.to_owned(),
        };
        for (text, target) in [
            ("orders", registry(None, "orders")),
            ("kubernetes:///shop/orders", registry(Some("kubernetes"), "shop/orders")),
            ("file:///a/b#c", Target::File { path: "/a/b".into(), list: "c".to_owned() }),
            ("file:///a/b", Target::File { path: "/a/b".into(), list: "instances".to_owned() }),
        ] {
            assert_eq!(text.parse::<Target>().unwrap(), target);
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (text, reason) in [
            ("", "name is missing"),
            ("or ders", "characters"),
            ("shop//orders", "name is missing"),
            ("consul:orders", "`///` is missing"),
            ("Consul:///orders", "lower-case"),
            ("consul:///", "name is missing"),
            ("orders:8080", "`///` is missing"),
            ("static:", "port is missing"),
            ("static:a", "port is missing"),
            ("static:a:0", "1 to 65535"),
            ("static:a:99999", "1 to 65535"),
            ("dns:a:1", "`///`"),
            ("dns:///:80", "host is missing"),
            ("dns:///::1:80", "brackets"),
            ("dns:///a/b:80", "characters"),
            ("dns://resolver/a:80", "IP address with a port"),
            ("dns+srv:///a:80", "know the ports"),
            ("dns+srv:///", "name is missing"),
            ("file:etc/x", "`//`"),
            ("file://etc/x", "absolute"),
            ("file:///etc/", "absolute"),
            ("file:///etc/x#", "list is missing"),
            ("inproc:x", "nothing follows"),
        ] {
            let error = text.parse::<Target>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
