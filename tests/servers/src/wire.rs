//! The first words of each protocol, to ask a server whether it is ready.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// How long a server may think about a greeting.
const LIMIT: Duration = Duration::from_secs(5);

/// Says something to a port of this machine, and returns the first part of the answer.
pub(crate) fn ask(port: u16, words: &[u8]) -> Result<Vec<u8>, String> {
    let talk = || -> std::io::Result<Vec<u8>> {
        let mut connection = TcpStream::connect_timeout(&address(port), LIMIT)?;
        connection.set_read_timeout(Some(LIMIT))?;
        connection.set_write_timeout(Some(LIMIT))?;
        connection.write_all(words)?;
        let mut answer = vec![0; 4096];
        let count = connection.read(&mut answer)?;
        answer.truncate(count);
        Ok(answer)
    };
    talk().map_err(|error| format!("port {port}: {error}"))
}

/// Asks a web server; its answer must have the status 200.
pub(crate) fn get(port: u16, path: &str, authorization: &str) -> Result<(), String> {
    let words = format!(
        "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n{authorization}\r\n"
    );
    let answer = ask(port, words.as_bytes())?;
    if answer.starts_with(b"HTTP/1.1 200") {
        return Ok(());
    }
    let first = String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned();
    Err(format!("port {port} answers {first:?} to {path}"))
}

/// Whether somebody listens on a port.
pub(crate) fn is_taken(port: u16) -> bool {
    // A port whose last connections are still remembered can be listened on, so it is free.
    TcpListener::bind(address(port)).is_err()
}

fn address(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_taken_port_is_known_and_asked() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(is_taken(port));
        let server = thread::spawn(move || {
            let (mut connection, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let count = connection.read(&mut request).unwrap();
            connection.write_all(b"HTTP/1.1 503 Busy\r\n\r\n").unwrap();
            String::from_utf8_lossy(&request[..count]).into_owned()
        });
        let error = get(port, "/healthz", "").unwrap_err();
        assert!(error.contains("503 Busy"), "{error}");
        assert!(server.join().unwrap().starts_with("GET /healthz HTTP/1.1\r\n"));
        assert!(!is_taken(port));
        assert!(ask(port, b"").is_err());
    }
}
