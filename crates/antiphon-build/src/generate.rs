//! Our own code: services, events, commands and errors.

mod errors;
mod payloads;
mod services;

use std::collections::BTreeMap;

use buffa_codegen::context::CodeGenContext;
use proc_macro2::{Ident, TokenStream};
use quote::{format_ident, quote};

use crate::Error;
use crate::compile::Compiled;

/// What the generators need to know.
pub(crate) struct Scope<'a> {
    compiled: &'a Compiled,
    types: &'a CodeGenContext<'a>,
    /// The module with the libraries, as the package's module calls it.
    rt: syn::Path,
    /// The package whose code is written.
    package: &'a str,
}

impl Scope<'_> {
    /// The Rust type of a message or an enum, seen from the package's module.
    fn path(&self, name: &str) -> Result<TokenStream, Error> {
        let path = self.types.rust_type_relative(&format!(".{name}"), self.package, 0);
        path.map(|path| buffa_codegen::idents::rust_path_to_tokens(&path))
            .ok_or_else(|| Error(format!("{name} has no Rust type")))
    }

    /// Whether code is generated for the message here, validation included.
    fn is_ours(&self, name: &str) -> bool {
        let message = self.compiled.contract.message(name);
        message.is_some_and(|message| self.generates(&message.source.location.file))
    }

    fn generates(&self, file: &str) -> bool {
        self.compiled.generated.iter().any(|generated| generated == file)
    }

    fn package_of(&self, file: &str) -> &str {
        let file = self.compiled.files.iter().find(|known| known.name.as_deref() == Some(file));
        file.and_then(|file| file.package.as_deref()).unwrap_or_default()
    }

    /// Whether something that is declared in this file belongs to the package that is written.
    fn is_here(&self, file: &str) -> bool {
        self.generates(file) && self.package_of(file) == self.package
    }
}

/// The code of each package.
pub(crate) fn packages(
    compiled: &Compiled,
    types: &CodeGenContext<'_>,
    runtime: &str,
) -> Result<BTreeMap<String, String>, Error> {
    let rt: syn::Path = syn::parse_str(runtime)
        .map_err(|error| Error(format!("\"{runtime}\" is not the path of a module: {error}")))?;
    let mut packages = BTreeMap::new();
    for file in &compiled.files {
        let package = file.package.as_deref().unwrap_or_default();
        let name = file.name.as_deref().unwrap_or_default();
        let wanted = compiled.generated.iter().any(|generated| generated == name);
        if !wanted || packages.contains_key(package) {
            continue;
        }
        let scope = Scope { compiled, types, rt: rt.clone(), package };
        let mut tokens = services::tokens(&scope)?;
        tokens.extend(payloads::tokens(&scope)?);
        tokens.extend(errors::tokens(&scope)?);
        let file = syn::parse2(tokens)
            .map_err(|error| Error(format!("the code of {package} does not parse: {error}")))?;
        packages.insert(package.to_owned(), prettyplease::unparse(&file));
    }
    Ok(packages)
}

/// Doc comments from the contract's comments.
fn docs(text: &str) -> TokenStream {
    let lines = text.lines().map(|line| {
        let line = format!(" {line}");
        quote!(#[doc = #line])
    });
    quote!(#(#lines)*)
}

/// `PlaceOrder` as the name of a function: `place_order`.
fn snake(name: &str) -> Ident {
    buffa_codegen::idents::make_field_ident(&snake_text(name))
}

fn snake_text(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 4);
    let characters: Vec<char> = name.chars().collect();
    for (index, character) in characters.iter().enumerate() {
        let after_lower = index > 0 && !characters[index - 1].is_uppercase();
        let before_lower = characters.get(index + 1).is_some_and(|next| next.is_lowercase());
        let separated = index > 0 && characters[index - 1] != '_';
        if character.is_uppercase() && separated && (after_lower || before_lower) {
            snake.push('_');
        }
        snake.extend(character.to_lowercase());
    }
    snake
}

/// `OrdersService` as the name of a static: `ORDERS_SERVICE`.
fn shouty(name: &str) -> Ident {
    format_ident!("{}", snake_text(name).to_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_contract_become_names_of_functions() {
        for (name, function) in [
            ("PlaceOrder", "place_order"),
            ("GetHTTPStatus", "get_http_status"),
            ("getStock", "get_stock"),
            ("V2List", "v2_list"),
            ("Move", "r#move"),
        ] {
            assert_eq!(snake(name).to_string(), function);
        }
        assert_eq!(shouty("OrdersService"), "ORDERS_SERVICE");
    }
}
