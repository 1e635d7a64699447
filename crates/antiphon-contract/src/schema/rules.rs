//! Rules of `buf.validate` as keywords of JSON Schema.
//!
//! A rule that JSON Schema cannot say is left to the server, except that bounds of 64-bit integers,
//! which are texts in JSON, are said in words.

use serde_json::{Value, json};

use crate::model::{Cardinality, Field, Kind, Scalar};

/// Adds the rules for one value.
pub(super) fn apply(schema: &mut Value, kind: &Kind, rules: Option<&Value>) {
    let Some(rules) = rules else { return };
    match kind {
        Kind::Scalar(Scalar::String) => text(schema, rules.get("string")),
        Kind::Scalar(Scalar::Bytes | Scalar::Bool) | Kind::Message(_) => {}
        Kind::Scalar(Scalar::Int64 | Scalar::Uint64) => large(schema, number_rules(rules)),
        Kind::Scalar(_) => number(schema, number_rules(rules)),
        Kind::Enum(_) => {}
    }
}

/// The rules of a number are under the name of its type; a field has one type.
fn number_rules(rules: &Value) -> Option<&Value> {
    const TYPES: [&str; 12] = [
        "int32", "int64", "uint32", "uint64", "sint32", "sint64", "fixed32", "fixed64", "sfixed32",
        "sfixed64", "float", "double",
    ];
    TYPES.iter().find_map(|name| rules.get(name))
}

fn text(schema: &mut Value, rules: Option<&Value>) {
    let Some(rules) = rules else { return };
    for (rule, keyword) in [("minLen", "minLength"), ("maxLen", "maxLength")] {
        if let Some(length) = rules.get(rule).and_then(whole) {
            schema[keyword] = json!(length);
        }
    }
    if let Some(length) = rules.get("len").and_then(whole) {
        schema["minLength"] = json!(length);
        schema["maxLength"] = json!(length);
    }
    for (rule, keyword) in
        [("pattern", "pattern"), ("const", "const"), ("in", "enum"), ("example", "examples")]
    {
        if let Some(value) = rules.get(rule) {
            schema[keyword] = value.clone();
        }
    }
    for (rule, format) in [
        ("email", "email"),
        ("hostname", "hostname"),
        ("ipv4", "ipv4"),
        ("ipv6", "ipv6"),
        ("uri", "uri"),
        ("uriRef", "uri-reference"),
        ("uuid", "uuid"),
    ] {
        if rules.get(rule) == Some(&Value::Bool(true)) {
            schema["format"] = json!(format);
        }
    }
}

fn number(schema: &mut Value, rules: Option<&Value>) {
    let Some(rules) = rules else { return };
    if outside(rules) {
        return;
    }
    for (rule, keyword, replaces) in [
        ("gte", "minimum", ""),
        ("lte", "maximum", ""),
        ("gt", "exclusiveMinimum", "minimum"),
        ("lt", "exclusiveMaximum", "maximum"),
        ("const", "const", ""),
        ("in", "enum", ""),
        ("example", "examples", ""),
    ] {
        if let Some(value) = rules.get(rule) {
            schema[keyword] = value.clone();
            if let Value::Object(schema) = schema {
                schema.remove(replaces);
            }
        }
    }
}

/// Bounds whose order is turned around allow what is outside of them.
fn outside(rules: &Value) -> bool {
    let of = |names: [&str; 2]| names.iter().find_map(|name| rules.get(name)).and_then(float);
    matches!((of(["gt", "gte"]), of(["lt", "lte"])), (Some(low), Some(high)) if high <= low)
}

fn large(schema: &mut Value, rules: Option<&Value>) {
    let Some(rules) = rules else { return };
    for (rule, keyword) in [("in", "enum"), ("example", "examples")] {
        if let Some(values) = rules.get(rule) {
            schema[keyword] = values.clone();
        }
    }
    if let Some(value) = rules.get("const") {
        schema["const"] = value.clone();
    }
    let low = ["gt", "gte"].iter().find_map(|name| rules.get(name)).and_then(float);
    if low.is_some_and(|low| low >= 0.0) && !outside(rules) {
        let most = rules.get("lte").and_then(whole);
        let most = most.or_else(|| rules.get("lt").and_then(whole)?.checked_sub(1));
        schema["pattern"] = json!(match most {
            Some(most) => up_to(most),
            None => "^[0-9]{1,19}$".to_owned(),
        });
    }
    let bounds: Vec<String> =
        [("gt", "more than"), ("gte", "at least"), ("lt", "less than"), ("lte", "at most")]
            .iter()
            .filter_map(|(rule, words)| {
                let bound = rules.get(rule)?;
                let bound = bound.as_str().map_or_else(|| bound.to_string(), str::to_owned);
                Some(format!("{words} {bound}"))
            })
            .collect();
    if !bounds.is_empty() {
        let between = if outside(rules) { " or " } else { ", " };
        let mut sentence = bounds.join(between);
        sentence[..1].make_ascii_uppercase();
        schema["description"] = json!(format!("{sentence}."));
    }
}

