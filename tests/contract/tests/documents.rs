//! The documents of the sample contract. `UPDATE_GOLDEN=1 cargo test -p contract-tests` writes them
//! anew; read the difference before you keep it.

use std::path::Path;

use antiphon_contract::openapi::Info;
use antiphon_contract::{Contract, asyncapi, openapi};
use contract_tests::sample::v1::LIBRARY;
use serde_json::Value;

const INFO: Info<'static> = Info { title: "Sample", version: "1" };

fn contract() -> Contract {
    Contract::from_descriptor_set(LIBRARY.descriptor_set).expect("a contract")
}

#[track_caller]
fn is_golden(name: &str, document: &Value) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name);
    let text = serde_json::to_string_pretty(document).expect("JSON") + "\n";
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &text).expect("a file");
    }
    let golden = std::fs::read_to_string(&path).expect("the golden file");
    let golden: Value = serde_json::from_str(&golden).expect("JSON");
    assert!(*document == golden, "{} differs from\n{text}", path.display());
}

#[test]
fn the_openapi_document_is_as_read_and_approved() {
    let services = ["sample.v1.Library", "sample.v1.Echo", "sample.v1.Nothing"];
    is_golden("openapi.json", &openapi::document(&contract(), &services, INFO));
}

#[test]
fn the_asyncapi_document_is_as_read_and_approved() {
    is_golden("asyncapi.json", &asyncapi::document(&contract(), INFO));
}

#[test]
fn the_same_contract_gives_the_same_text() {
    let services = ["sample.v1.Library", "sample.v1.Echo"];
    let document = || openapi::document(&contract(), &services, INFO).to_string();
    assert_eq!(document(), document());
}
