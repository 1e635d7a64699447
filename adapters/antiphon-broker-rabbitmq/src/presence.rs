//! How the members of a group hear of each other, and those of an ordered group share its lanes.
//!
//! A lane is a queue with a single active consumer: the server sees to it that no two members get
//! its messages at a time, and that what one of them held comes again, first, to the next. What it
//! does not do is share: the first member would keep all lanes. So the members tell each other that
//! they are there, by an exchange of their group, and each of them computes who takes which lane. As
//! long as they do not agree, the server still lets only one of them have a lane; the others wait.
//!
//! An operator asks there, too: how many members there are, and how much they hold that is not
//! settled, the server tells nobody.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, ExchangeDeclareOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Consumer, ExchangeKind};
use tokio::time::{Instant, Interval, interval, timeout_at};
use uuid::Uuid;

use crate::connection::Live;
use crate::error::Fault;
use crate::held::Held;
use crate::names;
use crate::topology::{Layout, Maker};

/// How often a member says that it is there.
const BEAT: Duration = Duration::from_secs(1);
/// After how much silence it is taken for gone. It may be back: then both were right at times.
const EXPIRY: Duration = Duration::from_secs(5);
/// How long a new member waits for the others to answer before it takes lanes.
const LISTEN: Duration = Duration::from_millis(60);

/// What members say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    /// I am new: answer me.
    Hello,
    /// I am there.
    Here,
    /// I am leaving.
    Bye,
    /// Who is there? I am not one of you.
    Who,
}

impl Said {
    const fn word(self) -> &'static str {
        match self {
            Self::Hello => "hello",
            Self::Here => "here",
            Self::Bye => "bye",
            Self::Who => "who",
        }
    }

    /// What was said, by which member, and how much it holds.
    fn read(body: &[u8]) -> Option<(Self, String, u64)> {
        let mut parts = std::str::from_utf8(body).ok()?.split(' ');
        let (word, member) = (parts.next()?, parts.next()?);
        let all = [Self::Hello, Self::Here, Self::Bye, Self::Who];
        let said = all.into_iter().find(|said| said.word() == word)?;
        let held = parts.next().and_then(|held| held.parse().ok()).unwrap_or(0);
        Some((said, member.to_owned(), held))
    }
}

/// Which of `lanes` the member `me` takes, when these are there. Everybody computes the same.
pub(crate) fn share(me: &str, members: &[&str], lanes: u32) -> Vec<u32> {
    let mut all: Vec<&str> = members.to_vec();
    all.push(me);
    all.sort_unstable();
    all.dedup();
    let Some(rank) = all.iter().position(|member| *member == me) else { return Vec::new() };
    (0..lanes).filter(|lane| *lane as usize % all.len() == rank).collect()
}

/// One member's view of its group.
pub(crate) struct Presence {
    id: String,
    exchange: String,
    channel: Channel,
    heard: Consumer,
    others: BTreeMap<String, Instant>,
    beat: Interval,
    listening_until: Instant,
    /// What this member has; nothing if it only asks.
    held: Option<Arc<Held>>,
}

impl Presence {
    /// Enters a group as one of its members.
    pub(crate) async fn join(live: &Live, held: Arc<Held>) -> lapin::Result<Self> {
        let first = held.ordered.then_some(Said::Hello);
        let mut presence = Self::enter(live, &held.group).await?;
        presence.held = Some(held);
        if let Some(first) = first {
            presence.tell_all(first);
        }
        Ok(presence)
    }

    async fn enter(live: &Live, group: &str) -> lapin::Result<Self> {
        let channel = live.channel().await?;
        let (id, exchange) = (Uuid::new_v4().to_string(), names::members_exchange(group));
        let none = FieldTable::default;
        let options =
            ExchangeDeclareOptions { auto_delete: true, ..ExchangeDeclareOptions::default() };
        let name = exchange.as_str();
        channel.exchange_declare(name.into(), ExchangeKind::Fanout, options, none()).await?;
        let queue = queue_of(&id);
        let options = QueueDeclareOptions::exclusive().auto_delete();
        channel.queue_declare(queue.as_str().into(), options, none()).await?;
        let bind = QueueBindOptions::default();
        channel.queue_bind(queue.as_str().into(), name.into(), "".into(), bind, none()).await?;
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let heard = channel.basic_consume(queue.into(), "".into(), options, none()).await?;
        let listening_until = Instant::now() + LISTEN;
        let beat = interval(BEAT);
        let (others, held) = (BTreeMap::new(), None);
        Ok(Self { id, exchange, channel, heard, others, beat, listening_until, held })
    }

    /// The lanes of this member, as far as it knows; `None` while it waits for the others.
    pub(crate) fn lanes(&self, lanes: u32) -> Option<Vec<u32>> {
        if Instant::now() < self.listening_until {
            return None;
        }
        let others: Vec<&str> = self.others.keys().map(String::as_str).collect();
        Some(share(&self.id, &others, lanes))
    }

