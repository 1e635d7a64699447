//! Payments: money through the card provider, and back.
//!
//! The provider is somebody else's system, so no transaction is open while it works. The command to
//! charge only writes down that it is due; a message to ourselves asks the provider; what it says,
//! and the answer to the saga, are written in one transaction afterwards.

mod provider;

use std::time::Duration;

use antiphon::saga::{Participants, Participate, ParticipateLater, Rejection, Ticket};
use antiphon::sql::{Database, Migration, Sql, Tx, sqlx};
use antiphon::{App, Consumer, Fail, Status, Timestamp};
use sqlx::Row;

use crate::contract::shop::payments::v1::{
    CaptureCard, Charge, Charged, GetPaymentRequest, Payment, PaymentCharged, PaymentRefunded,
    PaymentsError, PaymentsService, PaymentsServiceServer, Refund, Refunded, payment,
};
use provider::{ChargeError, Provider};

/// How long the provider gets before it is asked what it did.
const PROVIDER_TIMEOUT: Duration = Duration::from_secs(3);
/// When to look again whether a charge has been decided that must be given back.
const UNDECIDED: Duration = Duration::from_millis(250);

/// Adds the service to the process.
pub(crate) async fn mount(app: &mut App) -> antiphon::Result<()> {
    let db = app
        .database(
            "payments",
            &[Migration::new("payments", include_str!("../migrations/payments.sql"))],
        )
        .await?;
    let payments = Payments { db: db.clone(), provider: Provider::new(db.clone()) };
    app.serve(PaymentsServiceServer::new(payments.clone()));
    app.consume(
        db.participant("payments.commands")
            .on_later::<Charge>(payments.clone())
            .on::<Refund>(payments.clone()),
    )?;
    let capture = move |command: CaptureCard| {
        let payments = payments.clone();
        async move { payments.capture(&command.order_id).await }
    };
    // Slow cards must not hold up the others, whatever their keys.
    app.consume(
        Consumer::group("payments.captures").command::<CaptureCard>(capture).concurrency(256),
    )?;
    Ok(())
}

#[derive(Clone)]
struct Payments {
    db: Database,
    provider: Provider,
}

impl PaymentsService for Payments {
    async fn get_payment(&self, request: GetPaymentRequest) -> Result<Payment, Status> {
        let row = sqlx::query("select * from payments where order_id = ?")
            .bind(&request.order_id)
            .fetch_optional(self.db.store().reader())
            .await
            .map_err(Status::internal)?
            .ok_or_else(|| {
                PaymentsError::payment_not_found(format!(
                    "there is no payment for the order {}",
                    request.order_id
                ))
            })?;
        let read = || -> Result<Payment, sqlx::Error> {
            let status = match row.try_get("status")? {
                "CHARGED" => payment::Status::CHARGED,
                "DECLINED" => payment::Status::DECLINED,
                "REFUNDED" => payment::Status::REFUNDED,
                _ => payment::Status::PENDING,
            };
            Ok(Payment {
                order_id: row.try_get("order_id")?,
                customer_id: row.try_get("customer_id")?,
                amount_cents: row.try_get("amount_cents")?,
                status: status.into(),
                update_time: crate::time::field(Timestamp::from_micros(
                    row.try_get("update_time")?,
                )),
                ..Default::default()
            })
        };
        read().map_err(Status::internal)
    }
}

impl ParticipateLater<Charge, Sql> for Payments {
    async fn handle(&self, command: Charge, ticket: Ticket, tx: &mut Tx) -> Result<(), Rejection> {
        sqlx::query(
            "insert into payments
                 (order_id, customer_id, card, amount_cents, status, update_time, ticket)
             values (?, ?, ?, ?, 'PENDING', ?, ?)",
        )
        .bind(&command.order_id)
        .bind(&command.customer_id)
        .bind(&command.card)
        .bind(command.amount_cents)
        .bind(self.db.now().as_micros())
        .bind(ticket.to_string())
        .execute(tx.sql())
        .await?;
        tx.send(&CaptureCard { order_id: command.order_id, ..Default::default() });
        Ok(())
    }
}

