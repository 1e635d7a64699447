//! The three messages of `google/rpc/error_details.proto` that a status becomes, and
//! `google.rpc.Status` around them. They are so small that writing them here costs less than
//! generating them.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use antiphon_core::{Code, FieldViolation, Retry, Status};
use buffa::encoding::{Tag, WireType, encode_varint};
use connectrpc::SharedSource;

use crate::fields::{Fields, Value};

/// Longest details that are sent, in bytes before base64: half of what clients accept as headers.
const DETAILS_BYTES_MAX: usize = 4 * 1_024;

const ERROR_INFO: &str = "google.rpc.ErrorInfo";
const BAD_REQUEST: &str = "google.rpc.BadRequest";
const RETRY_INFO: &str = "google.rpc.RetryInfo";
const ANY_PREFIX: &str = "type.googleapis.com/";

/// One detail of a status.
#[derive(Debug)]
pub(super) enum Detail {
    ErrorInfo { reason: String, domain: String, metadata: Vec<(String, String)> },
    BadRequest(Vec<FieldViolation>),
    RetryInfo(Duration),
}

/// What a status carries besides code and message, as much as fits.
pub(super) fn of(status: &Status) -> Vec<Detail> {
    let mut details = Vec::new();
    if !status.reason().is_empty() || !status.metadata().is_empty() {
        details.push(Detail::ErrorInfo {
            reason: status.reason().to_owned(),
            domain: status.domain().to_owned(),
            metadata: status.metadata().to_vec(),
        });
    }
    if let Some(wait) = status.retry_after() {
        details.push(Detail::RetryInfo(wait));
    }
    let mut room = DETAILS_BYTES_MAX;
    let fitting = status.violations().iter().take_while(|violation| {
        let bytes = violation.field.len() + violation.rule.len() + violation.description.len() + 16;
        let fits = bytes <= room;
        room = room.saturating_sub(bytes);
        fits
    });
    let violations: Vec<_> = fitting.cloned().collect();
    if !violations.is_empty() {
        details.push(Detail::BadRequest(violations));
    }
    details
}

impl Detail {
    pub(super) const fn type_name(&self) -> &'static str {
        match self {
            Self::ErrorInfo { .. } => ERROR_INFO,
            Self::BadRequest(_) => BAD_REQUEST,
            Self::RetryInfo(_) => RETRY_INFO,
        }
    }

    pub(super) fn write(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::ErrorInfo { reason, domain, metadata } => {
                put_text(&mut out, 1, reason);
                put_text(&mut out, 2, domain);
                for (name, value) in metadata {
                    let mut entry = Vec::new();
                    put_text(&mut entry, 1, name);
                    put_text(&mut entry, 2, value);
                    put_bytes(&mut out, 3, &entry);
                }
            }
            Self::BadRequest(violations) => {
                for violation in violations {
                    let mut entry = Vec::new();
                    put_text(&mut entry, 1, &violation.field);
                    put_text(&mut entry, 2, &violation.description);
                    put_text(&mut entry, 3, &violation.rule);
                    put_bytes(&mut out, 1, &entry);
                }
            }
            Self::RetryInfo(wait) => {
                let mut duration = Vec::new();
                put_number(&mut duration, 1, wait.as_secs());
                put_number(&mut duration, 2, u64::from(wait.subsec_nanos()));
                put_bytes(&mut out, 1, &duration);
            }
        }
        out
    }

    /// `None` for a detail of another type, or one that cannot be read.
    pub(super) fn read(type_url: &str, bytes: &[u8]) -> Option<Self> {
        let name = type_url.rsplit('/').next().unwrap_or(type_url);
        match name {
            ERROR_INFO => {
                let (mut reason, mut domain, mut metadata) = Default::default();
                for field in Fields(bytes) {
                    match field? {
                        (1, Value::Bytes(bytes)) => reason = text(bytes),
                        (2, Value::Bytes(bytes)) => domain = text(bytes),
                        (3, Value::Bytes(bytes)) => {
                            let [name, value] = texts(bytes)?;
                            Vec::push(&mut metadata, (name, value));
                        }
                        _ => {}
                    }
                }
                Some(Self::ErrorInfo { reason, domain, metadata })
            }
            BAD_REQUEST => {
                let mut violations = Vec::new();
                for field in Fields(bytes) {
                    if let (1, Value::Bytes(bytes)) = field? {
                        let [field, description, rule] = texts(bytes)?;
                        violations.push(FieldViolation { field, rule, description });
                    }
                }
                Some(Self::BadRequest(violations))
            }
            RETRY_INFO => {
                let mut wait = Duration::ZERO;
                for field in Fields(bytes) {
                    if let (1, Value::Bytes(bytes)) = field? {
                        wait = duration(bytes)?;
                    }
                }
                Some(Self::RetryInfo(wait))
            }
            _ => None,
        }
    }

    pub(super) fn apply(self, status: Status) -> Status {
        match self {
            Self::ErrorInfo { reason, domain, metadata } => metadata
                .into_iter()
                .fold(status.with_reason(reason, domain), |status, (name, value)| {
                    status.with_metadata(name, value)
                }),
            Self::BadRequest(violations) => status.with_violations(violations),
            Self::RetryInfo(wait) => status.with_retry(Retry::After(wait)),
        }
    }
}

