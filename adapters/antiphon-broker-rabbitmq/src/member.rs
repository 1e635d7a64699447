//! The task of a member: opens and closes the queues that it reads, shares the lanes of an ordered
//! group with the others, and looks whether the server still delivers.
//!
//! Whatever goes wrong with a channel or a queue ends the member ([`End::Lost`]); the consumer
//! engine then joins anew, declaring everything again.

use std::sync::Arc;
use std::time::Duration;

use antiphon_core::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use lapin::Consumer;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::connection::{Line, Live};
use crate::held::{End, Held, Taken};
use crate::presence::Presence;
use crate::settle::requeue;
use crate::topology::{Layout, Maker};

/// After how long without a fetch the server gets back what nobody has asked for.
const IDLE: Duration = Duration::from_millis(100);
/// How often it is looked whether the server delivers what is there, and how long that may take.
const LOOK_EVERY: Duration = Duration::from_secs(15);
const LOOK_WITHIN: Duration = Duration::from_secs(5);
/// The buffer of a lane holds at least so many: nobody else could have them meanwhile. Not many
/// more than are asked for, since what lies unsettled for half an hour ends the channel.
const LANE_PREFETCH_MIN: usize = 16;
/// How long a member waits for the exchange of its group before it acts as if it were alone: a
/// server that takes no messages lets nobody say hello.
const PRESENCE_WITHIN: Duration = Duration::from_secs(2);
/// How long joining the others may take, before it is tried again.
const JOIN_WITHIN: Duration = Duration::from_secs(30);
const JOIN_AGAIN: Duration = Duration::from_secs(2);
/// Nobody takes over before everything is settled; the drain has a deadline of its own.
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3_600);
/// What the protocol has room for.
const PREFETCH_MAX: usize = 65_535;

/// How the members of the group are joined, by the connection that publishes.
type Joining = BoxFuture<'static, Result<Presence, String>>;

/// Lanes whose reader says that it holds nothing of them any more.
type GivenUp = BoxFuture<'static, Vec<u32>>;

pub(crate) struct Member {
    held: Arc<Held>,
    live: Arc<Live>,
    layout: Layout,
    queues: Vec<String>,
    handover: Duration,
    /// The connection that publishes.
    sending: Arc<Line>,
    presence: Option<Presence>,
    joining: Option<Joining>,
    /// Not before this moment.
    join_from: Instant,
    /// From here on a member that hears of nobody takes all lanes.
    alone_from: Option<Instant>,
    given_up: FuturesUnordered<GivenUp>,
    next_serial: u64,
    /// How much was delivered when it was last looked, and how often nothing had moved.
    looked: u64,
    stalls: u32,
    done: watch::Sender<bool>,
}

impl Member {
    /// Begins to read the queues of a group.
    pub(crate) async fn join(
        held: Arc<Held>,
        live: Arc<Live>,
        sending: Arc<Line>,
        layout: Layout,
        queues: Vec<String>,
        handover: Duration,
    ) -> lapin::Result<(Self, watch::Receiver<bool>)> {
        let (done, waits) = watch::channel(false);
        let mut member = Self {
            held,
            live,
            layout,
            queues,
            handover,
            sending,
            presence: None,
            joining: None,
            join_from: Instant::now(),
            alone_from: Some(Instant::now() + PRESENCE_WITHIN),
            given_up: FuturesUnordered::new(),
            next_serial: 0,
            looked: 0,
            stalls: 0,
            done,
        };
        if !member.held.ordered {
            let taken = member.open(0).await?;
            member.held.lock().queues.push(taken);
        }
        Ok((member, waits))
    }

