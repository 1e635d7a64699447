//! Content negotiation: what the client sends and what it takes (RFC 9110, sections 8.3 and 12.5).

use antiphon_core::{Code, Status};
use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE};

pub(super) const JSON: &str = "application/json";
pub(super) const NDJSON: &str = "application/x-ndjson";
pub(super) const EVENT_STREAM: &str = "text/event-stream";

/// The one of `offered` that the client likes best; the first of equals.
///
/// # Errors
/// 406 naming what there is.
pub(super) fn choose(
    headers: &HeaderMap,
    offered: &[&'static str],
) -> Result<&'static str, Status> {
    let first = offered.first().copied().unwrap_or(JSON);
    let mut values =
        headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).peekable();
    if values.peek().is_none_or(|value| *value == "*/*" || *value == first) {
        return Ok(first);
    }
    let ranges: Vec<Range<'_>> =
        values.flat_map(|value| value.split(',')).map(Range::parse).collect();
    let mut best = (0, first);
    for kind in offered {
        let quality = ranges
            .iter()
            .filter_map(|range| Some((range.specificity(kind)?, range.quality)))
            .max()
            .map_or(0, |(_, quality)| quality);
        if quality > best.0 {
            best = (quality, kind);
        }
    }
    match best {
        (0, _) => {
            let there_is = offered.join(" and ");
            let message = format!("nothing that the accept header asks for; there is {there_is}");
            Err(Status::new(Code::InvalidArgument, message).with_http_status(406))
        }
        (_, kind) => Ok(kind),
    }
}

/// A media range with its quality in thousandths.
struct Range<'a> {
    kind: &'a str,
    quality: u16,
}

impl<'a> Range<'a> {
    fn parse(text: &'a str) -> Self {
        let mut parts = text.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default();
        let quality = parts
            .find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")))
            .map_or(1000, |quality| {
                // What is no number is not taken for "do not send me this".
                let quality = quality.parse::<f32>().unwrap_or(1.0).clamp(0.0, 1.0);
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "between 0 and 1000"
                )]
                let thousandths = (quality * 1000.0) as u16;
                thousandths
            });
        Self { kind, quality }
    }

    /// How exactly the range names the kind; `None` when it does not.
    fn specificity(&self, kind: &str) -> Option<u8> {
        if self.kind == "*/*" {
            return Some(0);
        }
        if self.kind.eq_ignore_ascii_case(kind) {
            return Some(2);
        }
        let family = self.kind.strip_suffix("/*")?;
        let (of, _) = kind.split_once('/')?;
        family.eq_ignore_ascii_case(of).then_some(1)
    }
}

/// Makes sure that a body that is not empty is JSON in UTF-8.
///
/// # Errors
/// 415 with what to send instead.
pub(super) fn require_json(headers: &HeaderMap) -> Result<(), Status> {
    let Some(value) = headers.get(CONTENT_TYPE) else {
        return unsupported("the body has no content type");
    };
    if value == JSON {
        return Ok(());
    }
    let Ok(text) = value.to_str() else {
        return unsupported("the content type is no text");
    };
    let mut parts = text.split(';').map(str::trim);
    if !parts.next().unwrap_or_default().eq_ignore_ascii_case(JSON) {
        return unsupported(&format!("{text} is not understood here"));
    }
    for parameter in parts {
        if let Some((name, charset)) = parameter.split_once('=')
            && name.eq_ignore_ascii_case("charset")
            && !charset.trim_matches('"').eq_ignore_ascii_case("utf-8")
        {
            return unsupported(&format!("JSON is UTF-8, not {charset}"));
        }
    }
    Ok(())
}

fn unsupported(why: &str) -> Result<(), Status> {
    let message = format!("{why}; send content-type: {JSON}");
    Err(Status::new(Code::InvalidArgument, message).with_http_status(415))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn accepting(value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(value))])
    }

    #[test]
    fn the_best_kind_that_there_is_gets_chosen() {
        let offered = [NDJSON, EVENT_STREAM];
        for (accept, expected) in [
            ("*/*", Some(NDJSON)),
            ("text/event-stream", Some(EVENT_STREAM)),
            ("Text/Event-Stream", Some(EVENT_STREAM)),
            ("application/json, text/plain, */*", Some(NDJSON)),
            ("text/*", Some(EVENT_STREAM)),
            ("text/event-stream;q=0.5, application/*;q=0.6", Some(NDJSON)),
            ("application/x-ndjson;q=0, */*", Some(EVENT_STREAM)),
            ("*/*;q=0.1,text/event-stream;q=0.2", Some(EVENT_STREAM)),
            ("application/json", None),
            ("*/*;q=0", None),
            ("", None),
        ] {
            let chosen = choose(&accepting(accept), &offered);
            assert_eq!(chosen.as_ref().ok().copied(), expected, "{accept}");
            if let Err(status) = chosen {
                assert_eq!(status.http_status(), 406);
            }
        }
        assert_eq!(choose(&HeaderMap::new(), &offered).unwrap(), NDJSON);
    }

    #[test]
    fn only_json_is_taken_for_json() {
        for (kind, good) in [
            ("application/json", true),
            ("Application/JSON; charset=UTF-8", true),
            ("application/json;charset=\"utf-8\"", true),
            ("application/json; charset=latin1", false),
            ("text/plain", false),
            ("application/x-www-form-urlencoded", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(kind))]);
            let found = require_json(&headers);
            assert_eq!(found.is_ok(), good, "{kind}");
            if let Err(status) = found {
                assert_eq!(status.http_status(), 415);
            }
        }
        assert!(require_json(&HeaderMap::new()).is_err());
    }
}
