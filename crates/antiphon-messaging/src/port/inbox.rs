//! Where answers to this process arrive.

use antiphon_core::BoxFuture;

use crate::Message;

/// Where answers to this process arrive: an address that nobody else has and that ends with it.
///
/// 1. What is sent to the address while the inbox lives arrives at most once; nothing is kept.
/// 2. Dropping an inbox ends its address.
/// 3. `None` is the end: the connection is gone, and so is the address.
pub trait Inbox: Send + 'static {
    /// The address, for [`Broker::answer`](super::Broker::answer). At most 200 bytes of text.
    fn address(&self) -> &str;

    /// Waits for the next answer.
    ///
    /// # Cancel safety
    /// Safe: a message is either returned or stays in the inbox.
    fn receive(&mut self) -> BoxFuture<'_, Option<Message>>;
}
