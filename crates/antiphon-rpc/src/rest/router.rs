//! Finds the route of a path: a trie over the segments of all templates.
//!
//! The verb is cut off first: `/v1/orders/7:cancel` belongs to the routes with the verb `cancel`, and
//! only where there is none to routes that would take `7:cancel` as a value (a client that means the
//! value writes `7%3Acancel`). Otherwise `GET` there would look for an order of that name. Within a segment, a literal goes before `*`, and `*`
//! before `**`; where the better choice leads nowhere, the next one is tried, so a route is found
//! whenever one fits. A lookup visits each node of the trie at most twice and allocates nothing unless
//! the path has escapes. It gives the same answer as
//! [`Template::matches`](antiphon_contract::template::Template::matches) on each template.

use antiphon_contract::template::{Segment, Template};

use super::decode::{self, Keep};

/// The routes by their templates. `R` is what the caller keeps of a route.
#[derive(Debug)]
pub(super) struct Router<R> {
    nodes: Vec<Node>,
    routes: Vec<R>,
}

#[derive(Debug, Default)]
struct Node {
    /// Sorted by text.
    literals: Vec<(Box<str>, usize)>,
    one: Option<usize>,
    /// Routes that end here.
    ends: Vec<End>,
    /// Routes that take whatever is left from here on.
    rests: Vec<End>,
}

#[derive(Debug)]
struct End {
    verb: Option<Box<str>>,
    route: usize,
}

impl<R> Default for Router<R> {
    fn default() -> Self {
        Self { nodes: vec![Node::default()], routes: Vec::new() }
    }
}

impl<R> Router<R> {
    /// Adds a route. Routes with the same template and verb are told apart by the caller of
    /// [`Self::find`]; the first one that it accepts is taken.
    pub(super) fn insert(&mut self, template: &Template, route: R) {
        let end = End { verb: template.verb().map(Into::into), route: self.routes.len() };
        self.routes.push(route);
        let mut node = 0;
        for segment in template.segments() {
            node = match segment {
                Segment::Literal(text) => self.literal(node, text),
                Segment::One => self.one(node),
                // Always the last.
                Segment::Rest => return self.nodes[node].rests.push(end),
            };
        }
        self.nodes[node].ends.push(end);
    }

    fn literal(&mut self, node: usize, text: &str) -> usize {
        let next = self.nodes.len();
        let literals = &mut self.nodes[node].literals;
        match literals.binary_search_by(|(known, _)| (**known).cmp(text)) {
            Ok(place) => literals[place].1,
            Err(place) => {
                literals.insert(place, (text.into(), next));
                self.nodes.push(Node::default());
                next
            }
        }
    }

    fn one(&mut self, node: usize) -> usize {
        let next = self.nodes.len();
        let known = *self.nodes[node].one.get_or_insert(next);
        if known == next {
            self.nodes.push(Node::default());
        }
        known
    }

    /// The best route for a path (raw, without the query) among those that `accept` wants.
    pub(super) fn find(&self, path: &str, mut accept: impl FnMut(&R) -> bool) -> Option<&R> {
        let path = path.strip_prefix('/')?;
        let last = path.rfind('/').map_or(0, |slash| slash + 1);
        let mut verb_is_known = false;
        let with_verb = path[last..].rfind(':').and_then(|colon| {
            let (head, tail) = path.split_at(last + colon);
            let verb = decode::path(&tail[1..], Keep::Nothing).ok()?;
            self.walk(0, parts(head), Some(&verb), &mut |route| {
                verb_is_known = true;
                accept(route)
            })
        });
        let route = match with_verb {
            None if !verb_is_known => self.walk(0, parts(path), None, &mut accept)?,
            found => found?,
        };
        Some(&self.routes[route])
    }

    fn walk(
        &self,
        node: usize,
        parts: Option<&str>,
        verb: Option<&str>,
        accept: &mut impl FnMut(&R) -> bool,
    ) -> Option<usize> {
        let node = &self.nodes[node];
        let Some(parts) = parts else {
            let ends = self.pick(&node.ends, verb, accept);
            return ends.or_else(|| self.pick(&node.rests, verb, accept));
        };
        let (segment, rest) = match parts.split_once('/') {
            Some((segment, rest)) => (segment, Some(rest)),
            None => (parts, None),
        };
        if !node.literals.is_empty()
            && let Ok(text) = decode::path(segment, Keep::Nothing)
            && let Ok(place) = node.literals.binary_search_by(|(known, _)| (**known).cmp(&*text))
            && let Some(route) = self.walk(node.literals[place].1, rest, verb, accept)
        {
            return Some(route);
        }
        if !segment.is_empty()
            && let Some(one) = node.one
            && let Some(route) = self.walk(one, rest, verb, accept)
        {
            return Some(route);
        }
        self.pick(&node.rests, verb, accept)
    }

