//! The client over real sockets: instances that die, fail, leave and come back while it calls.

#[cfg(test)]
mod aside;
#[cfg(test)]
mod attempts;
#[cfg(test)]
mod crowded;
#[cfg(test)]
mod deadlines;
#[cfg(test)]
mod idle;
#[cfg(test)]
mod instances;
#[cfg(test)]
mod registry;
#[cfg(test)]
mod shedding;
#[cfg(test)]
mod streams;
#[cfg(test)]
mod support;
