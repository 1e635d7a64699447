//! The outbox: messages that were committed with business rows and wait for the relay.
//!
//! **Order.** Positions are drawn from AUTO_INCREMENT by an INSERT that runs last, in one round trip
//! with COMMIT. Two transactions that hold the same exclusive lock from before that INSERT until
//! their end therefore draw in the order of their commits, and whoever sees the second one's rows
//! sees the first one's (InnoDB shows a transaction before it releases its locks). Transactions that
//! change one aggregate hold such a lock anyway. So that it holds for those that emit without one,
//! each locks the rows of `antiphon_key` that its messages' keys are hashed to: last of all locks
//! and in order, so nobody can wait in a circle, and only for the time of INSERT and COMMIT. This
//! needs no consecutive numbers, so `innodb_autoinc_lock_mode` may be any; it needs one server that
//! draws them, so `auto_increment_increment` above 1 is refused when a database is opened.
//!
//! **Nothing skipped.** A transaction that commits late has lower positions than others that were
//! read before; it is found because rows are removed when they are confirmed, and lanes are read
//! from their beginning now and then.
//!
//! Rows that are not due yet stand in lanes of their own (`lane + DELAYED`), where reads do not pass
//! by, and have a row in `antiphon_outbox_due`. A [`Seq`] is the position in the database times two,
//! plus one for such a row: the order is the same, and removal knows where to look.

use std::collections::BTreeMap;

use antiphon_core::{MessageId, Timestamp};
use antiphon_messaging::{Message, row};
use antiphon_outbox::{
    Buried, Confirmation, Lease, OutboxRow, OutboxStore, Position, SentCount, Seq, Store,
    StoreError, outbox_lane,
};
use bytes::Bytes;
use sqlx::Row;
use sqlx::mysql::MySqlRow;

use super::connection::Connection;
use super::{MysqlStore, commit};
use crate::error::{Trouble, store_error, trouble};
use crate::schema::KEY_SLOTS;
use crate::sql::{Sql, count, text};

/// Added to the lane of a row that is not due yet.
const DELAYED: u32 = 256;

/// A text of statements that gets longer is sent before the commit.
const TEXT_MAX: usize = 1 << 20;

/// Rows that one statement removes: so many the server finds by their keys.
const REMOVED_AT_ONCE: usize = 2_000;

/// What is kept of the reason for which a row was put aside, in bytes.
const REASON_MAX: usize = 16_000;

const COLUMNS: &str = "(lane, id, topic, kind, head, body)";

impl OutboxStore for MysqlStore {
    async fn append(
        &self,
        connection: &mut Connection,
        messages: &[Message],
    ) -> Result<(), StoreError> {
        for message in messages {
            self.check(message)?;
        }
        let mut rest = messages;
        while let Some(first) = rest.first() {
            // Delayed ones by themselves, each with the row that says when it is due.
            let count = match first.not_before {
                Some(_) => 1,
                None => chunk(rest),
            };
            let (now, later) = rest.split_at(count);
            rest = later;
            self.insert(connection, now);
            if connection.deferred().len() > TEXT_MAX {
                connection.flush("writing to the outbox").await?;
            }
        }
        Ok(())
    }

    async fn read(
        &self,
        positions: &[Position],
        due_by: Timestamp,
        count_max: u32,
    ) -> Result<Vec<OutboxRow>, StoreError> {
        if positions.is_empty() {
            return Ok(Vec::new());
        }
        let sql = read_statement(positions, due_by, count_max);
        let answers = self.ask("reading the outbox", sql).await?;
        let mut read = Vec::new();
        let mut broken = Vec::new();
        for row in answers.iter().flat_map(|answer| &answer.rows) {
            let (lane, seq) = place(row).map_err(store_error("reading the outbox"))?;
            match message(row, 2) {
                Ok(message) => read.push(OutboxRow { lane, seq, message }),
                Err(error) => broken.push((lane, seq, error)),
            }
        }
        for (lane, seq, error) in broken {
            // Nobody can ever publish it, whoever has the lease.
            tracing::error!(lane, seq = seq.0, %error, "a message in the outbox is broken; put aside");
            self.put_aside(None, lane, seq, &format!("decode: {error}")).await?;
        }
        // Rows that have become due stand at the end.
        read.sort_unstable_by_key(|row| (row.lane, row.seq));
        limit_per_lane(&mut read, count_max);
        Ok(read)
    }