/// What the provider decided.
enum Verdict {
    Charged,
    Declined,
}

impl Payments {
    /// Lets the provider take the money of a payment that is due, and answers the saga.
    async fn capture(&self, order_id: &str) -> Result<(), Fail> {
        let due: Option<(String, i64)> = sqlx::query_as(
            "select card, amount_cents from payments where order_id = ? and status = 'PENDING'",
        )
        .bind(order_id)
        .fetch_optional(self.db.store().reader())
        .await?;
        let Some((card, amount_cents)) = due else { return Ok(()) };
        let charge = self.provider.charge(order_id, &card, amount_cents);
        let verdict = match tokio::time::timeout(PROVIDER_TIMEOUT, charge).await {
            Ok(Ok(())) => Verdict::Charged,
            Ok(Err(ChargeError::Declined)) => Verdict::Declined,
            Ok(Err(error)) => return Err(Fail::retry(error)),
            Err(_) if self.provider.was_charged(order_id).await.map_err(Fail::retry)? => {
                Verdict::Charged
            }
            Err(_) => return Err(Fail::retry("the provider does not answer")),
        };
        self.decide(order_id, verdict).await
    }

    /// Writes down what the provider decided, once, with the answer to the saga.
    async fn decide(&self, order_id: &str, verdict: Verdict) -> Result<(), Fail> {
        let status = match verdict {
            Verdict::Charged => "CHARGED",
            Verdict::Declined => "DECLINED",
        };
        let mut tx = self.db.begin().await?;
        let decided = sqlx::query(
            "update payments set status = ?, update_time = ?
             where order_id = ? and status = 'PENDING'",
        )
        .bind(status)
        .bind(self.db.now().as_micros())
        .bind(order_id)
        .execute(tx.sql())
        .await?;
        if decided.rows_affected() == 0 {
            return Ok(());
        }
        let (customer_id, amount_cents, ticket): (String, i64, String) = sqlx::query_as(
            "select customer_id, amount_cents, ticket from payments where order_id = ?",
        )
        .bind(order_id)
        .fetch_one(tx.sql())
        .await?;
        tracing::debug!(order_id, status, amount_cents, "payment decided");
        let ticket: Ticket = ticket.parse()?;
        match verdict {
            Verdict::Charged => {
                ticket.done(&mut tx, &Charged::default()).await?;
                tx.emit(&PaymentCharged {
                    order_id: order_id.to_owned(),
                    customer_id,
                    amount_cents,
                    ..Default::default()
                });
            }
            Verdict::Declined => {
                let refusal = PaymentsError::card_declined("the card was declined");
                ticket.refuse(&mut tx, Rejection::refuse(refusal)).await?;
            }
        }
        tx.commit().await?;
        Ok(())
    }
}

impl Participate<Refund, Sql> for Payments {
    type Reply = Refunded;

    async fn handle(&self, command: Refund, tx: &mut Tx) -> Result<Refunded, Rejection> {
        let payment: Option<(String, String, i64)> = sqlx::query_as(
            "select status, customer_id, amount_cents from payments where order_id = ?",
        )
        .bind(&command.order_id)
        .fetch_optional(tx.sql())
        .await?;
        let (customer_id, amount_cents) = match payment {
            Some((status, customer, cents)) if status == "CHARGED" => (customer, cents),
            Some((status, ..)) if status == "PENDING" => {
                return Err(Fail::retry_after(UNDECIDED, "the charge is not decided yet").into());
            }
            _ => return Ok(Refunded::default()),
        };
        Provider::refund(tx, &command.order_id).await?;
        sqlx::query("update payments set status = 'REFUNDED', update_time = ? where order_id = ?")
            .bind(self.db.now().as_micros())
            .bind(&command.order_id)
            .execute(tx.sql())
            .await?;
        tx.emit(&PaymentRefunded {
            order_id: command.order_id,
            customer_id,
            amount_cents,
            ..Default::default()
        });
        Ok(Refunded::default())
    }
}
