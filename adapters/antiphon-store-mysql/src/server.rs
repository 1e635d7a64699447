//! What runs at the other end: whether it is fit, and what a person should know of its settings.
//! Pure, and tested by tables; [`Server::ask`] fetches what is decided on.

use std::collections::HashMap;

use antiphon_core::Finding;
use antiphon_messaging::Durability;
use sqlx::{MySqlConnection, Row};

/// Which of the two it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flavour {
    Mysql,
    Mariadb,
}

impl Flavour {
    const fn name(self) -> &'static str {
        match self {
            Self::Mysql => "MySQL",
            Self::Mariadb => "MariaDB",
        }
    }

    /// The oldest version whose positions do not begin again after a restart, that knows SKIP LOCKED
    /// and undoes a change of a table that was cut short.
    const fn version_min(self) -> (u32, u32) {
        match self {
            Self::Mysql => (8, 0),
            Self::Mariadb => (10, 6),
        }
    }
}

/// A server's version and settings.
#[derive(Clone, Debug, Default)]
pub(crate) struct Server {
    version: String,
    variables: HashMap<String, String>,
}

const ASK: &str = "
SHOW GLOBAL VARIABLES WHERE Variable_name IN
    ('version', 'version_comment', 'innodb_autoinc_lock_mode', 'auto_increment_increment',
     'innodb_flush_log_at_trx_commit', 'sync_binlog', 'log_bin', 'binlog_format', 'wsrep_on',
     'max_allowed_packet', 'read_only', 'super_read_only', 'innodb_read_only',
     'innodb_doublewrite', 'max_connections', 'sql_require_primary_key')";

impl Server {
    /// Asks the server.
    pub(crate) async fn ask(connection: &mut MySqlConnection) -> Result<Self, sqlx::Error> {
        let mut variables = HashMap::new();
        for row in sqlx::raw_sql(ASK).fetch_all(connection).await? {
            variables.insert(row.try_get(0)?, row.try_get(1)?);
        }
        let version = variables.get("version").cloned().unwrap_or_default();
        Ok(Self { version, variables })
    }

    fn get(&self, name: &str) -> &str {
        self.variables.get(name).map_or("", String::as_str)
    }

    fn is_on(&self, name: &str) -> bool {
        matches!(self.get(name), "ON" | "1" | "YES")
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.get(name).parse().ok()
    }

    fn flavour(&self) -> Flavour {
        let is_mariadb = [self.version.as_str(), self.get("version_comment")]
            .iter()
            .any(|text| text.to_ascii_lowercase().contains("mariadb"));
        if is_mariadb { Flavour::Mariadb } else { Flavour::Mysql }
    }

    /// Major and minor version.
    fn numbers(&self) -> (u32, u32) {
        let mut parts = self.version.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
    }

    /// The largest text that the server takes, in bytes.
    pub(crate) fn packet_max(&self) -> usize {
        self.number("max_allowed_packet")
            .and_then(|bytes| usize::try_from(bytes).ok())
            .unwrap_or(16 << 20)
    }

    /// How many connections it takes.
    pub(crate) fn connections_max(&self) -> Option<u64> {
        self.number("max_connections")
    }

    /// What a commit survives.
    pub(crate) fn durability(&self) -> Durability {
        if self.number("innodb_flush_log_at_trx_commit") == Some(1) {
            Durability::Disk
        } else {
            Durability::PageCache
        }
    }

    /// Why it cannot be worked with, if so, and what to change.
    pub(crate) fn unfit(&self) -> Option<String> {
        let (flavour, version) = (self.flavour(), self.numbers());
        let least = flavour.version_min();
        if version < least {
            return Some(format!(
                "it is {} {}; {}.{} or newer is needed",
                flavour.name(),
                self.version,
                least.0,
                least.1
            ));
        }
        if self.number("auto_increment_increment").is_some_and(|step| step > 1) {
            return Some(
                "auto_increment_increment is above 1, as where several servers write (Galera, ring \
                 replication): then messages of a key would not be published in the order of their \
                 commits; write to one server only, and set wsrep_auto_increment_control = OFF, \
                 auto_increment_increment = 1"
                    .into(),
            );
        }
        if self.is_on("log_bin") && self.get("binlog_format") == "STATEMENT" {
            return Some(
                "binlog_format is STATEMENT, with which the server refuses READ COMMITTED; set \
                 binlog_format = ROW"
                    .into(),
            );
        }
        if ["read_only", "super_read_only", "innodb_read_only"].iter().any(|name| self.is_on(name))
        {
            return Some("it is read only; name the server that writes".into());
        }
        None
    }

