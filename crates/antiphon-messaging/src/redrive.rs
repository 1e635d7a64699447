//! Gives dead letters back to their groups, many at a time but not all at once.

use std::num::NonZeroU32;
use std::time::Duration;

use antiphon_core::MessageId;
use tokio::time::MissedTickBehavior;

use crate::port::{DeadError, DeadFilter, DeadLetter, DeadLetters};

/// How many slices a second of redriving has.
const SLICES: u32 = 10;
/// How many letters are looked at in one go where no rate has to be kept.
const PAGE: usize = 500;

/// A redrive of every dead letter that matches, each once: what dies again meanwhile is left alone.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "nothing happens before `run`"]
pub struct Redrive {
    filter: DeadFilter,
    per_second: NonZeroU32,
    count_max: usize,
    dry_run: bool,
}

/// What a [`Redrive`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Redriven {
    /// How many letters matched.
    pub matched: usize,
    /// How many were given back; none in a dry run.
    pub redriven: usize,
}

impl Redrive {
    /// Of the letters that match, 50 a second.
    pub fn new(filter: DeadFilter) -> Self {
        let per_second = NonZeroU32::MIN.saturating_add(49);
        Self { filter, per_second, count_max: usize::MAX, dry_run: false }
    }

    /// At most so many a second, so that the group is not overrun.
    pub fn per_second(mut self, rate_max: NonZeroU32) -> Self {
        self.per_second = rate_max;
        self
    }

    /// At most so many in all.
    pub fn count_max(mut self, count_max: usize) -> Self {
        self.count_max = count_max;
        self
    }

    /// Only counts.
    pub fn dry_run(mut self) -> Self {
        self.dry_run = true;
        self
    }

    /// Does it.
    ///
    /// # Errors
    /// The letters cannot be read or given back; some may have been.
    ///
    /// # Cancel safety
    /// Safe: letters that were not given back stay where they are.
    pub async fn run(&self, letters: &dyn DeadLetters) -> Result<Redriven, DeadError> {
        self.watched(letters, |_| {}).await
    }

    /// The same, and says after each slice how far it is.
    ///
    /// # Errors
    /// The letters cannot be read or given back; some may have been.
    ///
    /// # Cancel safety
    /// Safe: letters that were not given back stay where they are.
    pub async fn watched(
        &self,
        letters: &dyn DeadLetters,
        mut watch: impl FnMut(Redriven) + Send,
    ) -> Result<Redriven, DeadError> {
        let mut done = Redriven::default();
        let mut after: Option<(String, MessageId)> = None;
        let rate = self.per_second.get();
        let slice = usize::try_from(rate.div_ceil(SLICES)).unwrap_or(PAGE);
        let pause = Duration::from_secs(1).mul_f64(f64::from(rate.div_ceil(SLICES))) / rate;
        let mut ticks = tokio::time::interval(pause);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while done.matched < self.count_max {
            let slice = if self.dry_run { PAGE } else { slice };
            let count = slice.min(self.count_max - done.matched);
            let from = after.as_ref().map(|(group, id)| (group.as_str(), *id));
            let page = letters.list(&self.filter, from, count).await?;
            let Some(last) = page.last() else { break };
            after = Some((last.group.clone(), last.message.id));
            done.matched += page.len();
            if !self.dry_run {
                ticks.tick().await;
                done.redriven += redrive_page(letters, &page).await?;
            }
            watch(done);
        }
        Ok(done)
    }
}

/// Gives back the letters of one page, group by group.
async fn redrive_page(letters: &dyn DeadLetters, page: &[DeadLetter]) -> Result<usize, DeadError> {
    let mut count = 0;
    for of_group in page.chunk_by(|one, next| one.group == next.group) {
        let ids: Vec<MessageId> = of_group.iter().map(|letter| letter.message.id).collect();
        count += letters.redrive(&of_group[0].group, &ids).await?;
    }
    Ok(count)
}
