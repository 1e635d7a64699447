//! The reference system: a small online shop of six services.
fn main() {}