/// What the decimal numbers from 0 to `most` look like: fewer digits, or as many digits of which one
/// is smaller and all before it are the same.
fn up_to(most: u64) -> String {
    let digits = most.to_string();
    let mut forms = Vec::new();
    if digits.len() > 1 {
        forms.push(format!("[0-9]{{1,{}}}", digits.len() - 1));
    }
    for (place, digit) in digits.char_indices().filter(|(_, digit)| *digit != '0') {
        let smaller = char::from(u8::try_from(digit).map_or(b'0', |digit| digit - 1));
        let rest = match digits.len() - place - 1 {
            0 => String::new(),
            rest => format!("[0-9]{{{rest}}}"),
        };
        forms.push(format!("{}[0-{smaller}]{rest}", &digits[..place]));
    }
    forms.push(digits);
    format!("^({})$", forms.join("|"))
}

/// Adds the rules for a list.
pub(super) fn list(schema: &mut Value, rules: Option<&Value>) {
    let Some(rules) = rules else { return };
    for (rule, keyword) in [("minItems", "minItems"), ("maxItems", "maxItems")] {
        if let Some(count) = rules.get(rule).and_then(whole) {
            schema[keyword] = json!(count);
        }
    }
    if rules.get("unique") == Some(&Value::Bool(true)) {
        schema["uniqueItems"] = json!(true);
    }
}

/// Adds the rules for a map and what its keys must look like.
pub(super) fn map(schema: &mut Value, key: Scalar, rules: Option<&Value>) {
    let mut keys = match key {
        Scalar::Bool => json!({"enum": ["true", "false"]}),
        Scalar::Int32 | Scalar::Int64 => json!({"pattern": "^-?[0-9]{1,19}$"}),
        Scalar::Uint32 | Scalar::Uint64 => json!({"pattern": "^[0-9]{1,20}$"}),
        _ => json!({}),
    };
    if let Some(rules) = rules {
        for (rule, keyword) in [("minPairs", "minProperties"), ("maxPairs", "maxProperties")] {
            if let Some(count) = rules.get(rule).and_then(whole) {
                schema[keyword] = json!(count);
            }
        }
        if key == Scalar::String {
            text(&mut keys, rules.get("keys").and_then(|keys| keys.get("string")));
        }
    }
    if keys.as_object().is_some_and(|keys| !keys.is_empty()) {
        schema["propertyNames"] = keys;
    }
}

/// Whether a message without this field breaks a rule: because the field is required, or because
/// leaving it out means its default value, which the rules refuse.
pub(crate) fn must_be_given(field: &Field) -> bool {
    let Some(rules) = &field.rules else { return false };
    if rules.get("ignore").is_some() {
        return false;
    }
    if rules.get("required") == Some(&Value::Bool(true)) {
        return true;
    }
    if field.explicit_presence || field.oneof.is_some() {
        return false;
    }
    let at_least_one =
        |group: &str, rule: &str| rules[group].get(rule).and_then(whole).is_some_and(|n| n > 0);
    match (&field.kind, field.cardinality) {
        (_, Cardinality::Repeated) => at_least_one("repeated", "minItems"),
        (_, Cardinality::Map(_)) => at_least_one("map", "minPairs"),
        (Kind::Scalar(Scalar::String), _) => {
            let other = |rule: &str| {
                rules["string"]
                    .get(rule)
                    .and_then(Value::as_str)
                    .is_some_and(|text| !text.is_empty())
            };
            at_least_one("string", "minLen")
                || at_least_one("string", "len")
                || other("const")
                || other("prefix")
        }
        (Kind::Scalar(_), _) => number_rules(rules).is_some_and(|rules| {
            let bound = |name: &str| rules.get(name).and_then(float);
            !outside(rules)
                && (bound("gt").is_some_and(|low| low >= 0.0)
                    || bound("gte").is_some_and(|low| low > 0.0)
                    || bound("lt").is_some_and(|high| high <= 0.0)
                    || bound("lte").is_some_and(|high| high < 0.0))
        }),
        _ => false,
    }
}

/// A count; 64-bit integers are texts in JSON.
fn whole(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

fn float(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_up_to_a_bound_have_a_form() {
        assert_eq!(up_to(0), "^(0)$");
        assert_eq!(up_to(7), "^([0-6]|7)$");
        assert_eq!(up_to(100), "^([0-9]{1,2}|[0-0][0-9]{2}|100)$");
        assert_eq!(up_to(250), "^([0-9]{1,2}|[0-1][0-9]{2}|2[0-4][0-9]{1}|250)$");
    }
}
