//! Turns the text of a path variable or a query parameter into JSON, by the type of its field.

use antiphon_contract::Scalar;
use base64::Engine;
use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use base64::engine::{DecodePaddingMode, general_purpose};

use super::schema::{EnumShape, Leaf, Schema};

/// Why a text is not a value of its type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    /// The stable name of the rule.
    pub(super) rule: &'static str,
    /// What is wrong, for people.
    pub(super) description: String,
}

fn wrong<T>(rule: &'static str, description: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong { rule, description: description.into() })
}

/// Appends `text`, read as a value of this type, to a JSON text.
pub(super) fn write(
    text: &str,
    leaf: &Leaf,
    schema: &Schema,
    json: &mut String,
) -> Result<(), Wrong> {
    match leaf {
        Leaf::Scalar(scalar) => write_scalar(text, *scalar, json),
        Leaf::Enum(shape) => write_enum(text, shape, json),
        // Their grammar is checked when the message is decoded.
        Leaf::Text => {
            quote(text, json);
            Ok(())
        }
        Leaf::Mask => {
            quote(&mask(text), json);
            Ok(())
        }
        Leaf::Message(id) => {
            let example =
                schema.shape(*id).fields.first().map_or("field", |field| &field.json_name);
            wrong("message", format!("is a message; give its fields, as in \".{example}=\""))
        }
        Leaf::Any => wrong("message", "can hold anything and is only taken from the body"),
    }
}

fn write_scalar(text: &str, scalar: Scalar, json: &mut String) -> Result<(), Wrong> {
    match scalar {
        Scalar::String => quote(text, json),
        Scalar::Bool => match text {
            "true" | "false" => json.push_str(text),
            _ => return wrong("type", "must be true or false"),
        },
        Scalar::Int32 => json.push_str(integer::<i32>(text, "a 32-bit integer")?),
        Scalar::Uint32 => json.push_str(integer::<u32>(text, "an unsigned 32-bit integer")?),
        Scalar::Int64 => quote(integer::<i64>(text, "a 64-bit integer")?, json),
        Scalar::Uint64 => quote(integer::<u64>(text, "an unsigned 64-bit integer")?, json),
        Scalar::Float => float(text, text.parse::<f32>().is_ok_and(f32::is_finite), json)?,
        Scalar::Double => float(text, text.parse::<f64>().is_ok_and(f64::is_finite), json)?,
        Scalar::Bytes => bytes(text, json)?,
    }
    Ok(())
}

/// The text itself when it is a decimal number that `N` can hold.
fn integer<'a, N: std::str::FromStr>(text: &'a str, what: &str) -> Result<&'a str, Wrong> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    if !plain || (digits.len() > 1 && digits.starts_with('0')) {
        return wrong("type", format!("must be {what}"));
    }
    match text.parse::<N>() {
        Ok(_) => Ok(text),
        Err(_) => wrong("range", format!("is out of range; must be {what}")),
    }
}

/// A JSON number, or one of the three words that proto3 JSON has for what JSON cannot say.
fn float(text: &str, finite: bool, json: &mut String) -> Result<(), Wrong> {
    if matches!(text, "NaN" | "Infinity" | "-Infinity") {
        quote(text, json);
        return Ok(());
    }
    if serde_json::from_str::<&serde_json::value::RawValue>(text).is_err()
        || !text.starts_with(|first: char| first == '-' || first.is_ascii_digit())
    {
        return wrong("type", "must be a number");
    }
    if !finite {
        return wrong("range", "is out of range");
    }
    json.push_str(text);
    Ok(())
}

const PADDING_OPTIONAL: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, PADDING_OPTIONAL);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, PADDING_OPTIONAL);

/// Base64 in either alphabet, with or without padding; written in the standard form.
fn bytes(text: &str, json: &mut String) -> Result<(), Wrong> {
    let Ok(decoded) = URL_SAFE.decode(text).or_else(|_| STANDARD.decode(text)) else {
        let description = if text.contains(' ') {
            "must be base64; write \"+\" as %2B or use the URL-safe alphabet"
        } else {
            "must be base64"
        };
        return wrong("type", description);
    };
    json.push('"');
    general_purpose::STANDARD.encode_string(decoded, json);
    json.push('"');
    Ok(())
}

fn write_enum(text: &str, shape: &EnumShape, json: &mut String) -> Result<(), Wrong> {
    if shape.values.iter().any(|(name, _)| name == text) {
        quote(text, json);
        return Ok(());
    }
    if let Ok(number) = integer::<i32>(text, "")
        && (!shape.closed || shape.values.iter().any(|(_, known)| known.to_string() == number))
    {
        json.push_str(number);
        return Ok(());
    }
    let names: Vec<&str> = shape.values.iter().map(|(name, _)| name.as_str()).take(10).collect();
    let more = if shape.values.len() > names.len() { ", …" } else { "" };
    let names = names.join(", ");
    wrong("enum", format!("must be a value of {}: {names}{more}", shape.name))
}

/// Field masks are lower camel case in JSON; the contract's names are understood as well.
fn mask(text: &str) -> String {
    let mut camel = String::with_capacity(text.len());
    let mut upper = false;
    for letter in text.chars() {
        if letter == '_' {
            upper = true;
        } else {
            camel.push(if upper { letter.to_ascii_uppercase() } else { letter });
            upper = false;
        }
    }
    camel
}