    /// What a person should know.
    pub(crate) fn findings(&self) -> Vec<Finding> {
        let version = format!("{} {}", self.flavour().name(), self.version);
        let mut findings = vec![match self.unfit() {
            None => Finding::fine("version", version),
            Some(problem) => Finding::problem("server", version, problem),
        }];
        findings.push(match self.number("innodb_flush_log_at_trx_commit") {
            Some(1) => Finding::fine("durability", "commits wait for the disk"),
            other => Finding::warning(
                "durability",
                format!(
                    "innodb_flush_log_at_trx_commit = {}: the last second of commits, and with it \
                     messages and tokens of leases, may be lost",
                    other.unwrap_or(0)
                ),
                "set innodb_flush_log_at_trx_commit = 1",
            ),
        });
        if self.is_on("log_bin") && self.number("sync_binlog") != Some(1) {
            findings.push(Finding::warning(
                "binary log",
                "sync_binlog is not 1: after a loss of power replicas may have what this server has not",
                "set sync_binlog = 1",
            ));
        }
        if self.variables.contains_key("innodb_doublewrite")
            && self.get("innodb_doublewrite") == "OFF"
        {
            findings.push(Finding::warning(
                "durability",
                "innodb_doublewrite is OFF: a loss of power may tear pages",
                "set innodb_doublewrite = ON, unless the file system writes pages whole",
            ));
        }
        findings.push(match self.number("innodb_autoinc_lock_mode") {
            Some(0) => Finding::note(
                "positions",
                "innodb_autoinc_lock_mode = 0: inserts into the outbox wait for each other",
            ),
            mode => Finding::fine(
                "positions",
                format!("innodb_autoinc_lock_mode = {}", mode.map_or(2, |mode| mode)),
            ),
        });
        let packet = self.packet_max();
        findings.push(if packet < 4 << 20 {
            Finding::warning(
                "packets",
                format!("max_allowed_packet = {packet}: messages and batches above it are refused"),
                "set max_allowed_packet = 16M",
            )
        } else {
            Finding::fine("packets", format!("max_allowed_packet = {packet}"))
        });
        findings
    }
}

#[cfg(test)]
mod tests {
    use antiphon_core::Severity;

    use super::*;

    fn server(version: &str, variables: &[(&str, &str)]) -> Server {
        let variables = variables.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        Server { version: version.into(), variables: variables.collect() }
    }

    #[test]
    fn a_server_that_would_break_promises_is_refused_with_what_to_change() {
        let two = ("auto_increment_increment", "2");
        let statement = [("log_bin", "ON"), ("binlog_format", "STATEMENT")];
        for (version, variables, word) in [
            ("10.11.19-MariaDB-0+deb12u1", &[][..], None),
            ("8.0.36", &[("auto_increment_increment", "1"), ("read_only", "OFF")], None),
            ("8.4.0", &[("binlog_format", "STATEMENT"), ("log_bin", "OFF")], None),
            ("5.7.44-log", &[], Some("8.0 or newer")),
            ("10.3.39-MariaDB", &[], Some("10.6 or newer")),
            ("5.5.5-10.5.1-MariaDB", &[], Some("10.6 or newer")),
            ("", &[], Some("newer")),
            ("10.11.2-MariaDB", &[two], Some("auto_increment_increment = 1")),
            ("8.0.36", &statement, Some("ROW")),
            ("8.0.36", &[("super_read_only", "ON")], Some("read only")),
        ] {
            let problem = server(version, variables).unfit();
            match (word, &problem) {
                (None, None) => {}
                (Some(word), Some(problem)) => assert!(problem.contains(word), "{problem}"),
                other => panic!("{version} {variables:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn what_may_lose_commits_is_a_warning() {
        let worst = |variables: &[(&str, &str)]| {
            let findings = server("10.11.2-MariaDB", variables).findings();
            findings.into_iter().map(|finding| finding.severity).max().unwrap()
        };
        let durable = ("innodb_flush_log_at_trx_commit", "1");
        assert_eq!(worst(&[durable]), Severity::Fine);
        assert_eq!(worst(&[("innodb_flush_log_at_trx_commit", "2")]), Severity::Warning);
        assert_eq!(worst(&[durable, ("log_bin", "ON"), ("sync_binlog", "0")]), Severity::Warning);
        assert_eq!(worst(&[durable, ("max_allowed_packet", "1048576")]), Severity::Warning);
        assert_eq!(worst(&[durable, ("read_only", "ON")]), Severity::Problem);
    }
}
