//! One instance: an ephemeral node.

use antiphon_core::BoxFuture;
use antiphon_discovery::{Authority, Entry, Held, Instance, Record, RegistryError};
use tokio::time::{Duration, sleep};
use zookeeper_client::{Client, CreateMode, Error, SessionState};

use crate::paths;
use crate::session::{Session, trouble};

/// How often a node is tried to be written in one go: each time somebody else was quicker.
const TRIES: usize = 5;

/// The place of one instance.
pub(crate) struct Node {
    session: Session,
    service: String,
    address: Option<Authority>,
    /// The sessions in which this entry may have a node: what is left of an older one is ours.
    sessions: Vec<i64>,
    /// Whether it ever had one.
    written: bool,
}

/// What became of a try to write.
enum Written {
    Yes,
    /// Somebody changed something in between.
    Again,
}

impl Node {
    pub(crate) fn new(session: Session, name: &str) -> Self {
        let service = paths::service(&session.settings().root, name);
        Self { session, service, address: None, sessions: Vec::new(), written: false }
    }

    async fn keep(&mut self, instance: &Instance, held: &Held) -> RegistryError {
        match self.try_keep(instance, held).await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn try_keep(
        &mut self,
        instance: &Instance,
        held: &Held,
    ) -> Result<std::convert::Infallible, RegistryError> {
        let client = self.session.client().await?;
        let node = paths::instance(&self.service, &instance.address);
        self.address = Some(instance.address.clone());
        self.write(&client, &node, instance).await?;
        held.yes();
        // The servers hold it within bounds of theirs.
        let session = client.session_timeout();
        let mut states = client.state_watcher();
        let mut state = client.state();
        loop {
            let stat = self.session.ask("a node", client.check_and_watch_stat(&node));
            let (stat, change) = match stat.await? {
                Ok(watched) => watched,
                Err(Error::ConnectionLoss) => {
                    outlive(session, &mut state, &mut states).await?;
                    continue;
                }
                Err(error) => return Err(trouble("a node", error)),
            };
            if stat.is_none_or(|stat| stat.ephemeral_owner != client.session_id().0) {
                return Err(RegistryError::lost(format!("{node} was removed or taken over")));
            }
            tokio::select! {
                _ = change.changed() => {}
                now = states.changed() => state = now,
            }
            outlive(session, &mut state, &mut states).await?;
        }
    }

    async fn write(
        &mut self,
        client: &Client,
        node: &str,
        instance: &Instance,
    ) -> Result<(), RegistryError> {
        let value = Record::from(instance).to_json();
        // Before it is written: whoever is stopped in the middle has to remove it all the same.
        let session = client.session_id().0;
        if !self.sessions.contains(&session) {
            self.sessions.push(session);
        }
        for _ in 0..TRIES {
            if let Written::Yes = self.try_write(client, node, value.as_bytes()).await? {
                self.written = true;
                return Ok(());
            }
        }
        Err(RegistryError::silent(format!("{node} changes all the time")))
    }

    async fn try_write(
        &self,
        client: &Client,
        node: &str,
        value: &[u8],
    ) -> Result<Written, RegistryError> {
        let ours = CreateMode::Ephemeral.with_acls(self.session.acls());
        let created = self.session.ask("a new node", client.create(node, value, &ours)).await?;
        match created {
            Ok(_) => return Ok(Written::Yes),
            Err(Error::NodeExists) => {}
            Err(Error::NoNode) => {
                self.make_parents(client).await?;
                return Ok(Written::Again);
            }
            Err(error) => return Err(trouble("a new node", error)),
        }
        let there = self.session.ask("a node", client.get_data(node)).await?;
        let (there, stat) = match there {
            Ok(there) => there,
            Err(Error::NoNode) => return Ok(Written::Again),
            Err(error) => return Err(trouble("a node", error)),
        };
        let mine = stat.ephemeral_owner == client.session_id().0;
        if mine && there == value {
            return Ok(Written::Yes);
        }
        let done = if mine {
            let set = client.set_data(node, value, Some(stat.version));
            self.session.ask("a change", set).await?.map(|_| ())
        } else {
            // Left by an older session, of this process or of the one that had the address before.
            // Who had it once and finds somebody else there has been replaced.
            let known = self.sessions.contains(&stat.ephemeral_owner);
            if !known && self.written {
                return Err(RegistryError::invalid(format!(
                    "{node} belongs to another process by now; two have the same address"
                )));
            }
            let mut writer = client.new_multi_writer();
            let added = writer
                .add_delete(node, Some(stat.version))
                .and_then(|()| writer.add_create(node, value, &ours));
            added.map_err(|error| trouble("a node that is replaced", error))?;
            let commit = async { writer.commit().await.map(|_| ()).map_err(Error::from) };
            self.session.ask("a node that is replaced", commit).await?
        };
        match done {
            Ok(()) => Ok(Written::Yes),
            Err(Error::NoNode | Error::BadVersion | Error::NodeExists) => Ok(Written::Again),
            Err(error) => Err(trouble("a change", error)),
        }
    }

    /// The nodes above. That of a service goes by itself when nobody is left below it.
    async fn make_parents(&self, client: &Client) -> Result<(), RegistryError> {
        let lasting = CreateMode::Persistent.with_acls(self.session.acls());
        let root = client.mkdir(&self.session.settings().root, &lasting);
        let made = self.session.ask("the root", root).await?;
        made.map_err(|error| trouble("the root", error))?;
        let passing = CreateMode::Container.with_acls(self.session.acls());
        let service = client.create(&self.service, &[], &passing);
        match self.session.ask("the node of a service", service).await? {
            Ok(_) | Err(Error::NodeExists | Error::NoNode) => Ok(()),
            Err(error) => Err(trouble("the node of a service", error)),
        }
    }

    async fn withdraw(&mut self) -> Result<(), RegistryError> {
        let Some(address) = self.address.clone().filter(|_| !self.sessions.is_empty()) else {
            return Ok(());
        };
        let node = paths::instance(&self.service, &address);
        let client = self.session.client().await?;
        let stat = self.session.ask("a node", client.check_stat(&node)).await?;
        let stat = stat.map_err(|error| trouble("a node", error))?;
        let Some(stat) = stat.filter(|stat| self.sessions.contains(&stat.ephemeral_owner)) else {
            return Ok(());
        };
        let delete = client.delete(&node, Some(stat.version));
        match self.session.ask("a removal", delete).await? {
            Ok(()) | Err(Error::NoNode | Error::BadVersion) => Ok(()),
            Err(error) => Err(trouble("a removal", error)),
        }
    }
}

impl Entry for Node {
    fn hold<'a>(
        &'a mut self,
        instance: &'a Instance,
        held: &'a Held,
    ) -> BoxFuture<'a, RegistryError> {
        Box::pin(self.keep(instance, held))
    }

    fn remove(&mut self) -> BoxFuture<'_, Result<(), RegistryError>> {
        Box::pin(self.withdraw())
    }
}

