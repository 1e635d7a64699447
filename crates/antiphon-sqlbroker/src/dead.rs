//! The operator's view of dead letters.

use std::sync::Arc;

use antiphon_core::{BoxFuture, MessageId};
use antiphon_messaging::{DeadError, DeadFilter, DeadLetter, DeadLetters, DeadReason, Message};

use crate::change::{Change, Failure};
use crate::core::Core;
use crate::log::Log;

pub(crate) struct DeadRows<L: Log>(pub(crate) Arc<Core<L>>);

impl<L: Log> DeadLetters for DeadRows<L> {
    fn list<'a>(
        &'a self,
        filter: &'a DeadFilter,
        after: Option<(&'a str, MessageId)>,
        count_max: usize,
    ) -> BoxFuture<'a, Result<Vec<DeadLetter>, DeadError>> {
        let mut after = after
            .map_or((String::new(), [0; 16]), |(group, id)| (group.to_owned(), *id.as_bytes()));
        Box::pin(async move {
            let mut letters = Vec::new();
            while letters.len() < count_max {
                let page = self.0.log.letters(filter.group.clone(), after.clone()).await;
                let page = page.map_err(error("listing"))?;
                let Some(last) = page.last() else { break };
                after = (last.group.clone(), *last.message.id.as_bytes());
                let matching = page.into_iter().filter(|letter| filter.matches(letter));
                letters.extend(matching.take(count_max - letters.len()));
            }
            Ok(letters)
        })
    }

    fn get<'a>(
        &'a self,
        group: &'a str,
        id: MessageId,
    ) -> BoxFuture<'a, Result<Option<DeadLetter>, DeadError>> {
        Box::pin(async move { self.0.log.letter(group, id).await.map_err(error("reading")) })
    }

    fn bury<'a>(
        &'a self,
        group: &'a str,
        message: &'a Message,
        reason: &'a DeadReason,
    ) -> BoxFuture<'a, Result<(), DeadError>> {
        Box::pin(async move {
            let change = Change::BuryForeign {
                group: group.to_owned(),
                message: message.clone(),
                reason: reason.clone(),
                at: self.0.now(),
            };
            match self.0.write(change, |_| {}).held().await.map_err(error("burying"))? {
                true => Ok(()),
                false => Err(DeadError {
                    action: "burying",
                    source: "the group was not declared at this broker".into(),
                }),
            }
        })
    }

    fn redrive<'a>(
        &'a self,
        group: &'a str,
        ids: &'a [MessageId],
    ) -> BoxFuture<'a, Result<usize, DeadError>> {
        let ids = ids.to_vec();
        self.change("redriving", group, move |group| Change::Redrive { group, ids })
    }

    fn discard<'a>(
        &'a self,
        group: &'a str,
        ids: &'a [MessageId],
    ) -> BoxFuture<'a, Result<usize, DeadError>> {
        let ids = ids.to_vec();
        self.change("discarding", group, move |group| Change::Discard { group, ids })
    }
}

impl<L: Log> DeadRows<L> {
    fn change<'a>(
        &'a self,
        action: &'static str,
        group: &'a str,
        change: impl FnOnce(i64) -> Change + Send + 'a,
    ) -> BoxFuture<'a, Result<usize, DeadError>> {
        Box::pin(async move {
            let found = self.0.log.group(group).await.map_err(error(action))?;
            let Some(number) = found else { return Ok(0) };
            let core = Arc::downgrade(&self.0);
            let answer = self.0.write(change(number), move |_| {
                if let Some(core) = core.upgrade() {
                    core.regrouped(number, "");
                }
            });
            answer.count().await.map_err(error(action))
        })
    }
}

fn error(action: &'static str) -> impl Fn(Failure) -> DeadError {
    move |failure| DeadError { action, source: failure.into() }
}
