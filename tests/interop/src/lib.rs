//! Our services and clients with those of other languages: see `tests/interop.rs` (the shop) and
//! `tests/peers` (retries, deadlines, GOAWAY).
