//! What is done when a transaction is over.

use std::sync::Arc;

use antiphon_testing::memory_store::{Fault, Point};
use parking_lot::Mutex;

use crate::fixture::{Placed, World, add_one, faults, secs};

#[tokio::test(start_paused = true)]
async fn it_is_done_once_after_the_commit_whatever_became_of_it() {
    for (fault, is_written) in [
        (Fault::None, true),
        (Fault::Late(secs(1)), true),
        (Fault::LostAfter, true),
        (Fault::LostBefore, false),
        (Fault::Fails, false),
    ] {
        let world = World::new();
        let database =
            world.faulty(faults(
                move |point, _| {
                    if point == Point::Commit { fault } else { Fault::None }
                },
            ));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let mut tx = database.begin().await.unwrap();
        add_one(&mut tx, "a").await.unwrap();
        tx.emit(&Placed::new("a"));
        tx.when_over({
            let (seen, store, news) =
                (Arc::clone(&seen), world.store.clone(), database.committed());
            move || {
                let is_news = news.has_changed().unwrap();
                seen.lock().push((store.row("numbers", "a").is_some(), is_news));
            }
        });
        assert!(seen.lock().is_empty());
        let done = tx.commit().await;
        assert_eq!(done.is_ok(), matches!(fault, Fault::None | Fault::Late(_)), "{fault:?}");
        let expected = [(is_written, false)];
        assert_eq!(*seen.lock(), expected, "{fault:?}: once, and before the relay is woken");
    }
}

#[tokio::test(start_paused = true)]
async fn it_is_done_when_a_transaction_is_given_up() {
    let world = World::new();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let mut tx = world.database.begin().await.unwrap();
    add_one(&mut tx, "a").await.unwrap();
    for number in 0..2 {
        let (seen, store) = (Arc::clone(&seen), world.store.clone());
        tx.when_over(move || seen.lock().push((number, store.row("numbers", "a").is_some())));
    }
    drop(tx);
    assert_eq!(*seen.lock(), [(0, false), (1, false)]);
}
