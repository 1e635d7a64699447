//! The echo contract, for our server and for connectrpc's own; the saga's messages.

use std::path::PathBuf;

fn main() {
    let contract = antiphon_build::Contract::new()
        .file("bench/v1/echo.proto")
        .file("bench/v1/saga.proto")
        .include("proto");
    contract.compile_or_exit();
    if let Err(error) = for_connectrpc(&contract) {
        println!("cargo::error={error}");
    }
}

fn for_connectrpc(contract: &antiphon_build::Contract) -> Result<(), String> {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    let (folder, set) = (out.join("connectrpc"), out.join("echo.binpb"));
    let generated = contract.generate().map_err(|error| error.to_string())?;
    std::fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
    std::fs::write(&set, generated.descriptor_set).map_err(|error| error.to_string())?;
    connectrpc_build::Config::new()
        .descriptor_set(set)
        .files(&["bench/v1/echo.proto"])
        .out_dir(folder)
        .include_file("_connectrpc.rs")
        .compile()
        .map_err(|error| error.to_string())
}
