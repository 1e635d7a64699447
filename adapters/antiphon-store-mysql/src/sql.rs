//! Statements of the framework as one text, and their answers.
//!
//! Several statements in one text cost one round trip, which prepared ones would not. Values are
//! written as numbers and as hexadecimal literals, which no value can get out of and no character
//! set changes.

use futures_util::TryStreamExt;
use sqlx::mysql::MySqlRow;
use sqlx::{AssertSqlSafe, Either, MySqlConnection, Row};

/// A text of statements that grows. As bytes, for most of it are digits that are looked up.
#[derive(Debug, Default)]
pub(crate) struct Sql(Vec<u8>);

/// The two digits of each byte.
const DIGITS: [[u8; 2]; 256] = {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut digits = [[0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        digits[byte] = [HEX[byte >> 4], HEX[byte & 15]];
        byte += 1;
    }
    digits
};

impl Sql {
    /// Begins with `text`.
    pub(crate) fn new(text: &str) -> Self {
        let mut sql = Vec::with_capacity(text.len() + 256);
        sql.extend_from_slice(text.as_bytes());
        Self(sql)
    }

    /// Adds SQL.
    pub(crate) fn sql(&mut self, text: &str) -> &mut Self {
        self.0.extend_from_slice(text.as_bytes());
        self
    }

    /// Adds what was written elsewhere.
    pub(crate) fn append(&mut self, other: &Self) -> &mut Self {
        self.0.extend_from_slice(&other.0);
        self
    }

    /// Adds a number.
    pub(crate) fn number(&mut self, number: impl Into<i64>) -> &mut Self {
        use std::io::Write;
        let _ = write!(self.0, "{}", number.into());
        self
    }

    /// Adds bytes or text as a value.
    pub(crate) fn value(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        let bytes = bytes.as_ref();
        self.0.reserve(3 + bytes.len() * 2);
        self.0.extend_from_slice(b"x'");
        for byte in bytes {
            self.0.extend_from_slice(&DIGITS[usize::from(*byte)]);
        }
        self.0.push(b'\'');
        self
    }

    /// Adds `NULL` or a number.
    pub(crate) fn number_or_null(&mut self, number: Option<i64>) -> &mut Self {
        match number {
            Some(number) => self.number(number),
            None => self.sql("NULL"),
        }
    }

    /// Adds the items, separated by `separator`.
    pub(crate) fn list<T>(
        &mut self,
        separator: &str,
        items: impl IntoIterator<Item = T>,
        mut add: impl FnMut(&mut Self, T),
    ) -> &mut Self {
        for (index, item) in items.into_iter().enumerate() {
            if index > 0 {
                self.0.extend_from_slice(separator.as_bytes());
            }
            add(self, item);
        }
        self
    }

    /// Adds the numbers, separated by commas.
    pub(crate) fn numbers<T: Into<i64>>(
        &mut self,
        items: impl IntoIterator<Item = T>,
    ) -> &mut Self {
        self.list(",", items, |sql, number| {
            sql.number(number);
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn into_text(self) -> AssertSqlSafe<String> {
        // Only texts and digits were added.
        AssertSqlSafe(String::from_utf8(self.0).unwrap_or_default())
    }

    /// What was written so far.
    pub(crate) fn as_str(&self) -> &str {
        str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// What one statement of a text answered.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) rows: Vec<MySqlRow>,
    /// Rows that were inserted, deleted, or found by an UPDATE.
    pub(crate) affected: u64,
}

/// Runs a text, and answers statement by statement. The first one that fails ends it.
pub(crate) async fn run(
    connection: &mut MySqlConnection,
    sql: Sql,
) -> Result<Vec<Answer>, sqlx::Error> {
    run_counting(connection, sql, &mut 0).await
}

/// As [`run`]; `done` tells also after a failure how many statements were answered without one.
pub(crate) async fn run_counting(
    connection: &mut MySqlConnection,
    sql: Sql,
    done: &mut usize,
) -> Result<Vec<Answer>, sqlx::Error> {
    let mut answers = Vec::new();
    let mut rows = Vec::new();
    let mut stream = sqlx::raw_sql(sql.into_text()).fetch_many(connection);
    while let Some(item) = stream.try_next().await? {
        match item {
            Either::Right(row) => rows.push(row),
            Either::Left(result) => {
                *done += 1;
                let rows = std::mem::take(&mut rows);
                answers.push(Answer { rows, affected: result.rows_affected() });
            }
        }
    }
    Ok(answers)
}

/// The text in a column of bytes.
pub(crate) fn text(row: &MySqlRow, index: usize) -> Result<String, sqlx::Error> {
    let bytes: Vec<u8> = row.try_get(index)?;
    String::from_utf8(bytes).map_err(|error| sqlx::Error::Decode(error.into()))
}

/// The number in a column, which is never negative.
pub(crate) fn count(row: &MySqlRow, index: usize) -> Result<u64, sqlx::Error> {
    Ok(u64::try_from(row.try_get::<i64, _>(index)?).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stay_values() {
        let mut sql = Sql::new("SELECT ");
        sql.value("'; DROP").sql(", ").value(b"").sql(", ").number(-5).sql(", ");
        sql.number_or_null(None).sql(", ").numbers([1, 2, 3]);
        assert_eq!(sql.as_str(), "SELECT x'273b2044524f50', x'', -5, NULL, 1,2,3");
    }
}
