//! A Mosquitto with settings of its own.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A server that may be killed. It ends with this.
pub(crate) struct Mosquitto {
    home: tempfile::TempDir,
    port: u16,
    process: Child,
}

impl Mosquitto {
    /// Starts one with these lines in its settings.
    pub(crate) fn start(settings: &str) -> Self {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = free.local_addr().expect("an address").port();
        drop(free);
        let home = tempfile::tempdir().expect("a folder");
        let place = home.path().display();
        let text = format!(
            "user root\nlistener {port} 127.0.0.1\nallow_anonymous true\n\
             persistence_location {place}/\nlog_dest none\n{settings}\n"
        );
        std::fs::write(home.path().join("mosquitto.conf"), text).expect("settings are written");
        let process = spawn(home.path(), port);
        Self { home, port, process }
    }

    pub(crate) fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }

    /// As `kill -9`.
    pub(crate) fn kill(&mut self) {
        self.process.kill().expect("it can be killed");
        self.process.wait().expect("it ends");
    }

    pub(crate) fn start_again(&mut self) {
        self.process = spawn(self.home.path(), self.port);
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn spawn(home: &Path, port: u16) -> Child {
    let program = ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto"];
    let program = program.into_iter().find(|path| Path::new(path).exists());
    let mut process = Command::new(program.unwrap_or("mosquitto"))
        .arg("-c")
        .arg(home.join("mosquitto.conf"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("mosquitto is installed: `cargo xtask services up mosquitto`");
    for _ in 0..400 {
        if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return process;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = process.kill();
    let ended = process.wait();
    unreachable!("mosquitto does not start: {ended:?}");
}
