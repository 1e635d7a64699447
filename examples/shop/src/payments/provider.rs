//! The card provider, simulated: slow, forgetful, and with books of its own.
//!
//! Its books stand in the database of the payments service only so that the audit can read them; it
//! is treated as somebody else's system: it is never called while a transaction of ours is open.

use std::time::Duration;

use antiphon::sql::{Database, Tx, sqlx};

use antiphon::BoxError;

/// How long `tok_slow` thinks.
const SLOW: Duration = Duration::from_secs(2);
/// `tok_flaky` works at this attempt.
const FLAKY_WORKS_AT: i64 = 3;

/// Why the provider did not say that it took the money.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChargeError {
    /// It never will.
    #[error("the card was declined")]
    Declined,
    /// Nothing was taken; it may work the next time.
    #[error("the provider has a fault of its own")]
    Fault,
    /// Its books cannot be written.
    #[error("the provider's books: {0}")]
    Books(#[source] BoxError),
}

/// Takes and returns money.
#[derive(Clone)]
pub(super) struct Provider {
    books: Database,
}

impl Provider {
    pub(super) fn new(books: Database) -> Self {
        Self { books }
    }

    /// Takes the money for an order; a second time for the same order takes nothing.
    pub(super) async fn charge(
        &self,
        order_id: &str,
        card: &str,
        amount_cents: i64,
    ) -> Result<(), ChargeError> {
        match card {
            "tok_declined" => return Err(ChargeError::Declined),
            "tok_slow" => tokio::time::sleep(SLOW).await,
            "tok_flaky" => {
                let attempt = self.attempt(order_id).await.map_err(ChargeError::Books)?;
                if attempt < FLAKY_WORKS_AT {
                    return Err(ChargeError::Fault);
                }
            }
            _ => {}
        }
        self.enter(order_id, amount_cents).await.map_err(ChargeError::Books)?;
        if card == "tok_timeout" {
            // The money is taken, and nobody will ever say so.
            std::future::pending::<()>().await;
        }
        Ok(())
    }

    /// Whether money was taken for an order.
    pub(super) async fn was_charged(&self, order_id: &str) -> Result<bool, BoxError> {
        let found: Option<i64> = sqlx::query_scalar(
            "select amount_cents from provider_ledger where order_id = ? and entry = 'charge'",
        )
        .bind(order_id)
        .fetch_optional(self.books.store().reader())
        .await?;
        Ok(found.is_some())
    }

    /// Gives back what was taken for an order; a second time gives nothing.
    pub(super) async fn refund(tx: &mut Tx, order_id: &str) -> Result<(), sqlx::Error> {
        sqlx::query(
            "insert into provider_ledger (order_id, entry, amount_cents)
             select order_id, 'refund', amount_cents from provider_ledger
             where order_id = ? and entry = 'charge' and not exists (
                 select 1 from provider_ledger as given where order_id = ? and entry = 'refund')",
        )
        .bind(order_id)
        .bind(order_id)
        .execute(tx.sql())
        .await?;
        Ok(())
    }

    async fn enter(&self, order_id: &str, amount_cents: i64) -> Result<(), BoxError> {
        let mut tx = self.books.begin().await?;
        let taken: Option<i64> = sqlx::query_scalar(
            "select amount_cents from provider_ledger where order_id = ? and entry = 'charge'",
        )
        .bind(order_id)
        .fetch_optional(tx.sql())
        .await?;
        if taken.is_none() {
            // Of two at the same time, the key lets one through; the other fails and asks again.
            sqlx::query(
                "insert into provider_ledger (order_id, entry, amount_cents)
                 values (?, 'charge', ?)",
            )
            .bind(order_id)
            .bind(amount_cents)
            .execute(tx.sql())
            .await?;
        }
        tx.commit().await?;
        Ok(())
    }

    async fn attempt(&self, order_id: &str) -> Result<i64, BoxError> {
        let mut tx = self.books.begin().await?;
        let counted =
            sqlx::query("update provider_attempts set attempts = attempts + 1 where order_id = ?")
                .bind(order_id)
                .execute(tx.sql())
                .await?;
        if counted.rows_affected() == 0 {
            sqlx::query("insert into provider_attempts (order_id, attempts) values (?, 1)")
                .bind(order_id)
                .execute(tx.sql())
                .await?;
        }
        let attempts =
            sqlx::query_scalar("select attempts from provider_attempts where order_id = ?")
                .bind(order_id)
                .fetch_one(tx.sql())
                .await?;
        tx.commit().await?;
        Ok(attempts)
    }
}
