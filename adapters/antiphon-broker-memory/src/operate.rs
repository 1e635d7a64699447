//! What there is to see for an operator.

use antiphon_core::{BoxFuture, Finding};
use antiphon_messaging::{GroupState, Operate, OperateError, TopicState};

use crate::broker::MemoryBroker;
use crate::group::Group;

impl Operate for MemoryBroker {
    fn topics(&self) -> BoxFuture<'_, Result<Vec<TopicState>, OperateError>> {
        Box::pin(async { Ok(self.0.state.lock().topics()) })
    }

    fn groups(&self) -> BoxFuture<'_, Result<Vec<GroupState>, OperateError>> {
        Box::pin(async {
            let state = self.0.state.lock();
            Ok(state.groups().map(Group::state).collect())
        })
    }

    fn findings(&self) -> BoxFuture<'_, Vec<Finding>> {
        Box::pin(async {
            let text = "messages are in the memory of this process and end with it";
            vec![Finding::note("memory broker", text)]
        })
    }
}
