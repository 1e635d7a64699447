//! The server over real sockets: every protocol, bad input, limits, drain.

#[cfg(test)]
mod bad_input;
#[cfg(test)]
mod drain;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod overload;
#[cfg(test)]
mod protocols;
#[cfg(test)]
mod rates;
#[cfg(test)]
mod support;
#[cfg(test)]
mod websocket;
