//! Where a database is: from a URL to the driver's options.

use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use crate::error::OpenError;
use crate::settings::Settings;

/// A database on a server.
#[derive(Clone, Debug)]
pub(crate) struct Location {
    /// How its connections are made: with the time limits of the settings, and answering each
    /// commit when the settings say.
    pub(crate) options: PgConnectOptions,
    /// For people: without the password.
    pub(crate) shown: String,
    /// Its name on the server.
    pub(crate) database: String,
}

impl Location {
    /// From `postgres://user:password@host:port/database?sslmode=…`.
    ///
    /// # Errors
    /// The URL has another scheme or names no database; the authority's file cannot be read.
    pub(crate) fn new(url: &str, settings: &Settings) -> Result<Self, OpenError> {
        let refuse =
            |problem: String| OpenError::Location { location: without_password(url), problem };
        if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
            return Err(refuse("it must begin with postgres://".into()));
        }
        let parsed = PgConnectOptions::from_str(url).map_err(|error| refuse(error.to_string()))?;
        let Some(database) = parsed.get_database().map(str::to_owned) else {
            return Err(refuse("the name of the database is missing: postgres://host/name".into()));
        };
        let shown = match parsed.get_socket() {
            Some(socket) => format!("postgres:{}/{database}", socket.display()),
            None => format!("postgres://{}:{}/{database}", parsed.get_host(), parsed.get_port()),
        };
        if let Some(authority) = &settings.ca_file
            && let Err(error) = std::fs::File::open(authority)
        {
            let source = format!("cannot read {}: {error}", authority.display()).into();
            return Err(OpenError::Tls { database: shown, source });
        }
        let options = with_session(with_tls(parsed, url, settings), settings);
        Ok(Self { options, shown, database })
    }

    /// Another database on the same server.
    pub(crate) fn beside(&self, database: &str) -> PgConnectOptions {
        self.options.clone().database(database)
    }

    /// Connections whose commits need not be on disk when they are answered: for bookkeeping that
    /// only repeats something when it is lost.
    pub(crate) fn relaxed(&self) -> PgConnectOptions {
        self.options.clone().options([("synchronous_commit", "off")])
    }
}

/// The mode of TLS: what the URL or `PGSSLMODE` says; else the server must show a certificate if an
/// authority is given, none to this machine, and TLS where the server offers it.
fn with_tls(options: PgConnectOptions, url: &str, settings: &Settings) -> PgConnectOptions {
    let says_mode = url.contains("sslmode=")
        || url.contains("ssl-mode=")
        || std::env::var_os("PGSSLMODE").is_some();
    let says_certificate = url.contains("sslrootcert=") || url.contains("sslcert=");
    match &settings.ca_file {
        Some(authority) if says_mode => options.ssl_root_cert(authority),
        Some(authority) => options.ssl_root_cert(authority).ssl_mode(PgSslMode::VerifyFull),
        // Nobody listens between two processes of one machine, and encrypting costs.
        None if !says_mode && !says_certificate && is_local(&options) => {
            options.ssl_mode(PgSslMode::Disable)
        }
        None => options,
    }
}

fn is_local(options: &PgConnectOptions) -> bool {
    let host = options.get_host().trim_matches(['[', ']']);
    options.get_socket().is_some()
        || host == "localhost"
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// What every session of ours has, sent along with the start of the connection.
fn with_session(options: PgConnectOptions, settings: &Settings) -> PgConnectOptions {
    let millis = |time: Duration| time.as_millis().to_string();
    let name = match options.get_application_name() {
        Some(name) => name.to_owned(),
        None => "antiphon".to_owned(),
    };
    options
        .application_name(&name)
        .statement_cache_capacity(256)
        .disable_statement_logging()
        .options([
            ("default_transaction_isolation", "read committed"),
            ("default_transaction_read_only", "off"),
            ("standard_conforming_strings", "on"),
            ("synchronous_commit", settings.synchronous_commit.setting()),
            ("statement_timeout", &millis(settings.statement_timeout)),
            ("lock_timeout", &millis(settings.lock_timeout)),
            ("idle_in_transaction_session_timeout", &millis(settings.idle_in_transaction_timeout)),
            // A client that is gone without a word must not keep its locks for hours.
            ("tcp_keepalives_idle", "15"),
            ("tcp_keepalives_interval", "5"),
            ("tcp_keepalives_count", "3"),
        ])
}

fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let end = rest.find('/').unwrap_or(rest.len());
    match rest[..end].rfind('@') {
        Some(at) => {
            let user = rest[..at].split(':').next().unwrap_or_default();
            format!("{scheme}://{user}{}", &rest[at..])
        }
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_a_database_and_is_shown_without_the_password() {
        let url = "postgres://ann:s%20ecret@db.local:5433/orders?sslmode=require";
        let location = Location::new(url, &Settings::default()).unwrap();
        assert_eq!(location.shown, "postgres://db.local:5433/orders");
        assert_eq!(location.database, "orders");
        assert_eq!(location.options.get_username(), "ann");
        let options = location.options.get_options().unwrap();
        assert!(options.contains("lock_timeout=5000"), "{options}");
    }

    #[test]
    fn what_is_no_database_is_refused_without_telling_the_password() {
        for url in
            ["", "mysql://h/d", "orders.db", "postgres://u:secret@h", "postgres://u:secret@h:x/d"]
        {
            let error = Location::new(url, &Settings::default()).unwrap_err();
            assert!(matches!(error, OpenError::Location { .. }), "{url}: {error}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    #[test]
    fn an_authority_asks_for_a_certificate_unless_the_url_says_otherwise() {
        let authority = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/store/other-authority.pem");
        let settings = Settings { ca_file: Some(authority.into()), ..Settings::default() };
        let mode = |url: &str| {
            let options = Location::new(url, &settings).unwrap().options;
            format!("{:?}", options.get_ssl_mode())
        };
        assert_eq!(mode("postgres://h/d"), "VerifyFull");
        assert_eq!(mode("postgres://h/d?sslmode=verify-ca"), "VerifyCa");
    }

    #[test]
    fn only_this_machine_is_talked_to_in_the_clear_unless_told() {
        let mode = |url: &str| {
            let options = Location::new(url, &Settings::default()).unwrap().options;
            format!("{:?}", options.get_ssl_mode())
        };
        for (url, expected) in [
            ("postgres://db.local/d", "Prefer"),
            ("postgres://localhost/d", "Disable"),
            ("postgres://127.0.0.1:5433/d", "Disable"),
            ("postgres://[::1]/d", "Disable"),
            ("postgres:///d?host=/run/postgresql", "Disable"),
            ("postgres://localhost/d?sslmode=require", "Require"),
            ("postgres://localhost/d?sslrootcert=/etc/ssl/ours.pem", "Prefer"),
        ] {
            assert_eq!(mode(url), expected, "{url}");
        }
    }
}
