//! Carries out what a [`Line`] decides.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::line::{Fate, Line};
use super::{Setting, Tally, Way, add};

/// How much is read at once.
const PIECE: usize = 16 * 1024;

/// A direction.
#[derive(Clone, Copy, Debug)]
enum Direction {
    ToServer,
    ToClient,
}

impl Direction {
    fn way(self, setting: &Setting) -> Way {
        match self {
            Self::ToServer => setting.faults.to_server,
            Self::ToClient => setting.faults.to_client,
        }
    }
}

/// The connection is to be reset.
struct Reset;

/// Accepts connections until it is dropped.
pub(super) async fn accept(
    listener: TcpListener,
    target: SocketAddr,
    setting: watch::Receiver<Setting>,
    tally: Arc<Tally>,
) {
    loop {
        let Ok((client, _)) = listener.accept().await else {
            // Out of file descriptors, perhaps: others need the time.
            tokio::task::yield_now().await;
            continue;
        };
        if setting.borrow().faults.refuse {
            add(&tally.refused, 1);
            reset(&client);
            continue;
        }
        add(&tally.connections, 1);
        tokio::spawn(connection(client, target, setting.clone(), Arc::clone(&tally)));
    }
}

/// Carries one connection until it ends.
async fn connection(
    mut client: TcpStream,
    target: SocketAddr,
    setting: watch::Receiver<Setting>,
    tally: Arc<Tally>,
) {
    let begun = setting.borrow().resets;
    let Ok(mut server) = TcpStream::connect(target).await else {
        add(&tally.unreachable, 1);
        reset(&client);
        return;
    };
    // What waits for more to send would be a latency of ours.
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    let carried = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let up = carry(Direction::ToServer, from_client, to_server, setting.clone(), &tally);
        let down = carry(Direction::ToClient, from_server, to_client, setting.clone(), &tally);
        tokio::select! {
            ended = async { tokio::try_join!(up, down) } => ended.map(|_| ()),
            () = until_reset(setting, begun) => {
                add(&tally.reset, 1);
                Err(Reset)
            }
        }
    };
    if carried.is_err() {
        reset(&client);
        reset(&server);
    }
}

/// Makes the end of a connection a reset, which discards what is under way.
fn reset(stream: &TcpStream) {
    // A connection that is gone already needs none.
    let _ = stream.set_zero_linger();
}

/// Waits until all connections are to be reset, or the proxy is dropped.
async fn until_reset(mut setting: watch::Receiver<Setting>, begun: u64) {
    // The end of the proxy ends its connections, too.
    let _asked = setting.wait_for(|setting| setting.resets != begun).await.is_ok();
}

/// Carries one direction until its end.
async fn carry(
    direction: Direction,
    from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut setting: watch::Receiver<Setting>,
    tally: &Tally,
) -> Result<(), Reset> {
    let mut line = Line::default();
    let mut buffer = BytesMut::new();
    let (mut ended, mut held_counted) = (false, false);
    loop {
        let now = *setting.borrow_and_update();
        let way = direction.way(&now);
        held_counted &= way.hold;
        if line.is_broken(&way) {
            // A cut is counted where it is decided.
            if way.cut_after.is_none() {
                add(&tally.reset, 1);
            }
            return Err(Reset);
        }
        if ended && line.is_empty() && !way.hold && !way.swallow {
            let _ = to.shutdown().await;
            return Ok(());
        }
        let due = line.next_due(&way);
        tokio::select! {
            changed = setting.changed() => changed.map_err(|_| Reset)?,
            ready = from.readable(), if !ended && (line.has_room(&way) || way.hold && !held_counted) => {
                ready.map_err(|_| Reset)?;
                if way.hold {
                    held_counted = true;
                    add(&tally.held, 1);
                    continue;
                }
                buffer.reserve(PIECE);
                match from.try_read_buf(&mut buffer) {
                    Ok(0) => ended = true,
                    Ok(_) => {
                        let piece = buffer.split().freeze();
                        count(line.take(&way, now.generation, piece, Instant::now()), tally);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => return Err(Reset),
                }
            }
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                let bytes = line.next().unwrap_or_default();
                to.write_all(&bytes).await.map_err(|_| Reset)?;
                add(passed(direction, tally), bytes.len() as u64);
            }
        }
    }
}

fn passed(direction: Direction, tally: &Tally) -> &std::sync::atomic::AtomicU64 {
    match direction {
        Direction::ToServer => &tally.bytes_to_server,
        Direction::ToClient => &tally.bytes_to_client,
    }
}

fn count(fate: Fate, tally: &Tally) {
    match fate {
        Fate::Passes => {}
        Fate::Waits => add(&tally.delayed, 1),
        Fate::Swallowed => add(&tally.swallowed, 1),
        Fate::Cut => add(&tally.cut, 1),
    }
}
