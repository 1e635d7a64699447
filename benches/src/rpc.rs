//! CPU per call of a unary method, over gRPC and over REST.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use antiphon_core::BoxError;
use bytes::{BufMut, Bytes, BytesMut};

use crate::Options;
use crate::load::Load;
use crate::process::{Server, pin_load};
use crate::report::{median, progress, table};

/// A server under test: a name, its program and arguments.
struct Contender {
    name: &'static str,
    program: PathBuf,
    arguments: Vec<&'static str>,
}

struct Figures {
    cpu_micros: Vec<f64>,
    per_second: Vec<f64>,
}

/// The echo message with a text of `size` bytes, in gRPC's envelope.
pub(crate) fn grpc_body(size: usize) -> Bytes {
    let mut message = BytesMut::new();
    message.put_slice(&[0x08, 0x96, 0x01, 0x12, 0x04]);
    message.put_slice(b"echo");
    message.put_u8(0x1a);
    let mut length = size;
    while length >= 0x80 {
        message.put_u8(u8::try_from(length & 0x7f).unwrap_or(0) | 0x80);
        length >>= 7;
    }
    message.put_u8(u8::try_from(length).unwrap_or(0));
    message.put_bytes(b'x', size);
    let mut body = BytesMut::with_capacity(message.len() + 5);
    body.put_u8(0);
    body.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    body.put_slice(&message);
    body.freeze()
}

fn ours(name: &'static str, kind: &'static str) -> Result<Contender, BoxError> {
    Ok(Contender { name, program: std::env::current_exe()?, arguments: vec!["serve", kind] })
}

/// Builds the grpc-go echo beside this program.
fn grpc_go() -> Result<Contender, BoxError> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("go");
    let program = std::env::current_exe()?.with_file_name("echo-grpc-go");
    progress("building the grpc-go echo");
    let built = Command::new("go")
        .args(["build", "-o"])
        .arg(&program)
        .arg(".")
        .current_dir(source)
        .status();
    match built {
        Ok(status) if status.success() => {
            Ok(Contender { name: "grpc-go", program, arguments: Vec::new() })
        }
        Ok(status) => Err(format!("go build failed: {status}").into()),
        Err(error) => {
            Err(format!("the Go toolchain is needed for the grpc-go figures: {error}").into())
        }
    }
}

/// Small and larger unary calls over gRPC.
pub(crate) fn grpc(options: &Options) -> Result<(), BoxError> {
    let contenders = [
        ours("antiphon, all default layers", "antiphon")?,
        ours("connectrpc, own server", "connectrpc")?,
        ours("bare hyper", "hyper")?,
        grpc_go()?,
    ];
    for size in [64, 1_024, 10_240] {
        let load = Load {
            connections: 8,
            streams: 8,
            path: "/bench.v1.EchoService/Echo",
            content_type: "application/grpc",
            body: grpc_body(size),
            grpc: true,
        };
        let title = format!("Unary gRPC, {size} B, 8 connections × 8 streams, server on one core");
        compare(&title, &contenders, &load, options)?;
    }
    Ok(())
}

/// The same method over REST.
pub(crate) fn rest(options: &Options) -> Result<(), BoxError> {
    let contenders =
        [ours("antiphon, all default layers", "antiphon")?, ours("axum with serde", "axum")?];
    let text = "x".repeat(64);
    let load = Load {
        connections: 32,
        streams: 1,
        path: "/v1/echo",
        content_type: "application/json",
        body: format!(r#"{{"id":"150","name":"echo","text":"{text}"}}"#).into(),
        grpc: false,
    };
    compare("REST, 64 B, 32 connections, server on one core", &contenders, &load, options)
}

/// Loads the contenders in turn, round by round, and prints the medians.
fn compare(
    title: &str,
    contenders: &[Contender],
    load: &Load,
    options: &Options,
) -> Result<(), BoxError> {
    pin_load()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut figures: Vec<_> = contenders
        .iter()
        .map(|_| Figures { cpu_micros: Vec::new(), per_second: Vec::new() })
        .collect();
    let time = Duration::from_secs_f64(options.seconds);
    for round in 1..=options.rounds {
        for (contender, figures) in contenders.iter().zip(&mut figures) {
            progress(&format!("{title}: round {round}, {}", contender.name));
            let server = Server::start(&contender.program, &contender.arguments)?;
            runtime.block_on(load.run(server.address, time / 4))?;
            let before = server.cpu()?;
            let calls = runtime.block_on(load.run(server.address, time))?;
            let cpu = server.cpu()?.saturating_sub(before);
            #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
            let calls = calls as f64;
            figures.cpu_micros.push(cpu.as_secs_f64() * 1e6 / calls);
            figures.per_second.push(calls / time.as_secs_f64());
        }
    }
    let medians: Vec<_> = figures
        .iter_mut()
        .map(|figures| (median(&mut figures.cpu_micros), median(&mut figures.per_second)))
        .collect();
    let rows: Vec<_> = contenders
        .iter()
        .zip(&medians)
        .map(|(contender, (cpu, rate))| {
            let ratio = medians[0].0 / cpu;
            vec![
                contender.name.to_owned(),
                format!("{cpu:.1}"),
                format!("{ratio:.2}"),
                format!("{rate:.0}"),
            ]
        })
        .collect();
    table(title, &["server", "CPU µs per call", "ours ÷ this", "calls/s"], &rows);
    Ok(())
}
