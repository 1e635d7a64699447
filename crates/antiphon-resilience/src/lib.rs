//! Pure policies: adaptive concurrency limit, deadlines.
