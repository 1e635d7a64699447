//! Reads a template in one pass from left to right, after the verb was cut off.

use std::ops::Range;

use super::{Segment, Template, Variable};

/// Why a template cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason} (at character {})", .at + 1)]
pub struct TemplateError {
    /// The byte of the template at which it goes wrong.
    pub at: usize,
    /// What is wrong.
    pub reason: String,
}

fn error<T>(at: usize, reason: impl Into<String>) -> Result<T, TemplateError> {
    Err(TemplateError { at, reason: reason.into() })
}

pub(super) fn parse(source: &str) -> Result<Template, TemplateError> {
    if !source.starts_with('/') {
        return error(0, "a path template begins with \"/\"");
    }
    let (path, verb) = split_verb(source)?;
    let mut parser =
        Parser { source, end: path.len(), at: 1, segments: Vec::new(), variables: Vec::new() };
    if path != "/" {
        parser.segments()?;
    }
    let Parser { segments, variables, .. } = parser;
    Ok(Template { source: source.to_owned(), segments, variables, verb })
}

/// Cuts off the verb: the text after the last colon of the last segment, outside braces.
fn split_verb(source: &str) -> Result<(&str, Option<String>), TemplateError> {
    let last = source.rfind(['/', '}']).map_or(0, |at| at + 1);
    // In `{name=a/b:c}` the colon is inside the braces; the brace is found first, so it never counts.
    let Some(colon) = source[last..].rfind(':').map(|at| last + at) else {
        return Ok((source, None));
    };
    let verb = &source[colon + 1..];
    if verb.is_empty() {
        return error(colon, "a verb is missing after \":\"");
    }
    Ok((&source[..colon], Some(literal(verb, colon + 1)?)))
}

struct Parser<'a> {
    source: &'a str,
    end: usize,
    at: usize,
    segments: Vec<Segment>,
    variables: Vec<Variable>,
}

impl Parser<'_> {
    fn segments(&mut self) -> Result<(), TemplateError> {
        loop {
            match self.peek() {
                Some(b'{') => self.variable()?,
                _ => self.plain_segment(&['/', '{', '}'])?,
            }
            match self.peek() {
                None => return Ok(()),
                Some(b'/') => self.at += 1,
                Some(b'}') => return error(self.at, "\"}\" without \"{\""),
                Some(_) => {
                    return error(self.at, "a variable is a whole segment; expected \"/\" here");
                }
            }
        }
    }

    /// `*`, `**` or a literal, up to one of `stops`.
    fn plain_segment(&mut self, stops: &[char]) -> Result<(), TemplateError> {
        let start = self.at;
        let text = &self.source[start..self.end];
        let text = &text[..text.find(stops).unwrap_or(text.len())];
        self.at += text.len();
        let segment = match text {
            "" => return error(start, "a segment is empty"),
            "*" => Segment::One,
            "**" => Segment::Rest,
            _ => Segment::Literal(literal(text, start)?),
        };
        if self.segments.last() == Some(&Segment::Rest) {
            return error(start, "nothing but a verb may follow \"**\"");
        }
        self.segments.push(segment);
        Ok(())
    }

    fn variable(&mut self) -> Result<(), TemplateError> {
        let open = self.at;
        let Some(length) = self.source[open..self.end].find('}') else {
            return error(open, "\"{\" without \"}\"");
        };
        let close = open + length;
        let inside = &self.source[open + 1..close];
        let name = &inside[..inside.find('=').unwrap_or(inside.len())];
        let field = field_path(name, open + 1)?;
        if self.variables.iter().any(|variable| variable.field == field) {
            return error(open + 1, format!("the field \"{name}\" is taken twice"));
        }
        let first = self.segments.len();
        if name.len() == inside.len() {
            if self.segments.last() == Some(&Segment::Rest) {
                return error(open, "nothing but a verb may follow \"**\"");
            }
            self.segments.push(Segment::One);
        } else {
            self.at = open + 1 + name.len() + 1;
            self.variable_segments(close)?;
        }
        self.at = close + 1;
        let segments: Range<usize> = first..self.segments.len();
        self.variables.push(Variable { field, segments });
        Ok(())
    }

    /// The segments after `=`, up to the closing brace.
    fn variable_segments(&mut self, close: usize) -> Result<(), TemplateError> {
        loop {
            if self.peek() == Some(b'{') {
                return error(self.at, "a variable inside a variable");
            }
            self.plain_segment(&['/', '{', '}'])?;
            match self.peek() {
                Some(b'/') => self.at += 1,
                _ if self.at == close => return Ok(()),
                _ => return error(self.at, "expected \"/\" or \"}\" here"),
            }
        }
    }

    fn peek(&self) -> Option<u8> {
        self.source.as_bytes()[..self.end].get(self.at).copied()
    }
}

fn field_path(path: &str, at: usize) -> Result<Vec<String>, TemplateError> {
    let mut names = Vec::new();
    let mut start = at;
    for name in path.split('.') {
        let mut bytes = name.bytes();
        let good = bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
            && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !good {
            return error(start, format!("\"{name}\" is not the name of a field"));
        }
        start += name.len() + 1;
        names.push(name.to_owned());
    }
    Ok(names)
}

