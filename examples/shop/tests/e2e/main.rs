//! The shop as its users run it: real processes, real sockets, real kills.

mod cards;
mod harness;
mod kill;
mod mistakes;
mod routes;
mod shutdown;
