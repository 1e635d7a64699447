//! The operator's view.

use std::sync::Arc;

use antiphon_core::{BoxFuture, Finding};
use antiphon_messaging::{GroupState, Operate, OperateError, TopicState};

use crate::change::Failure;
use crate::core::Core;
use crate::log::Log;

pub(crate) struct View<L: Log>(pub(crate) Arc<Core<L>>);

impl<L: Log> Operate for View<L> {
    fn topics(&self) -> BoxFuture<'_, Result<Vec<TopicState>, OperateError>> {
        Box::pin(async move { self.0.log.topics().await.map_err(failed("listing topics")) })
    }

    fn groups(&self) -> BoxFuture<'_, Result<Vec<GroupState>, OperateError>> {
        Box::pin(async move { self.0.log.groups().await.map_err(failed("listing groups")) })
    }

    fn findings(&self) -> BoxFuture<'_, Vec<Finding>> {
        Box::pin(self.0.log.findings())
    }
}

fn failed(action: &'static str) -> impl FnOnce(Failure) -> OperateError {
    move |failure| OperateError { action, source: failure.into() }
}
