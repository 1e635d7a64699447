//! Where a database lies: from a URL and settings to what the driver connects with.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sqlx::ConnectOptions;
use sqlx::mysql::{MySqlConnectOptions, MySqlSslMode};

use crate::error::OpenError;
use crate::settings::Settings;

/// A server, a database on it, and how to get there.
#[derive(Clone, Debug)]
pub(crate) struct Location {
    options: MySqlConnectOptions,
    database: String,
    place: String,
    /// Whether TLS is left out only because nobody asked for it; true when it is not any more.
    left_out: Option<Arc<AtomicBool>>,
}

/// What the URL may say behind its `?`; anything else is a mistake that the driver would not notice.
const PARAMETERS: [&str; 5] = ["ssl-mode", "ssl-ca", "ssl-cert", "ssl-key", "socket"];

impl Location {
    /// From `mysql://user:password@host:port/database?ssl-mode=…`, or `mariadb://…`.
    ///
    /// # Errors
    /// The URL is none, names no database, or has parameters that are not known.
    pub(crate) fn parse(url: &str, settings: &Settings) -> Result<Self, OpenError> {
        let place = without_password(url);
        let refuse = |problem: String| OpenError::Location { database: place.clone(), problem };
        let rest = url.strip_prefix("mariadb://").or_else(|| url.strip_prefix("mysql://"));
        let Some(rest) = rest else {
            return Err(refuse("the URL must begin with mysql:// or mariadb://".into()));
        };
        let parameters = rest.split_once('?').map_or("", |(_, parameters)| parameters);
        for parameter in parameters.split('&').filter(|parameter| !parameter.is_empty()) {
            let name = parameter.split('=').next().unwrap_or(parameter);
            if !PARAMETERS.contains(&name) {
                let known = PARAMETERS.join(", ");
                return Err(refuse(format!(
                    "the parameter {name:?} is not known; known are {known}"
                )));
            }
        }
        let options: MySqlConnectOptions = format!("mysql://{rest}")
            .parse()
            .map_err(|error: sqlx::Error| refuse(error.to_string()))?;
        let Some(database) = options.get_database().map(str::to_owned) else {
            return Err(refuse("it names no database; add /name".into()));
        };
        if database.len() > 64 || database.contains(['`', '/', '\\', '.', '\0']) {
            return Err(refuse(format!("{database:?} cannot be the name of a database")));
        }
        let says_mode = parameters.contains("ssl-mode=");
        let says_ca = settings.ca_file.is_some() || parameters.contains("ssl-ca=");
        let mut options = options.disable_statement_logging();
        if let Some(ca) = &settings.ca_file {
            options = options.ssl_ca(ca);
        }
        let mut left_out = None;
        if !says_mode {
            let mode = if says_ca {
                MySqlSslMode::VerifyIdentity
            } else if is_local(&options) {
                // Nobody listens between two processes of one machine, and encrypting costs.
                left_out = Some(Arc::new(AtomicBool::new(true)));
                MySqlSslMode::Disabled
            } else {
                MySqlSslMode::Preferred
            };
            options = options.ssl_mode(mode);
        }
        // All of this is set together with the session's other variables, in one round trip.
        let options = options
            .pipes_as_concat(false)
            .no_engine_substitution(false)
            .timezone(None)
            .set_names(false);
        Ok(Self { options, database, place, left_out })
    }

    /// How to connect to the database.
    pub(crate) fn options(&self) -> MySqlConnectOptions {
        self.with_tls(self.options.clone().statement_cache_capacity(256))
    }

    /// Uses TLS where it was only left out because nobody asked for it: some servers take passwords
    /// in no other way. False when that was not so.
    pub(crate) fn use_tls(&self) -> bool {
        self.left_out.as_ref().is_some_and(|left_out| left_out.swap(false, Ordering::Relaxed))
    }

    fn with_tls(&self, options: MySqlConnectOptions) -> MySqlConnectOptions {
        match &self.left_out {
            Some(left_out) if !left_out.load(Ordering::Relaxed) => {
                options.ssl_mode(MySqlSslMode::Preferred)
            }
            _ => options,
        }
    }