    async fn confirm(&self, confirmations: &[Confirmation]) -> Result<Vec<u32>, StoreError> {
        if confirmations.is_empty() {
            return Ok(Vec::new());
        }
        let mut connection = self.begin().await?;
        let leases: Vec<&Lease> = confirmations.iter().map(|c| &c.lease).collect();
        let held = lock_leases(&mut connection, &leases).await?;
        let is_held = |lease: &Lease| held.contains(&(lease.scope.clone(), lease.lane));
        let lost =
            confirmations.iter().map(|c| &c.lease).filter(|lease| !is_held(lease)).map(|l| l.lane);
        let lost: Vec<u32> = lost.collect();
        let mut rows: Vec<(u32, Seq)> = confirmations
            .iter()
            .filter(|confirmation| is_held(&confirmation.lease))
            .flat_map(|c| c.rows.iter().map(|seq| (stored_lane(c.lease.lane, *seq), *seq)))
            .collect();
        if rows.is_empty() {
            return Ok(lost);
        }
        // In the order of the primary key, as every other removal.
        rows.sort_unstable();
        let shard = self.shard(connection.number());
        for rows in rows.chunks(REMOVED_AT_ONCE) {
            let mut sql =
                Sql::new("INSERT INTO antiphon_sent (shard, topic, kind, confirmed) SELECT ");
            sql.number(shard).sql(", c.topic, c.kind, c.n FROM (");
            sql.sql("SELECT topic, kind, count(*) AS n FROM antiphon_outbox FORCE INDEX (PRIMARY) WHERE ");
            add_rows(&mut sql, rows);
            sql.sql(" GROUP BY topic, kind ORDER BY topic, kind) AS c");
            sql.sql(" ON DUPLICATE KEY UPDATE confirmed = confirmed + c.n");
            connection.deferred().statement(&sql);
            defer_removal(&mut connection, rows);
        }
        commit(connection, "confirming").await?;
        Ok(lost)
    }

    async fn bury(&self, lease: &Lease, row: Seq, reason: &str) -> Result<(), StoreError> {
        self.put_aside(Some(lease), lease.lane, row, reason).await
    }

    async fn buried(&self, count_max: u32) -> Result<Vec<Buried>, StoreError> {
        let mut sql = Sql::new(
            "SELECT at, reason, id, topic, kind, head, body FROM antiphon_outbox_buried \
             ORDER BY at DESC, seq DESC LIMIT ",
        );
        sql.number(count_max);
        let answers = self.ask("reading buried messages", sql).await?;
        let rows = answers.iter().flat_map(|answer| &answer.rows);
        rows.map(|row| {
            Ok(Buried {
                at: Timestamp::from_micros(row.try_get(0)?),
                reason: text(row, 1)?,
                message: message(row, 2).unwrap_or_else(|_| remains(row, 2)),
            })
        })
        .collect::<Result<_, sqlx::Error>>()
        .map_err(store_error("reading buried messages"))
    }

    async fn backlog(&self) -> Result<(u64, Option<Timestamp>), StoreError> {
        let sql = Sql::new(
            "SELECT (SELECT count(*) FROM antiphon_outbox), \
                    (SELECT id FROM antiphon_outbox ORDER BY seq LIMIT 1)",
        );
        let answers = self.ask("counting the outbox", sql).await?;
        let Some(row) = answers.first().and_then(|answer| answer.rows.first()) else {
            return Ok((0, None));
        };
        let failed = || store_error("counting the outbox");
        let oldest: Option<Vec<u8>> = row.try_get(1).map_err(failed())?;
        let since = oldest.and_then(|id| row::decode_id(&id).ok()).and_then(|id| id.made_at());
        Ok((count(row, 0).map_err(failed())?, since))
    }

