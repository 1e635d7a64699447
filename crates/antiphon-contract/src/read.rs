//! From a descriptor set to the model.
//!
//! What cannot be understood is noted as an error and left out, so that one run reports everything.

use std::collections::HashMap;
use std::sync::Arc;

use buffa_descriptor::DescriptorPool;
use buffa_descriptor::generated::descriptor::{FileDescriptorProto, FileDescriptorSet};

use crate::error::{ContractError, ContractErrors};
use crate::model::{Contract, Location, Source};

mod data;
mod service;

/// The numbers of the fields of descriptors that make up the paths of source information.
mod tag {
    pub(super) const FILE_MESSAGE: i32 = 4;
    pub(super) const FILE_ENUM: i32 = 5;
    pub(super) const FILE_SERVICE: i32 = 6;
    pub(super) const MESSAGE_FIELD: i32 = 2;
    pub(super) const MESSAGE_NESTED: i32 = 3;
    pub(super) const MESSAGE_ENUM: i32 = 4;
    pub(super) const MESSAGE_OPTIONS: i32 = 7;
    pub(super) const FIELD_OPTIONS: i32 = 8;
    pub(super) const ENUM_VALUE: i32 = 2;
    pub(super) const ENUM_OPTIONS: i32 = 3;
    pub(super) const VALUE_OPTIONS: i32 = 3;
    pub(super) const SERVICE_METHOD: i32 = 2;
    pub(super) const METHOD_OPTIONS: i32 = 4;

    pub(super) const OPTION_METHOD: i32 = 56000;
    pub(super) const OPTION_MESSAGE: i32 = 56001;
    pub(super) const OPTION_FIELD: i32 = 56002;
    pub(super) const OPTION_ERRORS: i32 = 56003;
    pub(super) const OPTION_REASON: i32 = 56004;
    pub(super) const OPTION_HTTP: i32 = 72_295_728;
}

impl Contract {
    /// Reads and checks a contract.
    ///
    /// The set holds everything that its files import, and their source information where errors are
    /// to name lines and documents are to hold comments: what `antiphon-build` makes, or
    /// `protoc --include_imports --include_source_info`.
    ///
    /// # Errors
    /// Every mistake that was found.
    pub fn from_descriptor_set(bytes: &[u8]) -> Result<Self, ContractErrors> {
        // Descriptor sets come from the program itself, and large contracts are wide structs.
        const MEMORY_MAX: usize = 1 << 30;
        let set: FileDescriptorSet = buffa::DecodeOptions::new()
            .with_element_memory_limit(MEMORY_MAX)
            .decode_from_slice(bytes)
            .map_err(|error| ContractErrors::unreadable(format!("no descriptor set: {error}")))?;
        let pool = DescriptorPool::new(set)
            .map_err(|error| ContractErrors::unreadable(format!("no contract: {error}")))?;
        let mut reader =
            Reader { pool: Arc::new(pool), contract: Self::default(), errors: Vec::new() };
        let pool = Arc::clone(&reader.pool);
        for file in pool.files() {
            reader.file(file);
        }
        let Reader { contract, mut errors, .. } = reader;
        errors.extend(crate::check::check(&contract));
        ContractErrors::check(errors)?;
        Ok(contract)
    }
}

struct Reader {
    pool: Arc<DescriptorPool>,
    contract: Contract,
    errors: Vec<ContractError>,
}

impl Reader {
    fn file(&mut self, file: &FileDescriptorProto) {
        // These describe contracts; they are never a part of one.
        const ABOUT_CONTRACTS: [&str; 6] = [
            "google/protobuf/descriptor.proto",
            "google/protobuf/compiler/plugin.proto",
            "google/api/annotations.proto",
            "google/api/http.proto",
            "buf/validate/validate.proto",
            "antiphon/v1/options.proto",
        ];
        let name = file.name.as_deref().unwrap_or_default();
        if ABOUT_CONTRACTS.contains(&name) {
            return;
        }
        let places = Places::new(file);
        let package = places.package;
        for (index, message) in file.message_type.iter().enumerate() {
            self.message(&places, package, message, &[tag::FILE_MESSAGE, number(index)]);
        }
        for (index, enumeration) in file.enum_type.iter().enumerate() {
            let path = [tag::FILE_ENUM, number(index)];
            self.enumeration(&places, package, enumeration, &path);
        }
        for (index, service) in file.service.iter().enumerate() {
            self.service(&places, package, service, &[tag::FILE_SERVICE, number(index)]);
        }
    }

    fn error(&mut self, location: Location, message: impl Into<String>) {
        self.errors.push(ContractError { location, message: message.into() });
    }

    /// The value, or nothing and an error.
    fn noted<T: Default>(&mut self, location: &Location, result: Result<T, String>) -> T {
        result.unwrap_or_else(|message| {
            self.error(location.clone(), message);
            T::default()
        })
    }
}

/// Where the parts of a file are.
struct Places<'a> {
    file: &'a str,
    package: &'a str,
    by_path: HashMap<&'a [i32], Source>,
}

impl<'a> Places<'a> {
    fn new(file: &'a FileDescriptorProto) -> Self {
        let file_name = file.name.as_deref().unwrap_or_default();
        let mut by_path = HashMap::new();
        for place in file.source_code_info.as_option().map_or(&[][..], |info| &info.location) {
            let [line, column, ..] = *place.span.as_slice() else {
                continue;
            };
            let location = Location {
                file: file_name.to_owned(),
                line: u32::try_from(line).unwrap_or(0) + 1,
                column: u32::try_from(column).unwrap_or(0) + 1,
            };
            let docs = clean(place.leading_comments.as_deref().unwrap_or_default());
            by_path.entry(place.path.as_slice()).or_insert(Source { location, docs });
        }
        Self { file: file_name, package: file.package.as_deref().unwrap_or_default(), by_path }
    }

    /// What stands at this path; without source information, just the file.
    fn source(&self, path: &[i32]) -> Source {
        self.by_path.get(path).cloned().unwrap_or_else(|| Source {
            location: Location { file: self.file.to_owned(), line: 0, column: 0 },
            docs: String::new(),
        })
    }

    /// Where an option of the thing at `path` is written, however it was written:
    /// `(antiphon.v1.message) = {event: …}` or `(antiphon.v1.message).event.topic = …`.
    fn option(&self, path: &[i32], option: &[i32]) -> Location {
        let wanted = [path, option].concat();
        self.by_path
            .iter()
            .filter(|(path, _)| path.starts_with(&wanted))
            .map(|(_, source)| &source.location)
            .min()
            .cloned()
            .unwrap_or_else(|| self.source(path).location)
    }
}

/// A comment without the spaces that follow the comment signs.
fn clean(comment: &str) -> String {
    let lines: Vec<&str> =
        comment.lines().map(|line| line.strip_prefix(' ').unwrap_or(line).trim_end()).collect();
    lines.join("\n").trim().to_owned()
}

/// An index as it stands in the paths of source information.
fn number(index: usize) -> i32 {
    i32::try_from(index).unwrap_or(i32::MAX)
}

fn join(path: &[i32], tail: &[i32]) -> Vec<i32> {
    [path, tail].concat()
}

/// The full name of something inside a package or a message.
fn full_name(scope: &str, name: Option<&str>) -> String {
    let name = name.unwrap_or_default();
    if scope.is_empty() { name.to_owned() } else { format!("{scope}.{name}") }
}

/// A type name as descriptors write it, without the leading dot.
fn bare(name: Option<&str>) -> String {
    let name = name.unwrap_or_default();
    name.strip_prefix('.').unwrap_or(name).to_owned()
}
