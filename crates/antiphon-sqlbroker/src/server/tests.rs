//! What the writing task does with what a server answers.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::*;

/// Answers by a script; what it was asked is noted by the number of changes.
#[derive(Clone, Default)]
struct Scripted {
    script: Arc<Mutex<VecDeque<Result<(), Trouble>>>>,
    connections: Arc<Mutex<VecDeque<bool>>>,
    asked: Arc<Mutex<Vec<usize>>>,
}

impl Server for Scripted {
    type Connection = ();

    async fn connect(&self) -> Result<(), String> {
        let up = self.connections.lock().pop_front().unwrap_or(true);
        if up { Ok(()) } else { Err("refused".into()) }
    }

    async fn answers(&self, (): &mut ()) -> bool {
        true
    }

    async fn apply(&self, (): &mut (), changes: &[&Change]) -> Result<Vec<Outcome>, Trouble> {
        self.asked.lock().push(changes.len());
        // A transaction that can only be refused: one of its changes is not a trim.
        if changes.iter().any(|change| matches!(change, Change::Publish(_))) {
            return Err(Trouble::Refused("no publishing here".into()));
        }
        let next = self.script.lock().pop_front();
        next.unwrap_or(Ok(())).map(|()| vec![Outcome::More(false); changes.len()])
    }
}

/// Hands in these changes at once, and says what comes of each.
async fn made(server: &Scripted, changes: Vec<Change>) -> Vec<Result<(), Failure>> {
    let (sender, jobs) = mpsc::unbounded_channel();
    let mut answers = Vec::new();
    for change in changes {
        let (answer, receiver) = oneshot::channel();
        let job = Job::new(change, move |outcome| drop(answer.send(outcome.map(drop))));
        assert!(sender.send(job).is_ok());
        answers.push(receiver);
    }
    drop(sender);
    write(server.clone(), jobs).await;
    let mut outcomes = Vec::new();
    for answer in answers {
        outcomes.push(answer.await.unwrap());
    }
    outcomes
}

fn scripted(script: impl IntoIterator<Item = Result<(), Trouble>>) -> Scripted {
    let server = Scripted::default();
    server.script.lock().extend(script);
    server
}

#[tokio::test(start_paused = true)]
async fn changes_that_come_together_go_into_one_transaction() {
    let server = scripted([]);
    assert_eq!(made(&server, vec![Change::Trim; 3]).await, vec![Ok(()); 3]);
    assert_eq!(*server.asked.lock(), [3]);
}

#[tokio::test(start_paused = true)]
async fn a_transaction_that_others_were_in_the_way_of_is_made_again() {
    let server = scripted(vec![Err(Trouble::Again("deadlock".into())); 3]);
    assert_eq!(made(&server, vec![Change::Trim; 2]).await, vec![Ok(()); 2]);
    assert_eq!(*server.asked.lock(), [2; 4]);
}

#[tokio::test(start_paused = true)]
async fn a_refused_change_does_not_undo_the_others() {
    let server = scripted([]);
    let outcomes =
        made(&server, vec![Change::Trim, Change::Publish(Vec::new()), Change::Trim]).await;
    assert_eq!(outcomes[0], Ok(()));
    assert_eq!(outcomes[1], Err(Failure::NotMade("no publishing here".into())));
    assert_eq!(outcomes[2], Ok(()));
    assert_eq!(*server.asked.lock(), [3, 1, 1, 1]);
}

#[tokio::test(start_paused = true)]
async fn what_is_lost_while_committing_is_unknown_and_not_made_again() {
    let server = scripted([Err(Trouble::Unknown("cut".into()))]);
    let outcomes = made(&server, vec![Change::Trim; 2]).await;
    assert_eq!(outcomes, vec![Err(Failure::Unknown("cut".into())); 2]);
    assert_eq!(*server.asked.lock(), [2]);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_connected_is_certainly_not_made() {
    let server = scripted([]);
    server.connections.lock().extend([false]);
    let outcomes = made(&server, vec![Change::Trim]).await;
    assert_eq!(outcomes, [Err(Failure::NotMade("refused".into()))]);
    assert!(server.asked.lock().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_ended_while_idle_costs_nobody_anything() {
    let server = scripted([Ok(()), Err(Trouble::Lost("gone".into()))]);
    let mut writer = Writer {
        server: server.clone(),
        connection: None,
        pause: None,
        connect_at: Instant::now(),
    };
    assert!(writer.transaction(&[&Change::Trim]).await.is_ok());
    assert!(writer.transaction(&[&Change::Trim]).await.is_ok());
    assert_eq!(*server.asked.lock(), [1, 1, 1]);
}
