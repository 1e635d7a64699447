//! Places, the queue for them, and calls that give up.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::*;

fn bulkhead(in_flight_max: u32, waiting_max: u32) -> Arc<Bulkhead> {
    Bulkhead::new(BulkheadSettings { in_flight_max, waiting_max })
}

fn later() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// Lets a future run until it waits.
fn poll<F: Future>(future: Pin<&mut F>) -> Option<F::Output> {
    match future.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

#[tokio::test(start_paused = true)]
async fn what_fits_goes_in_the_next_wait_and_the_rest_is_refused() {
    let bulkhead = bulkhead(2, 1);
    let one = bulkhead.enter(later()).await.unwrap();
    let _two = bulkhead.try_enter().unwrap();
    let mut third = pin!(bulkhead.enter(later()));
    assert!(poll(third.as_mut()).is_none());
    assert_eq!(bulkhead.enter(later()).await.unwrap_err(), Refused::Full);
    assert_eq!((bulkhead.in_flight(), bulkhead.waiting()), (2, 1));
    drop(one);
    let permit = poll(third.as_mut()).unwrap().unwrap();
    assert_eq!((bulkhead.in_flight(), bulkhead.waiting()), (2, 0));
    drop(permit);
    assert_eq!(bulkhead.in_flight(), 1);
}

#[tokio::test(start_paused = true)]
async fn places_go_to_those_who_came_first_and_to_nobody_past_them() {
    let bulkhead = bulkhead(1, 9);
    let permit = bulkhead.try_enter().unwrap();
    let (mut first, mut second) = (pin!(bulkhead.enter(later())), pin!(bulkhead.enter(later())));
    assert!(poll(first.as_mut()).is_none() && poll(second.as_mut()).is_none());
    drop(permit);
    assert!(bulkhead.try_enter().is_none(), "the place belongs to the first in the queue");
    assert!(poll(second.as_mut()).is_none());
    let permit = poll(first.as_mut()).unwrap().unwrap();
    drop(permit);
    assert!(poll(second.as_mut()).unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn waiting_ends_at_the_deadline() {
    let bulkhead = bulkhead(1, 9);
    let _permit = bulkhead.try_enter().unwrap();
    let start = Instant::now();
    let deadline = start + Duration::from_millis(50);
    assert_eq!(bulkhead.enter(deadline).await.unwrap_err(), Refused::Expired);
    assert_eq!(start.elapsed().as_millis(), 50);
    assert_eq!(bulkhead.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_place_handed_to_a_call_that_gives_up_goes_to_the_next() {
    let bulkhead = bulkhead(1, 9);
    let permit = bulkhead.try_enter().unwrap();
    let mut first = Box::pin(bulkhead.enter(later()));
    let mut second = pin!(bulkhead.enter(later()));
    assert!(poll(first.as_mut()).is_none() && poll(second.as_mut()).is_none());
    drop(permit);
    drop(first);
    assert!(poll(second.as_mut()).unwrap().is_ok());
    assert_eq!((bulkhead.in_flight(), bulkhead.waiting()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_gives_up_before_its_turn_leaves_the_queue() {
    let bulkhead = bulkhead(1, 1);
    let permit = bulkhead.try_enter().unwrap();
    let mut gives_up = Box::pin(bulkhead.enter(later()));
    assert!(poll(gives_up.as_mut()).is_none());
    drop(gives_up);
    assert_eq!(bulkhead.waiting(), 0);
    let mut next = pin!(bulkhead.enter(later()));
    assert!(poll(next.as_mut()).is_none());
    drop(permit);
    assert!(poll(next.as_mut()).unwrap().is_ok());
}

#[test]
fn threads_that_enter_wait_give_up_and_leave_end_with_all_places_free() {
    let bulkhead = bulkhead(3, 8);
    let most = std::sync::atomic::AtomicU32::new(0);
    let entered: u32 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4_u64)
            .map(|seed| {
                let (bulkhead, most) = (&bulkhead, &most);
                scope.spawn(move || worker(bulkhead, most, seed))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert!(entered > 1_000, "{entered}");
    assert_eq!(most.load(Relaxed), 3);
    assert_eq!((bulkhead.in_flight(), bulkhead.waiting()), (0, 0));
    assert!(bulkhead.queue.lock().waiting.is_empty());
}

/// Calls that overlap on one thread, half of which give up at a random point.
fn worker(bulkhead: &Arc<Bulkhead>, most: &std::sync::atomic::AtomicU32, seed: u64) -> u32 {
    let mut random = fastrand::Rng::with_seed(seed);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _entered = runtime.enter();
    let mut entered = 0;
    for _ in 0..2_000 {
        let mut calls: Vec<_> = (0..4).map(|_| Box::pin(bulkhead.enter(later()))).collect();
        let mut permits = Vec::new();
        while !calls.is_empty() {
            let mut call = calls.swap_remove(random.usize(0..calls.len()));
            match poll(call.as_mut()) {
                Some(Ok(permit)) => {
                    most.fetch_max(bulkhead.in_flight(), Relaxed);
                    permits.push(permit);
                    entered += 1;
                }
                Some(Err(Refused::Full)) => {}
                Some(Err(Refused::Expired)) => panic!("the deadline is far away"),
                None if random.bool() => calls.push(call),
                None => {}
            }
            if random.bool() {
                permits.pop();
            }
        }
    }
    entered
}