    async fn sent(&self) -> Result<Vec<SentCount>, StoreError> {
        // One statement, so that a row that is just confirmed is counted once.
        let sql = Sql::new(
            "SELECT topic, kind, CAST(sum(confirmed) AS SIGNED), CAST(sum(waiting) AS SIGNED), \
                    CAST(sum(buried) AS SIGNED) \
               FROM (SELECT topic, kind, sum(confirmed) AS confirmed, 0 AS waiting, 0 AS buried \
                       FROM antiphon_sent GROUP BY topic, kind \
                     UNION ALL \
                     SELECT topic, kind, 0, count(*), 0 FROM antiphon_outbox GROUP BY topic, kind \
                     UNION ALL \
                     SELECT topic, kind, 0, 0, count(*) FROM antiphon_outbox_buried \
                      GROUP BY topic, kind) AS counts \
              GROUP BY topic, kind ORDER BY topic, kind",
        );
        let answers = self.ask("counting sent messages", sql).await?;
        let rows = answers.iter().flat_map(|answer| &answer.rows);
        rows.map(|row| {
            let (waiting, buried) = (count(row, 3)?, count(row, 4)?);
            Ok(SentCount {
                topic: text(row, 0)?,
                kind: text(row, 1)?,
                committed: count(row, 2)? + waiting + buried,
                waiting,
                buried,
            })
        })
        .collect::<Result<_, sqlx::Error>>()
        .map_err(store_error("counting sent messages"))
    }
}

impl MysqlStore {
    /// Refuses what the server would break the connection over, or cut.
    fn check(&self, message: &Message) -> Result<(), StoreError> {
        let refuse = |text: String| StoreError::Failed {
            action: "writing to the outbox",
            source: text.into(),
        };
        if message.topic.len() > 255 || message.kind.len() > 255 {
            return Err(refuse("a topic or type of more than 255 bytes".into()));
        }
        // Two digits a byte, and some room for everything else.
        let packet = self.0.server.packet_max();
        let length = message.body.len()
            + message.attributes.iter().map(|(n, v)| n.len() + v.len()).sum::<usize>();
        if length * 2 + 8_192 > packet {
            return Err(refuse(format!(
                "message {} has {length} bytes; the server's max_allowed_packet of {packet} allows for \
                 half as many",
                message.id
            )));
        }
        Ok(())
    }

    /// Puts the insertion off until the commit. All of them are due at once, or it is a single one.
    fn insert(&self, connection: &mut Connection, messages: &[Message]) {
        let mut sql = Sql::new("INSERT INTO antiphon_outbox ");
        sql.sql(COLUMNS).sql(" VALUES ");
        sql.list(",", messages, |sql, message| {
            let delayed = if message.not_before.is_some() { DELAYED } else { 0 };
            sql.sql("(").number(outbox_lane(message) + delayed).sql(",");
            sql.value(message.id.as_bytes()).sql(",").value(&message.topic).sql(",");
            sql.value(&message.kind).sql(",").value(row::encode_head(message)).sql(",");
            sql.value(&message.body).sql(")");
        });
        let keyed = messages.iter().filter(|m| self.0.settings.key_locks && !m.key.is_empty());
        let slots: Vec<u64> = keyed.map(|message| slot(&message.key)).collect();
        connection.deferred().last(&sql, slots);
        if let [Message { not_before: Some(due), .. }] = messages {
            let lane = outbox_lane(&messages[0]);
            let mut sql = Sql::new("INSERT INTO antiphon_outbox_due (lane, seq, due) VALUES (");
            sql.number(lane).sql(", LAST_INSERT_ID(), ").number(due.as_micros()).sql(")");
            connection.deferred().last(&sql, []);
        }
    }

    /// Moves a row to the buried ones, if the lease (where one is given) is still held.
    async fn put_aside(
        &self,
        lease: Option<&Lease>,
        lane: u32,
        seq: Seq,
        reason: &str,
    ) -> Result<(), StoreError> {
        let mut connection = self.begin().await?;
        if let Some(lease) = lease
            && lock_leases(&mut connection, &[lease]).await?.is_empty()
        {
            return Err(StoreError::Fenced { scope: lease.scope.clone(), lane: lease.lane });
        }
        let rows = [(stored_lane(lane, seq), seq)];
        let mut sql = Sql::new(
            "INSERT INTO antiphon_outbox_buried (seq, at, reason, id, topic, kind, head, body) \
             SELECT seq, ",
        );
        sql.number(self.now().as_micros()).sql(", ").value(&reason[..floor(reason, REASON_MAX)]);
        sql.sql(", id, topic, kind, head, body FROM antiphon_outbox WHERE ");
        add_rows(&mut sql, &rows);
        sql.sql(" FOR UPDATE");
        match connection.try_run(sql).await {
            Ok(_) => {}
            // Somebody else has just put it aside.
            Err(error) if trouble(&error) == Trouble::Duplicate => return Ok(()),
            Err(error) => return Err(store_error("burying a message")(error)),
        }
        defer_removal(&mut connection, &rows);
        commit(connection, "burying a message").await
    }
}

