//! The contract of the benches.

antiphon::include_contract!();
