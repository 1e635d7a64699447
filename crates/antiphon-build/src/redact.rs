//! Hides sensitive fields in the debug output of messages, which is what ends up in logs.

use std::collections::{HashMap, HashSet};

use antiphon_contract::Message;
use buffa_codegen::context::CodeGenContext;
use proc_macro2::{Group, TokenStream, TokenTree};
use quote::quote;
use syn::{ImplItem, Item, ItemImpl, Type};

use crate::Error;
use crate::compile::Compiled;

/// The fields to hide, by the Rust path of the message from its package's module.
type Hidden = HashMap<String, HashSet<String>>;

/// The messages of a package, with `***` in place of what is sensitive.
pub(crate) fn redact(
    compiled: &Compiled,
    types: &CodeGenContext<'_>,
    package: &str,
    source: String,
) -> Result<String, Error> {
    let mut hidden = Hidden::new();
    for message in compiled.contract.messages.values() {
        let fields = sensitive(message);
        let path = types.rust_type_relative(&format!(".{}", message.name), package, 0);
        if let Some(path) = path
            && !fields.is_empty()
        {
            hidden.insert(path, fields);
        }
    }
    if hidden.is_empty() {
        return Ok(source);
    }
    let mut file: syn::File = syn::parse_file(&source)
        .map_err(|error| Error(format!("the messages of {package} do not parse: {error}")))?;
    let mut found = 0;
    items(&mut file.items, "", &hidden, &mut found);
    let expected = hidden.keys().filter(|path| !path.starts_with("super::")).count();
    if found < expected {
        return Err(Error(format!("{package}: not every sensitive field could be hidden")));
    }
    Ok(prettyplease::unparse(&file))
}

/// The names under which debug output would show something sensitive: fields, and groups of which
/// one is.
fn sensitive(message: &Message) -> HashSet<String> {
    let fields = message.fields.iter().filter(|field| field.sensitive);
    fields
        .map(|field| match field.oneof {
            Some(group) => message.oneofs[group].name.clone(),
            None => field.name.clone(),
        })
        .collect()
}

fn items(items_here: &mut [Item], module: &str, hidden: &Hidden, found: &mut usize) {
    for item in items_here {
        match item {
            Item::Mod(inner) => {
                let path = format!("{module}{}::", inner.ident);
                if let Some((_, inner)) = &mut inner.content {
                    items(inner, &path, hidden, found);
                }
            }
            Item::Impl(implementation) => {
                if let Some(fields) =
                    debugged(implementation, module).and_then(|path| hidden.get(&path))
                {
                    *found += 1;
                    hide(implementation, fields);
                }
            }
            _ => {}
        }
    }
}

/// The path of the type whose `Debug` this is.
fn debugged(implementation: &ItemImpl, module: &str) -> Option<String> {
    let (_, of, _) = implementation.trait_.as_ref()?;
    let Type::Path(ty) = &*implementation.self_ty else { return None };
    let is_debug = of.segments.last()?.ident == "Debug";
    is_debug.then(|| format!("{module}{}", quote!(#ty)))
}

fn hide(implementation: &mut ItemImpl, fields: &HashSet<String>) {
    for item in &mut implementation.items {
        if let ImplItem::Fn(function) = item {
            let block = &function.block;
            let hidden = without(quote!(#block), fields);
            if let Ok(block) = syn::parse2(hidden) {
                function.block = block;
            }
        }
    }
}

/// Replaces the second argument of `.field("name", &self.name)`.
fn without(tokens: TokenStream, fields: &HashSet<String>) -> TokenStream {
    tokens
        .into_iter()
        .map(|token| match token {
            TokenTree::Group(group) => {
                let first = group.stream().into_iter().next().map(|token| token.to_string());
                let name = first.as_deref().unwrap_or_default().trim_matches('"');
                let inside = if fields.contains(name) {
                    quote!(#name, &format_args!("***"))
                } else {
                    without(group.stream(), fields)
                };
                TokenTree::Group(Group::new(group.delimiter(), inside))
            }
            other => other,
        })
        .collect()
}