    pub(crate) async fn run(mut self, line: Arc<Line>) {
        let mut ended = line.ended(self.live.epoch);
        // The member does not keep the broker's connection alive by itself.
        drop(line);
        let mut tick = interval(IDLE);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut next_look = Instant::now() + LOOK_EVERY;
        loop {
            self.keep_presence();
            if let Err(reason) = self.act().await {
                self.held.lock().end(End::Lost(reason));
            }
            if self.held.lock().end.is_some() {
                break;
            }
            tokio::select! {
                () = self.held.changed.notified() => {}
                why = &mut ended => self.held.lock().end(End::Lost(why.to_string())),
                heard = hear(&mut self.presence, &mut self.joining) => if let Err(why) = heard {
                    let group = &self.held.group;
                    tracing::warn!(group, why, "the other members are not heard of for now");
                    self.join_from = Instant::now() + JOIN_AGAIN;
                },
                Some(lanes) = self.given_up.next(), if !self.given_up.is_empty() => {
                    self.close_lanes(&lanes).await;
                }
                _ = tick.tick() => {}
            }
            if Instant::now() >= next_look {
                next_look = Instant::now() + LOOK_EVERY;
                if let Err(reason) = self.look().await {
                    self.held.lock().end(End::Lost(reason));
                }
            }
        }
        self.leave().await;
    }

    /// Joins the members of the group, again when the connection for it was lost. The lanes
    /// stay as they are meanwhile.
    fn keep_presence(&mut self) {
        let is_leaving = self.held.lock().closing;
        let is_under_way = self.presence.is_some() || self.joining.is_some();
        if is_leaving || is_under_way || Instant::now() < self.join_from {
            return;
        }
        let (sending, held) = (Arc::clone(&self.sending), Arc::clone(&self.held));
        self.joining = Some(Box::pin(async move {
            let live = sending.live(JOIN_WITHIN).await.map_err(|why| why.to_string())?;
            let joining = timeout(JOIN_WITHIN, Presence::join(&live, held)).await;
            joining.map_err(|_| "no answer".to_owned())?.map_err(|error| error.to_string())
        }));
    }

    /// The lanes that are this member's; `None` while that is not known, or has not changed.
    fn lanes(&mut self) -> Option<Vec<u32>> {
        let lanes = self.layout.lanes;
        if let Some(presence) = &self.presence {
            let mine = presence.lanes(lanes);
            if mine.is_some() {
                self.alone_from = None;
            }
            return mine;
        }
        let is_alone = self.alone_from.is_some_and(|from| from <= Instant::now());
        is_alone.then(|| (0..lanes).collect())
    }

    /// Does what the state asks for.
    async fn act(&mut self) -> Result<(), String> {
        if self.held.lock().closing {
            return self.act_closing().await;
        }
        if self.held.ordered { self.share_lanes().await } else { self.adjust_consumers().await }
            .map_err(|error| error.to_string())
    }

    /// Unordered: lets the server send as much as the reader wants to hold, and takes it back when
    /// the reader does not fetch any more, so that other members get it.
    async fn adjust_consumers(&mut self) -> lapin::Result<()> {
        let (channel, queue, more, idle) = {
            let mut state = self.held.lock();
            let idle = state.idle_since.is_some_and(|since| since.elapsed() >= IDLE);
            let wanted = state.wanted;
            let Some(taken) = state.queues.first_mut() else { return Ok(()) };
            let more = wanted.saturating_sub(taken.capacity).min(PREFETCH_MAX);
            let idle = idle && !taken.consumers.is_empty();
            if !idle && more == 0 {
                return Ok(());
            }
            (taken.channel.clone(), taken.queue.clone(), more, idle)
        };
        if idle {
            let (consumers, tags) = {
                let mut state = self.held.lock();
                state.wanted = 0;
                state.queues.first_mut().map(Taken::take_consumers).unwrap_or_default()
            };
            return end_consumers(&channel, consumers, tags).await;
        }
        let consumer = consume(&channel, &queue, more).await?;
        let mut state = self.held.lock();
        if let Some(taken) = state.queues.first_mut() {
            taken.consumers.push(consumer);
            taken.capacity += more;
        }
        state.wake();
        Ok(())
    }

    /// Ordered: takes the lanes that are this member's, and gives up those that are not any more.
    async fn share_lanes(&mut self) -> lapin::Result<()> {
        if let Some(mine) = self.lanes() {
            self.revoke_all_but(&mine);
            let (wanted, missing): (usize, Vec<u32>) = {
                let state = self.held.lock();
                let has = |lane: &u32| state.queues.iter().any(|taken| taken.lane == *lane);
                (state.wanted, mine.into_iter().filter(|lane| !has(lane)).collect())
            };
            if wanted > 0 {
                for lane in missing {
                    self.take_lane(lane, wanted).await?;
                }
            }
        }
        self.close_free_lanes().await;
        Ok(())
    }

