//! How a server is reached, and whether that makes sense.

use antiphon_config::{Mistake, Secret, TlsFiles, TlsPems, without_login};
use redis::{
    Client, ClientTlsConfig, IntoConnectionInfo, ProtocolVersion, RedisError, TlsCertificates,
};

use crate::StartError;

/// What the settings of every adapter say of a server.
///
/// The settings themselves are fields of each section: read as a part of it (`#[serde(flatten)]`), all
/// others would lose their places in errors. What holds for these is here.
#[derive(Clone, Copy, Debug)]
pub struct Server<'a> {
    /// `redis://[user:password@]host[:port][/database]`, or `rediss://…` for TLS. A user and password
    /// in the URL count more than the fields.
    pub url: &'a str,
    /// The user; `default` without it.
    pub user: Option<&'a str>,
    /// The user's password.
    pub password: Option<&'a Secret>,
    /// The files of TLS.
    pub tls: TlsFiles<'a>,
    /// What every key begins with.
    pub prefix: &'a str,
}

impl Server<'_> {
    /// Refuses what makes no sense, whatever the server can do.
    ///
    /// # Errors
    /// The first setting that makes no sense.
    pub fn check(&self) -> Result<(), Mistake> {
        let shown = without_login(self.url);
        if !self.is_tls() && !self.url.starts_with("redis://") {
            let problem = format!("`{shown}` does not begin with redis:// or rediss://");
            return Err(Mistake::new("url", problem));
        }
        self.tls.check((!self.is_tls()).then_some((shown.as_str(), "rediss://")))?;
        if self.user.is_some() && self.password.is_none() {
            return Err(Mistake::new("user", "it needs a password"));
        }
        if self.prefix.is_empty() || self.prefix.chars().any(|c| c.is_control() || c == ' ') {
            return Err(Mistake::new("prefix", format!("`{}` must be a word", self.prefix)));
        }
        Ok(())
    }

    /// A client that speaks this version of the protocol. It has not connected yet.
    ///
    /// # Errors
    /// The URL or a file of TLS cannot be used.
    pub fn client(&self, protocol: ProtocolVersion) -> Result<Client, StartError> {
        let bad_url =
            |error: RedisError| StartError::Settings(Mistake::new("url", error.to_string()));
        let info = self.url.into_connection_info().map_err(bad_url)?;
        let mut redis = info.redis_settings().clone().set_protocol(protocol);
        if let Some(password) = self.password.filter(|_| redis.password().is_none()) {
            redis = redis.set_password(password.expose());
            if let Some(user) = self.user {
                redis = redis.set_username(user);
            }
        }
        let info = info.set_redis_settings(redis);
        if !self.is_tls() {
            return Client::open(info).map_err(bad_url);
        }
        // Whoever was first has chosen; all of ours choose the same.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let TlsPems { ca, identity } = self.tls.read().map_err(StartError::Settings)?;
        let client_tls =
            identity.map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key });
        let certificates = TlsCertificates { client_tls, root_cert: ca };
        let url = without_login(self.url);
        Client::build_with_tls(info, certificates)
            .map_err(|error| StartError::Tls { url, source: error.into() })
    }

    /// Whether the server is reached over TLS.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.url.starts_with("rediss://")
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const HERE: Server<'_> = Server {
        url: "redis://127.0.0.1:6379",
        user: None,
        password: None,
        tls: TlsFiles { ca: None, certificate: None, key: None },
        prefix: "antiphon",
    };

    #[test]
    fn what_makes_no_sense_is_said() {
        assert_eq!(HERE.check(), Ok(()));
        let file = Some(Path::new("f.pem"));
        let cases = [
            (Server { url: "http://user:secret@here", ..HERE }, "url: `http://here`"),
            (Server { tls: TlsFiles { ca: file, ..HERE.tls }, ..HERE }, "rediss://"),
            (Server { tls: TlsFiles { key: file, ..HERE.tls }, ..HERE }, "go together"),
            (Server { user: Some("x"), ..HERE }, "user: it needs a password"),
            (Server { prefix: "a b", ..HERE }, "prefix: `a b`"),
            (Server { prefix: "", ..HERE }, "prefix: ``"),
        ];
        for (server, part) in cases {
            let problem = server.check().expect_err(part).to_string();
            assert!(problem.contains(part) && !problem.contains("secret"), "{problem}");
        }
    }

    #[test]
    fn credentials_come_from_the_url_or_the_settings() {
        let password = Secret::new("p/w".to_owned());
        let fields = Server { user: Some("us@er"), password: Some(&password), ..HERE };
        let credentials = |server: Server<'_>| {
            let client = server.client(ProtocolVersion::RESP3).expect("a client");
            let redis = client.get_connection_info().redis_settings().clone();
            (redis.username().map(str::to_owned), redis.password().map(str::to_owned))
        };
        let pair = |user: &str, password: &str| (Some(user.to_owned()), Some(password.to_owned()));
        assert_eq!(credentials(fields), pair("us@er", "p/w"));
        assert_eq!(credentials(Server { url: "redis://a:b@here", ..fields }), pair("a", "b"));
        assert_eq!(credentials(HERE), (None, None));
    }
}
