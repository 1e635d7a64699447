//! Settling what a member handed out.

use std::sync::Arc;

use antiphon_messaging::{Settle, Settled, Settlement, Settling};
use tokio::time::Instant;

use crate::poller::Shared;

/// Settles for one member; after it is gone, everything is too late.
#[derive(Debug)]
pub(crate) struct Settler(pub(crate) Arc<Shared>);

impl Settle for Settler {
    fn settle(&self, token: u64, settlement: Settlement) -> Settling {
        let settled = self.settle_batch(vec![(token, settlement)]);
        settled.into_iter().next().unwrap_or(Settling::Done(Settled::Stale))
    }

    fn settle_batch(&self, batch: Vec<(u64, Settlement)>) -> Vec<Settling> {
        let acks_only = batch.iter().all(|(_, settlement)| *settlement == Settlement::Ack);
        let (now, wall_ms) = (Instant::now(), self.0.wall_ms());
        let mut member = self.0.member.lock();
        let settled = batch
            .into_iter()
            .map(|(token, settlement)| member.settle(token, settlement, now, wall_ms))
            .collect();
        let call = member.needs_poller();
        drop(member);
        if call {
            self.0.call_poller();
        }
        if !acks_only {
            // Something has come back, or is due earlier than the source knows.
            self.0.bell.notify_one();
        }
        settled
    }
}
