//! A connection's bytes: what the sniff has read comes first, and a client that does not read what
//! is sent to it is given up.

use std::io;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// What every HTTP/2 connection begins with (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The protocol a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    Http1,
    Http2,
}

/// Reads until it is certain which protocol the client speaks; `None` when it says nothing and
/// goes.
///
/// # Cancel safety
/// What was read is lost when the future is dropped.
pub(super) async fn sniff<S: AsyncRead + Unpin>(
    stream: &mut S,
) -> io::Result<Option<(Version, Bytes)>> {
    let mut read = [0; PREFACE.len()];
    let mut len = 0;
    loop {
        let more = stream.read(&mut read[len..]).await?;
        len += more;
        let seen = &read[..len];
        if len == PREFACE.len() && seen == PREFACE {
            return Ok(Some((Version::Http2, Bytes::copy_from_slice(seen))));
        }
        if !PREFACE.starts_with(seen) {
            return Ok(Some((Version::Http1, Bytes::copy_from_slice(seen))));
        }
        if more == 0 {
            return Ok(None);
        }
    }
}

/// A stream with some bytes put back, and a bound on how long a write may wait.
#[derive(Debug)]
pub(super) struct Wire<S> {
    stream: S,
    sniffed: Bytes,
    write_timeout: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Wire<S> {
    pub(super) const fn new(stream: S, sniffed: Bytes, write_timeout: Duration) -> Self {
        Self { stream, sniffed, write_timeout, stalled: None }
    }

    /// Passes `written` on, unless nothing could be written for too long.
    fn written<T>(
        &mut self,
        task: &mut TaskContext<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let timeout = self.write_timeout;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        match stalled.as_mut().poll(task) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the client does not read what is sent to it",
            ))),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        task: &mut TaskContext<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.sniffed.is_empty() {
            return Pin::new(&mut self.stream).poll_read(task, buffer);
        }
        let len = self.sniffed.len().min(buffer.remaining());
        buffer.put_slice(&self.sniffed[..len]);
        self.sniffed.advance(len);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        task: &mut TaskContext<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(task, bytes);
        self.written(task, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        task: &mut TaskContext<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(task, pieces);
        self.written(task, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(task)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(task)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    async fn sniffed(pieces: &[&[u8]]) -> Option<(Version, Bytes)> {
        let (mut client, mut server) = tokio::io::duplex(64);
        for piece in pieces {
            client.write_all(piece).await.unwrap();
        }
        drop(client);
        sniff(&mut server).await.unwrap()
    }

    #[tokio::test]
    async fn the_preface_means_http_2_however_it_is_cut() {
        let (version, bytes) =
            sniffed(&[b"PRI * HT", b"TP/2.0\r\n\r\nSM\r\n\r\nmore"]).await.unwrap();
        assert_eq!((version, &bytes[..]), (Version::Http2, &PREFACE[..]));
    }

    #[tokio::test]
    async fn anything_else_means_http_1() {
        for text in ["GET / HTTP/1.1\r\n", "PUT / HTTP/1.1\r\n", "PRI * HTTP/1.1\r\n", "\0"] {
            let (version, bytes) = sniffed(&[text.as_bytes()]).await.unwrap();
            assert_eq!(version, Version::Http1, "{text:?}");
            assert!(text.as_bytes().starts_with(&bytes));
        }
    }

    #[tokio::test]
    async fn half_a_preface_is_nothing() {
        assert_eq!(sniffed(&[b"PRI * HTTP/2.0"]).await, None);
        assert_eq!(sniffed(&[]).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_is_given_up() {
        let (_client, server) = tokio::io::duplex(8);
        let mut wire = Wire::new(server, Bytes::new(), Duration::from_secs(30));
        let error = wire.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn sniffed_bytes_are_read_first() {
        let (mut client, server) = tokio::io::duplex(8);
        client.write_all(b"lo").await.unwrap();
        drop(client);
        let mut wire = Wire::new(server, Bytes::from_static(b"hel"), Duration::MAX);
        let mut text = String::new();
        wire.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "hello");
    }
}
