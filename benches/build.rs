//! The echo contract, for our server and for connectrpc's own.

use std::path::PathBuf;

fn main() {
    let set = antiphon_build::compile(&["bench/v1/echo.proto"], &["proto"]);
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    let path = out.join("echo.binpb");
    let written = std::fs::write(&path, set).map_err(|error| error.to_string());
    let generated = written.and_then(|()| {
        connectrpc_build::Config::new()
            .descriptor_set(path)
            .files(&["bench/v1/echo.proto"])
            .out_dir(out.join("connectrpc"))
            .include_file("_connectrpc.rs")
            .compile()
            .map_err(|error| error.to_string())
    });
    if let Err(error) = generated {
        println!("cargo::error={error}");
    }
}
