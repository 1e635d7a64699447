//! The documents and the pages.

use super::{Server, request};
use crate::rest::RestSettings;
use crate::server::ServerSettings;

#[tokio::test]
async fn the_page_and_all_that_it_loads_are_there() {
    let server = Server::new();
    let page = server.get("/docs").await;
    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    let html = String::from_utf8(page.body.to_vec()).unwrap();
    let mut parts = 0;
    for part in html.split('"').filter(|part| part.starts_with("docs/")) {
        let answer = server.get(&format!("/{part}")).await;
        assert_eq!(answer.status(), 200, "{part}");
        assert_eq!(answer.header("content-length"), answer.body.len().to_string(), "{part}");
        parts += 1;
    }
    assert_eq!(parts, 4, "{html}");
    assert_eq!(server.get("/docs/").await.header("location"), "../docs");
    assert_eq!(server.get("/docs/other").await.status(), 404);
}

#[tokio::test]
async fn the_documents_describe_the_contract() {
    let settings = RestSettings { title: "Things".to_owned(), ..RestSettings::default() };
    let server = Server::with(settings, ServerSettings::default());
    let openapi = server.get("/openapi.json").await.json();
    assert_eq!(openapi["openapi"], "3.1.0");
    assert_eq!(openapi["info"]["title"], "Things");
    assert!(openapi["paths"]["/v1/things/{name}"]["get"].is_object(), "{openapi}");
    assert!(openapi["paths"]["/v1/things/{name}:cancel"]["post"].is_object(), "{openapi}");
    let asyncapi = server.get("/asyncapi.json").await;
    assert_eq!(asyncapi.header("content-type"), "application/json");
    assert_eq!(asyncapi.json()["asyncapi"], "3.0.0");
}

#[tokio::test]
async fn assets_are_sent_compressed_to_whom_takes_it() {
    let server = Server::new();
    let path = "/docs/swagger-ui-bundle.js";
    let plain = server.get(path).await;
    let zipped = server.call(request("GET", path, &[("accept-encoding", "br, gzip")], "")).await;
    assert_eq!(zipped.header("content-encoding"), "gzip");
    assert_eq!(zipped.header("vary"), "accept-encoding");
    assert!(zipped.body.len() * 3 < plain.body.len());
    assert!(plain.body.ends_with(b"i.default})()));"), "the asset is whole");
    assert_ne!(plain.header("etag"), zipped.header("etag"));
    let refused = server.call(request("GET", path, &[("accept-encoding", "gzip;q=0")], "")).await;
    assert_eq!(refused.header("content-encoding"), "");
}

#[tokio::test]
async fn what_the_client_has_already_is_not_sent_again() {
    let server = Server::new();
    for path in ["/docs", "/docs/swagger-ui.css", "/openapi.json", "/asyncapi.json"] {
        let first = server.get(path).await;
        let again = [("if-none-match", first.header("etag"))];
        let second = server.call(request("GET", path, &again, "")).await;
        assert_eq!((second.status(), second.body.len()), (304, 0), "{path}");
        let other = server.call(request("GET", path, &[("if-none-match", "\"x\"")], "")).await;
        assert_eq!(other.status(), 200, "{path}");
        let head = server.call(request("HEAD", path, &[], "")).await;
        assert_eq!(head.header("content-length"), first.header("content-length"), "{path}");
    }
    let posted = server.call(request("POST", "/docs", &[], "")).await;
    assert_eq!((posted.status(), posted.header("allow")), (405, "GET, HEAD, OPTIONS"));
}