    fn pick(
        &self,
        ends: &[End],
        verb: Option<&str>,
        accept: &mut impl FnMut(&R) -> bool,
    ) -> Option<usize> {
        ends.iter()
            .find(|end| end.verb.as_deref() == verb && accept(&self.routes[end.route]))
            .map(|end| end.route)
    }
}

/// The text of the segments; `None` when there are none.
fn parts(path: &str) -> Option<&str> {
    (!path.is_empty()).then_some(path)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn router(templates: &[&'static str]) -> Router<&'static str> {
        let mut router = Router::default();
        for source in templates {
            router.insert(&Template::parse(source).expect(source), *source);
        }
        router
    }

    #[test]
    fn the_most_specific_route_wins() {
        let router = router(&[
            "/",
            "/v1/{id}",
            "/v1/me",
            "/v1/{name=shelves/*}/books",
            "/v1/{rest=**}",
            "/v1/{id}:cancel",
            "/v1/{name=ops/**}:cancel",
            "/v1/me:cancel",
            "/v2/a:b",
            "/v2/{x}",
            "/caf%C3%A9",
        ]);
        for (path, route) in [
            ("/", Some("/")),
            ("/v1/7", Some("/v1/{id}")),
            ("/v1/me", Some("/v1/me")),
            ("/v1/%6De", Some("/v1/me")),
            ("/v1/me/x", Some("/v1/{rest=**}")),
            ("/v1", Some("/v1/{rest=**}")),
            ("/v1/", Some("/v1/{rest=**}")),
            ("/v1/shelves/3/books", Some("/v1/{name=shelves/*}/books")),
            ("/v1/shelves/3/magazines", Some("/v1/{rest=**}")),
            ("/v1/shelves", Some("/v1/{id}")),
            ("/v1/7:cancel", Some("/v1/{id}:cancel")),
            ("/v1/me:cancel", Some("/v1/me:cancel")),
            ("/v1/me:other", Some("/v1/{id}")),
            ("/v1/a:b:cancel", Some("/v1/{id}:cancel")),
            ("/v1/7%3Acancel", Some("/v1/{id}")),
            ("/v1/7:c%61ncel", Some("/v1/{id}:cancel")),
            ("/v1/ops/a/b:cancel", Some("/v1/{name=ops/**}:cancel")),
            ("/v1/ops:cancel/x", Some("/v1/{rest=**}")),
            ("/v2/a:b", Some("/v2/a:b")),
            ("/v2/a:c", Some("/v2/{x}")),
            ("/v2/", None),
            ("/v2/x/", None),
            ("/V1/7", Some("none")),
            ("/caf%c3%a9", Some("/caf%C3%A9")),
            ("", None),
            ("*", None),
        ] {
            let route = route.filter(|route| *route != "none");
            assert_eq!(router.find(path, |_| true).copied(), route, "{path}");
        }
    }

    #[test]
    fn a_route_that_is_not_wanted_gives_way_to_a_less_specific_one() {
        let router = router(&["/v1/latest", "/v1/{id}", "/v1/{rest=**}"]);
        let found = router.find("/v1/latest", |route| *route != "/v1/latest");
        assert_eq!(found, Some(&"/v1/{id}"));
        let found = router.find("/v1/latest", |route| route.contains("**"));
        assert_eq!(found, Some(&"/v1/{rest=**}"));
    }

    #[test]
    fn a_known_verb_is_never_a_part_of_a_value() {
        let router = router(&["/v1/{id}", "/v1/{id}:cancel"]);
        let without_verb = |route: &&str| *route == "/v1/{id}";
        assert_eq!(router.find("/v1/7:cancel", without_verb), None);
        assert_eq!(router.find("/v1/7:other", without_verb), Some(&"/v1/{id}"));
        assert_eq!(router.find("/v1/7%3Acancel", without_verb), Some(&"/v1/{id}"));
    }

    const TEMPLATES: [&str; 10] = [
        "/a/{x}",
        "/a/b",
        "/a/*/c",
        "/a/{x}:v",
        "/a/{x=b/**}:v",
        "/a/b/{y=*/c}",
        "/{z=**}:w",
        "/a/{x=**}",
        "/b:v",
        "/",
    ];

    proptest! {
        #[test]
        fn the_trie_agrees_with_the_templates(path in "(/(a|b|c|v|%61|:|b:v|a:w|%3Av|%|é|))*") {
            let router = router(&TEMPLATES);
            let mut tried = Vec::new();
            let found = router.find(&path, |route| {
                tried.push(*route);
                false
            });
            prop_assert_eq!(found, None);
            let verb_is_known = tried.iter().any(|source| source.contains(':'));
            for source in TEMPLATES {
                let template = Template::parse(source).unwrap();
                let hidden = verb_is_known && template.verb().is_none();
                let fits = !hidden && template.matches(&path).is_some();
                // Broken escapes in values are found when the values are taken out.
                if fits {
                    prop_assert!(tried.contains(&source), "{} fits {}", source, path);
                }
                if !fits && !path.contains('%') {
                    prop_assert!(!tried.contains(&source), "{} does not fit {}", source, path);
                }
            }
        }
    }
}
