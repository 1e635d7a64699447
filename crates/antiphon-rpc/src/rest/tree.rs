//! A request message in the making: what came from the path, the query and the body, as one JSON
//! text at the end.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::schema::Step;
use super::value::quote;

/// The members of an object, in their order.
pub(super) type Members<'a> = Vec<(Cow<'a, str>, Node<'a>)>;

/// A value.
#[derive(Debug)]
pub(super) enum Node<'a> {
    /// Written down already.
    Json(Cow<'a, str>),
    /// Elements that are written down already.
    List(Vec<String>),
    /// An object.
    Object(Members<'a>),
}

/// Why a value cannot be put where it belongs.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Clash {
    /// There is another value already.
    Taken,
    /// Something on the way is no object.
    NoObject,
}

/// Puts a value at the end of a path. The same value twice is one value.
pub(super) fn put(members: &mut Members<'_>, path: &[Step], json: String) -> Result<(), Clash> {
    let Some((first, rest)) = path.split_first() else {
        return Ok(());
    };
    let Some((_, node)) = members.iter_mut().find(|(name, _)| first.is(name)) else {
        let node = if rest.is_empty() {
            Node::Json(Cow::Owned(json))
        } else {
            let mut inner = Vec::new();
            put(&mut inner, rest, json)?;
            Node::Object(inner)
        };
        members.push((Cow::Owned(first.json.clone()), node));
        return Ok(());
    };
    if rest.is_empty() {
        return match node {
            Node::Json(present) if same(present, &json) => Ok(()),
            _ => Err(Clash::Taken),
        };
    }
    expand(node).ok_or(Clash::NoObject).and_then(|members| put(members, rest, json))
}

/// Adds a value to the list at the end of a path.
pub(super) fn push(members: &mut Members<'_>, path: &[Step], json: String) -> Result<(), Clash> {
    let Some((first, rest)) = path.split_first() else {
        return Ok(());
    };
    let place = members.iter().position(|(name, _)| first.is(name)).unwrap_or_else(|| {
        let empty = if rest.is_empty() { Node::List(Vec::new()) } else { Node::Object(Vec::new()) };
        members.push((Cow::Owned(first.json.clone()), empty));
        members.len() - 1
    });
    match &mut members[place].1 {
        Node::List(list) if rest.is_empty() => {
            list.push(json);
            Ok(())
        }
        node if !rest.is_empty() => {
            expand(node).ok_or(Clash::NoObject).and_then(|members| push(members, rest, json))
        }
        _ => Err(Clash::Taken),
    }
}

/// Whether there is a value at the end of a path.
pub(super) fn holds(members: &Members<'_>, path: &[Step]) -> bool {
    let Some((first, rest)) = path.split_first() else {
        return true;
    };
    members.iter().any(|(name, node)| {
        first.is(name)
            && match node {
                Node::Object(members) => holds(members, rest),
                Node::Json(_) | Node::List(_) => rest.is_empty(),
            }
    })
}

/// The members of a node, so that others can be added.
fn expand<'n, 'a>(node: &'n mut Node<'a>) -> Option<&'n mut Members<'a>> {
    if let Node::Json(text) = node {
        let members = match text {
            Cow::Borrowed(text) => object(text.as_bytes()).ok()?,
            Cow::Owned(_) => return None,
        };
        *node = Node::Object(members);
    }
    match node {
        Node::Object(members) => Some(members),
        Node::Json(_) | Node::List(_) => None,
    }
}

/// Whether two JSON values mean the same value of a field: `"7"` and `7` are one 64-bit integer.
fn same(left: &str, right: &str) -> bool {
    fn text(json: &str) -> Cow<'_, str> {
        match serde_json::from_str::<String>(json) {
            Ok(text) => Cow::Owned(text),
            Err(_) => Cow::Borrowed(json),
        }
    }
    left == right || text(left) == text(right)
}

/// Writes an object.
pub(super) fn write(members: &Members<'_>, json: &mut String) {
    json.push('{');
    for (place, (name, node)) in members.iter().enumerate() {
        if place > 0 {
            json.push(',');
        }
        quote(name, json);
        json.push(':');
        match node {
            Node::Json(text) => json.push_str(text),
            Node::List(list) => {
                json.push('[');
                json.push_str(&list.join(","));
                json.push(']');
            }
            Node::Object(members) => write(members, json),
        }
    }
    json.push('}');
}

/// Reads an object without looking into its values. A name that comes twice is kept twice, for
/// whoever decodes the message to refuse.
pub(super) fn object(json: &[u8]) -> Result<Members<'_>, serde_json::Error> {
    struct Raw<'a>(Members<'a>);

    impl<'de: 'a, 'a> Deserialize<'de> for Raw<'a> {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            deserializer.deserialize_map(Names).map(Raw)
        }
    }

    serde_json::from_slice::<Raw<'_>>(json).map(|raw| raw.0)
}

struct Names;

impl<'de> Visitor<'de> for Names {
    type Value = Members<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::with_capacity(map.size_hint().unwrap_or(8));
        while let Some(Name(name)) = map.next_key()? {
            let value: &RawValue = map.next_value()?;
            members.push((name, Node::Json(Cow::Borrowed(value.get()))));
        }
        Ok(members)
    }
}

/// A name; borrowed unless it has escapes.
struct Name<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Name<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Cow<'de, str>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Cow::Borrowed(text))
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Cow::Owned(text.to_owned()))
            }
        }
        deserializer.deserialize_str(Text).map(Name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(path: &str) -> Vec<Step> {
        let step = |name: &str| Step { json: name.to_owned(), name: format!("{name}_") };
        path.split('.').map(step).collect()
    }

    fn text(members: &Members<'_>) -> String {
        let mut json = String::new();
        write(members, &mut json);
        json
    }

    #[test]
    fn values_are_put_among_what_the_body_says() {
        let mut members =
            object(br#"{"a":{"x":[1, 2],"y\"":null},"n":"7","s":"t","c_":"v"}"#).unwrap();
        assert_eq!(put(&mut members, &path("a.b.c"), "true".to_owned()), Ok(()));
        assert_eq!(put(&mut members, &path("n"), "7".to_owned()), Ok(()));
        assert_eq!(put(&mut members, &path("s"), "\"u\"".to_owned()), Err(Clash::Taken));
        assert_eq!(put(&mut members, &path("c"), "\"v\"".to_owned()), Ok(()), "the other name");
        assert_eq!(put(&mut members, &path("s.t"), "1".to_owned()), Err(Clash::NoObject));
        assert_eq!(push(&mut members, &path("l"), "1".to_owned()), Ok(()));
        assert_eq!(push(&mut members, &path("l"), "2".to_owned()), Ok(()));
        assert_eq!(push(&mut members, &path("a.l"), "3".to_owned()), Ok(()));
        assert_eq!(
            text(&members),
            r#"{"a":{"x":[1, 2],"y\"":null,"b":{"c":true},"l":[3]},"n":"7","s":"t","c_":"v","l":[1,2]}"#
        );
    }

    #[test]
    fn a_name_that_comes_twice_stays_twice() {
        assert_eq!(text(&object(br#"{"a":1,"a":2}"#).unwrap()), r#"{"a":1,"a":2}"#);
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for json in ["[1]", "1", "", "{", "{\"a\":}", "{\"a\":1}x"] {
            assert!(object(json.as_bytes()).is_err(), "{json}");
        }
    }
}
