//! Answers that a server compressed.
//!
//! Nothing is asked for: between machines that are near each other it costs more than it saves. But
//! grpcio with a default compression compresses whatever the client says, so it is understood.

use std::io::Read;

use antiphon_core::{Code, Status};
use bytes::Bytes;
use flate2::read::{GzDecoder, ZlibDecoder};
use http::HeaderValue;

/// The message as it was before `encoding` (the value of `grpc-encoding`), of at most `bytes_max`.
///
/// # Errors
/// RESOURCE_EXHAUSTED when it is larger; INTERNAL when the encoding is not known, or not what it is.
pub(super) fn decompress(
    encoding: Option<&HeaderValue>,
    message: &[u8],
    bytes_max: usize,
) -> Result<Bytes, Status> {
    match encoding.map(HeaderValue::as_bytes) {
        Some(b"gzip") => read(GzDecoder::new(message), bytes_max),
        // What gRPC and HTTP call deflate is the format of zlib (RFC 9110, section 8.4.1.2).
        Some(b"deflate") => read(ZlibDecoder::new(message), bytes_max),
        Some(_) => Err(Status::internal("the answer is compressed in a way that is not known")),
        None => Err(Status::internal("the answer is compressed and does not say how")),
    }
}

/// Reads no more than it may, however much comes out of a few bytes.
fn read(from: impl Read, bytes_max: usize) -> Result<Bytes, Status> {
    let mut message = Vec::new();
    let limit = u64::try_from(bytes_max).unwrap_or(u64::MAX).saturating_add(1);
    from.take(limit)
        .read_to_end(&mut message)
        .map_err(|error| Status::internal("the answer does not decompress").with_source(error))?;
    if message.len() > bytes_max {
        return Err(too_large(bytes_max));
    }
    Ok(message.into())
}

/// What is larger than the settings allow.
pub(super) fn too_large(bytes_max: usize) -> Status {
    Status::new(Code::ResourceExhausted, format!("the answer is larger than {bytes_max} bytes"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::{GzEncoder, ZlibEncoder};

    use super::*;

    fn gzip(message: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(message).unwrap();
        encoder.finish().unwrap()
    }

    fn understood(encoding: &'static str, message: &[u8], max: usize) -> Result<Bytes, Code> {
        let encoding = HeaderValue::from_static(encoding);
        decompress(Some(&encoding), message, max).map_err(|status| status.code())
    }

    #[test]
    fn both_encodings_of_grpc_are_understood() {
        let text = b"a message, a message, a message";
        assert_eq!(understood("gzip", &gzip(text), 100).unwrap(), &text[..]);
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::fast());
        zlib.write_all(text).unwrap();
        assert_eq!(understood("deflate", &zlib.finish().unwrap(), 100).unwrap(), &text[..]);
    }

    #[test]
    fn a_few_bytes_do_not_become_more_than_is_allowed() {
        let bomb = gzip(&vec![0; 10_000_000]);
        assert_eq!(understood("gzip", &bomb, 1_000), Err(Code::ResourceExhausted));
        assert_eq!(understood("gzip", &gzip(&[0; 1_000]), 1_000).unwrap().len(), 1_000);
    }

    #[test]
    fn what_is_not_understood_is_an_internal_error() {
        assert_eq!(understood("br", b"x", 100), Err(Code::Internal));
        assert_eq!(understood("gzip", b"no gzip", 100), Err(Code::Internal));
        assert_eq!(decompress(None, b"x", 100).unwrap_err().code(), Code::Internal);
    }
}
