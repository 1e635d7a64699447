//! Compiles the sample contract.

fn main() {
    antiphon_build::Contract::new()
        .file("sample/v1/library.proto")
        .file("sample/v1/everything.proto")
        .include("proto")
        .runtime("crate::runtime")
        .compile_or_exit();
}
