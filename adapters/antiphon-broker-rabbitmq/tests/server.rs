//! What only this broker can show, against real servers: opening, publishing, consuming, what an
//! operator sees, and what happens when the server or the network fails.

#[path = "server/consuming.rs"]
mod consuming;
#[path = "server/faults.rs"]
mod faults;
#[path = "server/opening.rs"]
mod opening;
#[path = "server/operating.rs"]
mod operating;
#[path = "server/publishing.rs"]
mod publishing;
#[path = "server/support.rs"]
mod support;
#[path = "support/vhost.rs"]
mod vhost;
