//! Whatever a client sends, the answer is an answer and the service gets JSON.

use std::sync::OnceLock;

use bytes::Bytes;
use http::Method;
use proptest::prelude::*;

use super::Server;
use crate::rest::request::Said;
use crate::rest::routes::Miss;

fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(Server::new)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn a_request_becomes_json_or_is_refused(
        path in "/v1(/(things|shelves|typed|deep|inner|files|ops|a%2Fb|%|%C3|x:cancel|1|RED|true|é|)){0,5}(:cancel|:search)?",
        query in "((name|i32|i64|inner|inner\\.id|inner\\.deep\\.x|tags|labels|at|mask|raw|%6e|=|&|\\.)=?(a|1|%|%00|\\+|-|\"|é)?&?){0,4}",
        body in "(\\{|\\}|\\[|\"|:|,|name|inner|id|1|null| ){0,12}",
        verb in 0_usize..4,
    ) {
        let shared = &server().rest.0;
        let verb = [Method::GET, Method::POST, Method::PUT, Method::PATCH][verb].clone();
        let route = match shared.routes.find(&verb, &path) {
            Ok(route) => route,
            Err(Miss::Nothing | Miss::Only(_) | Miss::WebSocket) => return Ok(()),
        };
        let said = Said { path: &path, query: &query };
        let body = Bytes::from(body);
        match route.request.message(&shared.schema, said, "text/plain", body.clone()) {
            Ok(message) if message == body => {}
            Ok(message) => {
                let json: Result<serde_json::Value, _> = serde_json::from_slice(&message);
                prop_assert!(json.is_ok_and(|json| json.is_object()), "{:?}", message);
            }
            Err(status) => prop_assert_eq!(status.http_status(), 400),
        }
    }
}