/// Waits for a lost connection to come back, as long as the session is certain to live.
///
/// The client gives a connection up when two fifths of the session's time have passed without an
/// answer. Four fifteenths later, at two thirds, the servers may be near their end of it: from
/// then on others may not see the instance any more, although we learn that only from a server.
async fn outlive(
    session: Duration,
    state: &mut SessionState,
    states: &mut zookeeper_client::StateWatcher,
) -> Result<(), RegistryError> {
    let patience = fence(session);
    loop {
        match *state {
            SessionState::SyncConnected => return Ok(()),
            SessionState::Disconnected => {}
            SessionState::Expired | SessionState::Closed => {
                return Err(RegistryError::lost("the session at ZooKeeper has expired"));
            }
            other => {
                let context = format!("the session at ZooKeeper is of no use: {other}");
                return Err(RegistryError::invalid(context));
            }
        }
        tokio::select! {
            now = states.changed() => *state = now,
            () = sleep(patience) => {
                return Err(RegistryError::silent(
                    "there was no connection to ZooKeeper for two thirds of the session's time",
                ));
            }
        }
    }
}

/// From two fifths of a session's time to two thirds of it.
fn fence(session: Duration) -> Duration {
    session * 4 / 15
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fence_stands_at_two_thirds_of_the_session() {
        let session = Duration::from_secs(30);
        assert_eq!(session * 2 / 5 + fence(session), session * 2 / 3);
    }
}
