//! What an operator asks of a saga from outside of its process.
//!
//! Only the process that knows the definition can move a saga. A command line has the database
//! alone: it commits a message to the coordinator there, which the service's relay carries, and the
//! coordinator does it when it comes. The message is as safe as any other, and asking twice does no
//! more than asking once.

use std::collections::BTreeMap;

use antiphon_core::{MessageId, Timestamp};
use antiphon_messaging::{Fail, Message};
use antiphon_outbox::{CommitError, Database, OutboxStore};
use bytes::Bytes;

use crate::SagaId;
use crate::decide::Input;
use crate::wire::reply_topic;

/// The kind of such messages; they have no body.
pub(crate) const KIND: &str = "antiphon.saga.v1.Wish";

const SAGA: &str = "sagaid";
const WISH: &str = "sagawish";

/// What an operator can ask of a saga without knowing its definition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Try again at once what it is parked for.
    Resume,
    /// Turn back, unless the pivot has been passed.
    Cancel,
}

impl Wish {
    const ALL: [Self; 2] = [Self::Resume, Self::Cancel];

    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Resume => "resume",
            Self::Cancel => "cancel",
        }
    }

    pub(crate) const fn input(self) -> Input {
        match self {
            Self::Resume => Input::Resume,
            Self::Cancel => Input::Cancel,
        }
    }

    /// Asks it of a saga that the service of this database runs. The service hears of it when its
    /// relay has carried the message; whether the saga then obeys is seen by looking at it.
    ///
    /// # Errors
    /// The message was not committed, or nobody knows.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the outcome unknown.
    pub async fn ask<S: OutboxStore>(
        self,
        database: &Database<S>,
        saga: SagaId,
    ) -> Result<MessageId, CommitError> {
        let mut tx = database.begin().await.map_err(CommitError::RolledBack)?;
        let id = tx.push(self.message(database.service(), saga, database.now()));
        tx.commit().await.map(|()| id)
    }

    fn message(self, service: &str, saga: SagaId, now: Timestamp) -> Message {
        let attributes = [(SAGA, saga.to_string()), (WISH, self.name().to_owned())];
        Message {
            id: MessageId::new(now),
            topic: reply_topic(service),
            kind: KIND.to_owned(),
            source: service.to_owned(),
            key: saga.to_string(),
            time: now,
            not_before: None,
            attributes: attributes
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect::<BTreeMap<_, _>>(),
            body: Bytes::new(),
        }
    }

    /// Reads what [`ask`](Self::ask) sent.
    pub(crate) fn read(message: &Message) -> Result<(Self, SagaId), Fail> {
        let broken = |name: &str| {
            let found = message.attribute(name);
            Fail::permanent(format!("the attribute {name} is not an operator's: {found:?}"))
                .with_code("decode")
        };
        let wish = Self::ALL
            .into_iter()
            .find(|wish| message.attribute(WISH) == Some(wish.name()))
            .ok_or_else(|| broken(WISH))?;
        let saga = message
            .attribute(SAGA)
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| broken(SAGA))?;
        Ok((wish, saga))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_comes_back_as_it_was_and_anything_else_is_dead() {
        let saga = SagaId::new(Timestamp::from_millis(1_700_000_000_000), "trip", "t-1");
        for wish in Wish::ALL {
            let message = wish.message("orders", saga, Timestamp::EPOCH);
            assert_eq!(message.topic, "orders.saga-replies");
            assert_eq!(Wish::read(&message).unwrap(), (wish, saga));
        }
        let mut forged = Wish::Cancel.message("orders", saga, Timestamp::EPOCH);
        forged.attributes.insert(WISH.into(), "explode".into());
        let fail = Wish::read(&forged).unwrap_err();
        assert_eq!(fail.code(), Some("decode"));
        assert!(fail.describe().contains("explode"), "{fail}");
    }
}
