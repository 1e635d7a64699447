//! What is generated from the sample contract.

use std::path::Path;

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/contract/proto"))
}

#[test]
fn generated_code_names_its_libraries_through_one_module() {
    let generated = antiphon_build::Contract::new()
        .file(root().join("sample/v1/library.proto"))
        .include(root())
        .generate()
        .unwrap();
    if let Some(out) = option_env!("PRINT_TO") {
        std::fs::write(out, &generated.source).unwrap();
    }
    for library in ["buffa", "buffa_types", "serde", "serde_json", "protovalidate_buffa"] {
        let direct = format!(" ::{library}::");
        assert!(!generated.source.contains(&direct), "{library}");
    }
}
