//! Instances that are written down once and stay.

use antiphon_core::BoxFuture;

use crate::{Answers, Instance, RegistryError};

/// The answers of a fixed list: one, and no other.
#[derive(Clone, Debug)]
pub struct Fixed {
    instances: Vec<Instance>,
    answered: bool,
}

impl Fixed {
    /// These instances.
    #[must_use]
    pub const fn new(instances: Vec<Instance>) -> Self {
        Self { instances, answered: false }
    }
}

impl Answers for Fixed {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Instance>, RegistryError>> {
        Box::pin(async move {
            if self.answered {
                std::future::pending::<()>().await;
            }
            self.answered = true;
            Ok(self.instances.clone())
        })
    }

    fn look_again(&mut self) {
        self.answered = false;
    }
}