    /// Waits until something may have changed. The error says that the connection is gone.
    ///
    /// # Cancel safety
    /// Safe: what was said is either taken in or still to come.
    pub(crate) async fn changed(&mut self) -> Result<(), String> {
        tokio::select! {
            said = self.heard.next() => match said {
                Some(Ok(delivery)) => self.hear(&delivery.data),
                Some(Err(error)) => return Err(error.to_string()),
                None => return Err("the server cancelled the consumer of the members".to_owned()),
            },
            _ = self.beat.tick(), if self.shares_lanes() => {
                self.tell_all(Said::Here);
                self.others.retain(|_, seen| seen.elapsed() < EXPIRY);
            }
            () = tokio::time::sleep_until(self.listening_until),
                if Instant::now() < self.listening_until => {}
        }
        Ok(())
    }

    fn hear(&mut self, body: &[u8]) {
        let Some((said, member, _)) = Said::read(body) else { return };
        if member == self.id {
            return;
        }
        match said {
            Said::Bye => {
                self.others.remove(&member);
            }
            Said::Hello => {
                self.tell("", &queue_of(&member), Said::Here);
                self.others.insert(member, Instant::now());
            }
            Said::Here => {
                self.others.insert(member, Instant::now());
            }
            Said::Who => self.tell("", &queue_of(&member), Said::Here),
        }
    }

    fn shares_lanes(&self) -> bool {
        self.held.as_ref().is_some_and(|held| held.ordered)
    }

    /// Tells the others that this member is gone.
    pub(crate) fn leave(&self) {
        if self.shares_lanes() {
            self.tell_all(Said::Bye);
        }
    }

    fn tell_all(&self, said: Said) {
        self.tell(&self.exchange, "", said);
    }

    /// Says something, without waiting: it is said again soon.
    fn tell(&self, exchange: &str, queue: &str, said: Said) {
        let held = match &self.held {
            // Nobody else asks for it.
            Some(held) if said == Said::Here && !queue.is_empty() => held.unsettled(),
            _ => 0,
        };
        let body = format!("{} {} {held}", said.word(), self.id);
        let saying = self.channel.basic_publish(
            exchange.into(),
            queue.into(),
            BasicPublishOptions::default(),
            body.as_bytes(),
            BasicProperties::default(),
        );
        if let Some(Err(error)) = saying.now_or_never() {
            tracing::debug!(%error, "the members of the group could not be told");
        }
    }
}

/// How many members a group has, and how many messages they have that are not settled. A member that
/// does not answer at once is not counted.
pub(crate) async fn count(live: &Live, layout: &Layout, group: &str) -> Result<(u32, u64), Fault> {
    if !Maker::new(live, layout).has_exchange(&names::members_exchange(group)).await? {
        return Ok((0, 0));
    }
    let fault = |error: lapin::Error| Fault::of(&error);
    let mut asking = Presence::enter(live, group).await.map_err(fault)?;
    asking.tell_all(Said::Who);
    let mut members = BTreeMap::new();
    let until = Instant::now() + LISTEN * 2;
    while let Ok(heard) = timeout_at(until, asking.heard.next()).await {
        let Some(delivery) = heard else { break };
        if let Some((Said::Here, member, held)) = Said::read(&delivery.map_err(fault)?.data) {
            members.insert(member, held);
        }
    }
    Ok((u32::try_from(members.len()).unwrap_or(u32::MAX), members.values().sum()))
}

fn queue_of(member: &str) -> String {
    format!("{}{member}", names::MEMBER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lane_has_one_member_and_shares_are_even() {
        let members = ["a", "b", "c", "d", "e"];
        for count in 1..=members.len() {
            for lanes in [1, 2, 4, 8, 16] {
                let there = &members[..count];
                let shares: Vec<Vec<u32>> =
                    there.iter().map(|me| share(me, there, lanes)).collect();
                let mut all: Vec<u32> = shares.concat();
                all.sort_unstable();
                assert_eq!(all, (0..lanes).collect::<Vec<_>>());
                let sizes = shares.iter().map(Vec::len);
                assert!(sizes.clone().max().unwrap() - sizes.min().unwrap() <= 1);
            }
        }
    }

    #[test]
    fn what_members_say_is_understood_and_noise_is_not() {
        for said in [Said::Hello, Said::Here, Said::Bye, Said::Who] {
            let body = format!("{} x-1 7", said.word());
            assert_eq!(Said::read(body.as_bytes()), Some((said, "x-1".to_owned(), 7)));
        }
        for noise in [&b""[..], b"hello", b"shout x", b"\xff"] {
            assert_eq!(Said::read(noise), None);
        }
    }
}
