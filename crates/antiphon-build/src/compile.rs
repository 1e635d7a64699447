//! From `.proto` files to a checked descriptor set.

use std::path::{Path, PathBuf};

use antiphon_contract::Contract;
use buffa::Message;
use buffa_codegen::generated::descriptor::{FileDescriptorProto, FileDescriptorSet};
use protox::Compiler;
use protox::file::{
    ChainFileResolver, File, FileResolver, GoogleFileResolver, IncludeFileResolver,
};

use crate::Error;

/// A compiled contract.
pub(crate) struct Compiled {
    /// What the files say.
    pub(crate) contract: Contract,
    /// The files with everything that they import, imports first.
    pub(crate) files: Vec<FileDescriptorProto>,
    /// The names of the files to generate code for: the user's own, and those that they import.
    pub(crate) generated: Vec<String>,
    /// `files` as bytes, to be embedded.
    pub(crate) descriptor_set: Vec<u8>,
    /// The files that were read from disk.
    pub(crate) read: Vec<PathBuf>,
}

/// The files that every contract may import, by the names of `import`.
const BUILT_IN: [(&str, &str); 8] = [
    ("antiphon/v1/options.proto", include_str!("../../../proto/antiphon/v1/options.proto")),
    ("buf/validate/validate.proto", include_str!("../../../proto/buf/validate/validate.proto")),
    ("google/api/annotations.proto", include_str!("../../../proto/google/api/annotations.proto")),
    ("google/api/http.proto", include_str!("../../../proto/google/api/http.proto")),
    ("google/api/httpbody.proto", include_str!("../../../proto/google/api/httpbody.proto")),
    ("google/rpc/code.proto", include_str!("../../../proto/google/rpc/code.proto")),
    (
        "google/rpc/error_details.proto",
        include_str!("../../../proto/google/rpc/error_details.proto"),
    ),
    ("google/rpc/status.proto", include_str!("../../../proto/google/rpc/status.proto")),
];

struct BuiltIn;

impl FileResolver for BuiltIn {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        match BUILT_IN.iter().find(|(built_in, _)| *built_in == name) {
            Some((name, source)) => File::from_source(name, source),
            None => Err(protox::Error::file_not_found(name)),
        }
    }
}

pub(crate) fn compile(files: &[PathBuf], includes: &[PathBuf]) -> Result<Compiled, Error> {
    let mut resolver = ChainFileResolver::new();
    for include in includes {
        resolver.add(IncludeFileResolver::new(include.clone()));
    }
    resolver.add(BuiltIn);
    resolver.add(GoogleFileResolver::new());
    let mut compiler = Compiler::with_file_resolver(resolver);
    compiler.include_imports(true).include_source_info(true);
    for file in files {
        compiler.open_file(file).map_err(|error| Error(format!("{error:?}")))?;
    }
    let read = compiler.files().filter_map(|file| file.path().map(Path::to_owned)).collect();
    let descriptor_set = compiler.encode_file_descriptor_set();
    let set: FileDescriptorSet = buffa_codegen::tooling_decode_options()
        .map_err(Error)?
        .decode_from_slice(&descriptor_set)
        .map_err(|error| Error(format!("the compiled files do not decode: {error}")))?;
    let contract = Contract::from_descriptor_set(&descriptor_set)
        .map_err(|errors| Error(errors.to_string()))?;
    let opened: Vec<String> = compiler
        .files()
        .filter(|file| !file.is_import())
        .map(|file| file.name().to_owned())
        .collect();
    let generated = with_imports(&opened, &set.file);
    let descriptor_set = without_foreign_comments(&set, &generated);
    Ok(Compiled { contract, files: set.file, generated, descriptor_set, read })
}

/// The set to embed: comments and places of the built-in files are most of its size, and nothing
/// that a program does needs them.
fn without_foreign_comments(set: &FileDescriptorSet, generated: &[String]) -> Vec<u8> {
    let mut set = set.clone();
    for file in &mut set.file {
        if !generated.iter().any(|name| file.name.as_ref() == Some(name)) {
            file.source_code_info = Default::default();
        }
    }
    set.encode_to_vec()
}

/// The opened files, and what they import that is not there for every contract anyway.
fn with_imports(opened: &[String], files: &[FileDescriptorProto]) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut next: Vec<&str> = opened.iter().map(String::as_str).collect();
    while let Some(name) = next.pop() {
        let known = found.iter().any(|found| found == name);
        if known || name.starts_with("google/protobuf/") || describes_contracts(name) {
            continue;
        }
        found.push(name.to_owned());
        let file = files.iter().find(|file| file.name.as_deref() == Some(name));
        next.extend(file.iter().flat_map(|file| &file.dependency).map(String::as_str));
    }
    found.sort();
    found
}

/// Files that only declare options: there is nothing in them that a program would hold.
fn describes_contracts(name: &str) -> bool {
    ["antiphon/", "buf/validate/", "google/api/annotations.proto", "google/api/http.proto"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}
