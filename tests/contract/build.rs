//! Compiles the sample contract and the shop's.

fn main() {
    antiphon_build::Contract::new()
        .file("proto/sample/v1/library.proto")
        .include("proto")
        .runtime("crate::runtime")
        .compile_or_exit();
}
