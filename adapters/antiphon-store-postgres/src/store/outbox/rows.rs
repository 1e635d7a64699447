//! The messages of one transaction, as the statements that write them.
//!
//! Order. A transaction draws the positions of its messages in its last statement and commits at
//! once. Where it has locked what a key stands for (a row that every transaction about this key
//! changes), the next one about the key draws its positions after the commit of this one, since
//! PostgreSQL shows a transaction before it lets go of its locks: positions are in the order of the
//! commits, and who sees one sees all before it. Where it has not, two transactions could draw
//! positions in one order and become visible in the other. So each key is locked as well
//! (`pg_advisory_xact_lock`), in the expression that draws the position: keys in ascending order of
//! their locks, and nothing else is locked after the first of them, so nobody waits in a circle. The
//! server's table of locks is small, so a transaction with very many keys locks the gate instead,
//! through which all others have gone that hold keys.
//!
//! Messages that are due later are ordered among themselves by when they are due; they lock nothing.

use std::collections::HashSet;

use antiphon_messaging::{Message, row};
use antiphon_outbox::{StoreError, outbox_lane};

use crate::store::executed::{APPEND, APPEND_LOCKED};
use crate::store::literal::Text;

/// The first number of the advisory locks on keys; that of the gate is one above.
const LOCK_CLASS: i32 = 0x616e_7468;
/// With more keys, the gate is locked.
const KEYS_MAX: usize = 64;

/// About how long a row is without its body.
const ROW_BYTES: usize = 640;

const INSERT: &str =
    "INSERT INTO antiphon_outbox (lane, id, topic, kind, head, body, seq) VALUES (";
const INSERT_DELAYED: &str =
    "INSERT INTO antiphon_outbox_delayed (lane, id, topic, kind, head, body, due, seq) VALUES (";
const DRAW: &str = "nextval('antiphon_outbox_seq')";
/// Goes through the gate, together with others: "gate".
const PASS_GATE: &str = "pg_advisory_xact_lock_shared(1634628713,1734440037)";
/// Waits until nobody is behind the gate, and lets nobody through until the commit.
const LOCK_GATE: &str = "pg_advisory_xact_lock(1634628713,1734440037)";

/// What is to be written.
#[derive(Debug)]
pub(crate) struct Rows {
    key_locks: bool,
    plain: Vec<Row>,
    delayed: Text,
}

/// One message as the beginning of a row.
#[derive(Debug)]
struct Row {
    /// The lock of its key; `None` for a message without one.
    lock: Option<i32>,
    values: Text,
}

impl Rows {
    pub(crate) fn new(key_locks: bool) -> Self {
        Self { key_locks, plain: Vec::new(), delayed: Text::default() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.plain.is_empty() && self.delayed.is_empty()
    }

    /// Adds messages behind those that are there.
    ///
    /// # Errors
    /// A topic or kind has a zero byte.
    pub(crate) fn add(&mut self, messages: &[Message]) -> Result<(), StoreError> {
        for message in messages {
            match message.not_before {
                None => {
                    let mut values = Text::with_capacity(ROW_BYTES + 2 * message.body.len());
                    write(&mut values, message)?;
                    let is_locked = self.key_locks && !message.key.is_empty();
                    let lock = is_locked.then(|| lock_of(&message.topic, &message.key));
                    self.plain.push(Row { lock, values });
                }
                Some(due) => {
                    let text = &mut self.delayed;
                    text.sql(if text.is_empty() { INSERT_DELAYED } else { ",(" });
                    write(text, message)?;
                    text.sql(",").number(due.as_micros()).sql(",").sql(DRAW).sql(")");
                }
            }
        }
        Ok(())
    }

    /// Writes the statements behind those in `text`.
    pub(crate) fn write(&mut self, text: &mut Text) {
        if !self.delayed.is_empty() {
            begin(text);
            text.append(&self.delayed);
        }
        if self.plain.is_empty() {
            return;
        }
        if let [row] = &self.plain[..] {
            begin(text);
            match row.lock {
                Some(lock) => text.sql(APPEND_LOCKED).append(&row.values).sql(",").number(lock),
                None => text.sql(APPEND).append(&row.values),
            };
            text.sql(")");
            return;
        }
        // Stable: the messages of a key stay in order.
        self.plain.sort_by_key(|row| row.lock);
        let keys: HashSet<i32> = self.plain.iter().filter_map(|row| row.lock).collect();
        let locks_gate = keys.len() > KEYS_MAX;
        begin(text);
        let mut held = None;
        for (index, row) in self.plain.iter().enumerate() {
            text.sql(if index == 0 { INSERT } else { ",(" }).append(&row.values).sql(",");
            let is_first = held.is_none();
            match row.lock {
                Some(lock) if held != Some(lock) && (is_first || !locks_gate) => {
                    held = Some(lock);
                    // Whatever locks answers with nothing, which is not NULL.
                    text.sql("CASE WHEN ");
                    match (locks_gate, is_first) {
                        (true, _) => text.sql(LOCK_GATE),
                        (false, true) => text.sql(PASS_GATE).sql(" IS NULL OR ").lock(lock),
                        (false, false) => text.lock(lock),
                    };
                    text.sql(" IS NULL THEN 0 ELSE ").sql(DRAW).sql(" END)");
                }
                _ => {
                    text.sql(DRAW).sql(")");
                }
            }
        }
    }
}

impl Text {
    fn lock(&mut self, lock: i32) -> &mut Self {
        self.sql("pg_advisory_xact_lock(").number(LOCK_CLASS).sql(",").number(lock).sql(")")
    }
}

/// Goes through the gate, locks a key and draws a position: what the only row of a transaction does.
pub(crate) fn draw_after_lock(lock: &str) -> String {
    format!(
        "CASE WHEN {PASS_GATE} IS NULL OR pg_advisory_xact_lock({LOCK_CLASS},{lock}) IS NULL
              THEN 0 ELSE {DRAW} END"
    )
}

fn begin(text: &mut Text) {
    text.sql(if text.is_empty() { "" } else { ";" });
}

/// Writes the columns that every row has.
fn write(text: &mut Text, message: &Message) -> Result<(), StoreError> {
    text.number(outbox_lane(message)).sql(",").id(message.id.as_bytes()).sql(",");
    text.text(&message.topic)?.sql(",").text(&message.kind)?.sql(",");
    text.bytes(&row::encode_head(message)).sql(",").bytes(&message.body);
    Ok(())
}

fn lock_of(topic: &str, key: &str) -> i32 {
    // FNV-1a. Two keys with one lock wait for each other, and that is all.
    let bytes = topic.bytes().chain([0]).chain(key.bytes());
    let hash = bytes
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    hash.cast_signed()
}

#[cfg(test)]
mod tests {
    use antiphon_core::{MessageId, Timestamp};
    use bytes::Bytes;

