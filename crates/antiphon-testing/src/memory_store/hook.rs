//! Where a simulator takes hold: before and after every effect of the store.

use std::time::Duration;

use antiphon_outbox::{CommitError, StoreError};

/// The calls of the store's ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each is named after the method of its port")]
pub enum Point {
    Begin,
    Commit,
    Append,
    Read,
    Confirm,
    Bury,
    Buried,
    Backlog,
    Sent,
    Acquire,
    Renew,
    Release,
    Instances,
    Leave,
    Enter,
    Expire,
    Handled,
    Recall,
    Remember,
    Forget,
    Insert,
    Load,
    Save,
    Find,
    Due,
    Live,
    List,
    ForgetEnded,
    Pass,
    Answer,
    Retract,
    ForgetPassed,
}

/// What happens to a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// Nothing unusual.
    #[default]
    None,
    /// It takes this long, then works.
    Slow(Duration),
    /// It has its effect at once, but the answer takes this long: others are quicker to act.
    Late(Duration),
    /// It is refused as busy, without effect.
    Busy,
    /// It fails, and the caller knows that nothing happened.
    Fails,
    /// It has no effect, but the caller cannot know.
    LostBefore,
    /// It has its effect, but the caller cannot know.
    LostAfter,
    /// It never returns, and nothing happened: the process ends here.
    StopsBefore,
    /// It never returns, but its effect is there: the process ends here.
    StopsAfter,
}

/// Decides about each call.
pub trait Hook: Send + Sync + 'static {
    /// What happens to the call that begins now.
    fn fault(&self, point: Point) -> Fault;
}

/// Everything works.
#[derive(Clone, Copy, Debug)]
pub struct NoFaults;

impl Hook for NoFaults {
    fn fault(&self, _: Point) -> Fault {
        Fault::None
    }
}

impl<F: Fn(Point) -> Fault + Send + Sync + 'static> Hook for F {
    fn fault(&self, point: Point) -> Fault {
        self(point)
    }
}

fn failed(action: Point, what: &'static str) -> StoreError {
    StoreError::Failed { action: name(action), source: what.into() }
}

fn name(point: Point) -> &'static str {
    match point {
        Point::Begin => "beginning a transaction",
        Point::Commit => "committing",
        Point::Append | Point::Read | Point::Confirm | Point::Bury => "using the outbox",
        Point::Buried | Point::Backlog | Point::Sent | Point::Handled => "counting",
        Point::Acquire | Point::Renew | Point::Release | Point::Instances | Point::Leave => {
            "using leases"
        }
        Point::Enter | Point::Expire => "using the inbox",
        Point::Recall | Point::Remember | Point::Forget => "using stored answers",
        Point::Insert | Point::Load | Point::Save | Point::Find => "using sagas",
        Point::Due | Point::Live | Point::List | Point::ForgetEnded => "looking at sagas",
        Point::Pass | Point::Answer | Point::Retract | Point::ForgetPassed => {
            "using the barrier of sagas"
        }
    }
}

/// What comes before the effect. Every call lets other tasks run once.
pub(super) async fn before(hook: &dyn Hook, point: Point) -> Result<Fault, StoreError> {
    let fault = hook.fault(point);
    tokio::task::yield_now().await;
    match fault {
        Fault::Slow(time) => tokio::time::sleep(time).await,
        Fault::Busy => return Err(StoreError::Busy("injected".into())),
        Fault::Fails | Fault::LostBefore => return Err(failed(point, "injected, without effect")),
        Fault::StopsBefore => std::future::pending().await,
        Fault::None | Fault::Late(_) | Fault::LostAfter | Fault::StopsAfter => {}
    }
    Ok(fault)
}

/// As [`before`], for the one call whose caller is told whether the outcome is known.
pub(super) async fn before_commit(hook: &dyn Hook) -> Result<Fault, CommitError> {
    let fault = hook.fault(Point::Commit);
    tokio::task::yield_now().await;
    match fault {
        Fault::Slow(time) => tokio::time::sleep(time).await,
        Fault::Busy => {
            return Err(CommitError::RolledBack(StoreError::Busy("injected".into())));
        }
        Fault::Fails => {
            return Err(CommitError::RolledBack(failed(Point::Commit, "injected")));
        }
        Fault::LostBefore => return Err(CommitError::Unknown("injected, without effect".into())),
        Fault::StopsBefore => std::future::pending().await,
        Fault::None | Fault::Late(_) | Fault::LostAfter | Fault::StopsAfter => {}
    }
    Ok(fault)
}

/// What comes after the effect.
pub(super) async fn after(fault: Fault, point: Point) -> Result<(), StoreError> {
    match fault {
        Fault::LostAfter => Err(failed(point, "injected, after the effect")),
        Fault::StopsAfter => std::future::pending().await,
        Fault::Late(time) => {
            tokio::time::sleep(time).await;
            Ok(())
        }
        _ => Ok(()),
    }
}
