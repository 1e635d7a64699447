//! The task behind a connection: reads, writes, pings and notices when nobody is there.

use std::sync::Arc;

use bytes::BytesMut;
use rumqttc::v5::mqttbytes::Error;
use rumqttc::v5::mqttbytes::v5::{
    Disconnect, DisconnectReasonCode, Packet, PingReq, SubAck, SubscribeReasonCode, check,
};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::{Instant, MissedTickBehavior};

use super::{CLOSE_WITHIN, Outcome, Shared, Sink, Timing, Waiter};
use crate::connect::Stream;
use crate::error::End;

/// How much is read at a time.
const READ_BYTES: usize = 32 * 1024;
/// Below this much room a new buffer begins. Messages that are held keep the buffer that they came
/// in, so it should be full of them.
const READ_BYTES_MIN: usize = 2 * 1024;

struct Driver {
    shared: Arc<Shared>,
    timing: Timing,
    sink: Sink,
    incoming: BytesMut,
    heard: Instant,
    pinged: Instant,
}

/// Runs a connection to its end, and tells everybody who waits.
pub(super) async fn drive(
    shared: Arc<Shared>,
    stream: Box<dyn Stream>,
    rest: BytesMut,
    timing: Timing,
    sink: Sink,
) {
    let (reader, writer) = tokio::io::split(stream);
    let now = Instant::now();
    let mut driver = Driver {
        shared: Arc::clone(&shared),
        timing,
        sink,
        incoming: rest,
        heard: now,
        pinged: now,
    };
    let end = driver.run(reader, writer).await;
    shared.end(end);
}

impl Driver {
    async fn run(
        &mut self,
        mut reader: ReadHalf<Box<dyn Stream>>,
        mut writer: WriteHalf<Box<dyn Stream>>,
    ) -> End {
        let mut outgoing = BytesMut::new();
        let mut unflushed = false;
        let mut tick = tokio::time::interval(self.timing.keep_alive / 4);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        if let Err(end) = self.take_in() {
            return end;
        }
        loop {
            if outgoing.is_empty() && self.refill(&mut outgoing) && !unflushed {
                return self.leave(reader, writer).await;
            }
            unflushed |= !outgoing.is_empty();
            if self.incoming.capacity() - self.incoming.len() < READ_BYTES_MIN {
                self.incoming.reserve(READ_BYTES);
            }
            let shared = Arc::clone(&self.shared);
            tokio::select! {
                written = write(&mut writer, &mut outgoing), if unflushed => match written {
                    Ok(flushed) => unflushed = !flushed,
                    Err(error) => return End::Lost(format!("it cannot be written to: {error}")),
                },
                read = reader.read_buf(&mut self.incoming) => {
                    match read {
                        Ok(0) => return End::Lost("the server closed it".to_owned()),
                        Ok(_) => self.heard = Instant::now(),
                        Err(error) => return End::Lost(format!("it cannot be read: {error}")),
                    }
                    if let Err(end) = self.take_in() {
                        return end;
                    }
                }
                () = shared.work.notified(), if outgoing.is_empty() => {}
                _ = tick.tick() => if let Err(end) = self.watch() {
                    return end;
                },
            }
        }
    }

    /// Takes what is to be written; whether nothing is left and the connection is to end.
    fn refill(&self, outgoing: &mut BytesMut) -> bool {
        let mut wire = self.shared.wire.lock();
        std::mem::swap(outgoing, &mut wire.out);
        wire.writing = !outgoing.is_empty();
        outgoing.is_empty() && wire.closing
    }

    /// Acts on every packet that is there.
    fn take_in(&mut self) -> Result<(), End> {
        let broken = |error: Error| End::Lost(format!("the server sent nonsense: {error}"));
        loop {
            match check(self.incoming.iter(), None) {
                Ok(_) => {}
                Err(Error::InsufficientBytes(missing)) => {
                    self.incoming.reserve(missing);
                    return Ok(());
                }
                Err(error) => return Err(broken(error)),
            }
            let packet = Packet::read(&mut self.incoming, None).map_err(broken)?;
            self.act(packet)?;
        }
    }

