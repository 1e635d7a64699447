//! Brings a connection about: TCP, TLS, CONNECT and what the server answers.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use rumqttc::tokio_rustls::TlsConnector;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    ConnAck, Connect, ConnectProperties, ConnectReturnCode, LastWill, Login, Packet, check,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::connection::{Link, Sink, Timing};
use crate::error::OpenError;
use crate::names::Names;
use crate::settings::{Address, Settings};

/// A byte stream, encrypted or not.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A connection to the server, before MQTT.
pub(crate) struct Reached {
    pub(crate) stream: Box<dyn Stream>,
    /// The same socket, where what is written needs no encryption. It does not block.
    pub(crate) direct: Option<std::net::TcpStream>,
}

/// What a connection is for.
#[derive(Clone, Debug)]
pub(crate) struct Dial {
    pub(crate) client_id: String,
    /// Whether the broker keeps a session under this id when the connection ends.
    pub(crate) keeps: bool,
    /// How many messages may be on their way to us that are not acknowledged.
    pub(crate) receive_max: Option<u16>,
    /// A retained note that the broker clears when the connection ends badly.
    pub(crate) clears: Option<String>,
}

impl Dial {
    /// A connection of which nothing stays.
    pub(crate) const fn passing(client_id: String) -> Self {
        Self { client_id, keeps: false, receive_max: None, clears: None }
    }
}

/// What the server said when it took the connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Server {
    pub(crate) session_present: bool,
    pub(crate) receive_max: u16,
    pub(crate) packet_bytes_max: usize,
    pub(crate) qos_max: u8,
    pub(crate) retains: bool,
    pub(crate) wildcards: bool,
    /// The session expiry that it grants, if it differs from what was asked.
    pub(crate) session_expiry: Option<u32>,
    pub(crate) keep_alive: Option<u16>,
}

/// The largest packet that MQTT knows.
const PACKET_BYTES_MAX: usize = 268_435_460;

impl Server {
    fn of(answer: &ConnAck) -> Self {
        let properties = answer.properties.as_ref();
        let flag = |value: Option<u8>| value.unwrap_or(1) != 0;
        Self {
            session_present: answer.session_present,
            receive_max: properties.and_then(|p| p.receive_max).unwrap_or(u16::MAX),
            packet_bytes_max: properties
                .and_then(|p| p.max_packet_size)
                .and_then(|bytes| usize::try_from(bytes).ok())
                .unwrap_or(PACKET_BYTES_MAX),
            qos_max: properties.and_then(|p| p.max_qos).unwrap_or(2),
            retains: flag(properties.and_then(|p| p.retain_available)),
            wildcards: flag(properties.and_then(|p| p.wildcard_subscription_available)),
            session_expiry: properties.and_then(|p| p.session_expiry_interval),
            keep_alive: properties.and_then(|p| p.server_keep_alive),
        }
    }
}

