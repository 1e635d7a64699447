//! Clients of other languages call our services: see `tests/interop.rs`.
