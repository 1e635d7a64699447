//! A small client for registries that speak JSON over HTTP.
//!
//! It knows one or several servers of the same registry, asks one of them, and goes on with the next
//! when that one is away. Requests have a limit in time and answers one in size; what a status means
//! is up to the adapter.
//!
//! A crate of its own for what it links: programs without such a registry need no TLS library.

mod connections;
mod tls;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use antiphon_config::{Mistake, TlsFiles};
use antiphon_discovery::RegistryError;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use tokio::time::timeout;

use self::connections::Connections;

/// The largest answer that is taken, in bytes: some ten thousand instances.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// The servers of a registry. Cheap to clone.
#[derive(Clone)]
pub struct HttpClient(Arc<Inner>);

struct Inner {
    connections: Connections,
    /// `scheme://host:port` of each server.
    servers: Vec<String>,
    /// Which of them is asked.
    current: AtomicUsize,
}

/// What is asked.
#[derive(Clone, Debug)]
pub struct Question {
    /// `GET`, `PUT`, …
    pub method: Method,
    /// Path and query, from the first `/`.
    pub path: String,
    /// Headers besides those that every request has.
    pub headers: HeaderMap,
    /// The body; JSON, or empty.
    pub body: String,
}

/// What was answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// Whose it is.
    from: usize,
}

/// An answer that goes on and on, line by line.
pub struct Lines {
    body: Incoming,
    buffer: BytesMut,
    /// How much of the buffer has no end of a line.
    searched: usize,
}

impl Question {
    /// A question without a body.
    pub fn new(method: Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), headers: HeaderMap::new(), body: String::new() }
    }

    /// With this body.
    #[must_use]
    pub fn with_body(mut self, body: impl Into<String>) -> Self {
        self.body = body.into();
        self
    }
}

impl HttpClient {
    /// A client of the servers at these addresses, `http://host:port` or `https://host:port`, which the
    /// setting `setting` names. Connects when it is asked something.
    ///
    /// The files are read here, and again when a server cannot be asked, at most once a second: they may
    /// have been replaced.
    ///
    /// # Errors
    /// An address or a file makes no sense; the text says what to write.
    pub fn new(
        setting: &str,
        servers: &[String],
        tls: &TlsFiles<'_>,
        connect_timeout: Duration,
    ) -> Result<Self, Mistake> {
        let servers: Vec<String> = servers
            .iter()
            .map(|server| origin(server))
            .collect::<Result<_, _>>()
            .map_err(|why| Mistake::new(setting, why))?;
        if servers.is_empty() {
            return Err(Mistake::new(setting, "there is no address of a server"));
        }
        let secure = |server: &String| server.starts_with("https://");
        let plain = servers.first().filter(|_| !servers.iter().any(secure));
        tls.check(plain.map(|server| (server.as_str(), "https://")))?;
        let connections = Connections::new(tls, plain.is_none(), connect_timeout)?;
        Ok(Self(Arc::new(Inner { connections, servers, current: AtomicUsize::new(0) })))
    }

    /// Asks the next server from now on: the one that answered this is of no use. Nothing changes when
    /// somebody said so before.
    pub fn turn(&self, answer: &Answer) {
        self.0.turn(answer.from);
    }

