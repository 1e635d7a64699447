//! The contract of the benches.

#![expect(elided_lifetimes_in_paths, reason = "generated")]

antiphon::include_contract!();
