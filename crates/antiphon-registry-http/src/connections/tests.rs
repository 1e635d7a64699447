//! Against servers whose certificates are not those that they had before.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use http::Method;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, Stream};
use tempfile::TempDir;

use super::*;
use crate::{HttpClient, Question};

const LIMIT: Duration = Duration::from_secs(30);

/// A server with a certificate of its own, which answers every question with `ok`.
struct Server {
    address: String,
    certificate: PathBuf,
    _folder: TempDir,
}

impl Server {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let made = Command::new("openssl")
            .current_dir(&folder)
            .args(["req", "-x509", "-noenc", "-days", "3650", "-subj", "/CN=localhost"])
            .args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
            .args(["-addext", "subjectAltName=IP:127.0.0.1"])
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .args(["-keyout", "server.key", "-out", "server.pem"])
            .output()
            .expect("openssl");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let certificate = folder.path().join("server.pem");
        let chain = vec![CertificateDer::from_pem_file(&certificate).unwrap()];
        let key = PrivateKeyDer::from_pem_file(folder.path().join("server.key")).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let settings = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("https://{}", listener.local_addr().unwrap());
        // It ends with the process.
        std::thread::spawn(move || serve(&listener, &Arc::new(settings)));
        Self { address, certificate, _folder: folder }
    }

    /// Makes its certificate the one that clients trust.
    fn trusted_in(&self, file: &Path) {
        fs::copy(&self.certificate, file).unwrap();
    }
}

fn serve(listener: &TcpListener, settings: &Arc<ServerConfig>) {
    for socket in listener.incoming() {
        let mut socket = socket.unwrap();
        let mut connection = ServerConnection::new(Arc::clone(settings)).unwrap();
        let mut stream = Stream::new(&mut connection, &mut socket);
        // Who does not trust us does not ask.
        if stream.read(&mut [0; 1_024]).is_ok_and(|length| length > 0) {
            let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";
            let _ = stream.write_all(answer.as_bytes());
        }
    }
}

fn client(servers: &[&Server], ca_file: &Path) -> HttpClient {
    let servers: Vec<String> = servers.iter().map(|server| server.address.clone()).collect();
    let files = TlsFiles { ca: Some(ca_file), ..TlsFiles::default() };
    HttpClient::new("url", &servers, &files, LIMIT).unwrap()
}

async fn is_answered(client: &HttpClient) -> bool {
    match client.ask(Question::new(Method::GET, "/"), LIMIT).await {
        Ok(answer) => answer.words() == "ok",
        Err(error) => {
            assert!(error.chain().contains("certificate"), "{}", error.chain());
            false
        }
    }
}

#[tokio::test]
async fn certificates_that_were_replaced_hold_after_the_first_failure() {
    let (before, after) = (Server::start(), Server::start());
    let folder = tempfile::tempdir().unwrap();
    let ca_file = folder.path().join("ca.pem");
    before.trusted_in(&ca_file);
    let client = client(&[&after], &ca_file);
    after.trusted_in(&ca_file);
    assert!(!is_answered(&client).await, "what was read at first holds");
    assert!(is_answered(&client).await);
}

#[tokio::test]
async fn files_that_make_no_sense_change_nothing_and_are_read_again_later() {
    let (known, unknown) = (Server::start(), Server::start());
    let folder = tempfile::tempdir().unwrap();
    let ca_file = folder.path().join("ca.pem");
    known.trusted_in(&ca_file);
    // Who fails turns to the other server.
    let client = client(&[&unknown, &known], &ca_file);
    fs::write(&ca_file, "nothing").unwrap();
    assert!(!is_answered(&client).await);
    assert!(is_answered(&client).await, "the old certificates hold");
    unknown.trusted_in(&ca_file);
    let answer = client.ask(Question::new(Method::GET, "/"), LIMIT).await.unwrap();
    client.turn(&answer);
    tokio::time::pause();
    tokio::time::advance(READING_INTERVAL_MIN).await;
    tokio::time::resume();
    assert!(!is_answered(&client).await);
    client.0.turn(3);
    assert!(is_answered(&client).await);
}
