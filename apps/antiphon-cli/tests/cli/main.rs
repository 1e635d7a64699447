//! The command against systems on SQLite, whose files are all it needs.

mod dead;
mod mistakes;
mod support;
