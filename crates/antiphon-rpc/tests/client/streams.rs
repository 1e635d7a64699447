//! Streams: where they begin, and what their ends say about the instance.

use std::sync::atomic::Ordering;
use std::time::Duration;

use antiphon_core::{Code, Context, Retry, Status};
use antiphon_rpc::Streaming;
use antiphon_rpc::client::ClientSettings;
use buffa_types::google::protobuf::StringValue;
use futures_util::{StreamExt, stream};
use tokio::time::Instant;

use crate::support::{COUNT, ECHO, Fleet, GET, soon, until};

async fn count(fleet: &Fleet) -> Result<Streaming<StringValue>, Status> {
    soon(Box::pin(fleet.channel.server_stream(COUNT, StringValue::default()))).await
}

/// What ends a stream.
async fn end_of(mut stream: Streaming<StringValue>) -> Status {
    soon(async {
        loop {
            if let Err(status) = stream.next().await.unwrap() {
                return status;
            }
        }
    })
    .await
}

#[tokio::test]
async fn streams_begin_where_they_can_and_are_not_begun_again() {
    let fleet = Fleet::start(2, ClientSettings::default()).await;
    let mut stream = count(&fleet).await.unwrap();
    for expected in 0..3 {
        assert_eq!(stream.next().await.unwrap().unwrap().value, expected.to_string());
    }
    for instance in &fleet.instances {
        instance.gate.kill();
    }
    let status = end_of(stream).await;
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(count(&fleet).await.is_err());
}

#[tokio::test]
async fn only_the_end_of_its_time_is_not_held_against_whoever_answered() {
    for (status, failed) in [
        (Status::deadline_exceeded(), 0),
        (Status::not_found("no"), 0),
        (Status::new(Code::Unavailable, "not now"), 1),
    ] {
        let fleet = Fleet::start(1, ClientSettings::default()).await;
        let code = status.code();
        fleet.instances[0].behaviour.fail_with(Some(status));
        let stream = count(&fleet).await.unwrap();
        assert_eq!(end_of(stream).await.code(), code);
        assert_eq!((fleet.attempts("accepted"), fleet.attempts("failed")), (1, failed), "{code}");
    }
}

#[tokio::test]
async fn a_stream_that_fails_at_once_tells_all_of_it() {
    let fleet = Fleet::start(1, ClientSettings::default()).await;
    let behaviour = &fleet.instances[0].behaviour;
    behaviour.fails_at_once.store(true, Ordering::SeqCst);
    let status = Status::new(Code::Unavailable, "not now").with_retry(Retry::Never);
    behaviour.fail_with(Some(status.with_reason("CARDS_DOWN", "shop")));
    let status = match count(&fleet).await {
        Ok(stream) => end_of(stream).await,
        Err(status) => status,
    };
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "not now"));
    assert_eq!((status.reason(), status.retry_said()), ("CARDS_DOWN", Some(Retry::Never)));
    assert_eq!((fleet.attempts("accepted"), fleet.attempts("failed")), (0, 1));
}

#[tokio::test]
async fn a_stream_both_ways_has_the_deadline_of_its_caller() {
    let fleet = Fleet::start(1, ClientSettings::default()).await;
    assert!(fleet.call(GET).await.is_ok());
    let open = || {
        let requests = Streaming::new(stream::pending());
        fleet.channel.bidi::<StringValue, StringValue>(ECHO, requests)
    };
    let context = Context::root().with_deadline(Instant::now() + Duration::from_millis(50));
    fleet.instances[0].gate.hold();
    let stream = context.scope(open()).await.unwrap();
    let status = end_of(stream).await;
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    // Whoever lets the time pass has failed.
    until(|| fleet.attempts("failed") == 1).await;
}

#[tokio::test]
async fn a_stream_that_cannot_be_opened_says_why() {
    let mut settings = ClientSettings::default();
    settings.bulkhead.in_flight_max = 1;
    settings.bulkhead.waiting_max = 0;
    let fleet = Fleet::start(1, settings).await;
    let open = || {
        let requests = Streaming::new(stream::pending());
        fleet.channel.bidi::<StringValue, StringValue>(ECHO, requests)
    };
    let counting = count(&fleet).await.unwrap();
    for status in [count(&fleet).await.map(drop).unwrap_err(), end_of(open().await.unwrap()).await]
    {
        assert!(status.message().contains("too many calls"), "{status}");
        assert_eq!(status.code(), Code::Unavailable);
    }
    drop(counting);
    fleet.instances[0].gate.kill();
    let opened = soon(open()).await.unwrap();
    let status = end_of(opened).await;
    assert!(status.message().contains("cannot be reached"), "{status}");
}

#[tokio::test]
async fn a_stream_that_waits_for_its_place_ends_with_its_time() {
    let mut settings = ClientSettings::default();
    settings.bulkhead.in_flight_max = 1;
    let fleet = Fleet::start(1, settings).await;
    let _counting = count(&fleet).await.unwrap();
    let context = Context::root().with_deadline(Instant::now() + Duration::from_millis(30));
    let status = context.scope(count(&fleet)).await.map(drop).unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
}
