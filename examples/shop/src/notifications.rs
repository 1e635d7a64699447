//! Notifications: tells customers what happens, and talks to them.

use std::time::Duration;

use antiphon::sql::{Database, Migration, Sql, Tx, sqlx};
use antiphon::{App, Fail, Handle, Status, Streaming, Timestamp};
use futures_util::{StreamExt, TryStreamExt, stream};
use sqlx::Row;
use tokio::sync::watch;

use crate::contract::shop::inventory::v1::StockSet;
use crate::contract::shop::notifications::v1::{
    ChatMessage, Notification, NotificationsService, NotificationsServiceServer, SubscribeRequest,
};
use crate::contract::shop::orders::v1::{OrderCancelled, OrderConfirmed, OrderPlaced};
use crate::contract::shop::payments::v1::{PaymentCharged, PaymentRefunded};
use crate::contract::shop::points::v1::PointsAwarded;
use crate::contract::shop::shipping::v1::ShipmentCreated;

/// How many notifications are read at once.
const PAGE: i64 = 100;
/// Notifications written by another process are seen after this much time.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Adds the service to the process.
pub(crate) async fn mount(app: &mut App) -> antiphon::Result<()> {
    let db = app
        .database(
            "notifications",
            &[Migration::new("notifications", include_str!("../migrations/notifications.sql"))],
        )
        .await?;
    let notifications = Notifications { db: db.clone(), news: watch::Sender::new(0) };
    app.serve(NotificationsServiceServer::new(notifications.clone()));
    app.consume(
        db.group("notifications.all")
            .on::<OrderPlaced>(notifications.clone())
            .on::<OrderConfirmed>(notifications.clone())
            .on::<OrderCancelled>(notifications.clone())
            .on::<PaymentCharged>(notifications.clone())
            .on::<PaymentRefunded>(notifications.clone())
            .on::<PointsAwarded>(notifications.clone())
            .on::<ShipmentCreated>(notifications.clone())
            .on::<StockSet>(notifications)
            .ordered(),
    )?;
    Ok(())
}

#[derive(Clone)]
struct Notifications {
    db: Database,
    /// Counts what was written, so that subscribers look again.
    news: watch::Sender<u64>,
}

impl Notifications {
    async fn tell(
        &self,
        tx: &mut Tx,
        customer_id: &str,
        order_id: &str,
        text: String,
    ) -> Result<(), Fail> {
        let number = Self::next_number(tx, customer_id).await?;
        sqlx::query(
            "insert into notifications (customer_id, number, order_id, text, create_time)
             values (?, ?, ?, ?, ?)",
        )
        .bind(customer_id)
        .bind(number)
        .bind(order_id)
        .bind(text)
        .bind(self.db.now().as_micros())
        .execute(tx.sql())
        .await?;
        let news = self.news.clone();
        tx.when_over(move || news.send_modify(|count| *count += 1));
        Ok(())
    }

    /// The customer's next number. Until the transaction ends, nobody else gets one for the customer.
    async fn next_number(tx: &mut Tx, customer_id: &str) -> Result<i64, sqlx::Error> {
        let counted = sqlx::query(
            "update subscriptions set last_number = last_number + 1 where customer_id = ?",
        )
        .bind(customer_id)
        .execute(tx.sql())
        .await?;
        if counted.rows_affected() == 0 {
            sqlx::query("insert into subscriptions (customer_id, last_number) values (?, 1)")
                .bind(customer_id)
                .execute(tx.sql())
                .await?;
        }
        sqlx::query_scalar("select last_number from subscriptions where customer_id = ?")
            .bind(customer_id)
            .fetch_one(tx.sql())
            .await
    }

    async fn after(&self, customer_id: &str, after: i64) -> Result<Vec<Notification>, Status> {
        let rows = sqlx::query(
            "select * from notifications where customer_id = ? and number > ?
             order by number limit ?",
        )
        .bind(customer_id)
        .bind(after)
        .bind(PAGE)
        .fetch_all(self.db.store().reader())
        .await
        .map_err(Status::internal)?;
        let read = rows.iter().map(|row| {
            Ok(Notification {
                number: row.try_get("number")?,
                customer_id: row.try_get("customer_id")?,
                order_id: row.try_get("order_id")?,
                text: row.try_get("text")?,
                time: crate::time::field(Timestamp::from_micros(row.try_get("create_time")?)),
                ..Default::default()
            })
        });
        read.collect::<Result<_, sqlx::Error>>().map_err(Status::internal)
    }

