//! One connection from its beginning to its end: what it sends, what it waits for.
//!
//! The packets are those of `rumqttc`, its event loop is not: that one writes and flushes each
//! message by itself, hands out packet ids only up to its window and stops when the server confirms
//! out of order, keeps unconfirmed messages for the next connection and then numbers them anew, and
//! ends the connection when a packet is too large. Here a connection is one incarnation. It has
//! packet ids of its own, knows for each message whether it was confirmed, and when it ends, what it
//! waited for is unknown. The task behind it reads and writes at the same time and runs no foreign
//! code but a sink that never waits; whoever sends puts bytes into a buffer, and everything that is
//! there goes out in one write.

mod drive;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io::Write as _;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use parking_lot::Mutex;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    Filter, PubAck, PubAckReason, Publish, PublishProperties, Subscribe,
};
use tokio::sync::{Notify, Semaphore, oneshot, watch};
use tokio::time::Instant;

use crate::connect::{Reached, Server};
use crate::error::End;

/// Where incoming messages go. It must not wait.
pub(crate) type Sink = Box<dyn FnMut(Publish) + Send>;

/// How long a connection may take to end well.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);
/// How many messages go into the buffer under one lock.
const CHUNK: usize = 64;
/// Packet ids that are left for subscriptions.
const IDS_SPARE: u16 = 64;

/// When a connection is given up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    pub(crate) keep_alive: Duration,
    /// How long the server may take to confirm a message.
    pub(crate) confirm: Duration,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The server has answered.
    Answered(PubAckReason),
    /// It was sent, and the connection ended before an answer.
    Unknown,
    /// It never was sent.
    Unsent,
}

/// A connection. Clones share it; when the last is dropped, it ends well.
#[derive(Clone)]
pub(crate) struct Link(Arc<Handle>);

struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// What handles and the task share.
struct Shared {
    wire: Mutex<Wire>,
    /// There is something to write, or an end to bring about.
    work: Notify,
    /// Permits for messages on their way.
    window: Semaphore,
    chunk: usize,
    server: Server,
    ended: watch::Sender<Option<End>>,
}

#[derive(Default)]
struct Wire {
    out: BytesMut,
    /// Whether the task has bytes that it has not written yet, which go first.
    writing: bool,
    /// The socket itself, until the end.
    direct: Option<TcpStream>,
    last_id: u16,
    pending: HashMap<u16, Waiter>,
    /// When messages were put into the buffer, by their first packet id.
    sent: VecDeque<(Instant, u16)>,
    closing: bool,
}

/// Who waits for the answer to a packet.
enum Waiter {
    Publish { batch: Arc<Batch>, index: usize },
    Subscribe(oneshot::Sender<Result<(), String>>),
}

/// Messages that somebody sent together.
struct Batch {
    outcomes: Mutex<Vec<Outcome>>,
    /// How many answers are missing, and one for the sender itself.
    open: AtomicUsize,
    done: Notify,
}

impl Batch {
    fn new(count: usize) -> Self {
        Self {
            outcomes: Mutex::new(vec![Outcome::Unsent; count]),
            open: AtomicUsize::new(1),
            done: Notify::new(),
        }
    }

    fn answer(&self, index: usize, outcome: Outcome) {
        self.outcomes.lock()[index] = outcome;
        self.one_less();
    }

    fn one_less(&self) {
        if self.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.done.notify_one();
        }
    }
}

impl Wire {
    /// A packet id that is not in use. There are more ids than permits.
    fn id(&mut self) -> u16 {
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            if !self.pending.contains_key(&self.last_id) {
                return self.last_id;
            }
        }
    }
}

impl Wire {
    /// Writes the buffer at once if nothing is on its way: then nobody gains by waiting for more. The
    /// task does the rest, if any. Whether it has to.
    fn write_through(&mut self) -> bool {
        if let Some(direct) = &mut self.direct
            && !self.writing
            && let Ok(written) = direct.write(&self.out)
        {
            self.out.advance(written);
        }
        !self.out.is_empty()
    }
}

impl Link {
    /// Begins with a connection that the server has taken. `rest` came after its answer.
    pub(crate) fn start(
        reached: Reached,
        rest: BytesMut,
        server: Server,
        window: u16,
        timing: Timing,
        sink: Sink,
    ) -> Self {
        let window = usize::from(window.clamp(1, u16::MAX - IDS_SPARE));
        let shared = Arc::new(Shared {
            wire: Mutex::new(Wire { direct: reached.direct, ..Wire::default() }),
            work: Notify::new(),
            window: Semaphore::new(window),
            chunk: (window / 8).clamp(1, CHUNK),
            server,
            ended: watch::Sender::new(None),
        });
        tokio::spawn(drive::drive(Arc::clone(&shared), reached.stream, rest, timing, sink));
        Self(Arc::new(Handle(shared)))
    }

    fn shared(&self) -> &Shared {
        &self.0.0
    }

    /// What the server said when it took the connection.
    pub(crate) fn server(&self) -> Server {
        self.shared().server
    }