    /// The name of the database.
    pub(crate) fn database(&self) -> &str {
        &self.database
    }

    /// The user.
    pub(crate) fn user(&self) -> &str {
        self.options.get_username()
    }

    /// Server and database, without the password.
    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    /// The server's own database, from which one that is missing can be made.
    pub(crate) fn of_server(&self) -> MySqlConnectOptions {
        self.with_tls(self.options.clone().database("information_schema"))
    }
}

fn is_local(options: &MySqlConnectOptions) -> bool {
    let host = options.get_host().trim_matches(['[', ']']);
    options.get_socket().is_some()
        || host == "localhost"
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The URL for people: a password and what stands behind `?` are left out.
fn without_password(url: &str) -> String {
    let url = url.split('?').next().unwrap_or(url);
    let Some((scheme, rest)) = url.split_once("://") else {
        return if url.contains('@') { "the given text".into() } else { url.to_owned() };
    };
    match rest.rsplit_once('@') {
        Some((user, host)) => {
            let user = user.split(':').next().unwrap_or(user);
            format!("{scheme}://{user}@{host}")
        }
        None => format!("{scheme}://{rest}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Location, OpenError> {
        Location::parse(url, &Settings::default())
    }

    #[test]
    fn a_url_names_server_user_and_database() {
        let location = parse("mariadb://shop:p%40ss@db.example:3307/orders").unwrap();
        assert_eq!(location.database(), "orders");
        assert_eq!(location.user(), "shop");
        assert_eq!(location.place(), "mariadb://shop@db.example:3307/orders");
        assert_eq!(location.options().get_port(), 3307);
        assert!(!location.place().contains("p%40ss"));
    }

    #[test]
    fn what_names_no_database_is_refused_without_its_password() {
        for url in [
            "postgres://a:secret@h/db",
            "mysql://a:secret@h",
            "mysql://a:secret@h/db?ssl_mode=REQUIRED",
            "mysql://a:secret@h/db?ssl-mode=perhaps",
            "mysql://a:secret@h/a.b",
            "a:secret@h/db",
        ] {
            let error = parse(url).unwrap_err();
            assert!(matches!(error, OpenError::Location { .. }), "{error}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    #[test]
    fn tls_is_checked_where_an_authority_is_named_and_left_out_at_home() {
        let ca = Settings { ca_file: Some("ca.pem".into()), ..Settings::default() };
        let none = Settings::default();
        for (url, settings, expected) in [
            ("mysql://h/db", &ca, MySqlSslMode::VerifyIdentity),
            ("mysql://h/db?ssl-mode=VERIFY_CA", &ca, MySqlSslMode::VerifyCa),
            ("mysql://h/db", &none, MySqlSslMode::Preferred),
            ("mysql://h/db?ssl-ca=ca.pem", &none, MySqlSslMode::VerifyIdentity),
            ("mysql://127.0.0.1/db", &none, MySqlSslMode::Disabled),
            ("mysql://localhost/db?ssl-mode=REQUIRED", &none, MySqlSslMode::Required),
        ] {
            let mode = Location::parse(url, settings).unwrap().options().get_ssl_mode();
            assert_eq!(format!("{mode:?}"), format!("{expected:?}"), "{url}");
        }
    }

    #[test]
    fn tls_that_was_left_out_can_be_used_after_all() {
        let mode = |location: &Location| format!("{:?}", location.options().get_ssl_mode());
        let guessed = parse("mysql://127.0.0.1/db").unwrap();
        assert!(guessed.use_tls());
        assert!(!guessed.use_tls(), "once");
        assert_eq!(mode(&guessed.clone()), "Preferred");
        let refused = parse("mysql://127.0.0.1/db?ssl-mode=DISABLED").unwrap();
        assert!(!refused.use_tls());
        assert_eq!(mode(&refused), "Disabled");
    }
}
