//! A generated service, called as the transports call it.

use antiphon_core::{Code, Status};
use antiphon_messaging::{Command, Event, Payload};
use antiphon_rpc::{Codec, Idempotency, Service};
use buffa::Message;
use buffa_types::google::protobuf::Empty;
use bytes::Bytes;
use contract_tests::sample::v1::{
    AddBookRequest, Book, BookAdded, GetBookRequest, LIBRARY, Library, LibraryError, LibraryServer,
    RemoveBookLater,
};

struct Shelves;

impl Library for Shelves {
    async fn add_book(&self, request: AddBookRequest) -> Result<Book, Status> {
        let book = request.book.into_option().unwrap_or_default();
        Ok(Book { name: format!("shelves/{}/books/1", request.shelf), ..book })
    }

    async fn get_book(&self, request: GetBookRequest) -> Result<Book, Status> {
        Err(LibraryError::book_not_found(format!("there is no {}", request.name)))
    }

    async fn remove_book(&self, _: GetBookRequest) -> Result<Empty, Status> {
        Err(LibraryError::lent("Ada has it"))
    }

    async fn ping(&self, _: Empty) -> Result<Empty, Status> {
        Ok(Empty::default())
    }
}

async fn call(method: usize, request: impl Into<Bytes>, codec: Codec) -> Result<Bytes, Status> {
    let server = LibraryServer::new(Shelves);
    server.unary(method, request.into(), codec).await.map(|answer| answer.message())
}

fn book(title: &str) -> Book {
    Book { title: title.to_owned(), ..Default::default() }
}

#[tokio::test]
async fn a_unary_method_is_called_with_protobuf() {
    let request =
        AddBookRequest { shelf: "7".to_owned(), book: book("Emma").into(), ..Default::default() };
    let answer = call(0, request.encode_to_vec(), Codec::Proto).await.unwrap();
    let answer = Book::decode_from_slice(&answer).unwrap();
    assert_eq!((answer.name.as_str(), answer.title.as_str()), ("shelves/7/books/1", "Emma"));
}

#[tokio::test]
async fn a_unary_method_is_called_with_json() {
    let request = r#"{"shelf": "7", "book": {"title": "Emma", "genre": "GENRE_NOVEL"}}"#;
    let answer = call(0, request, Codec::Json).await.unwrap();
    let expected = r#"{"name":"shelves/7/books/1","title":"Emma","genre":"GENRE_NOVEL"}"#;
    assert_eq!(answer, expected);
}

#[tokio::test]
async fn a_request_that_breaks_rules_does_not_reach_the_handler() {
    let request = AddBookRequest { book: book("").into(), ..Default::default() };
    let status = call(0, request.encode_to_vec(), Codec::Proto).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let violation = &status.violations()[0];
    assert_eq!(
        (violation.field.as_str(), violation.rule.as_str()),
        ("book.title", "string.min_len")
    );
}

#[tokio::test]
async fn reasons_are_made_and_recognised() {
    let request = GetBookRequest { name: "x".to_owned(), ..Default::default() };
    let status = call(1, request.encode_to_vec(), Codec::Proto).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert_eq!((status.reason(), status.domain()), ("BOOK_NOT_FOUND", "sample.v1"));
    assert!(LibraryError::is_book_not_found(&status));
    assert!(!LibraryError::is_lent(&status));

    let status = call(2, request.encode_to_vec(), Codec::Proto).await.unwrap_err();
    assert!(LibraryError::is_lent(&status));
    assert_eq!(status.http_status(), 409);
}

#[tokio::test]
async fn a_method_that_does_not_exist_is_unimplemented() {
    let status = call(99, "", Codec::Proto).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
}

#[test]
fn the_description_says_what_the_contract_says() {
    let method = &LIBRARY.methods[0];
    assert_eq!(LIBRARY.name, "sample.v1.Library");
    assert_eq!(method.path, "/sample.v1.Library/AddBook");
    assert_eq!(method.idempotency, Idempotency::ByKey);
    assert_eq!(method.timeout, Some(std::time::Duration::from_secs(2)));
    assert_eq!(LIBRARY.methods[1].idempotency, Idempotency::NoSideEffects);
    antiphon_contract::Contract::from_descriptor_set(LIBRARY.descriptor_set).unwrap();
}

#[test]
fn events_and_commands_know_where_they_go() {
    let added = BookAdded {
        book: Book { name: "shelves/1/books/2".to_owned(), ..Default::default() }.into(),
        ..Default::default()
    };
    assert_eq!((BookAdded::KIND, BookAdded::TOPIC), ("sample.v1.BookAdded", "sample.library"));
    assert_eq!(added.key(), "shelves/1/books/2");
    assert_eq!(BookAdded::default().key(), "");
    let remove = RemoveBookLater { number: -7, ..Default::default() };
    assert_eq!(RemoveBookLater::DESTINATION, "sample.library.commands");
    assert_eq!(remove.key(), "-7");
}
