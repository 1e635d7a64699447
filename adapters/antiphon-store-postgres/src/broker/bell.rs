//! Telling other processes, and hearing from them: NOTIFY and LISTEN.
//!
//! NOTIFY makes commits wait for each other, so it is never part of a transaction that does
//! something. What is to be told is gathered, and told over a connection of its own at most a
//! hundred times a second. Nobody depends on it: what was not heard is seen by looking.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use antiphon_sqlbroker::{Ear, Heard, Ring};
use parking_lot::Mutex;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use sqlx::{PgConnection, Row};
use tokio::sync::Notify;

use crate::connect::connect;

const CHANNEL: &str = "antiphon_mq";
/// How often others are told at most.
const EVERY: Duration = Duration::from_millis(10);
/// How long a notification takes at most before its connection is given up.
const TELL_MAX: Duration = Duration::from_secs(5);
/// What PostgreSQL takes as a payload, and some room.
const PAYLOAD_MAX: usize = 7_900;
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// What is to be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct News {
    topics: BTreeMap<i64, i64>,
    groups: BTreeSet<i64>,
    answers: bool,
}

impl News {
    fn add(&mut self, ring: Ring<'_>) {
        match ring {
            Ring::Published(topics) => {
                for (topic, head) in topics {
                    let known = self.topics.entry(*topic).or_default();
                    *known = (*known).max(*head);
                }
            }
            Ring::Regrouped(group) => drop(self.groups.insert(group)),
            Ring::Answered => self.answers = true,
        }
    }

    /// As text: `t3:170,4:9;g1,2;a`; or `*` when that is too long.
    fn write(&self) -> String {
        let join = |parts: Vec<String>| parts.join(",");
        let mut parts = Vec::new();
        if !self.topics.is_empty() {
            let topics = self.topics.iter().map(|(topic, head)| format!("{topic}:{head}"));
            parts.push(format!("t{}", join(topics.collect())));
        }
        if !self.groups.is_empty() {
            parts.push(format!("g{}", join(self.groups.iter().map(i64::to_string).collect())));
        }
        if self.answers {
            parts.push("a".to_owned());
        }
        let text = parts.join(";");
        if text.len() > PAYLOAD_MAX { "*".to_owned() } else { text }
    }
}

/// What a payload says; what is not understood may be anything.
fn read(text: &str) -> Vec<Heard> {
    let numbers = |list: &str| list.split(',').map(str::parse).collect::<Result<Vec<i64>, _>>();
    let part = |part: &str| -> Option<Heard> {
        match part.split_at_checked(1)? {
            ("t", topics) => topics
                .split(',')
                .map(|topic| {
                    let (topic, head) = topic.split_once(':')?;
                    Some((topic.parse().ok()?, head.parse().ok()?))
                })
                .collect::<Option<Vec<_>>>()
                .map(Heard::Published),
            ("g", groups) => numbers(groups).ok().map(Heard::Regrouped),
            ("a", "") => Some(Heard::Answered),
            _ => None,
        }
    };
    let heard: Option<Vec<Heard>> = text.split(';').map(part).collect();
    heard.unwrap_or_else(|| vec![Heard::Anything])
}

/// Where news are handed in.
#[derive(Default)]
pub(super) struct Bell {
    news: Mutex<News>,
    rung: Notify,
    /// The server's process that tells ours: what it tells we know.
    ours: AtomicU32,
}

impl Bell {
    pub(super) fn ring(&self, ring: Ring<'_>) {
        self.news.lock().add(ring);
        self.rung.notify_one();
    }

    /// Tells others, for ever.
    pub(super) async fn tell(
        self: Arc<Self>,
        options: PgConnectOptions,
        connect_timeout: Duration,
    ) {
        let mut connection: Option<PgConnection> = None;
        loop {
            self.rung.notified().await;
            tokio::time::sleep(EVERY).await;
            let news = std::mem::take(&mut *self.news.lock());
            if news == News::default() {
                continue;
            }
            let told = tokio::time::timeout(TELL_MAX, async {
                let mut open = match connection.take() {
                    Some(open) => open,
                    None => self.connect(&options, connect_timeout).await?,
                };
                sqlx::query("SELECT pg_notify($1, $2)")
                    .bind(CHANNEL)
                    .bind(news.write())
                    .execute(&mut open)
                    .await?;
                Ok::<_, sqlx::Error>(open)
            });
            match told.await {
                Ok(Ok(open)) => connection = Some(open),
                // Others see it by looking.
                Ok(Err(error)) => tracing::debug!(%error, "other processes were not told"),
                Err(_) => tracing::debug!("other processes were not told in time"),
            }
        }
    }

    async fn connect(
        &self,
        options: &PgConnectOptions,
        connect_timeout: Duration,
    ) -> Result<PgConnection, sqlx::Error> {
        let mut connection = connect(options, connect_timeout).await?;
        let process = sqlx::query("SELECT pg_backend_pid()").fetch_one(&mut connection).await?;
        let process: i32 = process.try_get(0)?;
        self.ours.store(process.cast_unsigned(), Ordering::Relaxed);
        Ok(connection)
    }

    /// Hears what others tell, until nobody is left here. `rung` is for a look at everything, when
    /// something may have been missed.
    pub(super) async fn listen(
        self: Arc<Self>,
        options: PgConnectOptions,
        ear: Ear,
        rung: Arc<Notify>,
    ) {
        let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(options);
        let mut pause = EVERY;
        loop {
            let listening = async {
                let mut listener = PgListener::connect_with(&pool).await?;
                listener.listen(CHANNEL).await?;
                Ok::<_, sqlx::Error>(listener)
            };
            match listening.await {
                Ok(listener) => {
                    pause = EVERY;
                    rung.notify_one();
                    if !self.hear(listener, &ear).await {
                        return;
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "other processes are not heard; looking instead");
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Hears until the connection is lost; answers whether anybody is left here.
    async fn hear(&self, mut listener: PgListener, ear: &Ear) -> bool {
        while let Ok(Some(notification)) = listener.try_recv().await {
            if notification.process_id() == self.ours.load(Ordering::Relaxed) {
                continue;
            }
            for heard in read(notification.payload()) {
                if !ear.hear(heard) {
                    return false;
                }
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_are_gathered_and_understood_elsewhere() {
        let mut news = News::default();
        news.add(Ring::Published(&[(3, 170), (4, 9)]));
        news.add(Ring::Published(&[(3, 160)]));
        news.add(Ring::Regrouped(2));
        news.add(Ring::Answered);
        assert_eq!(news.write(), "t3:170,4:9;g2;a");
        assert_eq!(
            read(&news.write()),
            [Heard::Published(vec![(3, 170), (4, 9)]), Heard::Regrouped(vec![2]), Heard::Answered]
        );
    }

    #[test]
    fn what_is_too_long_or_not_understood_may_be_anything() {
        let mut news = News::default();
        for topic in 0..2_000 {
            news.add(Ring::Published(&[(topic, i64::MAX)]));
        }
        assert_eq!(news.write(), "*");
        for text in ["*", "", "t1", "t1:x", "g1,x", "b", "a1", "ä"] {
            assert_eq!(read(text), [Heard::Anything], "{text}");
        }
    }
}
