//! How the members of an ordered group share its lanes.
//!
//! A lane is a queue with a single active consumer: the server sees to it that no two members get
//! its messages at a time, and that what one of them held comes again, first, to the next. What it
//! does not do is share: the first member would keep all lanes. So the members tell each other that
//! they are there, by an exchange of their group, and each of them computes who takes which lane. As
//! long as they do not agree, the server still lets only one of them have a lane; the others wait.

use std::collections::{BTreeMap, BTreeSet};
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
use crate::names;
use crate::topology::Maker;

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

    fn read(body: &[u8]) -> Option<(Self, String)> {
        let text = std::str::from_utf8(body).ok()?;
        let (word, member) = text.split_once(' ')?;
        let said = [Self::Hello, Self::Here, Self::Bye, Self::Who]
            .into_iter()
            .find(|s| s.word() == word)?;
        Some((said, member.to_owned()))
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
}

impl Presence {
    /// Says hello to the others of a group.
    pub(crate) async fn join(live: &Live, group: &str) -> lapin::Result<Self> {
        Self::enter(live, group, Said::Hello).await
    }

    async fn enter(live: &Live, group: &str, first: Said) -> lapin::Result<Self> {
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
        let presence =
            Self { id, exchange, channel, heard, others: BTreeMap::new(), beat, listening_until };
        presence.tell_all(first);
        Ok(presence)
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
            _ = self.beat.tick() => {
                self.tell_all(Said::Here);
                self.others.retain(|_, seen| seen.elapsed() < EXPIRY);
            }
            () = tokio::time::sleep_until(self.listening_until),
                if Instant::now() < self.listening_until => {}
        }
        Ok(())
    }

    fn hear(&mut self, body: &[u8]) {
        let Some((said, member)) = Said::read(body) else { return };
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

    /// Tells the others that this member is gone.
    pub(crate) fn leave(&self) {
        self.tell_all(Said::Bye);
    }

    fn tell_all(&self, said: Said) {
        self.tell(&self.exchange, "", said);
    }

    /// Says something, without waiting: it is said again soon.
    fn tell(&self, exchange: &str, queue: &str, said: Said) {
        let body = format!("{} {}", said.word(), self.id);
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

/// How many members an ordered group has.
pub(crate) async fn count(live: &Live, maker: &mut Maker<'_>, group: &str) -> Result<u32, Fault> {
    if !maker.has_exchange(&names::members_exchange(group)).await? {
        return Ok(0);
    }
    let fault = |error: lapin::Error| Fault::of(&error);
    let mut asking = Presence::enter(live, group, Said::Who).await.map_err(fault)?;
    let mut members = BTreeSet::new();
    let until = Instant::now() + LISTEN * 3;
    while let Ok(heard) = timeout_at(until, asking.heard.next()).await {
        let Some(delivery) = heard else { break };
        if let Some((Said::Here, member)) = Said::read(&delivery.map_err(fault)?.data) {
            members.insert(member);
        }
    }
    Ok(u32::try_from(members.len()).unwrap_or(u32::MAX))
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
            let body = format!("{} x-1", said.word());
            assert_eq!(Said::read(body.as_bytes()), Some((said, "x-1".to_owned())));
        }
        for noise in [&b""[..], b"hello", b"shout x", b"\xff"] {
            assert_eq!(Said::read(noise), None);
        }
    }
}
