//! The contract: what `build.rs` made of `proto/`.

#![expect(elided_lifetimes_in_paths, reason = "generated")]

antiphon::include_contract!();
