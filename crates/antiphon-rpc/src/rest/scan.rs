//! Walks over JSON that our own encoder wrote, without building anything.
//!
//! It trusts the text to be valid and compact or not; on anything else it gives up (`None`) and never
//! panics.

use std::ops::Range;

/// A place in a JSON text.
#[derive(Clone, Debug)]
pub(super) struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(text: &'a [u8]) -> Self {
        Self { text, at: 0 }
    }

    /// The place, in bytes.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// The next byte that is no white space.
    pub(super) fn peek(&mut self) -> Option<u8> {
        loop {
            match self.text.get(self.at)? {
                b' ' | b'\n' | b'\r' | b'\t' => self.at += 1,
                byte => return Some(*byte),
            }
        }
    }

    /// Steps over this byte.
    pub(super) fn expect(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.at += 1)
    }

    /// After a member or an element: `true` when another one follows, `false` when `close` was
    /// stepped over.
    pub(super) fn more(&mut self, close: u8) -> Option<bool> {
        let byte = self.peek()?;
        self.at += 1;
        match byte {
            b',' => Some(true),
            _ if byte == close => Some(false),
            _ => None,
        }
    }

    /// At the start of an object or a list: `true` when it is not empty, otherwise `close` was
    /// stepped over.
    pub(super) fn any(&mut self, close: u8) -> Option<bool> {
        if self.peek()? == close {
            self.at += 1;
            return Some(false);
        }
        Some(true)
    }

    /// Steps over a string; its text between the quotes, escapes untouched.
    pub(super) fn string(&mut self) -> Option<&'a [u8]> {
        self.expect(b'"')?;
        let start = self.at;
        loop {
            match self.text.get(self.at)? {
                b'"' => break,
                b'\\' => self.at += 2,
                _ => self.at += 1,
            }
        }
        self.at += 1;
        self.text.get(start..self.at - 1)
    }

    /// Steps over a name and its colon.
    pub(super) fn name(&mut self) -> Option<&'a [u8]> {
        let name = self.string()?;
        self.expect(b':')?;
        Some(name)
    }

    /// Steps over any value; where it stands.
    pub(super) fn value(&mut self) -> Option<Range<usize>> {
        let first = self.peek()?;
        let start = self.at;
        match first {
            b'"' => {
                self.string()?;
            }
            b'{' | b'[' => self.nested()?,
            _ => {
                while let Some(byte) = self.text.get(self.at)
                    && !matches!(byte, b',' | b'}' | b']' | b' ' | b'\n' | b'\r' | b'\t')
                {
                    self.at += 1;
                }
            }
        }
        (self.at > start).then_some(start..self.at)
    }

    /// Steps over an object or a list with all that is in it.
    fn nested(&mut self) -> Option<()> {
        let mut depth = 0_usize;
        loop {
            match self.text.get(self.at)? {
                b'"' => {
                    self.string()?;
                    continue;
                }
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth -= 1,
                _ => {}
            }
            self.at += 1;
            if depth == 0 {
                return Some(());
            }
        }
    }
}

/// The value at the end of a path of names in nested objects.
pub(super) fn lookup<'a>(text: &'a [u8], path: &[String]) -> Option<&'a [u8]> {
    let Some((first, rest)) = path.split_first() else {
        return Some(text);
    };
    let mut scanner = Scanner::new(text);
    scanner.expect(b'{')?;
    let mut more = scanner.any(b'}')?;
    while more {
        let found = scanner.name()? == first.as_bytes();
        let value = scanner.value()?;
        if found {
            return lookup(&text[value], rest);
        }
        more = scanner.more(b'}')?;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(path: &str) -> Vec<String> {
        path.split('.').map(str::to_owned).collect()
    }

    #[test]
    fn values_are_found_by_their_path() {
        let text = br#"{ "a" : {"b":[1,"]}",{"x":"\"}"}], "c":"d\"e"},"n":-1.5e3 ,"t":true}"#;
        for (names, value) in [
            ("a.c", Some(r#""d\"e""#)),
            ("a.b", Some(r#"[1,"]}",{"x":"\"}"}]"#)),
            ("n", Some("-1.5e3")),
            ("t", Some("true")),
            ("x", None),
            ("n.x", None),
            ("a.b.x", None),
        ] {
            assert_eq!(lookup(text, &path(names)), value.map(str::as_bytes), "{names}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[{}\\[\\]\",:\\\\a1 ]{0,30}") {
            let _ = Scanner::new(text.as_bytes()).value();
            let _ = lookup(text.as_bytes(), &path("a.a"));
        }
    }
}