/// Appends a JSON string.
pub(super) fn quote(text: &str, json: &mut String) {
    json.push('"');
    let mut plain_from = 0;
    for (at, byte) in text.bytes().enumerate() {
        if byte >= b' ' && byte != b'"' && byte != b'\\' {
            continue;
        }
        json.push_str(&text[plain_from..at]);
        plain_from = at + 1;
        match byte {
            b'"' => json.push_str("\\\""),
            b'\\' => json.push_str("\\\\"),
            _ => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                json.push_str("\\u00");
                json.push(char::from(HEX[usize::from(byte >> 4)]));
                json.push(char::from(HEX[usize::from(byte & 15)]));
            }
        }
    }
    json.push_str(&text[plain_from..]);
    json.push('"');
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    fn json(text: &str, leaf: &Leaf) -> Result<String, &'static str> {
        let mut json = String::new();
        match write(text, leaf, &Schema::default(), &mut json) {
            Ok(()) => Ok(json),
            Err(wrong) => Err(wrong.rule),
        }
    }

    #[test]
    fn every_type_is_read_strictly() {
        use Scalar::{Bool, Bytes, Double, Float, Int32, Int64, String, Uint32, Uint64};
        for (scalar, text, expected) in [
            (String, "a \"b\"\\\n", Ok(r#""a \"b\"\\\u000a""#)),
            (String, "", Ok(r#""""#)),
            (Bool, "true", Ok("true")),
            (Bool, "1", Err("type")),
            (Bool, "TRUE", Err("type")),
            (Int32, "-2147483648", Ok("-2147483648")),
            (Int32, "2147483648", Err("range")),
            (Int32, "1.0", Err("type")),
            (Int32, "01", Err("type")),
            (Int32, "+1", Err("type")),
            (Int32, " 1", Err("type")),
            (Int32, "", Err("type")),
            (Int32, "-", Err("type")),
            (Uint32, "4294967295", Ok("4294967295")),
            (Uint32, "-1", Err("range")),
            (Int64, "9223372036854775807", Ok("\"9223372036854775807\"")),
            (Int64, "9223372036854775808", Err("range")),
            (Int64, "abc", Err("type")),
            (Uint64, "18446744073709551615", Ok("\"18446744073709551615\"")),
            (Double, "1.5e300", Ok("1.5e300")),
            (Double, "1e400", Err("range")),
            (Double, "NaN", Ok("\"NaN\"")),
            (Double, "-Infinity", Ok("\"-Infinity\"")),
            (Double, "inf", Err("type")),
            (Double, "nan", Err("type")),
            (Double, ".5", Err("type")),
            (Double, "\"1\"", Err("type")),
            (Double, "[1]", Err("type")),
            (Float, "3.5", Ok("3.5")),
            (Float, "1e39", Err("range")),
            (Bytes, "AP8-", Ok("\"AP8+\"")),
            (Bytes, "AP8+", Ok("\"AP8+\"")),
            (Bytes, "AP8=", Ok("\"AP8=\"")),
            (Bytes, "AP8", Ok("\"AP8=\"")),
            (Bytes, "AP8 ", Err("type")),
            (Bytes, "!", Err("type")),
        ] {
            let found = json(text, &Leaf::Scalar(scalar));
            assert_eq!(found.as_deref().map_err(|rule| *rule), expected, "{scalar:?} {text:?}");
        }
    }

    #[test]
    fn enums_come_by_name_or_number() {
        let shape = |closed| {
            let values = vec![("ZERO".to_owned(), 0), ("ONE".to_owned(), 1)];
            Leaf::Enum(Arc::new(EnumShape { name: "x.E".to_owned(), values, closed }))
        };
        for (text, open, closed) in [
            ("ONE", Ok("\"ONE\""), Ok("\"ONE\"")),
            ("1", Ok("1"), Ok("1")),
            ("7", Ok("7"), Err("enum")),
            ("one", Err("enum"), Err("enum")),
            ("1.0", Err("enum"), Err("enum")),
            ("2147483648", Err("enum"), Err("enum")),
            ("", Err("enum"), Err("enum")),
        ] {
            let found = (json(text, &shape(false)), json(text, &shape(true)));
            let expected = (open.map(str::to_owned), closed.map(str::to_owned));
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn a_field_mask_may_be_written_in_either_case() {
        for text in ["displayName,a.bC", "display_name,a.b_c"] {
            assert_eq!(json(text, &Leaf::Mask).unwrap(), "\"displayName,a.bC\"");
        }
    }

    proptest! {
        #[test]
        fn a_quoted_text_is_that_text(text in "(\\PC|[\\x00-\\x1f\"\\\\]){0,30}") {
            let mut json = String::new();
            quote(&text, &mut json);
            prop_assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        }

        #[test]
        fn whatever_is_accepted_is_json(text in "[-+0-9.eEinfNatyI]{0,12}") {
            for scalar in [Scalar::Int32, Scalar::Uint64, Scalar::Float, Scalar::Double] {
                if let Ok(json) = json(&text, &Leaf::Scalar(scalar)) {
                    prop_assert!(serde_json::from_str::<serde_json::Value>(&json).is_ok());
                }
            }
        }
    }
}
