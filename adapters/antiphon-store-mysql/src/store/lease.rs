//! Leases: exclusive rights on lanes, as rows with an end and a token that never repeats.
//!
//! Tokens are drawn from a row of their own: AUTO_INCREMENT would promise less. Whoever takes lanes
//! holds that row, and so takes them alone, and locks the lanes' rows in order against a renewal
//! that comes in between.

use std::time::Duration;

use antiphon_core::Timestamp;
use antiphon_outbox::{Lease, LeaseStore, Store, StoreError};
use sqlx::Row;

use super::{MysqlStore, commit};
use crate::error::store_error;
use crate::sql::{Answer, Sql, text};

impl LeaseStore for MysqlStore {
    async fn acquire(
        &self,
        scope: &str,
        lanes: u32,
        count_max: u32,
        owner: &str,
        ttl: Duration,
    ) -> Result<Vec<Lease>, StoreError> {
        // Most attempts find every lane taken; those need not lock anything.
        let sql = lanes_statement(scope, lanes, "");
        let answers = self.ask("reading leases", sql).await?;
        if free_lanes(answers.first(), lanes, self.now())?.is_empty() {
            return Ok(Vec::new());
        }
        let mut connection = self.begin().await?;
        let mut sql =
            Sql::new("SELECT number FROM antiphon_value WHERE name = 'token' FOR UPDATE; ");
        sql.append(&lanes_statement(scope, lanes, " FOR UPDATE"));
        let answers = connection.run("reading leases", sql).await?;
        let last: i64 = answers
            .first()
            .and_then(|answer| answer.rows.first())
            .ok_or(sqlx::Error::RowNotFound)
            .and_then(|row| row.try_get(0))
            .map_err(store_error("drawing tokens"))?;
        let mut free = free_lanes(answers.get(1), lanes, self.now())?;
        // Instances that start together should not all ask for the same lanes.
        fastrand::shuffle(&mut free);
        free.truncate(usize::try_from(count_max).unwrap_or(usize::MAX));
        if free.is_empty() {
            return Ok(Vec::new());
        }
        let until = self.now() + ttl;
        let leases: Vec<Lease> = free
            .into_iter()
            .zip(last + 1..)
            .map(|(lane, token)| Lease { scope: scope.to_owned(), lane, token, until })
            .collect();
        let drawn = leases.last().map_or(last, |lease| lease.token);
        let mut sql = Sql::new("UPDATE antiphon_value SET number = ");
        sql.number(drawn).sql(" WHERE name = 'token'");
        connection.deferred().statement(&sql);
        let mut sql =
            Sql::new("INSERT INTO antiphon_lease (scope, lane, token, owner, until) VALUES ");
        sql.list(",", &leases, |sql, lease| {
            sql.sql("(").value(scope).sql(",").number(lease.lane).sql(",").number(lease.token);
            sql.sql(",").value(owner).sql(",").number(until.as_micros()).sql(")");
        });
        sql.sql(
            " ON DUPLICATE KEY UPDATE token = VALUES(token), owner = VALUES(owner), \
             until = VALUES(until)",
        );
        connection.deferred().statement(&sql);
        commit(connection, "taking leases").await?;
        Ok(leases)
    }

    async fn renew(&self, leases: &[Lease], ttl: Duration) -> Result<Vec<Lease>, StoreError> {
        if leases.is_empty() {
            return Ok(Vec::new());
        }
        let until = self.now() + ttl;
        // Each for itself: what was renewed cannot be lost before it is looked at.
        let mut sql = Sql::new("UPDATE antiphon_lease FORCE INDEX (PRIMARY) SET until = ");
        sql.number(until.as_micros()).sql(" WHERE ");
        add_leases(&mut sql, leases);
        sql.sql("; SELECT token FROM antiphon_lease WHERE ");
        add_leases(&mut sql, leases);
        let answers = self.ask("renewing leases", sql).await?;
        let kept: Vec<i64> = answers
            .iter()
            .flat_map(|answer| &answer.rows)
            .map(|row| row.try_get(0))
            .collect::<Result<_, _>>()
            .map_err(store_error("renewing leases"))?;
        let kept = leases.iter().filter(|lease| kept.contains(&lease.token));
        Ok(kept.map(|lease| Lease { until, ..lease.clone() }).collect())
    }

