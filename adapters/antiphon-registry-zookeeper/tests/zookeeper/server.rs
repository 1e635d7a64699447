//! A server that decides how long a session is, which a real one does by its settings alone.
//!
//! It has one session, takes every node that is created, and says of each that it is there and belongs
//! to that session.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

const SESSION: i64 = 7;
/// What is asked, as the protocol numbers it.
const EXISTS: i32 = 3;
const CREATE: i32 = 15;

/// The server.
pub(crate) struct Server {
    address: SocketAddr,
    task: JoinHandle<()>,
    watched: Arc<Notify>,
}

impl Server {
    /// Starts one whose session has this time, whatever is asked for.
    pub(crate) async fn start(session: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let watched = Arc::new(Notify::new());
        let told = Arc::clone(&watched);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // An error means that the client has gone.
                let _ = serve(stream, session, &told).await;
            }
        });
        Self { address, task, watched }
    }

    /// Where it is.
    pub(crate) fn url(&self) -> String {
        format!("zookeeper://{}", self.address)
    }

    /// Goes away when somebody has begun to watch a node.
    pub(crate) async fn stop_when_watched(self) {
        self.watched.notified().await;
        self.task.abort();
    }
}

async fn serve(mut stream: TcpStream, session: Duration, watched: &Notify) -> io::Result<()> {
    read(&mut stream).await?;
    let milliseconds = u32::try_from(session.as_millis()).expect("a few seconds");
    let mut granted = [&0_i32.to_be_bytes()[..], &milliseconds.to_be_bytes()].concat();
    granted.extend(SESSION.to_be_bytes());
    // The password, and that one may write.
    granted.extend(16_i32.to_be_bytes());
    granted.extend([0; 17]);
    write(&mut stream, &granted).await?;
    loop {
        let question = read(&mut stream).await?;
        let (number, rest) = question.split_at(4);
        let (kind, rest) = rest.split_at(4);
        let kind = i32::from_be_bytes(kind.try_into().expect("four bytes"));
        let mut answer = number.to_vec();
        // The number of a transaction, and no error.
        answer.extend([0; 12]);
        if kind == CREATE {
            let length = u32::from_be_bytes(rest[..4].try_into().expect("four bytes"));
            answer.extend(&rest[..4 + usize::try_from(length).expect("a path")]);
        }
        if matches!(kind, CREATE | EXISTS) {
            let mut stat = [0; 68];
            stat[44..52].copy_from_slice(&SESSION.to_be_bytes());
            answer.extend(stat);
        }
        write(&mut stream, &answer).await?;
        if kind == EXISTS {
            watched.notify_one();
        }
    }
}

async fn read(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u32().await?;
    let mut message = vec![0; usize::try_from(length).expect("a short message")];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u32::try_from(message.len()).expect("a short message");
    stream.write_all(&[&length.to_be_bytes()[..], message].concat()).await
}
