//! Which programs run at the same time: at most two, and never two that talk to the same server.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Condvar, Mutex, PoisonError};

use test_servers::Service;

/// How many programs run at once.
const WORKERS: usize = 2;

/// Programs that wait, and the servers that those which run talk to.
#[derive(Debug)]
struct Queue<T> {
    waiting: VecDeque<(BTreeSet<Service>, T)>,
    busy: BTreeSet<Service>,
}

/// What a worker does next.
#[derive(Debug, PartialEq, Eq)]
enum Next<T> {
    Run(BTreeSet<Service>, T),
    /// What waits talks to servers that are busy.
    Wait,
    /// Nothing is left.
    End,
}

impl<T> Queue<T> {
    fn next(&mut self) -> Next<T> {
        if self.waiting.is_empty() {
            return Next::End;
        }
        let free = self.waiting.iter().position(|(needs, _)| needs.is_disjoint(&self.busy));
        match free.and_then(|at| self.waiting.remove(at)) {
            None => Next::Wait,
            Some((needs, program)) => {
                self.busy.extend(&needs);
                Next::Run(needs, program)
            }
        }
    }

    fn done(&mut self, needs: &BTreeSet<Service>) {
        self.busy.retain(|service| !needs.contains(service));
    }
}

/// Runs everything; the order is that of `programs` as far as their servers allow.
pub(crate) fn run<T: Send>(
    programs: Vec<(BTreeSet<Service>, T)>,
    work: impl Fn(BTreeSet<Service>, T) + Sync,
) {
    let queue = Mutex::new(Queue { waiting: programs.into(), busy: BTreeSet::new() });
    let changed = Condvar::new();
    let worker = || {
        let mut locked = queue.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match locked.next() {
                Next::End => return,
                Next::Wait => {
                    locked = changed.wait(locked).unwrap_or_else(PoisonError::into_inner);
                }
                Next::Run(needs, program) => {
                    drop(locked);
                    work(needs.clone(), program);
                    locked = queue.lock().unwrap_or_else(PoisonError::into_inner);
                    locked.done(&needs);
                    changed.notify_all();
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(worker);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_of_one_server_run_one_after_the_other() {
        let (nats, both) =
            (BTreeSet::from([Service::Nats]), BTreeSet::from([Service::Nats, Service::Kafka]));
        let kafka = BTreeSet::from([Service::Kafka]);
        let waiting = [(nats.clone(), 1), (both.clone(), 2), (kafka.clone(), 3)];
        let mut queue = Queue { waiting: waiting.into(), busy: BTreeSet::new() };
        assert_eq!(queue.next(), Next::Run(nats.clone(), 1));
        assert_eq!(queue.next(), Next::Run(kafka.clone(), 3));
        assert_eq!(queue.next(), Next::Wait);
        queue.done(&nats);
        assert_eq!(queue.next(), Next::Wait);
        queue.done(&kafka);
        assert_eq!(queue.next(), Next::Run(both, 2));
        assert_eq!(queue.next(), Next::End);
    }

    #[test]
    fn everything_is_run_once() {
        let programs = (0..20).map(|n| (BTreeSet::from([Service::ALL[n % 7]]), n)).collect();
        let ran = Mutex::new(Vec::new());
        run(programs, |_, n| ran.lock().unwrap().push(n));
        let mut ran = ran.into_inner().unwrap();
        ran.sort_unstable();
        assert_eq!(ran, (0..20).collect::<Vec<usize>>());
    }
}
