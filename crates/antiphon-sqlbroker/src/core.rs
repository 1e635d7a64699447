//! What the parts of one open broker share: its database, its clock, and who is to be woken.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use antiphon_core::{Clock, Timestamp};
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};

use crate::answers::Inboxes;
use crate::change::{Answer, Change, Failure, Job, Outcome};
use crate::log::{Log, Ring};
use crate::member::Member;

/// Messages that may wait for the writer at a time.
pub(crate) const PUBLISHING_MAX: u32 = 65_536;

pub(crate) struct Core<L: Log> {
    pub(crate) log: L,
    pub(crate) clock: Clock,
    /// Permits for messages on their way to the writer.
    pub(crate) room: Semaphore,
    topics: Mutex<HashMap<String, i64>>,
    /// By topic, the last position that everybody here knows of.
    seen: Mutex<HashMap<i64, i64>>,
    members: Mutex<Vec<Weak<Member<L>>>>,
    pub(crate) inboxes: Inboxes,
    /// Something was committed that housekeeping may have to do with.
    pub(crate) changed: AtomicBool,
    pub(crate) housekeeping: Notify,
}

impl<L: Log> Core<L> {
    pub(crate) fn start(log: L, clock: Clock, ear: &Ear) -> Arc<Self> {
        let core = Arc::new(Self {
            log,
            clock,
            room: Semaphore::new(PUBLISHING_MAX as usize),
            topics: Mutex::default(),
            seen: Mutex::default(),
            members: Mutex::default(),
            inboxes: Inboxes::default(),
            changed: AtomicBool::new(true),
            housekeeping: Notify::new(),
        });
        let told = Arc::downgrade(&core);
        let hear = move |heard: Heard| match told.upgrade() {
            Some(core) => {
                core.heard(heard);
                true
            }
            None => false,
        };
        drop(ear.0.set(Box::new(hear)));
        core
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Hands in a change; it is made whether or not the answer is awaited. `then` is called with the
    /// outcome, where the writer is, before the answer is given.
    pub(crate) fn write(
        &self,
        change: Change,
        then: impl FnOnce(&Result<Outcome, Failure>) + Send + 'static,
    ) -> Answer {
        let (job, answer) = Job::with_answer(change, then);
        self.log.write(job);
        answer
    }

    /// The number of a topic, if it was declared.
    pub(crate) async fn topic(&self, name: &str) -> Result<Option<i64>, Failure> {
        if let Some(id) = self.topics.lock().get(name) {
            return Ok(Some(*id));
        }
        let found = self.log.topic(name).await?;
        if let Some(id) = found {
            self.topics.lock().insert(name.to_owned(), id);
        }
        Ok(found)
    }

    pub(crate) fn add_member(&self, member: &Arc<Member<L>>) {
        self.members.lock().push(Arc::downgrade(member));
    }

    fn members(&self) -> Vec<Arc<Member<L>>> {
        let mut members = self.members.lock();
        members.retain(|member| member.strong_count() > 0);
        members.iter().filter_map(Weak::upgrade).collect()
    }

    /// This process has committed new messages in these topics.
    pub(crate) fn published(&self, topics: &[(i64, i64)]) {
        self.grown(topics);
        self.inboxes.hurry();
        self.log.ring(Ring::Published(topics));
    }

    /// There are new messages in these topics, up to these positions.
    pub(crate) fn grown(&self, topics: &[(i64, i64)]) {
        {
            let mut seen = self.seen.lock();
            for (topic, last) in topics {
                let seen = seen.entry(*topic).or_default();
                *seen = (*seen).max(*last);
            }
        }
        for member in self.members() {
            member.published(topics);
        }
    }

    /// Those of the heads that nobody here knows of yet.
    pub(crate) fn unseen(&self, heads: Vec<(i64, i64)>) -> Vec<(i64, i64)> {
        let seen = self.seen.lock();
        let known = |topic: &i64| seen.get(topic).copied().unwrap_or(0);
        heads.into_iter().filter(|(topic, head)| *head > known(topic)).collect()
    }

    /// Members of a group have come, gone, or given lanes back, here.
    pub(crate) fn regrouped(&self, group: i64, but: &str) {
        self.regrouped_elsewhere(group, but);
        self.log.ring(Ring::Regrouped(group));
    }

    /// As above, in any process.
    pub(crate) fn regrouped_elsewhere(&self, group: i64, but: &str) {
        for member in self.members() {
            member.regrouped(group, but);
        }
    }

    /// Housekeeping may have something to do.
    pub(crate) fn keep_house(&self) {
        self.changed.store(true, Ordering::Release);
        self.housekeeping.notify_one();
    }

    fn heard(&self, heard: Heard) {
        self.changed.store(true, Ordering::Release);
        match heard {
            Heard::Anything => {
                for member in self.members() {
                    member.changed();
                }
                self.inboxes.tell();
            }
            Heard::Published(topics) => self.grown(&topics),
            Heard::Regrouped(groups) => {
                for group in groups {
                    self.regrouped_elsewhere(group, "");
                }
            }
            Heard::Answered => self.inboxes.tell(),
        }
    }
}

/// What another process has committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Nobody knows what.
    Anything,
    /// New messages in these topics, up to these positions.
    Published(Vec<(i64, i64)>),
    /// Members of these groups have come or gone.
    Regrouped(Vec<i64>),
    /// Answers lie there.
    Answered,
}

type Hear = Box<dyn Fn(Heard) -> bool + Send + Sync>;

/// How a database tells its broker what it hears of other processes. It is made before either.
#[derive(Clone, Default)]
pub struct Ear(Arc<OnceLock<Hear>>);

impl Ear {
    /// Tells. Answers whether anybody is left to be told, or is still to come.
    #[must_use]
    pub fn hear(&self, heard: Heard) -> bool {
        self.0.get().is_none_or(|hear| hear(heard))
    }
}

impl fmt::Debug for Ear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Ear").field(&self.0.get().is_some()).finish()
    }
}
