//! What a person should know of the database: for the command that looks at a running system.

use std::time::Duration;

use antiphon_core::{Clock, Finding};
use antiphon_outbox::{Store, StoreError};
use sqlx::Row;

use super::MysqlStore;
use crate::error::store_error;
use crate::server::Server;
use crate::session::{READERS_MAX, within};
use crate::sql::{Answer, Sql};

/// A transaction that is open for so long keeps rows that are gone from being cleared away.
const OPEN_SECONDS_MAX: i64 = 600;
/// So many changes that are not cleared away make the relay's looks at its lanes slow.
const HISTORY_MAX: i64 = 1_000_000;

/// What the server does just now. What this user may not see is `None`.
#[derive(Clone, Copy, Debug, Default)]
struct Facts {
    connections: Option<i64>,
    /// How long the oldest transaction has been open, in seconds.
    oldest: Option<i64>,
    /// How many changes keep what was there before them.
    history: Option<i64>,
}

impl MysqlStore {
    /// Answers also when the server cannot be reached: that is what it then says.
    pub(super) async fn examine(&self) -> Vec<Finding> {
        let server = match self.ask_server().await {
            Ok(server) => server,
            Err(error) => {
                return vec![Finding::problem(
                    "connection",
                    format!("{}: {error}", self.place()),
                    "start the server, or look at the URL, the password and the network",
                )];
            }
        };
        let facts = Facts {
            connections: self.look("SHOW GLOBAL STATUS LIKE 'Threads_connected'", 1).await,
            oldest: self
                .look(
                    "SELECT coalesce(max(timestampdiff(SECOND, trx_started, now())), 0) \
                       FROM information_schema.innodb_trx",
                    0,
                )
                .await,
            history: self
                .look(
                    "SELECT CAST(count AS SIGNED) FROM information_schema.innodb_metrics \
                      WHERE name = 'trx_rseg_history_len'",
                    0,
                )
                .await,
        };
        let mut findings = server.findings();
        let own = self.0.settings.connections_max + 2 * READERS_MAX;
        findings.extend(judge(facts, server.connections_max(), i64::from(own)));
        if self.0.time.is_databases() {
            let (own, of_database) = (Clock::system().now(), self.now());
            findings.push(clock(own.since(of_database).max(of_database.since(own))));
        }
        findings
    }

    async fn ask_server(&self) -> Result<Server, StoreError> {
        let mut session = self.0.reads.acquire().await?;
        let answer = match session.sql() {
            Ok(connection) => {
                within(self.0.settings.statement_timeout, Server::ask(connection)).await
            }
            Err(error) => Err(error),
        };
        session.settle(answer).map_err(store_error("asking the server"))
    }

    /// One number, if this user may see it: what others do is nice to know only.
    async fn look(&self, statement: &str, column: usize) -> Option<i64> {
        let answers = self.ask("looking at the server", Sql::new(statement)).await.ok()?;
        number(&answers, column)
    }
}

fn number(answers: &[Answer], column: usize) -> Option<i64> {
    let row = answers.first()?.rows.first()?;
    let number = row.try_get::<i64, _>(column).ok();
    number.or_else(|| row.try_get::<String, _>(column).ok()?.parse().ok())
}

/// What the facts mean. `own` is how many connections this process may have.
fn judge(facts: Facts, connections_max: Option<u64>, own: i64) -> Vec<Finding> {
    let mut findings = Vec::new();
    let max = connections_max.and_then(|max| i64::try_from(max).ok());
    if let (Some(used), Some(max)) = (facts.connections, max) {
        let text = format!("{used} of {max} in use; this process may have {own}");
        findings.push(if used + own > max {
            let advice = "raise max_connections, or lower connections_max in the settings";
            Finding::warning("connections", text, advice)
        } else {
            Finding::fine("connections", text)
        });
    }
    if let Some(oldest) = facts.oldest {
        let text = format!("the oldest has been open for {oldest} s");
        findings.push(if oldest > OPEN_SECONDS_MAX {
            let advice = "find it in information_schema.innodb_trx and end it: rows that were \
                          removed since then may not be cleared away";
            Finding::warning("transactions", text, advice)
        } else {
            Finding::fine("transactions", text)
        });
    }
    if let Some(history) = facts.history {
        let text = format!("{history} changes are not cleared away");
        findings.push(if history > HISTORY_MAX {
            let advice = "look for a long transaction, or raise innodb_purge_threads: the outbox is \
                          read past rows that are gone";
            Finding::warning("purge", text, advice)
        } else {
            Finding::fine("purge", text)
        });
    }
    findings
}

fn clock(apart: Duration) -> Finding {
    let text = format!("{} ms from this machine's", apart.as_millis());
    if apart.as_secs() >= 5 {
        let advice = "synchronise the clocks: messages are dated by the database's";
        Finding::warning("clock", text, advice)
    } else {
        Finding::fine("clock", text)
    }
}

#[cfg(test)]
mod tests {
    use antiphon_core::Severity;

    use super::*;

    #[test]
    fn what_will_hurt_is_a_warning_with_what_to_do() {
        let fine = Facts { connections: Some(10), oldest: Some(3), history: Some(50) };
        for (facts, subject) in [
            (fine, None),
            (Facts { connections: Some(90), ..fine }, Some("connections")),
            (Facts { oldest: Some(3_600), ..fine }, Some("transactions")),
            (Facts { history: Some(20_000_000), ..fine }, Some("purge")),
        ] {
            let findings = judge(facts, Some(100), 24);
            assert_eq!(findings.len(), 3);
            let worst = findings.iter().max_by_key(|finding| finding.severity).unwrap();
            let warned = (worst.severity == Severity::Warning).then_some(worst.subject.as_str());
            assert_eq!(warned, subject, "{worst}");
        }
        assert!(judge(Facts::default(), None, 24).is_empty(), "what cannot be seen is not said");
        assert_eq!(clock(Duration::from_secs(60)).severity, Severity::Warning);
        assert_eq!(clock(Duration::from_millis(3)).severity, Severity::Fine);
    }
}
