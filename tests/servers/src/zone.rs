//! The zone of the name server: what is in it at first, and how tests change it while it is served
//! (RFC 2136, over TCP).

use std::fmt::Write;
use std::net::Ipv4Addr;

use crate::{Trouble, wire};

/// The zone. Nobody has a name below `test` (RFC 6761).
pub(crate) const ORIGIN: &str = "antiphon.test";
/// A host of the zone that is there from the beginning, at 127.0.0.1.
const HOST: &str = "host";

/// Numbers of types, classes and codes (RFC 1035, 2136, 2782).
const A: u16 = 1;
const SOA: u16 = 6;
const SRV: u16 = 33;
const IN: u16 = 1;
const ANY: u16 = 255;
const QUERY: u16 = 0;
const UPDATE: u16 = 5;

/// The zone of a name server of the tests.
#[derive(Clone, Copy, Debug)]
pub struct Zone {
    port: u16,
}

/// The records of a name that tests set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Records {
    /// Addresses of a host.
    Addresses(Vec<Ipv4Addr>),
    /// A service at these ports of 127.0.0.1, as SRV records with the same weight.
    Services(Vec<u16>),
}

impl Zone {
    /// The zone of the server at `dns://127.0.0.1:PORT`.
    ///
    /// # Errors
    ///
    /// The text is not the URL of a server on this machine.
    pub fn at(url: &str) -> Result<Self, Trouble> {
        let port = url.strip_prefix("dns://127.0.0.1:").and_then(|port| port.parse().ok());
        let port =
            port.ok_or_else(|| Trouble::new(format!("`{url}` is not dns://127.0.0.1:PORT")))?;
        Ok(Self { port })
    }

    /// The whole name of a name of the zone.
    #[must_use]
    pub fn name(self, name: &str) -> String {
        format!("{name}.{ORIGIN}")
    }

    /// Makes these all the records of their type that a name of the zone has, in one step. They are
    /// served when this returns, with a time to live of one second.
    ///
    /// # Errors
    ///
    /// The server is away, or refuses.
    pub fn set(self, name: &str, records: &Records) -> Result<(), Trouble> {
        let asked = exchange(self.port, &update(&self.name(name), records));
        asked.map_err(|why| {
            Trouble::new(format!("the records of {} are not set: {why}", self.name(name)))
        })
    }
}

/// Whether a server answers for the zone.
pub(crate) fn ask(port: u16) -> Result<(), String> {
    let mut query = header(QUERY, 0);
    question(&mut query);
    exchange(port, &query)
}

/// The zone's file as it is at first.
pub(crate) fn content() -> String {
    let mut text = String::new();
    for line in [
        format!("{ORIGIN}. 60 SOA {HOST}.{ORIGIN}. nobody.{ORIGIN}. 1 60 60 3600 1"),
        format!("{ORIGIN}. 60 NS {HOST}.{ORIGIN}."),
        format!("{HOST}.{ORIGIN}. 60 A 127.0.0.1"),
    ] {
        let _ = writeln!(text, "{line}");
    }
    text
}

/// Sends a message and looks at the code of the answer.
fn exchange(port: u16, message: &[u8]) -> Result<(), String> {
    let length =
        u16::try_from(message.len()).map_err(|_| "there are too many records".to_owned())?;
    let answer = wire::ask(port, &[&length.to_be_bytes(), message].concat())?;
    // Length, id, flags.
    match (answer.get(2..4), answer.get(4..6)) {
        (Some(id), Some(&[high, low])) if id == &message[..2] && high & 0x80 != 0 => {
            match low & 0xf {
                0 => Ok(()),
                code => Err(format!("the name server answers with code {code}")),
            }
        }
        _ => Err(format!("port {port} answers {answer:?}")),
    }
}

/// A header with one entry in the first section and some in the third.
fn header(code: u16, updates: u16) -> Vec<u8> {
    let id = 0x616e_u16;
    [id, code << 11, 1, 0, updates, 0].into_iter().flat_map(u16::to_be_bytes).collect()
}

/// The zone, as what is asked for and as what is changed.
fn question(message: &mut Vec<u8>) {
    put_name(message, ORIGIN);
    put(message, &[SOA, IN]);
}

/// A message that replaces the records of a name.
fn update(name: &str, records: &Records) -> Vec<u8> {
    let (kind, data): (u16, Vec<Vec<u8>>) = match records {
        Records::Addresses(addresses) => {
            (A, addresses.iter().map(|address| address.octets().to_vec()).collect())
        }
        Records::Services(ports) => (SRV, ports.iter().map(|port| service(*port)).collect()),
    };
    let count = 1 + u16::try_from(data.len()).unwrap_or(u16::MAX - 1);
    let mut message = header(UPDATE, count);
    question(&mut message);
    // What there was of this type goes.
    put_name(&mut message, name);
    put(&mut message, &[kind, ANY, 0, 0, 0]);
    for data in data {
        put_name(&mut message, name);
        put(&mut message, &[kind, IN, 0, 1, u16::try_from(data.len()).unwrap_or(0)]);
        message.extend(data);
    }
    message
}

/// Priority, weight, port, host.
fn service(port: u16) -> Vec<u8> {
    let mut data = Vec::new();
    put(&mut data, &[0, 1, port]);
    put_name(&mut data, &format!("{HOST}.{ORIGIN}"));
    data
}

fn put(message: &mut Vec<u8>, numbers: &[u16]) {
    message.extend(numbers.iter().flat_map(|number| number.to_be_bytes()));
}

fn put_name(message: &mut Vec<u8>, name: &str) {
    for label in name.split('.') {
        // Labels of tests are short.
        message.push(u8::try_from(label.len()).unwrap_or(u8::MAX));
        message.extend(label.as_bytes());
    }
    message.push(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_written_as_the_standard_says() {
        let message = update("a.antiphon.test", &Records::Addresses(vec![[127, 0, 0, 2].into()]));
        let zone = b"\x08antiphon\x04test\x00";
        let name = [b"\x01a".as_slice(), zone].concat();
        let expected = [
            // Id, an update, one zone, no condition, two changes, nothing else.
            &[0x61, 0x6e, 0x28, 0, 0, 1, 0, 0, 0, 2, 0, 0],
            zone.as_slice(),
            &[0, 6, 0, 1],
            &name,
            &[0, 1, 0, 255, 0, 0, 0, 0, 0, 0],
            &name,
            &[0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 127, 0, 0, 2],
        ]
        .concat();
        assert_eq!(message, expected);
    }

    #[test]
    fn a_service_is_a_port_of_the_host() {
        let expected = [&[0, 0, 0, 1, 0x1f, 0x90], b"\x04host\x08antiphon\x04test\x00".as_slice()];
        assert_eq!(service(8_080), expected.concat());
    }

    #[test]
    fn only_a_server_of_this_machine_has_a_zone_to_change() {
        assert!(Zone::at("dns://127.0.0.1:5353").is_ok());
        let error = Zone::at("dns://10.0.0.1:53").unwrap_err().to_string();
        assert!(error.contains("dns://127.0.0.1:PORT"), "{error}");
    }

    #[test]
    fn a_change_that_nobody_takes_is_said_with_its_name() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let zone = Zone { port };
        let error = zone.set("a", &Records::Services(vec![1])).unwrap_err().to_string();
        assert!(error.contains("a.antiphon.test") && error.contains(&port.to_string()), "{error}");
    }
}
