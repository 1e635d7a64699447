//! Streams of a generated service, called as the transports and as clients of the process call them.

use antiphon_core::{Code, Status};
use antiphon_rpc::client::{Client, Hosted};
use antiphon_rpc::{Codec, Encoded, Service, Streaming};
use bytes::Bytes;
use contract_tests::sample::v1::{Echo, EchoClient, EchoServer, Everything};
use futures_util::{StreamExt, TryStreamExt, stream};

struct Echoes;

impl Echo for Echoes {
    async fn once(&self, request: Everything) -> Result<Everything, Status> {
        Ok(request)
    }

    async fn watch(&self, request: Everything) -> Result<Streaming<Everything>, Status> {
        let count = request.small;
        Ok(Streaming::new(stream::iter((0..count).map(number))))
    }

    async fn collect(&self, request: Streaming<Everything>) -> Result<Everything, Status> {
        let all: Vec<Everything> = request.try_collect().await?;
        number(all.iter().map(|one| one.small).sum())
    }

    async fn talk(&self, request: Streaming<Everything>) -> Result<Streaming<Everything>, Status> {
        Ok(Streaming::new(request.map(|one| number(one?.small * 2))))
    }
}

fn number(small: i32) -> Result<Everything, Status> {
    Ok(Everything { small, ..Default::default() })
}

fn json(numbers: &[&'static str]) -> Streaming<Bytes> {
    let numbers: Vec<_> =
        numbers.iter().map(|number| Ok(Bytes::from(format!("{{\"small\": {number}}}")))).collect();
    Streaming::new(stream::iter(numbers))
}

async fn call(method: usize, requests: Streaming<Bytes>) -> Result<Vec<String>, Status> {
    let answers = EchoServer::new(Echoes).stream(method, requests, Codec::Json).await?;
    let text = |answer: Encoded| String::from_utf8(answer.message().to_vec()).expect("JSON");
    answers.map_ok(text).try_collect().await
}

#[tokio::test]
async fn streams_go_in_and_out() {
    assert_eq!(call(1, json(&["2"])).await.unwrap(), ["{}", r#"{"small":1}"#]);
    assert_eq!(call(2, json(&["1", "2", "3"])).await.unwrap(), [r#"{"small":6}"#]);
    assert_eq!(call(3, json(&["1", "2"])).await.unwrap(), [r#"{"small":2}"#, r#"{"small":4}"#]);
}

#[tokio::test]
async fn a_message_that_cannot_be_read_ends_the_stream() {
    for method in [2, 3] {
        let status = call(method, json(&["1", "true", "3"])).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.violations()[0].field, "small");
    }
}

#[tokio::test]
async fn a_single_request_is_exactly_one() {
    for requests in [json(&[]), json(&["1", "2"])] {
        assert_eq!(call(1, requests).await.unwrap_err().code(), Code::InvalidArgument);
    }
}

#[tokio::test]
async fn a_method_of_another_kind_is_unimplemented() {
    assert_eq!(call(0, json(&["1"])).await.unwrap_err().code(), Code::Unimplemented);
    let unary = EchoServer::new(Echoes).unary(1, Bytes::new(), Codec::Proto).await;
    assert_eq!(unary.unwrap_err().code(), Code::Unimplemented);
}

#[tokio::test]
async fn a_client_in_the_same_process_gets_the_same_answers() {
    let client = EchoClient::over(EchoServer::new(Echoes).channel());
    let request = || number(3).unwrap();
    let requests = || Streaming::new(stream::iter([number(1), number(2)]));
    assert_eq!(client.once(request()).await.unwrap(), request());
    let watched: Vec<_> = client.watch(request()).await.unwrap().try_collect().await.unwrap();
    assert_eq!(watched.len(), 3);
    assert_eq!(client.collect(requests()).await.unwrap().small, 3);
    let talked: Vec<_> = client.talk(requests()).await.unwrap().try_collect().await.unwrap();
    assert_eq!(talked.iter().map(|one| one.small).collect::<Vec<_>>(), [2, 4]);
}
