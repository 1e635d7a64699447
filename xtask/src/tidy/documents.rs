//! Links in documents lead somewhere.

use super::Violation;
use super::workspace::Files;

pub(super) fn check(files: &Files) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (path, text) in files {
        let Some(text) = text.as_deref().filter(|_| path.ends_with(".md")) else {
            continue;
        };
        for (line, target) in links(text) {
            if let Some(words) = broken(path, &target, files) {
                violations.push(Violation::new(path, line, words));
            }
        }
    }
    violations
}

/// Line and target of every link `[…](target)` outside code.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut in_code = false;
    for (number, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        // Every other piece between backticks is code.
        let prose: Vec<&str> = line
            .split('`')
            .enumerate()
            .map(|(n, piece)| if n % 2 == 0 { piece } else { "" })
            .collect();
        for piece in prose.join("`").split("](").skip(1) {
            if let Some((target, _)) = piece.split_once(')') {
                let target = target.split(' ').next().unwrap_or_default();
                found.push((number + 1, target.to_owned()));
            }
        }
    }
    found
}

/// What is wrong with a link, if anything. Links to other machines are not followed.
fn broken(from: &str, target: &str, files: &Files) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
    let path = if path.is_empty() { from.to_owned() } else { resolve(from, path) };
    let below = format!("{}/", path.trim_end_matches('/'));
    let is_folder =
        || files.range(below.clone()..).next().is_some_and(|(file, _)| file.starts_with(&below));
    match files.get(&path) {
        None if path.is_empty() || is_folder() => None,
        None => Some(format!("the link to {target} leads nowhere: there is no {path}")),
        Some(Some(text)) if !anchor.is_empty() && path.ends_with(".md") => {
            let known =
                text.lines().filter(|line| line.starts_with('#')).any(|line| slug(line) == anchor);
            (!known)
                .then(|| format!("the link to {target} leads nowhere: {path} has no such heading"))
        }
        Some(_) => None,
    }
}

/// A path that is relative to the folder of a file, from the root.
fn resolve(from: &str, path: &str) -> String {
    let mut parts: Vec<&str> = match path.strip_prefix('/') {
        Some(_) => Vec::new(),
        None => from.split('/').rev().skip(1).collect::<Vec<_>>().into_iter().rev().collect(),
    };
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// The anchor that a heading gets where Markdown is shown.
fn slug(heading: &str) -> String {
    heading
        .trim_start_matches('#')
        .trim()
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken_links(text: &str) -> Vec<String> {
        let files = Files::from([
            ("docs/guide.md".to_owned(), Some(text.to_owned())),
            ("docs/adr/0001-x.md".to_owned(), Some("# One: the `first`\n".to_owned())),
            ("README.md".to_owned(), Some("# Antiphon\n## The shop\n".to_owned())),
        ]);
        check(&files).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn links_that_lead_somewhere_are_fine() {
        let text = "[a](../README.md) [b](adr/) [c](adr/0001-x.md#one-the-first) [d](https://x/y)\n\
                    [e](../README.md#the-shop) [f](/README.md) `[code](gone.md)`\n\
                    ```\n[g](gone.md)\n```\n[`h`](adr/0001-x.md \"title\")\n";
        assert_eq!(broken_links(text), [""; 0]);
    }

    #[test]
    fn links_that_lead_nowhere_are_told() {
        let text = "fine\n[a](gone.md) and [`b`](../README.md#gone)\n";
        assert_eq!(
            broken_links(text),
            [
                "docs/guide.md:2: the link to gone.md leads nowhere: there is no docs/gone.md",
                "docs/guide.md:2: the link to ../README.md#gone leads nowhere: README.md has no such \
                 heading",
            ]
        );
    }
}