    use super::*;

    fn message(key: &str) -> Message {
        let time = Timestamp::from_millis(1_700_000_000_000);
        Message {
            id: MessageId::new(time),
            topic: "orders".into(),
            kind: "test.Placed".into(),
            source: "test".into(),
            key: key.into(),
            time,
            not_before: None,
            attributes: std::collections::BTreeMap::new(),
            body: Bytes::from_static(b"it's"),
        }
    }

    fn written(messages: &[Message], key_locks: bool) -> String {
        let mut rows = Rows::new(key_locks);
        rows.add(messages).unwrap();
        let mut text = Text::default();
        rows.write(&mut text);
        text.into_string()
    }

    #[test]
    fn each_key_is_locked_once_in_ascending_order_and_the_others_not() {
        let keys = ["a", "b", "a", "", "c", "b"];
        let text = written(&keys.map(message), true);
        let locks: Vec<i32> = text
            .match_indices(&format!("lock({LOCK_CLASS},"))
            .map(|(at, found)| {
                let rest = &text[at + found.len()..];
                rest[..rest.find(')').unwrap()].parse().unwrap()
            })
            .collect();
        assert_eq!(locks.len(), 3);
        assert!(locks.is_sorted());
        assert_eq!(text.matches(DRAW).count(), keys.len());
        assert_eq!(text.matches(PASS_GATE).count(), 1);
        assert!(text.find(PASS_GATE).unwrap() < text.find(&format!("lock({LOCK_CLASS},")).unwrap());
        assert_eq!(text.matches(';').count(), 0, "one statement");
        assert!(!written(&keys.map(message), false).contains("lock"));
    }

    #[test]
    fn very_many_keys_lock_the_gate_and_no_key() {
        let messages: Vec<_> = (0..=KEYS_MAX).map(|n| message(&n.to_string())).collect();
        let text = written(&messages, true);
        assert_eq!(text.matches(LOCK_GATE).count(), 1);
        assert_eq!(text.matches("advisory").count(), 1);
    }

    #[test]
    fn a_message_for_later_has_a_statement_of_its_own() {
        let later = Message { not_before: Some(Timestamp::from_micros(7)), ..message("a") };
        let text = written(&[message("a"), later, message("b")], true);
        let (first, second) = text.split_once(';').unwrap();
        assert!(first.starts_with(INSERT_DELAYED) && first.contains(",7,nextval"), "{first}");
        assert!(second.starts_with(INSERT), "{second}");
    }

    #[test]
    fn the_only_message_is_what_the_connection_has_planned() {
        let locked = written(&[message("a")], true);
        assert!(locked.starts_with(APPEND_LOCKED), "{locked}");
        assert!(locked.ends_with(&format!(",{})", lock_of("orders", "a"))), "{locked}");
        let free = written(&[message("a")], false);
        assert!(free.starts_with(APPEND) && free.ends_with("')"), "{free}");
        assert!(draw_after_lock("$7").contains(&format!("({LOCK_CLASS},$7)")));
    }
}
