//! The contract: what `build.rs` made of `proto/`.

#![expect(
    missing_debug_implementations,
    unused_qualifications,
    elided_lifetimes_in_paths,
    unreachable_pub,
    dead_code,
    reason = "generated, and not all of it is used"
)]

antiphon::include_contract!();
