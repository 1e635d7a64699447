//! Turns .proto files into Rust in build.rs, without protoc.