    /// Asks one server, and yields what it answers within `limit`, whatever its status.
    ///
    /// # Errors
    /// It did not answer; the next question goes to the next server.
    ///
    /// # Cancel safety
    /// Whether the question had an effect is unknown.
    pub async fn ask(&self, question: Question, limit: Duration) -> Result<Answer, RegistryError> {
        let from = self.0.current.load(Relaxed);
        let what = Asking::new(self.0.server(from), &question);
        let answer = timeout(limit, async {
            let answer = self.send(from, question).await.map_err(|error| what.away(error))?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|error| what.away(error))?.to_bytes();
            Ok(Answer { status: head.status, headers: head.headers, body, from })
        });
        let answer = answer.await.unwrap_or_else(|_| Err(what.silent(limit)));
        if answer.is_err() {
            self.0.turn(from);
        }
        answer
    }

    /// Asks one server for an answer that goes on, and yields it when it begins within `limit`.
    ///
    /// # Errors
    /// It did not answer, or with another status than 200; the next question goes to the next server.
    ///
    /// # Cancel safety
    /// Whether the question had an effect is unknown.
    pub async fn follow(
        &self,
        question: Question,
        limit: Duration,
    ) -> Result<Lines, RegistryError> {
        let from = self.0.current.load(Relaxed);
        let what = Asking::new(self.0.server(from), &question);
        let answer = timeout(limit, self.send(from, question)).await;
        let lines = match answer {
            Err(_) => Err(what.silent(limit)),
            Ok(Err(error)) => Err(what.away(error)),
            Ok(Ok(answer)) if answer.status() != StatusCode::OK => {
                let words = format!("it answers {}", answer.status());
                Err(match answer.status() {
                    StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                        RegistryError::refused(what.0.clone(), words)
                    }
                    _ => RegistryError::away(what.0.clone(), words),
                })
            }
            Ok(Ok(answer)) => Ok(Lines::new(answer.into_body())),
        };
        if lines.is_err() {
            self.0.turn(from);
        }
        lines
    }

    async fn send(
        &self,
        to: usize,
        question: Question,
    ) -> Result<http::Response<Incoming>, antiphon_core::BoxError> {
        let uri = format!("{}{}", self.0.server(to), question.path);
        let mut request = Request::builder().method(question.method).uri(uri);
        if let Some(headers) = request.headers_mut() {
            headers.extend(question.headers);
            if !question.body.is_empty() {
                let json = http::HeaderValue::from_static("application/json");
                headers.entry(http::header::CONTENT_TYPE).or_insert(json);
            }
        }
        let request = request.body(Full::new(Bytes::from(question.body)))?;
        Ok(self.0.connections.send(request).await?)
    }
}

impl Inner {
    fn server(&self, number: usize) -> &str {
        &self.servers[number % self.servers.len()]
    }

    /// The next server after this one is asked, unless that is so already: of several who fail at the
    /// same server only one turns.
    fn turn(&self, from: usize) {
        let _ = self.current.compare_exchange(from, from.wrapping_add(1), Relaxed, Relaxed);
    }
}

impl fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpClient").field("servers", &self.0.servers).finish_non_exhaustive()
    }
}

impl Answer {
    /// The body as text, for people: its first line, shortened.
    #[must_use]
    pub fn words(&self) -> String {
        let text = String::from_utf8_lossy(&self.body);
        text.lines().next().unwrap_or_default().chars().take(200).collect()
    }
}

impl Lines {
    fn new(body: Incoming) -> Self {
        Self { body, buffer: BytesMut::new(), searched: 0 }
    }

    /// The next line, without its end; `None` when the answer is over.
    ///
    /// # Errors
    /// The connection is lost, or the line is longer than answers may be.
    ///
    /// # Cancel safety
    /// Safe: nothing is lost.
    pub async fn next(&mut self) -> Result<Option<Bytes>, antiphon_core::BoxError> {
        loop {
            let rest = &self.buffer[self.searched..];
            if let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let mut line = self.buffer.split_to(self.searched + end + 1);
                self.searched = 0;
                line.truncate(line.len() - 1);
                return Ok(Some(line.freeze()));
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > ANSWER_BYTES_MAX {
                return Err("a line is too long".into());
            }
            match self.body.frame().await {
                Some(frame) => {
                    if let Ok(data) = frame?.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                None if self.buffer.is_empty() => return Ok(None),
                None => {
                    self.searched = 0;
                    return Ok(Some(std::mem::take(&mut self.buffer).freeze()));
                }
            }
        }
    }
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines").field("buffered", &self.buffer.len()).finish_non_exhaustive()
    }
}