/// Makes connections.
pub(crate) struct Dialer {
    pub(crate) settings: Settings,
    pub(crate) names: Names,
    /// Notes of this process that nobody clears, since the server knows nothing of the connections
    /// that it had before it was killed.
    pub(crate) orphans: Mutex<Vec<String>>,
    address: Address,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Dialer {
    pub(crate) fn new(settings: Settings) -> Result<Self, OpenError> {
        let address = settings.check()?;
        let tls = if address.tls {
            let name = ServerName::try_from(address.host.clone()).map_err(|_| {
                let problem = "its host is neither a name nor an address".to_owned();
                crate::SettingsError { setting: "url", problem }
            })?;
            Some((TlsConnector::from(Arc::new(tls_config(&settings)?)), name))
        } else {
            None
        };
        let (names, orphans) = (Names::new(&settings.prefix), Mutex::default());
        Ok(Self { names, settings, orphans, address, tls })
    }

    /// Where the server is, for people.
    pub(crate) fn place(&self) -> String {
        format!("{}:{}", self.address.host, self.address.port)
    }

    /// Connects. What comes in goes to `sink`, which must not wait for anything.
    pub(crate) async fn connect(&self, dial: Dial, sink: Sink) -> Result<Link, OpenError> {
        let within = self.settings.connect_timeout.0;
        let connecting = tokio::time::timeout(within, self.dial(&dial));
        let (reached, rest, answer) =
            connecting.await.map_err(|_| OpenError::Silent { address: self.place(), within })??;
        let server = Server::of(&answer);
        let keep_alive = match server.keep_alive {
            Some(seconds) if seconds > 0 => Duration::from_secs(u64::from(seconds)),
            _ => self.settings.keep_alive.0,
        };
        if let Some(granted) = server.session_expiry.filter(|_| dial.keeps)
            && granted < self.session_expiry()
        {
            tracing::warn!(
                granted,
                "the server keeps what waits for a group for fewer seconds than asked"
            );
        }
        let timing = Timing { keep_alive, confirm: self.settings.publish_timeout.0 };
        let window = self.settings.publish_window.min(server.receive_max);
        Ok(Link::start(reached, rest, server, window, timing, sink))
    }

    async fn dial(&self, dial: &Dial) -> Result<(Reached, BytesMut, ConnAck), OpenError> {
        let mut reached = self.reach().await?;
        let stream = &mut reached.stream;
        let mut bytes = BytesMut::with_capacity(4_096);
        self.connect_packet(dial)
            .write(&mut bytes, None)
            .map_err(|error| self.ended(&error.to_string()))?;
        let sent = async {
            stream.write_all_buf(&mut bytes).await?;
            stream.flush().await
        };
        sent.await.map_err(|error| self.ended(&error.to_string()))?;
        bytes.clear();
        loop {
            let read = stream.read_buf(&mut bytes).await;
            if read.map_err(|error| self.ended(&error.to_string()))? == 0 {
                return Err(self.ended("the server closed it without an answer"));
            }
            if let Ok(header) = check(bytes.iter(), None) {
                // Servers that do not know MQTT 5 answer in the form of their own version.
                if header.frame_length() == 4 && bytes[0] == 0x20 && bytes[3] == 1 {
                    return Err(OpenError::Version { address: self.place() });
                }
                let packet = Packet::read(&mut bytes, None);
                let packet = packet.map_err(|error| self.ended(&error.to_string()))?;
                return match packet {
                    Packet::ConnAck(answer) if answer.code == ConnectReturnCode::Success => {
                        Ok((reached, bytes, answer))
                    }
                    Packet::ConnAck(answer) => Err(self.refused(&answer)),
                    other => Err(self.ended(&format!("it began with {other:?}"))),
                };
            }
        }
    }

    async fn reach(&self) -> Result<Reached, OpenError> {
        let host = &*self.address.host;
        let reached = TcpStream::connect((host, self.address.port)).await.and_then(|tcp| {
            tcp.set_nodelay(true)?;
            let tcp = tcp.into_std()?;
            Ok((tcp.try_clone()?, TcpStream::from_std(tcp)?))
        });
        let unreachable = |source| OpenError::Unreachable { address: self.place(), source };
        let (direct, tcp) = reached.map_err(unreachable)?;
        match &self.tls {
            None => Ok(Reached { stream: Box::new(tcp), direct: Some(direct) }),
            Some((connector, name)) => {
                let stream = connector.connect(name.clone(), tcp).await;
                let wrong = |source| OpenError::Tls { address: self.place(), source };
                Ok(Reached { stream: Box::new(stream.map_err(wrong)?), direct: None })
            }
        }
    }

    fn connect_packet(&self, dial: &Dial) -> Packet {
        let mut properties = ConnectProperties::new();
        properties.receive_maximum = dial.receive_max;
        properties.session_expiry_interval = dial.keeps.then(|| self.session_expiry());
        // No maximum packet size: a server drops what is larger, without a word to anybody.
        let seconds = self.settings.keep_alive.0.as_secs_f64().ceil();
        let connect = Connect {
            keep_alive: format!("{seconds}").parse().unwrap_or(10),
            client_id: dial.client_id.clone(),
            clean_start: !dial.keeps,
            properties: Some(properties),
        };
        let will = dial.clears.as_ref().map(|note| LastWill {
            topic: Bytes::copy_from_slice(note.as_bytes()),
            message: Bytes::new(),
            qos: QoS::AtLeastOnce,
            retain: true,
            properties: None,
        });
        let login = self.address.login.as_ref().map(|(user, password)| Login {
            username: user.clone(),
            password: password.expose().clone(),
        });
        Packet::Connect(connect, will, login)
    }

    /// In seconds; the largest number says: never.
    fn session_expiry(&self) -> u32 {
        let expiry = self.settings.session_expiry.map(|expiry| expiry.0.as_secs());
        expiry.and_then(|seconds| u32::try_from(seconds).ok()).unwrap_or(u32::MAX)
    }

    fn refused(&self, answer: &ConnAck) -> OpenError {
        let address = self.place();
        match answer.code {
            ConnectReturnCode::BadUserNamePassword
            | ConnectReturnCode::NotAuthorized
            | ConnectReturnCode::BadAuthenticationMethod => OpenError::Credentials { address },
            ConnectReturnCode::UnsupportedProtocolVersion
            | ConnectReturnCode::RefusedProtocolVersion => OpenError::Version { address },
            ConnectReturnCode::Banned => {
                OpenError::Forbidden { address, action: "this client to connect".to_owned() }
            }
            ConnectReturnCode::ClientIdentifierNotValid | ConnectReturnCode::BadClientId => {
                let problem = "does not take client ids of letters, digits, dots and dashes of \
                               this length; allow longer ones"
                    .to_owned();
                OpenError::TooLittle { address, problem }
            }
            ConnectReturnCode::RetainNotSupported | ConnectReturnCode::QoSNotSupported => {
                let problem = "lacks retained messages or QoS 1; both are needed".to_owned();
                OpenError::TooLittle { address, problem }
            }
            code => {
                let words = answer.properties.as_ref().and_then(|p| p.reason_string.clone());
                let reason = words.unwrap_or_else(|| format!("{code:?}"));
                OpenError::Refused { address, reason }
            }
        }
    }

    fn ended(&self, reason: &str) -> OpenError {
        OpenError::Ended { address: self.place(), reason: reason.to_owned() }
    }
}

impl std::fmt::Debug for Dialer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dialer").field("address", &self.address).finish_non_exhaustive()
    }
}

/// The authorities to trust and the certificate to show.
fn tls_config(settings: &Settings) -> Result<rustls::ClientConfig, OpenError> {
    let mut roots = rustls::RootCertStore::empty();
    match &settings.ca_file {
        Some(path) => {
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|error| file(path, &error))?;
            }
        }
        None => {
            let _ = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = |error: rustls::Error| OpenError::Tls {
        address: settings.url.clone(),
        source: io::Error::other(error),
    };
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(tls)?
        .with_root_certificates(roots);
    match (&settings.certificate_file, &settings.key_file) {
        (Some(chain), Some(key)) => {
            let certificate = certificates(chain)?;
            let key = PrivateKeyDer::from_pem_file(key).map_err(|error| file(key, &error))?;
            builder.with_client_auth_cert(certificate, key).map_err(|error| file(chain, &error))
        }
        _ => Ok(builder.with_no_client_auth()),
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, OpenError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let all: Vec<_> = read.map_err(|error| file(path, &error))?;
    if all.is_empty() { Err(file(path, &"it has no certificate")) } else { Ok(all) }
}

fn file(path: &Path, problem: &impl std::fmt::Display) -> OpenError {
    OpenError::File { path: path.to_owned(), problem: problem.to_string() }
}
