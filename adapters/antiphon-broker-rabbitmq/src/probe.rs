//! Asks a server what it is, before anybody logs in: the client library does not tell.
//!
//! A server says its product and version in the first frame of a connection. Here that frame is read
//! and the connection closed.

use std::time::Duration;

use futures_util::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use lapin::runtime::default_runtime;
use lapin::tcp::{AMQPUriTcpExt, OwnedTLSConfig};
use lapin::uri::{AMQPScheme, AMQPUri};
use tokio::time::timeout;

use crate::error::OpenError;
use crate::settings::address;

/// The oldest release whose quorum queues are kept up.
const NEEDED: (u32, u32) = (3, 10);
const NEEDED_TEXT: &str = "3.10";
/// No server says more than this of itself.
const FRAME_BYTES_MAX: usize = 128 * 1024;

/// What a server says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Server {
    pub(crate) version: String,
    pub(crate) major: u32,
}

/// Looks what answers at `uri`.
pub(crate) async fn probe(
    uri: &AMQPUri,
    tls: &OwnedTLSConfig,
    within: Duration,
) -> Result<Server, OpenError> {
    let unreachable = |problem: String| OpenError::Unreachable { address: address(uri), problem };
    let asked = timeout(within, async {
        let mut stream = connect(uri, tls).await?;
        ask(&mut stream).await.map_err(|error| unreachable(error.to_string()))
    });
    let frame = asked.await.map_err(|_| unreachable(format!("no answer within {within:?}")))??;
    judge(&frame, &address(uri))
}

async fn connect(
    uri: &AMQPUri,
    tls: &OwnedTLSConfig,
) -> Result<impl AsyncRead + AsyncWrite + Unpin, OpenError> {
    let runtime = default_runtime().map_err(|error| OpenError::Refused {
        address: address(uri),
        problem: error.to_string(),
    })?;
    if uri.scheme == AMQPScheme::AMQPS {
        // Whether anybody is there at all, which an error of the handshake would not say.
        let place = (uri.authority.host.as_str(), uri.authority.port);
        tokio::net::TcpStream::connect(place).await.map_err(|error| OpenError::Unreachable {
            address: address(uri),
            problem: error.to_string(),
        })?;
    }
    uri.connect_with_config_async(tls.as_ref(), &runtime).await.map_err(|error| {
        let (address, problem) = (address(uri), error.to_string());
        if uri.scheme == AMQPScheme::AMQPS {
            OpenError::Tls { address, problem }
        } else {
            OpenError::Unreachable { address, problem }
        }
    })
}

/// The payload of the first frame, or whatever came instead.
async fn ask(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> std::io::Result<Vec<u8>> {
    stream.write_all(b"AMQP\x00\x00\x09\x01").await?;
    stream.flush().await?;
    let mut head = [0; 7];
    stream.read_exact(&mut head).await?;
    let [1, 0, 0, a, b, c, d] = head else { return Ok(head.to_vec()) };
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    let mut payload = vec![0; length.min(FRAME_BYTES_MAX)];
    stream.read_exact(&mut payload).await?;
    Ok(payload)
}

/// What the frame says, and whether that will do.
fn judge(frame: &[u8], address: &str) -> Result<Server, OpenError> {
    let other = |found: String| OpenError::NotRabbitmq { address: address.to_owned(), found };
    let Some(properties) = properties(frame) else {
        let said: String = String::from_utf8_lossy(frame).chars().take(40).collect();
        return Err(other(format!("it answered {said:?}")));
    };
    let find = |name: &str| {
        let found = properties.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.clone()).unwrap_or_default()
    };
    let (product, version) = (find("product"), find("version"));
    if product != "RabbitMQ" {
        return Err(other(format!("it calls itself `{product} {version}`")));
    }
    let mut numbers = version.split(['.', '-', '+']).map(|part| part.parse::<u32>().unwrap_or(0));
    let (major, minor) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if (major, minor) < NEEDED {
        let address = address.to_owned();
        return Err(OpenError::TooOld { address, found: version, needed: NEEDED_TEXT });
    }
    Ok(Server { version, major })
}

/// The texts among the server properties of a `connection.start` method.
fn properties(frame: &[u8]) -> Option<Vec<(String, String)>> {
    // Class 10, method 10, version 0-9, then the table.
    let mut rest = frame.strip_prefix(&[0, 10, 0, 10, 0, 9])?;
    let length = take_length(&mut rest)?;
    let mut table = rest.get(..length)?;
    let mut texts = Vec::new();
    while let Some((&length, after)) = table.split_first() {
        let name = after.get(..usize::from(length))?;
        let (&kind, after) = after.get(usize::from(length)..)?.split_first()?;
        table = after;
        let bytes = match kind {
            b't' | b'b' | b'B' => 1,
            b's' | b'u' | b'U' => 2,
            b'I' | b'i' | b'f' => 4,
            b'l' | b'L' | b'd' | b'T' => 8,
            b'D' => 5,
            b'V' => 0,
            b'S' | b'F' | b'A' | b'x' => take_length(&mut table)?,
            _ => return None,
        };
        let value = table.get(..bytes)?;
        if kind == b'S' {
            let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
            texts.push((text(name), text(value)));
        }
        table = table.get(bytes..)?;
    }
    Some(texts)
}

fn take_length(bytes: &mut &[u8]) -> Option<usize> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    *bytes = rest;
    usize::try_from(u32::from_be_bytes(*length)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(product: &str, version: &str) -> Vec<u8> {
        let mut table = vec![];
        let mut add = |name: &str, kind: u8, value: &[u8]| {
            table.push(u8::try_from(name.len()).unwrap());
            table.extend(name.as_bytes());
            table.push(kind);
            if kind == b'S' || kind == b'F' {
                table.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
            }
            table.extend(value);
        };
        add("capabilities", b'F', b"\x02okt\x01");
        add("product", b'S', product.as_bytes());
        add("number", b'I', &[0, 0, 0, 1]);
        add("version", b'S', version.as_bytes());
        let mut frame = vec![0, 10, 0, 10, 0, 9];
        frame.extend(u32::try_from(table.len()).unwrap().to_be_bytes());
        frame.extend(table);
        frame.extend(b"\0\0\0\x05PLAIN");
        frame
    }

    #[test]
    fn product_and_version_decide() {
        let server = judge(&start("RabbitMQ", "3.10.8"), "here").unwrap();
        assert_eq!(server, Server { version: "3.10.8".to_owned(), major: 3 });
        assert_eq!(judge(&start("RabbitMQ", "4.1.0-rc.1"), "here").unwrap().major, 4);
        let old = judge(&start("RabbitMQ", "3.8.9"), "here");
        assert!(matches!(old, Err(OpenError::TooOld { found, .. }) if found == "3.8.9"));
        let other = judge(&start("LavinMQ", "2.0.0"), "here").unwrap_err().to_string();
        assert!(other.contains("LavinMQ 2.0.0"), "{other}");
    }

    #[test]
    fn what_is_no_start_of_a_connection_is_not_rabbitmq() {
        for frame in [&b"HTTP/1."[..], b"", b"AMQP\0\0\x09"] {
            assert!(matches!(judge(frame, "here"), Err(OpenError::NotRabbitmq { .. })));
        }
        let whole = start("RabbitMQ", "3.10.8");
        for end in 0..whole.len() - 9 {
            assert!(judge(&whole[..end], "here").is_err(), "cut at {end}");
        }
    }
}
