//! The port of whoever knows instances: what adapters implement so that services are found.

use antiphon_core::BoxFuture;

use crate::{Instance, RegistryError};

/// Knows the instances of services.
///
/// 1. [`Self::watch`] does nothing yet: connecting is part of the first [`Answers::next`].
/// 2. Every name is taken; a name that means nothing to the registry is answered with an error.
/// 3. Names are kept apart whatever characters they have.
pub trait Resolver: Send + Sync + 'static {
    /// Begins to watch a name.
    fn watch(&self, name: &str) -> Box<dyn Answers>;
}

/// What a registry says about one name, answer by answer.
///
/// 1. The first call answers as soon as the registry has answered. Later ones wait for a change.
/// 2. An answer is the whole set that the registry holds, without what is known to be unwell. It may
///    be empty, and may repeat the one before; callers sort that out.
/// 3. Nothing is missed: after an error the next call asks for the whole set again.
/// 4. An error is returned once it is certain that this try failed, after seconds, not minutes;
///    whoever calls waits before the next try. It is never turned into an empty answer.
/// 5. Every instance that cannot be understood is left out and logged, and takes no others with it.
pub trait Answers: Send {
    /// Waits for the next answer.
    ///
    /// # Errors
    /// This try failed; a later one may not.
    ///
    /// # Cancel safety
    /// Dropping the future loses no answer: what it would have said is said by a later one.
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Instance>, RegistryError>>;

    /// Makes the next call ask the registry afresh and answer even when nothing has changed.
    fn look_again(&mut self);
}
