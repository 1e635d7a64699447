//! The task that sends: keeps a window of messages on their way and takes in what the server says.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use antiphon_messaging::{PublishErrorKind, Sent};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{Channel, Confirmation};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::verdict::{Word, judge, may_be_cause};
use super::{Answer, Batch, Letter, Rules, To};
use crate::connection::{Line, Live};
use crate::error::{Fault, not_taken};
use crate::settings::Unread;
use crate::topology::{Declared, Layout, Maker};

/// How often it is looked whether the server still moves.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long a server that takes nothing is waited for before it is called overloaded.
const BLOCKED_WAIT: Duration = Duration::from_secs(1);
/// How often what was deleted is made again.
const RESTORE_EVERY: Duration = Duration::from_millis(500);
/// How many messages wait here at most before another batch is taken; a batch may be larger.
const QUEUE_MAX: usize = 4_096;

/// A message on its way, by the order of sending.
type Flight = Pin<Box<dyn Future<Output = (u64, lapin::Result<Confirmation>)> + Send>>;

/// A batch that is not answered yet.
struct Open {
    answers: Vec<Option<Answer>>,
    missing: usize,
    /// Some of it was sent.
    begun: bool,
    /// The topics and keys of which a message was not taken, and why: nothing later of them is sent.
    held_up: HashMap<(String, String), PublishErrorKind>,
    reply: oneshot::Sender<Vec<Answer>>,
}

/// Where a message belongs.
#[derive(Clone, Copy)]
struct Place {
    batch: u64,
    index: usize,
}

/// The channel that everything is sent on.
struct Session {
    live: Arc<Live>,
    channel: Arc<Channel>,
    /// Topics that were there when they were looked for.
    known: HashSet<String>,
}

pub(super) struct Desk {
    line: Arc<Line>,
    rules: Rules,
    declared: Arc<Declared>,
    layout: Layout,
    server_max: Arc<AtomicUsize>,
    session: Option<Session>,
    open: HashMap<u64, Open>,
    next_batch: u64,
    queue: VecDeque<(Place, Letter)>,
    sent: BTreeMap<u64, (Place, Arc<Letter>)>,
    next_flight: u64,
    flights: FuturesUnordered<Flight>,
    /// Ids of messages that came back and whose confirmation did not come yet.
    returned: HashMap<String, usize>,
    moved: Instant,
    blocked_since: Option<Instant>,
    /// Something that this process has declared is not there any more.
    missed: bool,
    restored: Option<Instant>,
}

impl Desk {
    pub(super) fn new(
        line: Arc<Line>,
        rules: Rules,
        declared: Arc<Declared>,
        layout: Layout,
        server_max: Arc<AtomicUsize>,
    ) -> Self {
        Self {
            line,
            rules,
            declared,
            layout,
            server_max,
            session: None,
            open: HashMap::new(),
            next_batch: 0,
            queue: VecDeque::new(),
            sent: BTreeMap::new(),
            next_flight: 0,
            flights: FuturesUnordered::new(),
            returned: HashMap::new(),
            moved: Instant::now(),
            blocked_since: None,
            missed: false,
            restored: None,
        }
    }

