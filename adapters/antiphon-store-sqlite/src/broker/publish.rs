//! Publishing: rows at the end of the logs, or among the delayed until they are due.

use antiphon_sqlbroker::Row;
use rusqlite::{Connection, Result, params};

/// Adds messages; answers with the topics whose logs have grown.
pub(super) fn insert(connection: &Connection, rows: &[Row]) -> Result<Vec<(i64, i64)>> {
    let mut grown: Vec<(i64, i64)> = Vec::new();
    // One statement per run of rows of one topic.
    for run in rows.chunk_by(|one, next| one.topic == next.topic) {
        let Some(Row { topic, .. }) = run.first() else { continue };
        if !grown.iter().any(|(known, _)| known == topic) {
            // Nobody needs to know how far it reaches.
            grown.push((*topic, 0));
        }
        let mut log = connection.prepare_cached(&format!(
            "INSERT INTO log_{topic} (lane, id, kind, head, body) VALUES (?, ?, ?, ?, ?)"
        ))?;
        for row in run {
            let Row { lane, id, kind, head, body, .. } = row;
            match row.due {
                None => log.execute(params![lane, id, kind, head, body.as_ref()])?,
                Some(due) => connection
                    .prepare_cached(
                        "INSERT INTO delayed (due, topic, lane, id, kind, head, body)
                         VALUES (?, ?, ?, ?, ?, ?, ?)",
                    )?
                    .execute(params![
                        due.as_micros(),
                        topic,
                        lane,
                        id,
                        kind,
                        head,
                        body.as_ref()
                    ])?,
            };
        }
    }
    Ok(grown)
}
