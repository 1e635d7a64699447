//! Taking values out of a path, and putting them into one.
//!
//! `matches` is the meaning of a template, one template at a time. A router that holds many of them
//! builds a trie on [`Template::segments`] and must give the same answer.

use super::{Segment, Template, Variable};

impl Template {
    /// Takes the values of the variables out of a path, in the order of
    /// [`variables`](Self::variables); `None` when the path does not fit or has broken escapes.
    /// The path is the raw one of the request, without the query.
    #[must_use]
    pub fn matches(&self, path: &str) -> Option<Vec<String>> {
        let path = path.strip_prefix('/')?;
        let path = match &self.verb {
            // Only a literal colon makes a verb: `%3A` belongs to the segment.
            Some(verb) => {
                let (head, tail) = path.rsplit_once(':')?;
                (decode(tail, false)? == *verb).then_some(head)?
            }
            None => path,
        };
        let parts: Vec<&str> = if path.is_empty() { Vec::new() } else { path.split('/').collect() };
        self.fits(&parts)?;
        self.variables.iter().map(|variable| self.capture(variable, &parts)).collect()
    }

    fn fits(&self, parts: &[&str]) -> Option<()> {
        let fixed = match self.segments.last() {
            Some(Segment::Rest) => {
                let fixed = self.segments.len() - 1;
                (parts.len() >= fixed).then_some(fixed)?
            }
            _ => (parts.len() == self.segments.len()).then_some(parts.len())?,
        };
        for (segment, part) in self.segments[..fixed].iter().zip(parts) {
            let fits = match segment {
                Segment::Literal(text) => decode(part, false)? == *text,
                Segment::One | Segment::Rest => !part.is_empty(),
            };
            fits.then_some(())?;
        }
        Some(())
    }

    fn capture(&self, variable: &Variable, parts: &[&str]) -> Option<String> {
        let open_end = self.segments.get(variable.segments.end - 1) == Some(&Segment::Rest);
        let end = if open_end { parts.len() } else { variable.segments.end };
        let parts = &parts[variable.segments.start..end];
        if variable.is_single(self) {
            return decode(parts.first()?, false);
        }
        let decoded: Option<Vec<_>> = parts.iter().map(|part| decode(part, true)).collect();
        Some(decoded?.join("/"))
    }

    /// Makes a path of values, percent-encoded; `value` gives the text of a field. `None` when a
    /// value is missing or empty, or does not fit the segments of its variable, or when the template
    /// has a `*` outside of a variable.
    pub fn expand(&self, mut value: impl FnMut(&Variable) -> Option<String>) -> Option<String> {
        let mut path = String::with_capacity(self.source.len() + 32);
        let mut next = 0;
        while next < self.segments.len() {
            path.push('/');
            let variable = self.variables.iter().find(|variable| variable.segments.start == next);
            if let Some(variable) = variable {
                let text = value(variable).filter(|text| !text.is_empty())?;
                encode(&text, !variable.is_single(self), &mut path);
                next = variable.segments.end;
            } else if let Segment::Literal(text) = &self.segments[next] {
                encode(text, false, &mut path);
                next += 1;
            } else {
                return None;
            }
        }
        if path.is_empty() {
            path.push('/');
        }
        if let Some(verb) = &self.verb {
            path.push(':');
            encode(verb, false, &mut path);
        }
        self.matches(&path)?;
        Some(path)
    }
}

