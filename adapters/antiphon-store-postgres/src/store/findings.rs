//! What a person should know of the database: for the command that looks at a running system.

use antiphon_core::{Clock, Finding};
use antiphon_outbox::Store;
use sqlx::{PgConnection, Row};

use super::{BOOKKEEPING_CONNECTIONS, PostgresStore, READERS};
use crate::error::store_error;
use crate::settings::SynchronousCommit;

/// A transaction that is open for so long keeps rows that are gone from being cleared away.
const OPEN_SECONDS_MAX: f64 = 60.0;
/// So many rows that are gone and not cleared away are too many.
const DEAD_ROWS_MAX: i64 = 100_000;
/// Questions that one server process must answer, if no pooler spreads them.
const POOLER_QUESTIONS: usize = 5;

/// What was read of the server.
#[derive(Debug, Default)]
struct Facts {
    version: String,
    fsync: bool,
    full_page_writes: bool,
    autovacuum: bool,
    connections: i64,
    connections_max: i64,
    /// The pid of the transaction that is open for the longest time, since how many seconds, and
    /// what it does.
    oldest: Option<(i32, f64, String)>,
    /// The table with the most rows that are gone and not cleared away.
    dead: Option<(String, i64)>,
    sequence_cache: i64,
}

impl PostgresStore {
    pub(super) async fn examine(&self) -> Vec<Finding> {
        let mut turn = match self.bookkeeping().await {
            Ok(turn) => turn,
            Err(error) => return vec![unreachable(&error.to_string())],
        };
        let read = read(&mut turn).await;
        let facts = match turn.ended(read).map_err(store_error("examining the database")) {
            Ok(facts) => facts,
            Err(error) => return vec![unreachable(&error.to_string())],
        };
        let own = self.0.settings.connections_max + BOOKKEEPING_CONNECTIONS + READERS + 1;
        let mut findings = judge(&facts, self.0.settings.synchronous_commit, i64::from(own));
        findings.push(self.examine_clock());
        match self.is_pooled().await {
            Ok(true) => findings.push(Finding::warning(
                "pooler",
                "statements of one connection are answered by different server processes",
                "connect to the server itself, or let the pooler keep sessions: in transaction mode \
                 session settings and the wake-up between processes are lost",
            )),
            Ok(false) => {}
            Err(error) => findings.push(Finding::note("pooler", error.to_string())),
        }
        findings
    }

    fn examine_clock(&self) -> Finding {
        let (own, of_database) = (Clock::system().now(), self.now());
        let apart = own.since(of_database).max(of_database.since(own));
        let text = format!("{} ms from this machine's", apart.as_millis());
        if apart.as_secs() >= 5 && self.0.time.is_measured() {
            let advice = "synchronise the clocks: messages are dated by the database's";
            Finding::warning("clock", text, advice)
        } else {
            Finding::fine("clock", text)
        }
    }

    async fn is_pooled(&self) -> Result<bool, sqlx::Error> {
        let mut connection = self.reader().acquire().await?;
        let mut pids = Vec::new();
        for _ in 0..POOLER_QUESTIONS {
            let pid: i32 =
                sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *connection).await?;
            pids.push(pid);
        }
        pids.dedup();
        Ok(pids.len() > 1)
    }
}

fn unreachable(error: &str) -> Finding {
    Finding::problem("connection", error, "check that the server runs and can be reached")
}

