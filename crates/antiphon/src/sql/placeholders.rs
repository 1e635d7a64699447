//! `?` for each value, on every engine: PostgreSQL counts them.

use std::borrow::Cow;

/// The statement with `$1`, `$2`, … in place of each `?` that stands for a value. What stands in
/// quotes or in comments stays as it is.
pub(super) fn numbered(sql: &str) -> Cow<'_, str> {
    if !sql.contains('?') {
        return Cow::Borrowed(sql);
    }
    let mut out = String::with_capacity(sql.len() + 16);
    let mut number = 0;
    let mut rest = sql;
    while let Some(at) = rest.find(['?', '\'', '"', '-', '/']) {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        if let Some(after) = from.strip_prefix('?') {
            number += 1;
            out.push('$');
            out.push_str(&number.to_string());
            rest = after;
        } else {
            let (kept, after) = from.split_at(length_kept(from));
            out.push_str(kept);
            rest = after;
        }
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// How much of `text`, which begins with a quote, `-` or `/`, holds no values.
fn length_kept(text: &str) -> usize {
    let until = |end: &str, from: usize| {
        text[from..].find(end).map_or(text.len(), |at| from + at + end.len())
    };
    // A doubled quote ends one text and begins the next: the same as if it were one.
    match text.as_bytes() {
        [b'\'', ..] => until("'", 1),
        [b'"', ..] => until("\"", 1),
        [b'-', b'-', ..] => until("\n", 2),
        [b'/', b'*', ..] => until("*/", 2),
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_and_texts_are_left_alone() {
        for (sql, expected) in [
            ("select 1", "select 1"),
            ("select ?", "select $1"),
            ("update a set b = ?, c = ? where d = ?", "update a set b = $1, c = $2 where d = $3"),
            ("select '?' || ?", "select '?' || $1"),
            ("select 'it''s ?' , ?", "select 'it''s ?' , $1"),
            ("select \"?\" from t where a = ?", "select \"?\" from t where a = $1"),
            ("select 1 -- what?\n , ?", "select 1 -- what?\n , $1"),
            ("select /* ? */ ? / ?", "select /* ? */ $1 / $2"),
            ("select ? - 1", "select $1 - 1"),
            ("select 'open ?", "select 'open ?"),
        ] {
            assert_eq!(numbered(sql), expected, "{sql}");
        }
    }
}