    pub(super) async fn run(mut self, mut batches: mpsc::Receiver<Batch>) {
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if let Err(why) = self.fill().await {
                // All that came while the connection was waited for has waited as well.
                while let Ok(batch) = batches.try_recv() {
                    self.accept(batch);
                }
                self.refuse_queue(PublishErrorKind::Disconnected, &why);
            }
            tokio::select! {
                biased;
                Some(ended) = self.flights.next(), if !self.flights.is_empty() => {
                    self.take_in(ended);
                }
                batch = batches.recv(), if self.queue.len() < QUEUE_MAX => match batch {
                    Some(batch) => self.accept(batch),
                    None => return,
                },
                _ = look.tick() => self.look(),
            }
        }
    }

    fn accept(&mut self, batch: Batch) {
        let number = self.next_batch;
        self.next_batch += 1;
        let mut answers = Vec::with_capacity(batch.letters.len());
        for (index, letter) in batch.letters.into_iter().enumerate() {
            answers.push(match letter {
                Ok(letter) => {
                    self.queue.push_back((Place { batch: number, index }, letter));
                    None
                }
                Err(error) => Some(Err(error)),
            });
        }
        let missing = answers.iter().filter(|answer| answer.is_none()).count();
        let open =
            Open { answers, missing, begun: false, held_up: HashMap::new(), reply: batch.reply };
        if missing == 0 {
            open.finish();
        } else {
            self.open.insert(number, open);
        }
    }

    /// Sends what the window has room for. The error says why there is no connection.
    async fn fill(&mut self) -> Result<(), String> {
        while self.flights.len() < self.rules.window && !self.queue.is_empty() {
            if self.session.as_ref().is_some_and(|s| !s.channel.status().connected()) {
                self.leave_session();
            }
            if self.session.is_none() {
                if !self.flights.is_empty() {
                    // What was sent on the channel before is answered first.
                    return Ok(());
                }
                self.begin_session().await?;
            }
            if self.is_blocked() {
                return Ok(());
            }
            self.restore_missed().await;
            let Some((place, letter)) = self.queue.pop_front() else { return Ok(()) };
            let held_up = self.open.get(&place.batch).and_then(|open| open.held_up_by(&letter));
            if let Some(kind) = held_up {
                let why = "an earlier message of its key was not taken";
                self.answer(place, Err(not_taken(letter.name.as_str(), kind, Sent::No, why)));
            } else if let Some(answer) = self.missing_topic(&letter).await {
                self.answer_letter(place, &letter, answer);
            } else {
                self.send(place, letter);
            }
        }
        Ok(())
    }

    /// Opens a channel with confirms.
    async fn begin_session(&mut self) -> Result<(), String> {
        let live = self.line.live(self.rules.timeout).await.map_err(|why| why.to_string())?;
        let opening = async {
            let channel = live.channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            Ok(channel)
        };
        let opened = timeout(self.rules.timeout, opening).await;
        let opened = opened.unwrap_or_else(|_| {
            live.condemn("it opens no channel");
            Err(lapin::ErrorKind::MissingHeartbeatError.into())
        });
        let channel = opened.map_err(|error: lapin::Error| error.to_string())?;
        self.moved = Instant::now();
        self.returned.clear();
        self.session = Some(Session { live, channel: Arc::new(channel), known: HashSet::new() });
        Ok(())
    }

    /// The channel is gone. What was begun on it and is not sent must not overtake what was.
    fn leave_session(&mut self) {
        self.session = None;
        self.blocked_since = None;
        let begun: HashSet<u64> =
            self.open.iter().filter(|(_, open)| open.begun).map(|(number, _)| *number).collect();
        let (refused, kept) = std::mem::take(&mut self.queue)
            .into_iter()
            .partition(|(p, _)| begun.contains(&p.batch));
        self.queue = kept;
        self.refuse(
            refused,
            PublishErrorKind::Disconnected,
            "the channel ended before it was sent",
        );
    }

    /// Why a message cannot be sent, if its topic does not exist: the server would close the channel,
    /// and with it end what is on its way.
    async fn missing_topic(&mut self, letter: &Letter) -> Option<Answer> {
        let session = self.session.as_mut()?;
        let topic = letter.name.as_str();
        if letter.to == To::Inbox || session.known.contains(topic) {
            return None;
        }
        let mut maker = Maker::new(&session.live, &self.layout);
        let looked = timeout(self.rules.timeout, maker.has_exchange(topic)).await;
        let looked = looked.unwrap_or_else(|_| Err(Fault::Gone("no answer in time".to_owned())));
        let (kind, why) = match looked {
            Ok(true) => {
                session.known.insert(topic.to_owned());
                return None;
            }
            Ok(false) => {
                // Somebody has deleted it, if this process has declared it.
                self.missed |= self.declared.knows_topic(topic);
                (PublishErrorKind::Unroutable, "this topic was not declared".to_owned())
            }
            Err(Fault::Denied(why)) => (PublishErrorKind::Unauthorized, why),
            Err(fault) => (PublishErrorKind::Disconnected, fault.text().to_owned()),
        };
        Some(Err(not_taken(topic, kind, Sent::No, why)))
    }

    /// Makes again what somebody has deleted, once in a while.
    async fn restore_missed(&mut self) {
        let is_due = self.restored.is_none_or(|at| at.elapsed() >= RESTORE_EVERY);
        let (true, true, Some(session)) = (self.missed, is_due, &self.session) else { return };
        (self.missed, self.restored) = (false, Some(Instant::now()));
        let restoring = self.declared.restore(&session.live, &self.layout);
        match timeout(self.rules.timeout, restoring).await {
            Ok(Ok(())) => tracing::warn!("topics or groups had been deleted: declared again"),
            Ok(Err(why)) => tracing::warn!(why, "what was deleted could not be declared again"),
            Err(_) => tracing::warn!("what was deleted could not be declared again in time"),
        }
    }

    fn send(&mut self, place: Place, mut letter: Letter) {
        let Some(session) = &self.session else { return };
        let properties = std::mem::take(&mut letter.properties);
        let number = self.next_flight;
        self.next_flight += 1;
        let letter = Arc::new(letter);
        let (channel, sending) = (Arc::clone(&session.channel), Arc::clone(&letter));
        let refuse_unread = self.rules.unread == Unread::Refuse;
        let mut flight: Flight = Box::pin(async move {
            let (exchange, route) = match sending.to {
                To::Topic => (sending.name.clone(), sending.route.into()),
                To::Inbox => ("".into(), sending.name.clone()),
            };
            // Without it a message that no queue wants is confirmed and gone.
            let mandatory = sending.to == To::Topic && refuse_unread;
            let options = BasicPublishOptions { mandatory, immediate: false };
            let publishing =
                channel.basic_publish(exchange, route, options, &sending.body, properties);
            let outcome = match publishing.await {
                Ok(confirm) => confirm.await,
                Err(error) => Err(error),
            };
            (number, outcome)
        });
        if let Some(open) = self.open.get_mut(&place.batch) {
            open.begun = true;
        }
        if self.flights.is_empty() {
            self.moved = Instant::now();
        }
        self.sent.insert(number, (place, letter));
        // The first poll puts it in line, so that the order is that of these calls.
        match flight.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(outcome) => self.flights.push(Box::pin(std::future::ready(outcome))),
            Poll::Pending => self.flights.push(flight),
        }
    }

    /// Takes in everything that the server has said by now. Returned messages first: one may be
    /// attached to the confirmation of another.
    fn take_in(&mut self, first: (u64, lapin::Result<Confirmation>)) {
        self.moved = Instant::now();
        let mut words = vec![self.hear(first)];
        while let Some(Some(next)) = self.flights.next().now_or_never() {
            let word = self.hear(next);
            words.push(word);
        }
        let mut ended: BTreeMap<u64, Fault> = BTreeMap::new();
        for (number, word) in words {
            match word {
                Word::Ended(fault) => drop(ended.insert(number, fault)),
                word => self.conclude(number, word, false),
            }
        }
        if !ended.is_empty() {
            self.channel_ended(ended);
        }
    }

    fn hear(&mut self, (number, outcome): (u64, lapin::Result<Confirmation>)) -> (u64, Word) {
        let (word, back) = match outcome {
            Ok(Confirmation::Ack(back)) => (Word::Taken, back),
            Ok(Confirmation::Nack(back)) => (Word::Refused, back),
            Ok(Confirmation::NotRequested) => (Word::Silent, None),
            Err(error) => (Word::Ended(Fault::of(&error)), None),
        };
        if let Some(id) = back.as_ref().and_then(|back| back.properties.message_id().as_ref()) {
            *self.returned.entry(id.as_str().to_owned()).or_default() += 1;
        }
        (number, word)
    }

    fn conclude(&mut self, number: u64, word: Word, is_cause: bool) {
        let Some((place, letter)) = self.sent.remove(&number) else { return };
        let word = match word {
            Word::Taken if self.came_back(&letter.id) => {
                self.missed |= self.declared.reads_topic(letter.name.as_str());
                Word::Returned
            }
            word => word,
        };
        let answer = judge(&letter, &word, is_cause);
        self.answer_letter(place, &letter, answer);
    }

    fn came_back(&mut self, id: &str) -> bool {
        if self.returned.is_empty() {
            return false;
        }
        let Some(count) = self.returned.get_mut(id) else { return false };
        *count -= 1;
        if *count == 0 {
            self.returned.remove(id);
        }
        true
    }

    /// The server, or somebody, ended the channel. If it names the message that it ended it for, that
    /// one was not taken; the others may have been.
    fn channel_ended(&mut self, ended: BTreeMap<u64, Fault>) {
        let cause = ended.iter().find(|(number, fault)| {
            self.sent.get(number).is_some_and(|(_, letter)| may_be_cause(letter, fault))
        });
        let cause = cause.map(|(number, fault)| (*number, fault.clone()));
        if let Some(max) = cause.as_ref().and_then(|(_, fault)| fault.size_limit()) {
            self.server_max.fetch_min(max, Ordering::Relaxed);
        }
        for (number, fault) in ended {
            let is_cause = cause.as_ref().is_some_and(|(it, _)| *it == number);
            self.conclude(number, Word::Ended(fault), is_cause);
        }
        if self.session.as_ref().is_some_and(|session| !session.channel.status().connected()) {
            self.leave_session();
        }
    }

    /// Looks whether the server still moves.
    fn look(&mut self) {
        let now = Instant::now();
        let stuck = !self.flights.is_empty() && now - self.moved > self.rules.timeout;
        if self.is_blocked() {
            let since = *self.blocked_since.get_or_insert(now);
            let why = "the server is short of memory or disk and takes no messages";
            if now - since >= BLOCKED_WAIT {
                self.refuse_queue(PublishErrorKind::Overloaded, why);
            }
            if stuck {
                self.give_up_sent(PublishErrorKind::Overloaded, why);
            }
            return;
        }
        self.blocked_since = None;
        if let Some(session) = self.session.as_ref().filter(|_| stuck) {
            let why = format!("no message was confirmed within {:?}", self.rules.timeout);
            session.live.condemn(&why);
            self.give_up_sent(PublishErrorKind::Disconnected, &why);
            self.flights = FuturesUnordered::new();
            self.leave_session();
        }
    }

    fn is_blocked(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.live.is_blocked())
    }

    /// Answers for what was sent without waiting for it any longer.
    fn give_up_sent(&mut self, kind: PublishErrorKind, why: &str) {
        for (place, letter) in std::mem::take(&mut self.sent).into_values() {
            let error = not_taken(letter.name.as_str(), kind, Sent::Maybe, why);
            self.answer_letter(place, &letter, Err(error));
        }
    }

    /// Answers for everything that was not sent.
    fn refuse_queue(&mut self, kind: PublishErrorKind, why: &str) {
        let queue = std::mem::take(&mut self.queue);
        self.refuse(queue, kind, why);
    }

    fn refuse(&mut self, letters: VecDeque<(Place, Letter)>, kind: PublishErrorKind, why: &str) {
        for (place, letter) in letters {
            let error = not_taken(letter.name.as_str(), kind, Sent::No, why);
            self.answer(place, Err(error));
        }
    }

    fn answer_letter(&mut self, place: Place, letter: &Letter, answer: Answer) {
        // What is refused for good is put aside by whoever sent it, and holds nobody up.
        if let (Err(error), Some(open)) = (&answer, self.open.get_mut(&place.batch))
            && !error.is_permanent()
            && !letter.key.is_empty()
        {
            open.held_up.insert((letter.name.to_string(), letter.key.clone()), error.kind);
        }
        // It was there once, and may have been deleted.
        if let (Err(error), Some(session)) = (&answer, &mut self.session)
            && error.kind == PublishErrorKind::Unroutable
        {
            session.known.remove(letter.name.as_str());
        }
        self.answer(place, answer);
    }

    fn answer(&mut self, place: Place, answer: Answer) {
        let Some(open) = self.open.get_mut(&place.batch) else { return };
        if open.answers[place.index].is_none() {
            open.missing -= 1;
        }
        open.answers[place.index] = Some(answer);
        if open.missing == 0
            && let Some(open) = self.open.remove(&place.batch)
        {
            open.finish();
        }
    }
}

impl Open {
    /// Why a message may not be sent: one before it was not taken.
    fn held_up_by(&self, letter: &Letter) -> Option<PublishErrorKind> {
        if self.held_up.is_empty() {
            return None;
        }
        self.held_up.get(&(letter.name.to_string(), letter.key.clone())).copied()
    }

    fn finish(self) {
        // Whoever asked may have stopped waiting.
        let _ = self.reply.send(self.answers.into_iter().flatten().collect());
    }
}