    async fn release(&self, leases: &[Lease]) -> Result<(), StoreError> {
        if leases.is_empty() {
            return Ok(());
        }
        let mut sql = Sql::new("DELETE l FROM antiphon_lease AS l FORCE INDEX (PRIMARY) WHERE ");
        add_leases(&mut sql, leases);
        self.ask("releasing leases", sql).await.map(drop)
    }

    async fn instances(&self, scope: &str, owner: &str, ttl: Duration) -> Result<u32, StoreError> {
        let now = self.now();
        let mut sql = Sql::new("INSERT INTO antiphon_instance (scope, owner, seen) VALUES (");
        sql.value(scope).sql(",").value(owner).sql(",").number(now.as_micros());
        sql.sql(") ON DUPLICATE KEY UPDATE seen = ").number(now.as_micros());
        sql.sql("; SELECT owner, seen FROM antiphon_instance WHERE scope = ").value(scope);
        let answers = self.ask("announcing an instance", sql).await?;
        let mut count = 0;
        let mut silent = Vec::new();
        for row in answers.iter().flat_map(|answer| &answer.rows) {
            let seen = row.try_get(1).map(Timestamp::from_micros);
            if seen.map_err(store_error("counting instances"))? >= now - ttl {
                count += 1;
            } else {
                silent.push(text(row, 0).map_err(store_error("counting instances"))?);
            }
        }
        if !silent.is_empty() {
            self.forget_instances(scope, &silent, now - ttl).await?;
        }
        Ok(count)
    }

    async fn leave(&self, scope: &str, owner: &str) -> Result<(), StoreError> {
        let mut sql = Sql::new("SELECT lane, token FROM antiphon_lease WHERE scope = ");
        sql.value(scope).sql(" AND owner = ").value(owner);
        let answers = self.ask("leaving", sql).await?;
        let leases: Vec<Lease> = answers
            .iter()
            .flat_map(|answer| &answer.rows)
            .map(|row| {
                let lane: i64 = row.try_get(0)?;
                Ok(Lease {
                    scope: scope.to_owned(),
                    lane: u32::try_from(lane).unwrap_or(0),
                    token: row.try_get(1)?,
                    until: Timestamp::EPOCH,
                })
            })
            .collect::<Result<_, sqlx::Error>>()
            .map_err(store_error("leaving"))?;
        self.release(&leases).await?;
        self.forget_instances(scope, &[owner.to_owned()], Timestamp::MAX).await
    }
}

impl MysqlStore {
    /// Forgets owners that were last seen before `before`: row by row, for a range would lock the
    /// rows of the others.
    async fn forget_instances(
        &self,
        scope: &str,
        owners: &[String],
        before: Timestamp,
    ) -> Result<(), StoreError> {
        let mut sql = Sql::default();
        for owner in owners {
            sql.sql("DELETE FROM antiphon_instance WHERE scope = ").value(scope);
            sql.sql(" AND owner = ").value(owner).sql(" AND seen < ").number(before.as_micros());
            sql.sql(";");
        }
        self.ask("forgetting instances", sql).await.map(drop)
    }
}

fn lanes_statement(scope: &str, lanes: u32, lock: &str) -> Sql {
    let mut sql = Sql::new("SELECT lane, until FROM antiphon_lease WHERE scope = ");
    sql.value(scope).sql(" AND lane < ").number(lanes).sql(" ORDER BY lane").sql(lock);
    sql
}

/// The lanes that nobody holds, of an answer to [`lanes_statement`].
fn free_lanes(answer: Option<&Answer>, lanes: u32, now: Timestamp) -> Result<Vec<u32>, StoreError> {
    let mut live = Vec::new();
    for row in answer.iter().flat_map(|answer| &answer.rows) {
        let failed = || store_error("reading leases");
        let lane: i64 = row.try_get(0).map_err(failed())?;
        let until: i64 = row.try_get(1).map_err(failed())?;
        if until > now.as_micros() {
            live.push(lane);
        }
    }
    Ok((0..lanes).filter(|lane| !live.contains(&i64::from(*lane))).collect())
}

/// Adds the condition that names exactly these leases, in the order of the primary key.
fn add_leases(sql: &mut Sql, leases: &[Lease]) {
    let mut leases: Vec<&Lease> = leases.iter().collect();
    leases.sort_unstable_by_key(|lease| (&lease.scope, lease.lane));
    sql.sql("(").list(" OR ", leases, |sql, lease| {
        sql.sql("scope = ").value(&lease.scope).sql(" AND lane = ").number(lease.lane);
        sql.sql(" AND token = ").number(lease.token);
    });
    sql.sql(")");
}
