//! Who is registered: the nodes below the node of a service.

use std::collections::BTreeMap;

use antiphon_core::BoxFuture;
use antiphon_discovery::{Answers, Instance, Record, RegistryError};
use futures_util::future::join_all;
use zookeeper_client::{AddWatchMode, Client, Error, EventType, PersistentWatcher, SessionState};

use crate::paths;
use crate::session::{Session, trouble};

/// The nodes of one service.
pub(crate) struct Nodes {
    session: Session,
    service: String,
    /// What is followed; without it all nodes are read first.
    followed: Option<(Client, PersistentWatcher)>,
    /// By path.
    instances: BTreeMap<String, Instance>,
    /// Nodes to which something happened, and that are to be read.
    changed: Vec<String>,
}

impl Nodes {
    pub(crate) fn new(session: Session, name: &str) -> Self {
        let service = paths::service(&session.settings().root, name);
        Self { session, service, followed: None, instances: BTreeMap::new(), changed: Vec::new() }
    }

    async fn answer(&mut self) -> Result<Vec<Instance>, RegistryError> {
        let done = if self.followed.is_none() { self.list().await } else { self.follow().await };
        if done.is_err() {
            self.followed = None;
        }
        done.map(|()| self.instances.values().cloned().collect())
    }

    /// Reads all nodes, and follows what happens from before that on.
    async fn list(&mut self) -> Result<(), RegistryError> {
        let client = self.session.client().await?;
        let path = self.service.as_str();
        let watch = client.watch(path, AddWatchMode::PersistentRecursive);
        let watcher = self.session.ask("a watch", watch).await?;
        let watcher = watcher.map_err(|error| trouble("a watch", error))?;
        // The server that is asked may be behind the others.
        let synced = self.session.ask("a sync", client.sync(path)).await?;
        synced.map_err(|error| trouble("a sync", error))?;
        let children = match self.session.ask("a list", client.list_children(path)).await? {
            Ok(children) => children,
            Err(Error::NoNode) => Vec::new(),
            Err(error) => return Err(trouble("a list", error)),
        };
        let nodes: Vec<String> = children.iter().map(|child| format!("{path}/{child}")).collect();
        let read = join_all(nodes.iter().map(|node| read(&self.session, &client, node))).await;
        let mut instances = BTreeMap::new();
        for (node, read) in nodes.iter().zip(read) {
            if let Some(instance) = read? {
                instances.insert(node.clone(), instance);
            }
        }
        self.instances = instances;
        self.changed.clear();
        self.followed = Some((client, watcher));
        Ok(())
    }

    /// Waits until something happens to a node, and reads it.
    async fn follow(&mut self) -> Result<(), RegistryError> {
        loop {
            let Some((client, watcher)) = &mut self.followed else {
                return Err(RegistryError::silent("nothing is followed"));
            };
            // Not read yet when this was dropped in the middle.
            while let Some(node) = self.changed.last().cloned() {
                match read(&self.session, client, &node).await? {
                    Some(instance) => self.instances.insert(node, instance),
                    None => self.instances.remove(&node),
                };
                self.changed.pop();
                if self.changed.is_empty() {
                    return Ok(());
                }
            }
            let event = watcher.changed().await;
            if event.event_type == EventType::Session {
                let state = event.session_state;
                if state == SessionState::Expired || state == SessionState::Closed {
                    return Err(RegistryError::lost("the session of a watch at ZooKeeper is over"));
                }
                // What happens meanwhile is told to nobody (ZOOKEEPER-4698): all is read again.
                return Err(RegistryError::silent(format!(
                    "the connection to ZooKeeper was lost ({state})"
                )));
            }
            if event.path != self.service {
                self.changed.push(event.path);
            }
        }
    }
}

impl Answers for Nodes {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Instance>, RegistryError>> {
        Box::pin(self.answer())
    }

    fn look_again(&mut self) {
        self.followed = None;
    }
}

/// What a node says; nothing when it is gone or is no instance.
async fn read(
    session: &Session,
    client: &Client,
    node: &str,
) -> Result<Option<Instance>, RegistryError> {
    let data = match session.ask("a node", client.get_data(node)).await? {
        Ok((data, _)) => data,
        Err(Error::NoNode) => return Ok(None),
        Err(error) => return Err(trouble("a node", error)),
    };
    match Record::read(&data) {
        Ok(instance) => Ok(Some(instance)),
        Err(error) => {
            tracing::error!(node, %error, "a node that is no instance is left out; remove it");
            Ok(None)
        }
    }
}
