//! The API server of the tests: a namespace of one's own in it, behind a network that can fail.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;

use antiphon_config::HumanDuration;
use antiphon_registry_kubernetes::Settings;
use antiphon_testing::proxy::{Faults, Proxy};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The token of the one who may do everything.
pub(crate) const ADMIN: &str = "secret";
/// The token and the name of one who may do nothing unless a role says so.
pub(crate) const GUEST: &str = "guest";

/// A namespace at an API server.
pub(crate) struct Cluster {
    url: String,
    pub(crate) namespace: String,
    pub(crate) proxy: Proxy,
    tokens: TempDir,
}

impl Cluster {
    /// A new namespace at the server with this URL, which takes everything without TLS.
    pub(crate) async fn at(url: &str) -> Self {
        let namespace = format!("test-{:016x}", fastrand::u64(..));
        let proxy = Proxy::in_front_of(url).await.expect("a proxy");
        let tokens = tempfile::tempdir().expect("a folder");
        let cluster = Self { url: url.to_owned(), namespace, proxy, tokens };
        let new = json!({"metadata": {"name": cluster.namespace}});
        cluster.create("/api/v1/namespaces", &new);
        cluster
    }

    /// The name of a service in it.
    pub(crate) fn name(&self) -> String {
        format!("{}/orders", self.namespace)
    }

    /// Reaches it through the network that can fail.
    pub(crate) fn settings(&self, token: &str) -> Settings {
        Settings {
            url: self.proxy.url().to_owned(),
            ca_file: None,
            token_file: Some(self.token_file(token)),
            request_timeout: HumanDuration::from_secs(2),
            ..Settings::default()
        }
    }

    pub(crate) fn token_file(&self, token: &str) -> PathBuf {
        let file = self.tokens.path().join(token);
        std::fs::write(&file, format!("{token}\n")).expect("a file");
        file
    }

    /// One slice of the service.
    pub(crate) fn slice(&self, name: &str, endpoints: &Value) {
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": "orders"}},
            "endpoints": endpoints,
            "ports": [{"name": "grpc", "port": 8080, "protocol": "TCP"}],
        });
        let path = format!("{}/{name}?fieldManager=tests&force=true", self.slices());
        let kind = "application/apply-patch+yaml";
        let (status, answer) = self.ask("PATCH", &path, kind, &slice.to_string());
        assert!(status == 200 || status == 201, "{status}: {answer}");
    }

    /// One slice with these hosts, all of them ready.
    pub(crate) fn hosts(&self, name: &str, hosts: &[&str]) {
        let endpoints = hosts.iter().map(|host| endpoint(host, json!({"ready": true})));
        self.slice(name, &endpoints.collect());
    }

    pub(crate) fn remove_slice(&self, name: &str) {
        let path = format!("{}/{name}", self.slices());
        let (status, answer) = self.ask("DELETE", &path, "application/json", "");
        assert_eq!(status, 200, "{answer}");
    }

    pub(crate) fn slices(&self) -> String {
        format!("/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices", self.namespace)
    }

    pub(crate) fn create(&self, path: &str, what: &Value) {
        let (status, answer) = self.ask("POST", path, "application/json", &what.to_string());
        assert_eq!(status, 201, "{answer}");
    }

    /// Asks the server itself: no fault of the network is in between.
    pub(crate) fn ask(&self, verb: &str, path: &str, kind: &str, body: &str) -> (u16, String) {
        let host = self.url.trim_start_matches("http://");
        let mut connection = TcpStream::connect(host).expect("the server");
        connection.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
        let length = body.len();
        let request = format!(
            "{verb} {path} HTTP/1.0\r\nHost: {host}\r\nAuthorization: Bearer {ADMIN}\r\n\
             Content-Type: {kind}\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        connection.write_all(request.as_bytes()).expect("it listens");
        let mut answer = String::new();
        connection.read_to_string(&mut answer).expect("an answer");
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        (status.expect("a status"), answer)
    }

    /// Makes every question fail, those in progress included, or work again.
    pub(crate) fn fail(&self, failing: bool) {
        if failing {
            self.proxy.set(Faults { refuse: true, ..Faults::default() });
            self.proxy.reset();
        } else {
            self.proxy.heal();
        }
    }
}

/// One endpoint of a slice.
pub(crate) fn endpoint(host: &str, conditions: Value) -> Value {
    json!({"addresses": [host], "zone": "z1", "nodeName": "n1", "conditions": conditions})
}
