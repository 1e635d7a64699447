//! The server over real sockets: every protocol, bad input, limits, drain.

mod bad_input;
mod drain;
mod limits;
mod protocols;
mod support;
mod websocket;
