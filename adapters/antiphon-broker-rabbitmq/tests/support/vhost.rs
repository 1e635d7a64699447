//! A virtual host for one test at the shared server: nothing of other tests is in it, and everything
//! in it goes with it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use antiphon_core::{Clock, MessageId};
use antiphon_testing::services::{Service, USER};

pub(crate) struct Vhost {
    name: String,
}

impl Vhost {
    pub(crate) async fn create() -> Self {
        let name = format!("test-{}", MessageId::new(Clock::system().now()));
        let made = name.clone();
        let making = tokio::task::spawn_blocking(move || {
            ask("PUT", &format!("vhosts/{made}"), "{}")?;
            let all = r#"{"configure":".*","write":".*","read":".*"}"#;
            for user in ["guest", USER] {
                ask("PUT", &format!("permissions/{made}/{user}"), all)?;
            }
            Ok::<_, String>(())
        });
        let made = making.await.expect("no panic");
        made.unwrap_or_else(|why| {
            unreachable!("{why}; start it with `cargo xtask services up rabbitmq`")
        });
        Self { name }
    }

    pub(crate) fn url(&self) -> String {
        format!("{}/{}", Service::Rabbitmq.url(), self.name)
    }
}

impl Drop for Vhost {
    fn drop(&mut self) {
        // A test that fails says why; this would hide it.
        let _ = ask("DELETE", &format!("vhosts/{}", self.name), "");
    }
}

/// One request to the management.
fn ask(method: &str, path: &str, body: &str) -> Result<(), String> {
    let url = Service::Rabbitmq.admin_url().ok_or("RabbitMQ has no management")?;
    let place = url.rsplit(['/', '@']).next().unwrap_or_default();
    let trouble = |error: std::io::Error| format!("no RabbitMQ management at {place}: {error}");
    let mut stream = TcpStream::connect(place).map_err(trouble)?;
    stream.set_read_timeout(Some(Duration::from_secs(30))).map_err(trouble)?;
    // guest:guest
    let request = format!(
        "{method} /api/{path} HTTP/1.0\r\nAuthorization: Basic Z3Vlc3Q6Z3Vlc3Q=\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).map_err(trouble)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(trouble)?;
    match answer.split(' ').nth(1) {
        Some(code) if code.starts_with('2') => Ok(()),
        _ => Err(format!("{method} {path}: {answer}")),
    }
}
