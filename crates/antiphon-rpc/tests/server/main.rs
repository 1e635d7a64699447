//! The server over real sockets: every protocol, bad input, limits, drain.

mod protocols;
mod support;
