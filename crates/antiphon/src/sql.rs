//! Services whose rows lie in the database that the settings name: SQLite, PostgreSQL, MySQL or
//! MariaDB, with the same code.
//!
//! Statements are plain `sqlx` on its [`Any`](sqlx::Any) driver: `?` for each value on every engine,
//! columns read by name as the standard types (whole numbers, `f64`, text, bytes). What such code
//! must do without is what not every engine has: `RETURNING`, `ON CONFLICT`, types of one engine. A
//! service that wants those names its engine: [`antiphon::sqlite`](crate::sqlite) and its
//! neighbours, where the transaction is the engine's own `sqlx` connection.
//!
//! ```
//! # use antiphon::Status;
//! use antiphon::sql::{Database, sqlx};
//! use sqlx::Row;
//!
//! # async fn example(db: Database) -> Result<(), Status> {
//! let mut tx = db.begin().await?;
//! let taken = sqlx::query("update stock set on_hand = on_hand - ? where sku = ? and on_hand >= ?")
//!     .bind(3_i64)
//!     .bind("book-rust")
//!     .bind(3_i64)
//!     .execute(tx.sql())
//!     .await
//!     .map_err(Status::internal)?;
//! if taken.rows_affected() == 1 {
//!     tx.commit().await?;
//! }
//! let left: i64 = sqlx::query("select on_hand from stock where sku = ?")
//!     .bind("book-rust")
//!     .fetch_one(db.store().reader())
//!     .await
//!     .map_err(Status::internal)?
//!     .get("on_hand");
//! # let _ = left; Ok(()) }
//! ```

mod open;
mod placeholders;
mod reader;
mod store;
mod transaction;

pub use antiphon_outbox::Migration;
pub use sqlx;

pub use open::Engine;
pub(crate) use open::Kind;
pub use reader::Reader;
pub use store::Sql;
pub use transaction::{SqlTransaction, Statements};

/// The database of a service.
pub type Database = antiphon_outbox::Database<Sql>;

/// One transaction of a service's database.
pub type Tx = antiphon_outbox::Tx<Sql>;