/// Writes `google.rpc.Status`.
pub(super) fn write_status(code: Code, message: &str, details: &[Detail]) -> Vec<u8> {
    let mut out = Vec::new();
    put_number(&mut out, 1, u64::from(code.number()));
    put_text(&mut out, 2, message);
    for detail in details {
        let mut any = Vec::new();
        put_text(&mut any, 1, &format!("{ANY_PREFIX}{}", detail.type_name()));
        put_bytes(&mut any, 2, &detail.write());
        put_bytes(&mut out, 3, &any);
    }
    out
}

/// Reads the details of a `google.rpc.Status` that are known here.
pub(super) fn read_status(bytes: &[u8]) -> Vec<Detail> {
    let anys = Fields(bytes).map_while(|field| field).filter_map(|field| match field {
        (3, Value::Bytes(any)) => Some(any),
        _ => None,
    });
    anys.filter_map(|any| {
        let mut type_url = String::new();
        let mut value: &[u8] = &[];
        for field in Fields(any) {
            match field? {
                (1, Value::Bytes(bytes)) => type_url = text(bytes),
                (2, Value::Bytes(bytes)) => value = bytes,
                _ => {}
            }
        }
        Detail::read(&type_url, value)
    })
    .collect()
}

fn put_number(out: &mut Vec<u8>, field: u32, value: u64) {
    if value != 0 {
        Tag::new(field, WireType::Varint).encode(out);
        encode_varint(value, out);
    }
}

fn put_text(out: &mut Vec<u8>, field: u32, value: &str) {
    if !value.is_empty() {
        put_bytes(out, field, value.as_bytes());
    }
}

fn put_bytes(out: &mut Vec<u8>, field: u32, value: &[u8]) {
    Tag::new(field, WireType::LengthDelimited).encode(out);
    encode_varint(value.len() as u64, out);
    out.extend_from_slice(value);
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The fields 1 to `N` of a message of texts.
fn texts<const N: usize>(bytes: &[u8]) -> Option<[String; N]> {
    let mut texts = [const { String::new() }; N];
    for field in Fields(bytes) {
        if let (number, Value::Bytes(bytes)) = field?
            && let Some(slot) =
                usize::try_from(number).ok()?.checked_sub(1).and_then(|n| texts.get_mut(n))
        {
            *slot = text(bytes);
        }
    }
    Some(texts)
}

fn duration(bytes: &[u8]) -> Option<Duration> {
    let (mut seconds, mut nanos) = (0, 0);
    for field in Fields(bytes) {
        match field? {
            (1, Value::Number(value)) => seconds = value,
            (2, Value::Number(value)) => nanos = value,
            _ => {}
        }
    }
    // Negative durations are huge numbers here; nobody can be asked to wait for less than nothing.
    let seconds = i64::try_from(seconds).ok()?.unsigned_abs();
    Some(Duration::new(seconds, u32::try_from(nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?))
}

/// A shared error as the source of a status.
#[derive(Debug)]
pub(super) struct Shared(pub(super) SharedSource);

impl fmt::Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for Shared {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}