async fn read(connection: &mut PgConnection) -> Result<Facts, sqlx::Error> {
    let row = sqlx::query(
        "SELECT current_setting('server_version'), current_setting('fsync') = 'on',
                current_setting('full_page_writes') = 'on', current_setting('autovacuum') = 'on',
                (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'),
                current_setting('max_connections')::bigint
                    - current_setting('superuser_reserved_connections')::bigint,
                (SELECT cache_size FROM pg_sequences
                  WHERE sequencename = 'antiphon_outbox_seq'
                    AND schemaname = any (current_schemas(false)) LIMIT 1)",
    )
    .fetch_one(&mut *connection)
    .await?;
    // What other roles do is hidden from some, and then not counted.
    let oldest = sqlx::query_as(
        "SELECT pid, extract(epoch FROM clock_timestamp() - xact_start)::double precision,
                coalesce(application_name, '') || ', ' || coalesce(state, '')
           FROM pg_stat_activity
          WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL
            AND backend_type = 'client backend'
          ORDER BY xact_start LIMIT 1",
    )
    .fetch_optional(&mut *connection)
    .await?;
    let dead = sqlx::query_as(
        "SELECT relname::text, n_dead_tup FROM pg_stat_user_tables
          WHERE relname LIKE 'antiphon\\_%' ORDER BY n_dead_tup DESC LIMIT 1",
    )
    .fetch_optional(&mut *connection)
    .await?;
    Ok(Facts {
        version: row.get(0),
        fsync: row.get(1),
        full_page_writes: row.get(2),
        autovacuum: row.get(3),
        connections: row.get(4),
        connections_max: row.get(5),
        sequence_cache: row.get::<Option<i64>, _>(6).unwrap_or(1),
        oldest,
        dead,
    })
}

/// What the facts mean. `own` is how many connections this process may have.
fn judge(facts: &Facts, commits: SynchronousCommit, own: i64) -> Vec<Finding> {
    let mut findings = vec![Finding::fine("version", format!("PostgreSQL {}", facts.version))];
    findings.push(durability(facts, commits));
    if !facts.autovacuum {
        let advice = "set `autovacuum = on`: the outbox grows with every message that passes";
        findings.push(Finding::problem("autovacuum", "off", advice));
    }
    if facts.sequence_cache > 1 {
        findings.push(Finding::problem(
            "outbox order",
            format!("the sequence antiphon_outbox_seq caches {} numbers", facts.sequence_cache),
            "ALTER SEQUENCE antiphon_outbox_seq CACHE 1: messages of a key overtake each other",
        ));
    }
    findings.push(transactions(facts));
    findings.push(match &facts.dead {
        Some((table, count)) if *count > DEAD_ROWS_MAX => Finding::warning(
            "dead rows",
            format!("{count} in {table}"),
            "look for a transaction or replication slot that holds vacuum back, or more vacuum \
             workers (`autovacuum_naptime`, `autovacuum_max_workers`)",
        ),
        Some((table, count)) => Finding::fine("dead rows", format!("{count} in {table}")),
        None => Finding::fine("dead rows", "none"),
    });
    let free = facts.connections_max - facts.connections;
    let text = format!("{} of {} in use", facts.connections, facts.connections_max);
    findings.push(if free < own {
        let advice = format!(
            "raise `max_connections` or lower `connections_max`: this process may need {own}"
        );
        Finding::warning("connections", text, advice)
    } else {
        Finding::fine("connections", text)
    });
    findings
}

fn durability(facts: &Facts, commits: SynchronousCommit) -> Finding {
    let subject = "durability";
    if !facts.fsync {
        let advice = "set `fsync = on`";
        return Finding::warning(subject, "fsync is off: a crash may destroy the database", advice);
    }
    if !facts.full_page_writes {
        let text = "full_page_writes is off: a loss of power may leave half-written pages";
        return Finding::warning(subject, text, "set `full_page_writes = on`");
    }
    match commits {
        SynchronousCommit::Off => Finding::warning(
            subject,
            "commits are answered before they are on disk: the last ones may be lost in a crash",
            "open the store with `synchronous_commit` on, unless that is meant",
        ),
        SynchronousCommit::On => Finding::fine(subject, "commits are on disk"),
        SynchronousCommit::RemoteApply => {
            Finding::fine(subject, "commits are on disk and shown by the synchronous standbys")
        }
    }
}

fn transactions(facts: &Facts) -> Finding {
    match &facts.oldest {
        Some((pid, seconds, what)) if *seconds > OPEN_SECONDS_MAX => Finding::warning(
            "open transactions",
            format!("process {pid} ({what}) has one open for {seconds:.0} s"),
            format!(
                "end it: what is deleted meanwhile is not cleared away; \
                 SELECT pg_terminate_backend({pid})"
            ),
        ),
        _ => Finding::fine("open transactions", "none is old"),
    }
}

#[cfg(test)]
mod tests {
    use antiphon_core::Severity;

    use super::*;

    fn healthy() -> Facts {
        Facts {
            version: "15.18".into(),
            fsync: true,
            full_page_writes: true,
            autovacuum: true,
            connections: 20,
            connections_max: 97,
            oldest: Some((7, 1.5, "psql, active".into())),
            dead: Some(("antiphon_outbox".into(), 900)),
            sequence_cache: 1,
        }
    }

    fn worst(facts: &Facts) -> (Severity, String) {
        let findings = judge(facts, SynchronousCommit::On, 16);
        let worst = findings.into_iter().max_by_key(|finding| finding.severity).unwrap();
        (worst.severity, worst.subject)
    }

    #[test]
    fn each_trouble_is_named() {
        assert_eq!(worst(&healthy()).0, Severity::Fine);
        let warning = |facts: Facts| worst(&facts);
        let named = |subject: &str| (Severity::Warning, subject.to_owned());
        assert_eq!(warning(Facts { fsync: false, ..healthy() }), named("durability"));
        assert_eq!(warning(Facts { full_page_writes: false, ..healthy() }), named("durability"));
        assert_eq!(warning(Facts { connections: 90, ..healthy() }), named("connections"));
        let dead = Some(("antiphon_outbox".into(), 2_000_000));
        assert_eq!(warning(Facts { dead, ..healthy() }), named("dead rows"));
        let oldest = Some((7, 900.0, "psql, idle in transaction".into()));
        assert_eq!(warning(Facts { oldest, ..healthy() }), named("open transactions"));
        let problem = |subject: &str| (Severity::Problem, subject.to_owned());
        assert_eq!(worst(&Facts { autovacuum: false, ..healthy() }), problem("autovacuum"));
        assert_eq!(worst(&Facts { sequence_cache: 10, ..healthy() }), problem("outbox order"));
        let findings = judge(&healthy(), SynchronousCommit::Off, 16);
        assert!(findings.iter().any(|finding| finding.severity == Severity::Warning));
    }
}