    /// Marks lanes as to be given up; the reader is told of those that it holds something of.
    fn revoke_all_but(&mut self, mine: &[u32]) {
        let mut state = self.held.lock();
        let until = Instant::now() + self.handover;
        let mut told = Vec::new();
        for taken in &mut state.queues {
            if !mine.contains(&taken.lane) && taken.revoked_until.is_none() {
                taken.revoked_until = Some(until);
                if taken.held() > 0 {
                    told.push(taken.lane);
                }
            }
        }
        if told.is_empty() {
            return;
        }
        let (done, waits) = oneshot::channel();
        state.revoked.push_back((told.clone(), done));
        state.wake();
        drop(state);
        self.given_up.push(Box::pin(waits.map(move |_| told)));
    }

    async fn take_lane(&mut self, lane: u32, wanted: usize) -> lapin::Result<()> {
        let mut taken = self.open(lane).await?;
        let prefetch = wanted.clamp(LANE_PREFETCH_MIN, PREFETCH_MAX);
        taken.consumers.push(consume(&taken.channel, &taken.queue, prefetch).await?);
        taken.capacity = prefetch;
        let mut state = self.held.lock();
        state.queues.push(taken);
        state.wake();
        Ok(())
    }

    /// Closes revoked lanes of which nothing is held any more, or whose time is up.
    async fn close_free_lanes(&mut self) {
        let now = Instant::now();
        let free: Vec<u32> = {
            let state = self.held.lock();
            let over = |taken: &&Taken| {
                taken.revoked_until.is_some_and(|until| taken.held() == 0 || until <= now)
            };
            state.queues.iter().filter(over).map(|taken| taken.lane).collect()
        };
        if !free.is_empty() {
            self.close_lanes(&free).await;
        }
    }

    /// Closes revoked lanes: what the reader still holds of them is stale from here on. The server
    /// gives the whole channel's messages back before the next member gets any.
    async fn close_lanes(&mut self, lanes: &[u32]) {
        let closed: Vec<Taken> = {
            let mut state = self.held.lock();
            let is_closed =
                |taken: &mut Taken| lanes.contains(&taken.lane) && taken.revoked_until.is_some();
            let closed: Vec<Taken> = state.queues.extract_if(.., is_closed).collect();
            let gone: Vec<u32> = closed.iter().map(|taken| taken.lane).collect();
            // Nobody needs to hear of what is already done.
            state.revoked.retain(|(told, _)| told.iter().any(|lane| !gone.contains(lane)));
            closed
        };
        for taken in closed {
            if taken.held() > 0 {
                tracing::warn!(
                    group = self.held.group,
                    lane = taken.lane,
                    held = taken.held(),
                    "a lane was given up with messages in hand: they come again"
                );
            }
            close_channel(&taken).await;
        }
    }

    /// Leaves the group queue by queue, as soon as nothing of one is held.
    async fn act_closing(&mut self) -> Result<(), String> {
        if let Some(presence) = self.presence.take() {
            presence.leave();
        }
        if self.held.ordered {
            for taken in &mut self.held.lock().queues {
                taken.revoked_until.get_or_insert(Instant::now() + FOR_EVER);
            }
            self.close_free_lanes().await;
        } else {
            let ended = {
                let mut state = self.held.lock();
                let ended = |taken: &mut Taken| (taken.channel.clone(), taken.take_consumers());
                state.queues.first_mut().map(ended)
            };
            if let Some((channel, (consumers, tags))) = ended {
                let ending = end_consumers(&channel, consumers, tags).await;
                ending.map_err(|error| error.to_string())?;
            }
        }
        let mut state = self.held.lock();
        if state.held() == 0 {
            state.end(End::Left);
        }
        Ok(())
    }