/// What is being asked, for messages.
struct Asking(String);

impl Asking {
    fn new(server: &str, question: &Question) -> Self {
        let path = question.path.split('?').next().unwrap_or_default();
        Self(format!("no answer from {server} to {} {path}", question.method))
    }

    fn away(&self, error: impl Into<antiphon_core::BoxError>) -> RegistryError {
        RegistryError::away(self.0.clone(), error)
    }

    fn silent(&self, limit: Duration) -> RegistryError {
        RegistryError::silent(format!("{} within {limit:?}", self.0))
    }
}

/// Scheme, host and port of an address.
fn origin(address: &str) -> Result<String, String> {
    let wrong = |why: &str| Err(format!("`{address}` is not http://HOST:PORT: {why}"));
    let Ok(uri) = address.parse::<Uri>() else { return wrong("it is no URL") };
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return wrong("scheme and host are missing");
    };
    if !matches!(scheme, "http" | "https") {
        return wrong("its scheme is neither http nor https");
    }
    if authority.as_str().contains('@') {
        return Err("an address has no user and password; there are settings for them".to_owned());
    }
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return wrong("nothing follows the port");
    }
    Ok(format!("{scheme}://{authority}"))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn addresses_are_servers_and_nothing_else() {
        assert_eq!(origin("http://a:1/").as_deref(), Ok("http://a:1"));
        assert_eq!(origin("https://[::1]:2379").as_deref(), Ok("https://[::1]:2379"));
        for (address, reason) in [
            ("a:1", "missing"),
            ("ftp://a", "neither"),
            ("http://a/path", "nothing follows"),
            ("http://user:secret@a", "settings"),
        ] {
            let error = origin(address).unwrap_err();
            assert!(error.contains(reason) && !error.contains("secret"), "{error}");
        }
    }

    /// A server that answers each connection with these bytes, in pieces as they are.
    async fn server(pieces: &'static [&'static str]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                // What is asked does not matter.
                let _ = stream.read(&mut [0; 1_024]).await;
                for piece in pieces {
                    stream.write_all(piece.as_bytes()).await.unwrap();
                    stream.flush().await.unwrap();
                    tokio::task::yield_now().await;
                }
            }
        });
        format!("http://{address}")
    }

    fn client(servers: &[String]) -> HttpClient {
        HttpClient::new("url", servers, &TlsFiles::default(), LIMIT).unwrap()
    }

    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn those_who_fail_at_the_same_server_all_go_to_the_next() {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let away = format!("http://{}", free.local_addr().unwrap());
        drop(free);
        let there =
            server(&["HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"]);
        let client = client(&[away, there.await]);
        let ask = || client.ask(Question::new(Method::GET, "/"), LIMIT);
        let (first, second) = tokio::join!(ask(), ask());
        assert!(first.is_err() && second.is_err(), "nobody is there");
        let answer = ask().await.unwrap();
        assert_eq!(answer.words(), "ok");
        // Of no use to two at once: there is one other server, and not none.
        client.turn(&answer);
        client.turn(&answer);
        assert!(ask().await.is_err());
    }

    #[tokio::test]
    async fn lines_are_put_together_from_pieces() {
        let there = server(&[
            "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\non",
            "e\n\ntw",
            "o",
            "\nthree\nfo",
            "ur",
        ]);
        let client = client(&[there.await]);
        let question = Question::new(Method::GET, "/");
        let mut lines = client.follow(question, LIMIT).await.unwrap();
        for line in ["one", "", "two", "three", "four"] {
            assert_eq!(lines.next().await.unwrap().as_deref(), Some(line.as_bytes()));
        }
        assert_eq!(lines.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn who_may_not_follow_is_refused() {
        let there = server(&["HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n"]);
        let client = client(&[there.await]);
        let error = client.follow(Question::new(Method::GET, "/"), LIMIT).await.unwrap_err();
        assert!(error.is_refused() && error.chain().contains("403"), "{}", error.chain());
    }
}
