//! Path templates of `google.api.http`.
//!
//! ```text
//! Template  = "/" [ Segments ] [ ":" LITERAL ] ;
//! Segments  = Segment { "/" Segment } ;
//! Segment   = "*" | "**" | LITERAL | Variable ;
//! Variable  = "{" FieldPath [ "=" Segments ] "}" ;
//! FieldPath = IDENT { "." IDENT } ;
//! ```
//!
//! A template is kept flat: the segments in their order, and for each variable the range of segments
//! that it captures. Invariants of a parsed template: `**` is the last segment, variables do not
//! overlap, every variable captures at least one segment, and no field is captured twice.
//!
//! The verb is cut off first, as the text after the last `:` of the last segment outside braces, so
//! `/v1/{name=operations/**}:cancel` and `/v1/orders/{id}:cancel` both have the verb `cancel`.

use std::fmt;
use std::ops::Range;

mod matching;
mod parse;

pub use parse::TemplateError;

/// A parsed path template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    source: String,
    segments: Vec<Segment>,
    variables: Vec<Variable>,
    verb: Option<String>,
}

/// One segment of a path, between two slashes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Segment {
    /// This text, after percent-decoding.
    Literal(String),
    /// `*`: any one segment that is not empty.
    One,
    /// `**`: whatever is left, even nothing. Always the last.
    Rest,
}

/// A field of the message that takes a part of the path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable {
    /// The path of the field, in the contract's names: `["shelf", "id"]` for `{shelf.id}`.
    pub field: Vec<String>,
    /// The segments that it takes.
    pub segments: Range<usize>,
}

impl Variable {
    /// The path of the field with dots: `shelf.id`.
    #[must_use]
    pub fn field_path(&self) -> String {
        self.field.join(".")
    }

    /// Whether it takes exactly one segment (`{id}`, `{id=*}`). Such a value is percent-decoded
    /// whole; of a longer one, `%2F` stays as it is, so that the slashes between segments can be
    /// told from slashes inside them.
    #[must_use]
    pub fn is_single(&self, template: &Template) -> bool {
        self.segments.len() == 1 && template.segments[self.segments.start] != Segment::Rest
    }
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// The first place that does not follow the grammar, and why.
    pub fn parse(source: &str) -> Result<Self, TemplateError> {
        parse::parse(source)
    }

    /// The text that it was read from.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The segments in their order.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The variables in their order.
    #[must_use]
    pub fn variables(&self) -> &[Variable] {
        &self.variables
    }

    /// What stands after the colon at the end: `cancel` of `/v1/orders/{id}:cancel`.
    #[must_use]
    pub fn verb(&self) -> Option<&str> {
        self.verb.as_deref()
    }

    /// Whether every path that one matches with a given priority is matched by the other with the
    /// same priority: the templates differ at most in the names of their variables. A router cannot
    /// choose between two such routes.
    #[must_use]
    pub fn same_paths(&self, other: &Self) -> bool {
        self.segments == other.segments && self.verb == other.verb
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)
    }
}
