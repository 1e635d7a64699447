//! Deadlines and cancellation across processes.

use std::sync::atomic::Ordering;
use std::time::Duration;

use antiphon_core::{Code, Context};
use antiphon_rpc::client::ClientSettings;
use buffa_types::google::protobuf::StringValue;
use futures_util::StreamExt;
use tokio::time::Instant;

use crate::support::{CONTEXT, COUNT, Clock, Fleet, GET, PUT, moving, soon, unavailable, until};

#[tokio::test(start_paused = true)]
async fn a_deadline_is_over_all_attempts_and_their_waits() {
    let _clock = Clock::hold();
    let fleet = Fleet::start(1, ClientSettings::default()).await;
    let behaviour = &fleet.instances[0].behaviour;
    let wait = antiphon_core::Retry::After(Duration::from_millis(400));
    behaviour.fail_with(Some(unavailable(Some(wait))));
    let context = Context::root().with_deadline(Instant::now() + Duration::from_millis(600));
    let status = moving(context.scope(fleet.call(GET))).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "there was time for one wait, not for two");
    assert_eq!(behaviour.calls(), 2);
}

#[tokio::test]
async fn the_server_hears_how_much_time_is_left() {
    let fleet = Fleet::start(1, ClientSettings::default()).await;
    let context = Context::root().with_deadline(Instant::now() + Duration::from_secs(2));
    let answer = context.scope(fleet.call(CONTEXT)).await.unwrap();
    let remaining: u64 = answer.split(' ').nth(1).unwrap().parse().unwrap();
    // Less the margin for the way back.
    assert!((1_000..=1_995).contains(&remaining), "{remaining}");
}

#[tokio::test]
async fn an_expired_deadline_is_not_sent() {
    let fleet = Fleet::start(1, ClientSettings::default()).await;
    let context = Context::root().with_deadline(Instant::now());
    let status = context.scope(fleet.call(GET)).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(fleet.instances[0].behaviour.calls(), 0);
}

#[tokio::test]
async fn nothing_runs_on_after_the_caller_gave_up() {
    let fleet = Fleet::start(1, ClientSettings::default()).await;
    let behaviour = &fleet.instances[0].behaviour;
    assert_eq!(fleet.call(GET).await.unwrap(), "i-0");
    behaviour.delay(Duration::from_secs(60));
    {
        let calling = fleet.call(PUT);
        tokio::pin!(calling);
        tokio::select! {
            _ = &mut calling => panic!("it takes a minute"),
            () = until(|| behaviour.calls() == 2) => {}
        }
    }
    until(|| behaviour.dropped.load(Ordering::SeqCst) == 1).await;
    let context = Context::root().with_deadline(Instant::now() + Duration::from_millis(30));
    let status = soon(context.scope(fleet.call(PUT))).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    until(|| behaviour.dropped.load(Ordering::SeqCst) == 2).await;
    let source = std::error::Error::source(&status).unwrap().to_string();
    let hung = format!("({} after ", fleet.instances[0].gate.address());
    assert!(source.contains(&hung) && source.contains("no answer in time"), "{source}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_work_of_three_hops_ends_together_when_time_is_up() {
    let (first, second, third) = (
        Fleet::start(1, ClientSettings::default()).await,
        Fleet::start(1, ClientSettings::default()).await,
        Fleet::start(1, ClientSettings::default()).await,
    );
    *first.instances[0].behaviour.next.lock() = Some(second.channel.clone());
    *second.instances[0].behaviour.next.lock() = Some(third.channel.clone());
    assert!(first.call(GET).await.is_ok());
    third.instances[0].behaviour.delay(Duration::from_secs(60));
    let deadline = Instant::now() + Duration::from_millis(400);
    let context = Context::root().with_deadline(deadline);
    let status = context.scope(first.call(GET)).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    let mut ends = vec![Instant::now()];
    // The handlers of the first two may end by the answer of the next, which says the same.
    let last = &third.instances[0].behaviour;
    until(|| last.dropped.load(Ordering::SeqCst) == 1).await;
    ends.push(last.dropped_at.lock().unwrap());
    for fleet in [&first, &second] {
        ends.extend(*fleet.instances[0].behaviour.dropped_at.lock());
    }
    let spread = *ends.iter().max().unwrap() - *ends.iter().min().unwrap();
    println!("three hops end within {spread:?}");
    // 20 ms on a machine that does nothing else.
    assert!(spread < Duration::from_millis(200), "{spread:?}");
    assert_eq!(third.instances[0].behaviour.calls(), 2, "nobody asked again");
}

#[tokio::test]
async fn a_stream_ends_when_its_time_is_up_though_nothing_comes_from_the_server() {
    let fleet = Fleet::start(1, ClientSettings::default()).await;
    let context = Context::root().with_deadline(Instant::now() + Duration::from_millis(200));
    let opening = fleet.channel.server_stream::<_, StringValue>(COUNT, StringValue::default());
    let mut stream = context.scope(opening).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap().value, "0");
    fleet.instances[0].gate.hold();
    let status = soon(async {
        loop {
            if let Err(status) = stream.next().await.unwrap() {
                break status;
            }
        }
    })
    .await;
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
}
