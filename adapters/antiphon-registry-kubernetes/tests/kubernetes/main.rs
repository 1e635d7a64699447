//! The resolver against a real API server, and against answers of one that only a script can give.

mod cluster;
mod conformance;
mod real;
mod script;
mod watches;