/// How many of the first messages, all due at once, go into one statement.
fn chunk(messages: &[Message]) -> usize {
    let mut length = 0;
    let due = messages.iter().take_while(|message| message.not_before.is_none());
    let fitting = due.take_while(|message| {
        let fits = length < TEXT_MAX;
        length += message.body.len() * 2 + 512;
        fits
    });
    fitting.count().max(1)
}

/// One SELECT per lane, and one for what has become due, in one statement: one look at the database.
fn read_statement(positions: &[Position], due_by: Timestamp, count_max: u32) -> Sql {
    let after = |position: &Position| position.after.map_or(0, |seq| seq.0 >> 1);
    let mut sql = Sql::default();
    sql.list(" UNION ALL ", positions, |sql, position| {
        sql.sql("(SELECT lane, seq * 2, id, topic, kind, head, body FROM antiphon_outbox ");
        sql.sql("FORCE INDEX (PRIMARY) WHERE lane = ");
        sql.number(position.lane).sql(" AND seq > ").number(after(position));
        sql.sql(" ORDER BY seq LIMIT ").number(count_max).sql(")");
    });
    sql.sql(
        " UNION ALL (SELECT d.lane, o.seq * 2 + 1, o.id, o.topic, o.kind, o.head, o.body \
           FROM antiphon_outbox_due AS d JOIN antiphon_outbox AS o \
             ON o.lane = d.lane + 256 AND o.seq = d.seq \
          WHERE d.due <= ",
    );
    sql.number(due_by.as_micros()).sql(" AND (");
    sql.list(" OR ", positions, |sql, position| {
        sql.sql("d.lane = ").number(position.lane).sql(" AND d.seq > ").number(after(position));
    });
    let lanes = i64::try_from(positions.len()).unwrap_or(1);
    sql.sql(") ORDER BY d.seq LIMIT ").number(i64::from(count_max) * lanes).sql(")");
    sql
}

/// Adds the condition that names exactly these rows, which are in order.
fn add_rows(sql: &mut Sql, rows: &[(u32, Seq)]) {
    let lanes = rows.chunk_by(|(one, _), (other, _)| one == other);
    sql.sql("(").list(" OR ", lanes, |sql, rows| {
        sql.sql("lane = ").number(rows[0].0).sql(" AND seq IN (");
        sql.numbers(rows.iter().map(|(_, seq)| seq.0 >> 1)).sql(")");
    });
    sql.sql(")");
}

fn defer_removal(connection: &mut Connection, rows: &[(u32, Seq)]) {
    // By the primary key whatever the optimizer thinks of small tables: looking at other rows would
    // wait for the transactions that have just inserted them.
    let mut sql = Sql::new("DELETE o FROM antiphon_outbox AS o FORCE INDEX (PRIMARY) WHERE ");
    add_rows(&mut sql, rows);
    connection.deferred().statement(&sql);
    let delayed: Vec<(u32, Seq)> = rows
        .iter()
        .filter_map(|(lane, seq)| lane.checked_sub(DELAYED).map(|lane| (lane, *seq)))
        .collect();
    if !delayed.is_empty() {
        let mut sql =
            Sql::new("DELETE d FROM antiphon_outbox_due AS d FORCE INDEX (PRIMARY) WHERE ");
        add_rows(&mut sql, &delayed);
        connection.deferred().statement(&sql);
    }
}