/// Percent-decodes one segment. A plus sign is a plus sign. With `keep_slash`, `%2F` stays.
fn decode(part: &str, keep_slash: bool) -> Option<String> {
    if !part.contains('%') {
        return Some(part.to_owned());
    }
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (hex, tail) = rest.split_at_checked(2)?;
        rest = tail;
        match hex_digit(hex[0])? << 4 | hex_digit(hex[1])? {
            b'/' if keep_slash => bytes.extend([b'%', hex[0], hex[1]]),
            byte => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).ok()
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// Percent-encodes everything but the unreserved characters of RFC 3986, and slashes where they
/// separate segments.
fn encode(text: &str, keep_slash: bool, path: &mut String) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) || (keep_slash && byte == b'/') {
            path.push(char::from(byte));
        } else {
            path.push('%');
            path.push(char::from(HEX[usize::from(byte >> 4)]));
            path.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(source: &str) -> Template {
        Template::parse(source).expect(source)
    }

    #[test]
    fn paths_are_matched_and_their_values_taken() {
        for (source, path, values) in [
            ("/", "/", Some(vec![])),
            ("/", "/x", None),
            ("/v1", "/v1", Some(vec![])),
            ("/v1", "/v1/", None),
            ("/v1", "v1", None),
            ("/v1/{id}", "/v1/7", Some(vec!["7"])),
            ("/v1/{id}", "/v1/", None),
            ("/v1/{id}", "/v1/a/b", None),
            ("/v1/{id}", "/v1/a%2Fb", Some(vec!["a/b"])),
            ("/v1/{id}", "/v1/a+b%20c", Some(vec!["a+b c"])),
            ("/v1/{id}", "/v1/%", None),
            ("/v1/{id}", "/v1/%+1", None),
            ("/v1/{id}", "/v1/%FF", None),
            ("/v1/{id}", "/v1/a:b", Some(vec!["a:b"])),
            ("/v1/{id}:b", "/v1/a:b", Some(vec!["a"])),
            ("/v1/{id}:b", "/v1/a:c", None),
            ("/v1/{id}:b", "/v1/a%3Ab", None),
            ("/v1/{id}:b", "/v1/a:x:b", Some(vec!["a:x"])),
            ("/v1/{id}:b", "/v1/:b", None),
            ("/v1/{n=s/*}/x", "/v1/s/1/x", Some(vec!["s/1"])),
            ("/v1/{n=s/*}/x", "/v1/t/1/x", None),
            ("/v1/{n=s/*}", "/v1/s/a%2Fb%20c", Some(vec!["s/a%2Fb c"])),
            ("/v1/{n=**}", "/v1", Some(vec![""])),
            ("/v1/{n=**}", "/v1/a/b", Some(vec!["a/b"])),
            ("/v1/{n=**}", "/v1/a%2fb", Some(vec!["a%2fb"])),
            ("/v1/{n=s/**}:go", "/v1/s/a/b:go", Some(vec!["s/a/b"])),
            ("/v1/*/{id}", "/v1/x/7", Some(vec!["7"])),
            ("/v1/caf%C3%A9", "/v1/caf%c3%a9", Some(vec![])),
        ] {
            let values: Option<Vec<String>> =
                values.map(|values| values.into_iter().map(str::to_owned).collect());
            assert_eq!(template(source).matches(path), values, "{source} {path}");
        }
    }

    #[test]
    fn values_are_put_into_a_path() {
        for (source, value, path) in [
            ("/v1/orders/{id}", "o-1", Some("/v1/orders/o-1")),
            ("/v1/orders/{id}", "a/b c", Some("/v1/orders/a%2Fb%20c")),
            ("/v1/orders/{id}", "", None),
            ("/v1/{name=orders/*}", "orders/7", Some("/v1/orders/7")),
            ("/v1/{name=orders/*}", "stock/7", None),
            ("/v1/{name=**}:watch", "a/b", Some("/v1/a/b:watch")),
            ("/v1/*/{id}", "7", None),
        ] {
            let found = template(source).expand(|_| Some(value.to_owned()));
            assert_eq!(found.as_deref(), path, "{source} {value}");
        }
        assert_eq!(template("/v1/orders/{id}").expand(|_| None), None);
    }

    #[test]
    fn templates_that_differ_in_names_only_match_the_same_paths() {
        for (left, right, same) in [
            ("/v1/{a}", "/v1/{b}", true),
            ("/v1/{a=*}", "/v1/*", true),
            ("/v1/{n=s/*}", "/v1/s/{id}", true),
            ("/v1/{a}:x", "/v1/{a}", false),
            ("/v1/x", "/v1/{a}", false),
            ("/v1/{a=**}", "/v1/{a}", false),
        ] {
            assert_eq!(template(left).same_paths(&template(right)), same, "{left} {right}");
        }
    }
}
