//! The context that is current: a thread-local that is set whenever the task is polled.

use std::cell::RefCell;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};

use pin_project_lite::pin_project;

use super::Context;

thread_local! {
    static CURRENT: RefCell<Option<Context>> = const { RefCell::new(None) };
}

pub(super) fn current() -> Option<Context> {
    CURRENT.with_borrow(Clone::clone)
}

pub(super) fn with_current<T>(read: impl FnOnce(Option<&Context>) -> T) -> T {
    CURRENT.with_borrow(|context| read(context.as_ref()))
}

/// Puts the previous context back, also when the work panics.
struct Entered(Option<Context>);

impl Entered {
    fn new(context: Context) -> Self {
        Self(CURRENT.replace(Some(context)))
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}

pub(super) fn sync_scope<T>(context: &Context, work: impl FnOnce() -> T) -> T {
    let _entered = Entered::new(context.clone());
    work()
}

pin_project! {
    /// Work with a context of its own. Made by [`Context::scope`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless awaited"]
    pub struct Scoped<F> {
        context: Context,
        #[pin]
        work: F,
    }
}

impl<F> Scoped<F> {
    pub(super) fn new(context: Context, work: F) -> Self {
        Self { context, work }
    }
}

impl<F: Future> Future for Scoped<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _entered = Entered::new(this.context.clone());
        this.work.poll(task)
    }
}

/// Spawns `work` on the runtime with the current context: the one way in which context crosses a
/// spawn.
pub fn spawn<F>(work: F) -> tokio::task::JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(Context::current().scope(work))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tasks_on_one_thread_keep_their_contexts_apart() {
        let one = Context::root().with_correlation_id("one");
        let two = Context::root().with_correlation_id("two");
        let read = || async {
            tokio::task::yield_now().await;
            Context::current().correlation_id().into_owned()
        };
        let (first, second) = tokio::join!(one.scope(read()), two.scope(read()));
        assert_eq!((first.as_str(), second.as_str()), ("one", "two"));
        assert!(Context::try_current().is_none());
    }

    #[tokio::test]
    async fn spawn_carries_the_context() {
        let context = Context::root().with_correlation_id("parent");
        let seen = context
            .scope(async {
                spawn(async { Context::current().correlation_id().into_owned() }).await.unwrap()
            })
            .await;
        assert_eq!(seen, "parent");
    }

    #[test]
    fn a_panic_does_not_leave_a_context_behind() {
        let caught = std::panic::catch_unwind(|| Context::root().sync_scope(|| panic!("boom")));
        assert!(caught.is_err());
        assert!(Context::try_current().is_none());
    }
}