    fn act(&mut self, packet: Packet) -> Result<(), End> {
        match packet {
            Packet::Publish(publish) => (self.sink)(publish),
            Packet::PubAck(ack) => {
                let waiter = self.shared.wire.lock().pending.remove(&ack.pkid);
                if let Some(Waiter::Publish { batch, index }) = waiter {
                    batch.answer(index, Outcome::Answered(ack.reason));
                    self.shared.window.add_permits(1);
                }
            }
            Packet::SubAck(ack) => {
                let waiter = self.shared.wire.lock().pending.remove(&ack.pkid);
                if let Some(Waiter::Subscribe(answer)) = waiter {
                    let _ = answer.send(granted(&ack));
                }
            }
            Packet::PingResp(_) => {}
            Packet::Disconnect(bye) => return Err(ended_by_server(&bye)),
            other => return Err(End::Lost(format!("the server sent {other:?} unasked"))),
        }
        Ok(())
    }

    /// Gives a connection up that shows no sign of life, and shows one.
    fn watch(&mut self) -> Result<(), End> {
        let now = Instant::now();
        let keep_alive = self.timing.keep_alive;
        if now - self.heard > keep_alive + keep_alive / 2 {
            return Err(End::Lost(format!("the server was silent for {:?}", now - self.heard)));
        }
        let mut wire = self.shared.wire.lock();
        while let Some((sent, id)) = wire.sent.front().copied() {
            if !wire.pending.contains_key(&id) {
                wire.sent.pop_front();
            } else if now - sent > self.timing.confirm {
                let within = self.timing.confirm;
                return Err(End::Lost(format!("a message was not confirmed within {within:?}")));
            } else {
                break;
            }
        }
        if now - self.pinged >= keep_alive / 2 {
            self.pinged = now;
            let _ = PingReq::write(&mut wire.out);
        }
        Ok(())
    }

    /// Says goodbye, and waits until the server has read everything.
    async fn leave(
        &mut self,
        mut reader: ReadHalf<Box<dyn Stream>>,
        mut writer: WriteHalf<Box<dyn Stream>>,
    ) -> End {
        let mut bye = BytesMut::new();
        let reason_code = DisconnectReasonCode::NormalDisconnection;
        let _ = Disconnect { reason_code, properties: None }.write(&mut bye);
        let leave = async {
            writer.write_all_buf(&mut bye).await?;
            writer.shutdown().await?;
            // The server closes when it has come to the goodbye.
            loop {
                self.incoming.clear();
                if reader.read_buf(&mut self.incoming).await? == 0 {
                    return std::io::Result::Ok(());
                }
            }
        };
        let _ = tokio::time::timeout(CLOSE_WITHIN, leave).await;
        End::Closed
    }
}

/// Writes some of the buffer, or flushes when it is empty; whether everything is flushed.
///
/// # Cancel safety
/// Safe: what was written is no longer in the buffer.
async fn write(
    writer: &mut (impl AsyncWrite + Unpin),
    outgoing: &mut BytesMut,
) -> std::io::Result<bool> {
    if outgoing.is_empty() {
        writer.flush().await?;
        return Ok(true);
    }
    if writer.write_buf(outgoing).await? == 0 {
        return Err(std::io::ErrorKind::WriteZero.into());
    }
    Ok(false)
}

fn granted(ack: &SubAck) -> Result<(), String> {
    let refusal =
        ack.return_codes.iter().find(|code| !matches!(code, SubscribeReasonCode::Success(_)));
    match refusal {
        None => Ok(()),
        Some(code) => Err(format!("the server refuses the subscription: {code:?}")),
    }
}

fn ended_by_server(bye: &Disconnect) -> End {
    if bye.reason_code == DisconnectReasonCode::SessionTakenOver {
        return End::TakenOver;
    }
    let words = bye.properties.as_ref().and_then(|properties| properties.reason_string.as_deref());
    let words = words.map(|words| format!(" ({words})")).unwrap_or_default();
    End::Lost(format!("the server ended it: {:?}{words}", bye.reason_code))
}

impl Shared {
    /// Answers everybody who waits: nobody knows what the server has done.
    fn end(&self, end: End) {
        let pending = {
            let mut wire = self.wire.lock();
            wire.closing = true;
            wire.out.clear();
            wire.direct = None;
            std::mem::take(&mut wire.pending)
        };
        self.window.close();
        self.ended.send_replace(Some(end));
        for waiter in pending.into_values() {
            if let Waiter::Publish { batch, index } = waiter {
                batch.answer(index, Outcome::Unknown);
            }
        }
    }
}
