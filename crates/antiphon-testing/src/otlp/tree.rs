//! Whether the spans of a trace are one tree.

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use super::RecordedSpan;

/// The spans of one trace: one root, and everything else below it.
#[derive(Clone, Debug)]
pub struct Tree {
    root: String,
    spans: HashMap<String, RecordedSpan>,
    children: HashMap<String, Vec<String>>,
}

/// Why spans are no tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotATree {
    /// There is no span at all.
    Empty,
    /// Not exactly one span without a parent: their names.
    Roots(Vec<String>),
    /// These spans have parents that never arrived: name and id of the parent.
    Orphans(Vec<(String, String)>),
    /// These spans are their own ancestors: their names.
    Circles(Vec<String>),
}

impl Tree {
    /// Connects spans by their parents.
    ///
    /// # Errors
    /// Why they cannot be.
    pub fn new(spans: Vec<RecordedSpan>) -> Result<Self, NotATree> {
        if spans.is_empty() {
            return Err(NotATree::Empty);
        }
        let ids: BTreeSet<&str> = spans.iter().map(|span| span.span_id.as_str()).collect();
        let orphans: Vec<(String, String)> = spans
            .iter()
            .filter_map(|span| Some((span, span.parent_id.as_deref()?)))
            .filter(|(_, parent)| !ids.contains(parent))
            .map(|(span, parent)| (span.name.clone(), parent.to_owned()))
            .collect();
        if !orphans.is_empty() {
            return Err(NotATree::Orphans(orphans));
        }
        let roots: Vec<&RecordedSpan> =
            spans.iter().filter(|span| span.parent_id.is_none()).collect();
        let [root] = roots[..] else {
            return Err(NotATree::Roots(roots.iter().map(|span| span.name.clone()).collect()));
        };
        let root = root.span_id.clone();
        let mut children: HashMap<String, Vec<String>> = HashMap::new();
        for span in &spans {
            if let Some(parent) = &span.parent_id {
                children.entry(parent.clone()).or_default().push(span.span_id.clone());
            }
        }
        let spans = spans.into_iter().map(|span| (span.span_id.clone(), span)).collect();
        let tree = Self { root, spans, children };
        let reached: BTreeSet<&str> =
            tree.walk().into_iter().map(|(_, span)| span.span_id.as_str()).collect();
        let lost = |span: &&RecordedSpan| !reached.contains(span.span_id.as_str());
        let circles: Vec<String> =
            tree.spans.values().filter(lost).map(|span| span.name.clone()).collect();
        if circles.is_empty() { Ok(tree) } else { Err(NotATree::Circles(circles)) }
    }

    /// The span that everything else is below.
    #[must_use]
    pub fn root(&self) -> &RecordedSpan {
        &self.spans[&self.root]
    }

    /// Every span with its depth, each before those below it, in the order they began.
    #[must_use]
    pub fn walk(&self) -> Vec<(usize, &RecordedSpan)> {
        let mut walked = Vec::with_capacity(self.spans.len());
        let mut waiting = vec![(0, self.root.as_str())];
        while let Some((depth, id)) = waiting.pop() {
            walked.push((depth, &self.spans[id]));
            let mut below: Vec<&str> =
                self.children.get(id).into_iter().flatten().map(String::as_str).collect();
            below.sort_by_key(|id| std::cmp::Reverse(self.spans[*id].time));
            waiting.extend(below.into_iter().map(|id| (depth + 1, id)));
        }
        walked
    }

    /// The names of all spans.
    #[must_use]
    pub fn names(&self) -> BTreeSet<&str> {
        self.spans.values().map(|span| span.name.as_str()).collect()
    }

    /// The services that recorded spans.
    #[must_use]
    pub fn services(&self) -> BTreeSet<&str> {
        self.spans.values().map(|span| span.service.as_str()).collect()
    }
}

impl fmt::Display for Tree {
    /// One line per span, indented by depth.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (depth, span) in self.walk() {
            let micros = span.time.1.saturating_sub(span.time.0) / 1_000;
            let kind = &span.kind;
            writeln!(f, "{:indent$}{} [{kind}] {micros} µs", "", span.name, indent = 2 * depth)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn span(id: &str, parent: Option<&str>) -> RecordedSpan {
        RecordedSpan {
            trace_id: "t".into(),
            span_id: id.into(),
            parent_id: parent.map(Into::into),
            name: format!("span {id}"),
            kind: "Internal".into(),
            service: "s".into(),
            attributes: BTreeMap::new(),
            links: Vec::new(),
            error: None,
            time: (1, 2_001),
        }
    }

    #[test]
    fn a_tree_has_one_root_and_no_gaps() {
        let tree = Tree::new(vec![span("c", Some("b")), span("a", None), span("b", Some("a"))]);
        let tree = tree.unwrap();
        assert_eq!(tree.root().span_id, "a");
        let expected =
            "span a [Internal] 2 µs\n  span b [Internal] 2 µs\n    span c [Internal] 2 µs\n";
        assert_eq!(tree.to_string(), expected);
    }

    #[test]
    fn what_is_no_tree_is_told_why() {
        let why = |spans: Vec<RecordedSpan>| Tree::new(spans).unwrap_err();
        assert_eq!(why(vec![]), NotATree::Empty);
        let roots = NotATree::Roots(vec!["span a".into(), "span b".into()]);
        assert_eq!(why(vec![span("a", None), span("b", None)]), roots);
        let orphans = NotATree::Orphans(vec![("span b".into(), "x".into())]);
        assert_eq!(why(vec![span("a", None), span("b", Some("x"))]), orphans);
        let circle = why(vec![span("a", None), span("b", Some("c")), span("c", Some("b"))]);
        assert!(matches!(circle, NotATree::Circles(names) if names.len() == 2));
    }
}
