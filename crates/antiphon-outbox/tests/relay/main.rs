//! The relay as a whole, over the store in memory, in virtual time.
//!
//! `windows`: the failure windows between commit and confirmation. `flow`: order, outages, delays.
//! `sharing`: several instances, leases, drain.

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod flow;
#[cfg(test)]
mod sharing;
#[cfg(test)]
mod windows;
