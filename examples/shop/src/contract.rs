//! The contract: what `build.rs` made of `proto/`.

antiphon::include_contract!();
