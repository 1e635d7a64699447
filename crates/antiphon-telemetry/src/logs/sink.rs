//! The queue of lines that wait to be written, and the thread that writes them.

use std::io::{BufWriter, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::metrics::{Counter, Registry};

/// Takes lines. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Sink {
    queue: SyncSender<Item>,
    lines: Counter,
    dropped: Counter,
    /// Dropped lines that nobody was told of.
    untold: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Item {
    Line(String),
    Flush(oneshot::Sender<()>),
}

impl Sink {
    /// Starts a writer with room for `capacity` waiting lines. `notice` is the line that tells how many
    /// were dropped.
    pub(crate) fn spawn(
        output: impl Write + Send + 'static,
        capacity: usize,
        notice: fn(u64) -> String,
    ) -> std::io::Result<Self> {
        let (queue, items) = sync_channel(capacity);
        let untold = Arc::new(AtomicU64::new(0));
        let output = BufWriter::new(output);
        let writer = Writer { output, untold: Arc::clone(&untold), notice };
        std::thread::Builder::new()
            .name("antiphon-logs".to_owned())
            .spawn(move || writer.run(&items))?;
        Ok(Self { queue, lines: Counter::default(), dropped: Counter::default(), untold })
    }

    /// Hands a line over, or drops it if too many wait.
    pub(crate) fn write(&self, line: String) {
        match self.queue.try_send(Item::Line(line)) {
            Ok(()) => {
                self.lines.inc();
            }
            Err(_) => {
                self.dropped.inc();
                self.untold.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Completes when the lines handed over before were written, or when `within` is over.
    pub(crate) async fn flush(&self, within: Duration) {
        let (done, completed) = oneshot::channel();
        let mut item = Item::Flush(done);
        let asked = async {
            // The queue may be full for a moment; its writer is a thread that cannot be awaited.
            while let Err(full) = self.queue.try_send(item) {
                let (TrySendError::Full(back) | TrySendError::Disconnected(back)) = full;
                item = back;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let _ = completed.await;
        };
        // Lines that the output does not take in time cannot be told of anywhere either.
        let _ = tokio::time::timeout(within, asked).await;
    }

    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register("antiphon_log_lines", "Log lines written", self.lines.clone());
        let help = "Log lines lost because the output was too slow";
        registry.register("antiphon_log_lines_dropped", help, self.dropped.clone());
    }
}

struct Writer<W: Write> {
    output: BufWriter<W>,
    untold: Arc<AtomicU64>,
    notice: fn(u64) -> String,
}

impl<W: Write> Writer<W> {
    /// Writes until every sink is gone; flushes whenever nothing waits.
    fn run(mut self, items: &Receiver<Item>) {
        while let Ok(item) = items.recv() {
            self.take(item);
            while let Ok(item) = items.try_recv() {
                self.take(item);
            }
            // An output that is gone is gone: there is nowhere left to say so.
            let _ = self.output.flush();
        }
    }

    fn take(&mut self, item: Item) {
        let untold = self.untold.swap(0, Ordering::Relaxed);
        if untold > 0 {
            let _ = self.output.write_all((self.notice)(untold).as_bytes());
        }
        match item {
            Item::Line(line) => {
                let _ = self.output.write_all(line.as_bytes());
            }
            Item::Flush(done) => {
                let _ = self.output.flush();
                // Who asked may have given up waiting.
                let _ = done.send(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::{Condvar, Mutex};

    /// An output that stands still until it is opened.
    #[derive(Clone, Default)]
    struct Gate(Arc<Doorway>);

    #[derive(Default)]
    struct Doorway {
        /// Whether it is open, and what came through.
        state: Mutex<(bool, Vec<u8>)>,
        opened: Condvar,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let mut state = self.0.state.lock();
            while !state.0 {
                self.0.opened.wait(&mut state);
            }
            state.1.extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_slow_output_costs_lines_and_never_time() {
        let gate = Gate::default();
        let sink = Sink::spawn(gate.clone(), 4, |n| format!("{n} dropped\n")).unwrap();
        // One line is in the hands of the writer and four wait; how many more were taken while the
        // writer began is a race, so far more are written.
        for n in 0..50_000 {
            sink.write(format!("line {n}\n"));
        }
        let dropped = sink.dropped.get();
        assert!(dropped > 0);
        assert_eq!(sink.lines.get() + dropped, 50_000);
        gate.0.state.lock().0 = true;
        gate.0.opened.notify_all();
        sink.flush(Duration::from_secs(10)).await;
        let text = String::from_utf8(gate.0.state.lock().1.clone()).unwrap();
        let told: u64 = text
            .lines()
            .filter_map(|line| line.strip_suffix(" dropped"))
            .map(|n| n.parse::<u64>().unwrap())
            .sum();
        assert_eq!(told, dropped);
        let written = text.lines().filter(|line| line.starts_with("line ")).count();
        assert_eq!(written as u64 + dropped, 50_000);
    }
}
