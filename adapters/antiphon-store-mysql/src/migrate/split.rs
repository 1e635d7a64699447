//! Cutting the text of a migration into its statements.
//!
//! Each statement is run, and its end written down, by itself. A `;` ends a statement unless it
//! stands in quotes or in a comment. The line `DELIMITER //`, known from the command line client,
//! makes `//` end statements instead: for triggers and procedures, which have `;` inside.

/// The statements of a text, without what ends them. Comments stay with the statement behind them.
pub(crate) fn statements(text: &str) -> Vec<&str> {
    let mut statements = Vec::new();
    let mut delimiter = ";";
    let mut start = 0;
    let mut at = 0;
    let mut has_content = false;
    while at < text.len() {
        let rest = &text[at..];
        if !has_content && let Some((new, length)) = delimiter_command(rest) {
            delimiter = new;
            at += length;
            start = at;
        } else if rest.starts_with(delimiter) {
            if has_content {
                statements.push(text[start..at].trim());
            }
            at += delimiter.len();
            start = at;
            has_content = false;
        } else if let Some(length) = comment(rest) {
            // What is for one server only, /*! … */, is run.
            has_content |= rest.starts_with("/*!") || rest.starts_with("/*M!");
            at += length;
        } else if let Some(length) = quoted(rest) {
            has_content = true;
            at += length;
        } else {
            let length = rest.chars().next().map_or(1, char::len_utf8);
            has_content |= !rest[..length].trim().is_empty();
            at += length;
        }
    }
    if has_content {
        statements.push(text[start..].trim());
    }
    statements
}

/// The length of the comment that `text` begins with.
fn comment(text: &str) -> Option<usize> {
    let is_line = text.starts_with('#')
        || text.strip_prefix("--").is_some_and(|rest| {
            rest.is_empty() || rest.starts_with(|next: char| next.is_whitespace())
        });
    if is_line {
        return Some(text.find('\n').unwrap_or(text.len()));
    }
    text.starts_with("/*").then(|| text[2..].find("*/").map_or(text.len(), |end| end + 4))
}

/// The length of the quoted text or name that `text` begins with.
fn quoted(text: &str) -> Option<usize> {
    let quote = text.chars().next().filter(|first| matches!(first, '\'' | '"' | '`'))?;
    let mut chars = text.char_indices().skip(1).peekable();
    while let Some((at, char)) = chars.next() {
        if char == '\\' && quote != '`' {
            chars.next();
        } else if char == quote {
            // Twice is once, inside.
            if chars.peek().is_some_and(|(_, next)| *next == quote) {
                chars.next();
            } else {
                return Some(at + 1);
            }
        }
    }
    Some(text.len())
}

/// The new delimiter and the length of the line, where `text` begins with such a line.
fn delimiter_command(text: &str) -> Option<(&str, usize)> {
    const COMMAND: &str = "DELIMITER ";
    let head = text.get(..COMMAND.len())?;
    if !head.eq_ignore_ascii_case(COMMAND) {
        return None;
    }
    let line = text.lines().next()?;
    let delimiter = line[COMMAND.len()..].trim();
    (!delimiter.is_empty()).then_some((delimiter, line.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_end_where_they_end() {
        for (text, expected) in [
            ("", &[][..]),
            (" ;; -- nothing\n ; ", &[]),
            ("SELECT 1", &["SELECT 1"]),
            ("SELECT 1; SELECT 2;\n", &["SELECT 1", "SELECT 2"]),
            ("SELECT ';'; SELECT \"a;\\\";\"", &["SELECT ';'", "SELECT \"a;\\\";\""]),
            ("SELECT 'it''s; so'; SELECT `a;b`", &["SELECT 'it''s; so'", "SELECT `a;b`"]),
            ("SELECT 1 -- a; b\n; SELECT 2 # c; d", &["SELECT 1 -- a; b", "SELECT 2 # c; d"]),
            ("/* a; b */ SELECT 1; SELECT 2--1;", &["/* a; b */ SELECT 1", "SELECT 2--1"]),
            ("/*!80000 SET @a = 1 */; SELECT 'ä;'", &["/*!80000 SET @a = 1 */", "SELECT 'ä;'"]),
            (
                "A;\nDELIMITER //\nCREATE TRIGGER t BEGIN x; y; END//\ndelimiter ;\nB; C",
                &["A", "CREATE TRIGGER t BEGIN x; y; END", "B", "C"],
            ),
            ("SELECT 'open; ", &["SELECT 'open;"]),
        ] {
            assert_eq!(statements(text), expected, "{text}");
        }
    }
}