    async fn leave(mut self) {
        if let Some(presence) = self.presence.take() {
            presence.leave();
        }
        let queues = std::mem::take(&mut self.held.lock().queues);
        for taken in queues {
            close_channel(&taken).await;
        }
        self.done.send_replace(true);
    }

    /// Opens the channel of a lane.
    async fn open(&mut self, lane: u32) -> lapin::Result<Taken> {
        let channel = self.live.channel().await?;
        self.next_serial += 1;
        let queue = self.queues.get(lane as usize).cloned().unwrap_or_default();
        Ok(Taken::new(self.next_serial, lane, queue, channel))
    }

    /// Looks whether the server delivers what is there: a stalled consumer says nothing of itself.
    async fn look(&mut self) -> Result<(), String> {
        let (queues, delivered, waits) = {
            let state = self.held.lock();
            let room = |taken: &&Taken| {
                // Of a lane that never delivered anything, another member may still be the active
                // consumer.
                let active = !self.held.ordered || taken.delivered > 0;
                active && !taken.consumers.is_empty() && taken.open.len() < taken.capacity
            };
            let queues: Vec<String> =
                state.queues.iter().filter(room).map(|taken| taken.queue.clone()).collect();
            let delivered: u64 = state.queues.iter().map(|taken| taken.delivered).sum();
            (queues, delivered, state.idle_since.is_none())
        };
        let mut ready = 0;
        let mut maker = Maker::new(&self.live, &self.layout);
        for queue in queues {
            match timeout(LOOK_WITHIN, maker.depth(&queue)).await {
                Ok(Ok(Some(depth))) => ready += depth.ready,
                Ok(Ok(None)) => return Err(format!("queue {queue} was deleted")),
                Ok(Err(fault)) => return Err(fault.text().to_owned()),
                Err(_) => {
                    self.live.condemn("it answers nothing any more");
                    return Err(format!("no answer within {LOOK_WITHIN:?}"));
                }
            }
        }
        let stalled = ready > 0 && waits && delivered == self.looked;
        self.looked = delivered;
        self.stalls = if stalled { self.stalls + 1 } else { 0 };
        if self.stalls >= 2 {
            return Err(format!("{ready} messages are ready and the server delivers none"));
        }
        Ok(())
    }
}

/// Waits for news of the other members.
///
/// # Cancel safety
/// Safe: all waiting is done before anything is changed.
async fn hear(
    presence: &mut Option<Presence>,
    joining: &mut Option<Joining>,
) -> Result<(), String> {
    if let Some(known) = presence {
        let heard = known.changed().await;
        if heard.is_err() {
            *presence = None;
        }
        heard
    } else if let Some(joins) = joining {
        let joined = joins.await;
        *joining = None;
        *presence = Some(joined?);
        Ok(())
    } else {
        std::future::pending().await
    }
}

async fn consume(
    channel: &lapin::Channel,
    queue: &str,
    prefetch: usize,
) -> lapin::Result<Consumer> {
    let prefetch = u16::try_from(prefetch).unwrap_or(u16::MAX);
    // Before the consumer: it is a promise to consumers that come after it.
    channel.basic_qos(prefetch, BasicQosOptions { global: false }).await?;
    let options = BasicConsumeOptions::default();
    channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await
}

/// Ends consumers, and gives back what they had got and nobody has asked for.
async fn end_consumers(
    channel: &lapin::Channel,
    consumers: Vec<Consumer>,
    tags: Vec<u64>,
) -> lapin::Result<()> {
    for tag in tags {
        requeue(channel, tag);
    }
    for mut consumer in consumers {
        channel.basic_cancel(consumer.tag().clone(), BasicCancelOptions::default()).await?;
        while let Some(Some(arrived)) = consumer.next().now_or_never() {
            requeue(channel, arrived?.delivery_tag);
        }
    }
    Ok(())
}

async fn close_channel(taken: &Taken) {
    let closing = taken.channel.close(200, "done".into());
    if !matches!(timeout(LOOK_WITHIN, closing).await, Ok(Ok(()))) {
        tracing::debug!(queue = taken.queue, "the channel had ended already");
    }
}