/// A literal is made of what RFC 3986 allows in a segment; escapes are decoded, because paths are
/// compared decoded.
fn literal(text: &str, at: usize) -> Result<String, TemplateError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes().enumerate();
    while let Some((index, byte)) = rest.next() {
        if byte == b'%' {
            let Some(decoded) =
                text.get(index + 1..index + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok())
            else {
                return error(at + index, "\"%\" is followed by two hexadecimal digits");
            };
            rest.nth(1);
            bytes.push(decoded);
        } else if byte.is_ascii_alphanumeric() || b"-._~!$&'()+,;=:@".contains(&byte) {
            bytes.push(byte);
        } else if byte == b'*' {
            return error(at + index, "\"*\" is a whole segment, never a part of one");
        } else {
            let character = text[index..].chars().next().unwrap_or_default();
            return error(at + index, format!("{character:?} cannot stand in a path; escape it"));
        }
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text),
        Err(_) => error(at, "the escaped bytes are not UTF-8"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: &str) -> Segment {
        Segment::Literal(value.to_owned())
    }

    #[test]
    fn every_form_of_the_grammar_is_read() {
        use Segment::{One, Rest};
        type Case<'a> = (&'a str, Vec<Segment>, Vec<(&'a str, Range<usize>)>, Option<&'a str>);
        let cases: Vec<Case<'_>> = vec![
            ("/", vec![], vec![], None),
            ("/:x", vec![], vec![], Some("x")),
            ("/v1", vec![text("v1")], vec![], None),
            ("/v1/orders", vec![text("v1"), text("orders")], vec![], None),
            ("/v1/{id}", vec![text("v1"), One], vec![("id", 1..2)], None),
            ("/v1/{id=*}", vec![text("v1"), One], vec![("id", 1..2)], None),
            ("/v1/*/{a.b_c.d}", vec![text("v1"), One, One], vec![("a.b_c.d", 2..3)], None),
            ("/v1/{n=shelves/*}", vec![text("v1"), text("shelves"), One], vec![("n", 1..3)], None),
            (
                "/v1/{n=a/*}/{m=b/*/**}",
                vec![text("v1"), text("a"), One, text("b"), One, Rest],
                vec![("n", 1..3), ("m", 3..6)],
                None,
            ),
            ("/v1/{n=me}", vec![text("v1"), text("me")], vec![("n", 1..2)], None),
            ("/**", vec![Rest], vec![], None),
            ("/{all=**}", vec![Rest], vec![("all", 0..1)], None),
            ("/v1/a:b", vec![text("v1"), text("a")], vec![], Some("b")),
            ("/v1/a:b:c", vec![text("v1"), text("a:b")], vec![], Some("c")),
            ("/v1/a:b/c", vec![text("v1"), text("a:b"), text("c")], vec![], None),
            ("/v1/{id}:cancel", vec![text("v1"), One], vec![("id", 1..2)], Some("cancel")),
            (
                "/v1/{name=ops/**}:cancel",
                vec![text("v1"), text("ops"), Rest],
                vec![("name", 1..3)],
                Some("cancel"),
            ),
            ("/v1/{n=a:b}", vec![text("v1"), text("a:b")], vec![("n", 1..2)], None),
            ("/v1/**:go", vec![text("v1"), Rest], vec![], Some("go")),
            ("/v1/caf%C3%A9", vec![text("v1"), text("café")], vec![], None),
            ("/.well-known/x", vec![text(".well-known"), text("x")], vec![], None),
        ];
        for (source, segments, variables, verb) in cases {
            let template = Template::parse(source).expect(source);
            assert_eq!(template.segments(), segments, "{source}");
            let found: Vec<_> = template
                .variables()
                .iter()
                .map(|variable| (variable.field_path(), variable.segments.clone()))
                .collect();
            let expected: Vec<_> =
                variables.into_iter().map(|(name, range)| (name.to_owned(), range)).collect();
            assert_eq!(found, expected, "{source}");
            assert_eq!(template.verb(), verb, "{source}");
            assert_eq!(template.to_string(), source);
        }
    }

    #[test]
    fn a_broken_template_says_where_and_why() {
        for (source, at, reason) in [
            ("", 0, "a path template begins with \"/\""),
            ("v1", 0, "a path template begins with \"/\""),
            ("/v1/", 4, "a segment is empty"),
            ("//v1", 1, "a segment is empty"),
            ("/v1//x", 4, "a segment is empty"),
            ("/v1:", 3, "a verb is missing after \":\""),
            ("/v1/**/x", 7, "nothing but a verb may follow \"**\""),
            ("/v1/{a=**}/{b}", 11, "nothing but a verb may follow \"**\""),
            ("/v1/{a=**/x}", 10, "nothing but a verb may follow \"**\""),
            ("/v1/{a", 4, "\"{\" without \"}\""),
            ("/v1/a}", 5, "\"}\" without \"{\""),
            ("/v1/{a=b/{c}}", 9, "a variable inside a variable"),
            ("/v1/{}", 5, "\"\" is not the name of a field"),
            ("/v1/{a.}", 7, "\"\" is not the name of a field"),
            ("/v1/{1a}", 5, "\"1a\" is not the name of a field"),
            ("/v1/{a=}", 7, "a segment is empty"),
            ("/v1/{a}/{a}", 9, "the field \"a\" is taken twice"),
            ("/v1/{a}x", 7, "a variable is a whole segment; expected \"/\" here"),
            ("/v1/x{a}", 5, "a variable is a whole segment; expected \"/\" here"),
            ("/v1/a*", 5, "\"*\" is a whole segment, never a part of one"),
            ("/v1/***", 4, "\"*\" is a whole segment, never a part of one"),
            ("/v1/a b", 5, "' ' cannot stand in a path; escape it"),
            ("/v1/a?b=c", 5, "'?' cannot stand in a path; escape it"),
            ("/v1/é", 4, "'é' cannot stand in a path; escape it"),
            ("/v1/%zz", 4, "\"%\" is followed by two hexadecimal digits"),
            ("/v1/%FF", 4, "the escaped bytes are not UTF-8"),
        ] {
            let found = Template::parse(source).expect_err(source);
            assert_eq!((found.at, found.reason.as_str()), (at, reason), "{source}");
        }
    }
}
