//! Statements that go with COMMIT and come so often that each connection plans them once.
//!
//! What goes with COMMIT goes as text, for only so several statements make one round trip; and a text
//! is planned each time it comes, which takes longer than to carry it out. So the text says `EXECUTE`
//! and the values.

use super::outbox::draw_after_lock;

/// Keeps the answer to a command: answer, saga, step, side.
pub(super) const ANSWER: &str = "EXECUTE antiphon_answer(";
/// Saves a saga: revision, state, parked, moment to wake, data, progress, moment, id.
pub(super) const SAVE: &str = "EXECUTE antiphon_save(";
/// Adds a message to the outbox: lane, id, topic, kind, head, body.
pub(super) const APPEND: &str = "EXECUTE antiphon_append(";
/// Adds a message behind the lock of its key: the same, and the lock.
pub(super) const APPEND_LOCKED: &str = "EXECUTE antiphon_append_locked(";

/// What a connection is told before its first transaction.
pub(super) fn prepare() -> String {
    let draw = draw_after_lock("$7");
    format!(
        "PREPARE antiphon_answer (bytea, uuid, text, integer) AS
            UPDATE antiphon_barrier SET done = $1, reason = NULL, message = NULL
             WHERE saga = $2 AND step = $3 AND side = $4;
         PREPARE antiphon_save (bigint, integer, boolean, bigint, bytea, text, bigint, uuid) AS
            UPDATE antiphon_saga
               SET revision = CASE revision WHEN $1 THEN revision + 1 END, state = $2, parked = $3,
                   wake_at = $4, data = $5, progress = $6, updated_at = $7
             WHERE id = $8;
         PREPARE antiphon_append (integer, uuid, text, text, bytea, bytea) AS
            INSERT INTO antiphon_outbox (lane, id, topic, kind, head, body, seq)
            VALUES ($1, $2, $3, $4, $5, $6, nextval('antiphon_outbox_seq'));
         PREPARE antiphon_append_locked (integer, uuid, text, text, bytea, bytea, integer) AS
            INSERT INTO antiphon_outbox (lane, id, topic, kind, head, body, seq)
            VALUES ($1, $2, $3, $4, $5, $6, {draw})"
    )
}