    /// Sends messages with QoS 1 and waits for what becomes of each. No more are on their way than
    /// the window allows.
    ///
    /// # Cancel safety
    /// Dropping the future forgets the answers, not the messages.
    pub(crate) async fn publish(&self, packets: Vec<Publish>) -> Vec<Outcome> {
        let shared = self.shared();
        let batch = Arc::new(Batch::new(packets.len()));
        let mut packets = packets.into_iter().enumerate();
        while packets.len() > 0 {
            let count = packets.len().min(shared.chunk);
            let wanted = u32::try_from(count).unwrap_or(1);
            let Ok(permits) = shared.window.acquire_many(wanted).await else { break };
            if !shared.put(packets.by_ref().take(count), &batch) {
                break;
            }
            // They come back with the answers.
            permits.forget();
        }
        batch.one_less();
        batch.done.notified().await;
        std::mem::take(&mut *batch.outcomes.lock())
    }

    /// Sends one message with QoS 1.
    pub(crate) async fn publish_one(&self, packet: Publish) -> Outcome {
        self.publish(vec![packet]).await.pop().unwrap_or(Outcome::Unsent)
    }

    /// Sets a note that the broker shows to whoever asks; an empty one removes it.
    pub(crate) async fn note(
        &self,
        topic: &str,
        text: impl Into<Bytes>,
        expires: Option<Duration>,
    ) -> Outcome {
        let properties = expires.map(|expires| PublishProperties {
            message_expiry_interval: Some(u32::try_from(expires.as_secs()).unwrap_or(u32::MAX)),
            ..PublishProperties::default()
        });
        let mut packet = Publish::new(topic, QoS::AtLeastOnce, text, properties);
        packet.retain = true;
        self.publish_one(packet).await
    }

    /// Sends a message that nobody confirms.
    pub(crate) fn tell(&self, topic: &str, text: impl Into<Bytes>) {
        let packet = Publish::new(topic, QoS::AtMostOnce, text, None);
        self.shared().write(|out| packet.write(out).map(drop));
    }

    /// Subscribes to all of these.
    ///
    /// # Errors
    /// In words.
    pub(crate) async fn subscribe(&self, filters: Vec<String>, qos: QoS) -> Result<(), String> {
        let (answer, answered) = oneshot::channel();
        let filters = filters.into_iter().map(|path| Filter::new(path, qos));
        let mut packet = Subscribe::new_many(filters, None);
        {
            let shared = self.shared();
            let mut wire = shared.wire.lock();
            if wire.closing {
                return Err(self.why());
            }
            packet.pkid = wire.id();
            packet.write(&mut wire.out).map_err(|error| error.to_string())?;
            wire.pending.insert(packet.pkid, Waiter::Subscribe(answer));
        }
        self.shared().work.notify_one();
        answered.await.unwrap_or_else(|_| Err(self.why()))
    }

    /// Acknowledges these messages.
    pub(crate) fn ack(&self, ids: impl IntoIterator<Item = u16>) {
        let ids = ids.into_iter();
        self.shared().write(|out| {
            for id in ids {
                PubAck::new(id, None).write(out)?;
            }
            Ok(())
        });
    }

    /// Waits for the end.
    pub(crate) async fn ended(&self) -> End {
        let mut ended = self.shared().ended.subscribe();
        let end = ended.wait_for(Option::is_some).await;
        end.ok().and_then(|end| end.clone()).unwrap_or(End::Closed)
    }

    /// Whether it has ended, or is about to.
    pub(crate) fn is_over(&self) -> bool {
        self.shared().wire.lock().closing
    }

    /// Ends it well: what is in the buffer goes out, and the server has read it when this returns.
    pub(crate) async fn close(&self) {
        self.shared().close();
        let _ = tokio::time::timeout(CLOSE_WITHIN, self.ended()).await;
    }

    /// Why it is over, in words.
    pub(crate) fn why(&self) -> String {
        self.shared()
            .ended
            .borrow()
            .as_ref()
            .map_or_else(|| End::Closed.to_string(), End::to_string)
    }
}

impl Shared {
    /// Puts messages into the buffer; `false` when the connection is over.
    fn put(&self, packets: impl Iterator<Item = (usize, Publish)>, batch: &Arc<Batch>) -> bool {
        let mut wire = self.wire.lock();
        if wire.closing {
            return false;
        }
        let idle = wire.pending.is_empty();
        let mut first = None;
        for (index, mut packet) in packets {
            packet.pkid = wire.id();
            let length = wire.out.len();
            if packet.write(&mut wire.out).is_err() {
                // Whoever made it has checked what it may hold; this is only to keep the wire clean.
                wire.out.truncate(length);
                self.window.add_permits(1);
                continue;
            }
            first.get_or_insert(packet.pkid);
            batch.open.fetch_add(1, Ordering::Relaxed);
            wire.pending.insert(packet.pkid, Waiter::Publish { batch: Arc::clone(batch), index });
        }
        wire.sent.extend(first.map(|id| (Instant::now(), id)));
        let for_task = !idle || wire.write_through();
        drop(wire);
        if for_task {
            self.work.notify_one();
        }
        true
    }

    fn write(
        &self,
        write: impl FnOnce(&mut BytesMut) -> Result<(), rumqttc::v5::mqttbytes::Error>,
    ) {
        let mut wire = self.wire.lock();
        let length = wire.out.len();
        if wire.closing {
            return;
        }
        if write(&mut wire.out).is_err() {
            wire.out.truncate(length);
        }
        drop(wire);
        self.work.notify_one();
    }

    fn close(&self) {
        self.wire.lock().closing = true;
        self.work.notify_one();
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("server", &self.shared().server).finish_non_exhaustive()
    }
}