    async fn latest(&self, customer_id: &str) -> Result<Option<String>, Status> {
        sqlx::query_scalar(
            "select text from notifications where customer_id = ? order by number desc limit 1",
        )
        .bind(customer_id)
        .fetch_optional(self.db.store().reader())
        .await
        .map_err(Status::internal)
    }
}

impl NotificationsService for Notifications {
    async fn subscribe(
        &self,
        request: SubscribeRequest,
    ) -> Result<Streaming<Notification>, Status> {
        let place = (self.clone(), self.news.subscribe(), request.customer_id, request.after);
        let pages =
            stream::try_unfold(place, |(notifications, mut news, customer, after)| async move {
                loop {
                    news.mark_unchanged();
                    let page = notifications.after(&customer, after).await?;
                    if let Some(last) = page.last() {
                        let after = last.number;
                        let page = stream::iter(page.into_iter().map(Ok::<_, Status>));
                        return Ok::<_, Status>(Some((
                            page,
                            (notifications, news, customer, after),
                        )));
                    }
                    // Either there is news, or it is time to look for what other processes wrote.
                    let _ = tokio::time::timeout(LOOK_AGAIN, news.changed()).await;
                }
            });
        Ok(Streaming::new(pages.try_flatten()))
    }

    async fn chat(
        &self,
        requests: Streaming<ChatMessage>,
    ) -> Result<Streaming<ChatMessage>, Status> {
        let assistant = self.clone();
        let answers = requests.then(move |said| {
            let assistant = assistant.clone();
            async move {
                let said = said?;
                let text = match assistant.latest(&said.customer_id).await? {
                    Some(news) => format!("You said \"{}\". The latest for you: {news}", said.text),
                    None => format!("You said \"{}\". There is no news for you yet.", said.text),
                };
                Ok(ChatMessage { customer_id: said.customer_id, text, ..Default::default() })
            }
        });
        Ok(Streaming::new(answers))
    }
}

impl Handle<OrderPlaced, Sql> for Notifications {
    async fn handle(&self, event: OrderPlaced, tx: &mut Tx) -> Result<(), Fail> {
        let text = format!("We have your order over {}.", euros(event.total_cents));
        self.tell(tx, &event.customer_id, &event.order_id, text).await
    }
}

impl Handle<OrderConfirmed, Sql> for Notifications {
    async fn handle(&self, event: OrderConfirmed, tx: &mut Tx) -> Result<(), Fail> {
        let text = format!("Your order over {} is confirmed.", euros(event.total_cents));
        self.tell(tx, &event.customer_id, &event.order_id, text).await
    }
}

impl Handle<OrderCancelled, Sql> for Notifications {
    async fn handle(&self, event: OrderCancelled, tx: &mut Tx) -> Result<(), Fail> {
        let text = format!("Your order was cancelled: {}.", event.reason);
        self.tell(tx, &event.customer_id, &event.order_id, text).await
    }
}

impl Handle<PaymentCharged, Sql> for Notifications {
    async fn handle(&self, event: PaymentCharged, tx: &mut Tx) -> Result<(), Fail> {
        let text = format!("Your card was charged with {}.", euros(event.amount_cents));
        self.tell(tx, &event.customer_id, &event.order_id, text).await
    }
}

impl Handle<PaymentRefunded, Sql> for Notifications {
    async fn handle(&self, event: PaymentRefunded, tx: &mut Tx) -> Result<(), Fail> {
        let text = format!("You got {} back.", euros(event.amount_cents));
        self.tell(tx, &event.customer_id, &event.order_id, text).await
    }
}

impl Handle<PointsAwarded, Sql> for Notifications {
    async fn handle(&self, event: PointsAwarded, tx: &mut Tx) -> Result<(), Fail> {
        let text = format!("You earned {} points.", event.points);
        self.tell(tx, &event.customer_id, &event.order_id, text).await
    }
}

impl Handle<ShipmentCreated, Sql> for Notifications {
    async fn handle(&self, event: ShipmentCreated, tx: &mut Tx) -> Result<(), Fail> {
        let text = format!("Your parcel is on its way: {}.", event.tracking_number);
        self.tell(tx, &event.customer_id, &event.order_id, text).await
    }
}

impl Handle<StockSet, Sql> for Notifications {
    /// The people who run the shop hear of it under the customer `shop`.
    async fn handle(&self, event: StockSet, tx: &mut Tx) -> Result<(), Fail> {
        let text = format!(
            "{} was set to {} pieces at {}.",
            event.sku,
            event.quantity,
            euros(event.price_cents)
        );
        self.tell(tx, "shop", "", text).await
    }
}

fn euros(cents: i64) -> String {
    format!("{}.{:02} €", cents / 100, cents % 100)
}