/// Which of the leases are still held; they stay locked until the end of the transaction, so that
/// nobody takes them meanwhile, and nobody else removes rows with them.
async fn lock_leases(
    connection: &mut Connection,
    leases: &[&Lease],
) -> Result<Vec<(String, u32)>, StoreError> {
    let mut sql = Sql::new("SELECT scope, lane FROM antiphon_lease FORCE INDEX (PRIMARY) WHERE ");
    sql.list(" OR ", leases, |sql, lease| {
        sql.sql("scope = ").value(&lease.scope).sql(" AND lane = ").number(lease.lane);
        sql.sql(" AND token = ").number(lease.token);
    });
    sql.sql(" ORDER BY scope, lane FOR UPDATE");
    let answers = connection.run("checking leases", sql).await?;
    let rows = answers.iter().flat_map(|answer| &answer.rows);
    rows.map(|row| Ok((text(row, 0)?, u32::try_from(row.try_get::<i64, _>(1)?).unwrap_or(0))))
        .collect::<Result<_, sqlx::Error>>()
        .map_err(store_error("checking leases"))
}

/// The lane in which a row stands in the table.
const fn stored_lane(lane: u32, seq: Seq) -> u32 {
    if seq.0 & 1 == 1 { lane + DELAYED } else { lane }
}

/// Which row of `antiphon_key` stands for a key: FNV-1a.
fn slot(key: &str) -> u64 {
    let hash = key.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    (hash ^ (hash >> 32)) % KEY_SLOTS
}

/// Lane and position of a row that was read.
fn place(row: &MySqlRow) -> Result<(u32, Seq), sqlx::Error> {
    let lane: i64 = row.try_get(0)?;
    Ok((u32::try_from(lane).unwrap_or(0), Seq(row.try_get(1)?)))
}

/// The message in the columns id, topic, kind, head, body, the first of which is `at`.
fn message(row: &MySqlRow, at: usize) -> Result<Message, antiphon_core::BoxError> {
    let id: &[u8] = row.try_get(at)?;
    let head: &[u8] = row.try_get(at + 3)?;
    let body = Bytes::from(row.try_get::<Vec<u8>, _>(at + 4)?);
    Ok(row::decode(row::decode_id(id)?, text(row, at + 1)?, text(row, at + 2)?, head, body)?)
}

/// What is left of a message whose head is broken, for the operator.
fn remains(row: &MySqlRow, at: usize) -> Message {
    let bytes = |index| row.try_get::<Vec<u8>, _>(index).unwrap_or_default();
    let lossy = |index| String::from_utf8_lossy(&bytes(index)).into_owned();
    Message {
        id: row::decode_id(&bytes(at)).unwrap_or(MessageId::from_bytes([0; 16])),
        topic: lossy(at + 1),
        kind: lossy(at + 2),
        source: String::new(),
        key: String::new(),
        time: Timestamp::EPOCH,
        not_before: None,
        attributes: BTreeMap::new(),
        body: Bytes::from(bytes(at + 4)),
    }
}

fn limit_per_lane(rows: &mut Vec<OutboxRow>, count_max: u32) {
    let mut counts = BTreeMap::new();
    rows.retain(|row| {
        let count = counts.entry(row.lane).or_insert(0_u32);
        *count += 1;
        *count <= count_max
    });
}

/// The longest beginning of `text` that has at most `max` bytes.
fn floor(text: &str, max: usize) -> usize {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seq_says_where_its_row_stands() {
        assert_eq!(stored_lane(3, Seq(14)), 3);
        assert_eq!(stored_lane(3, Seq(15)), 3 + DELAYED);
        let mut sql = Sql::default();
        add_rows(&mut sql, &[(3, Seq(14)), (3, Seq(16)), (259, Seq(19))]);
        assert_eq!(sql.as_str(), "(lane = 3 AND seq IN (7,8) OR lane = 259 AND seq IN (9))");
    }

    #[test]
    fn every_key_has_a_slot() {
        for key in ["", "a", "order-1", "ключ"] {
            assert!(slot(key) < KEY_SLOTS);
        }
        assert_ne!(slot("order-1"), slot("order-2"));
    }

    #[test]
    fn text_is_cut_between_characters() {
        assert_eq!(&"aä"[..floor("aä", 2)], "a");
        assert_eq!(floor("aä", 9), 3);
    }
}
