//! `Payload`, `Event` and `Command` for messages.

use antiphon_contract::{Field, Kind, Message, MessageBinding, Scalar};
use proc_macro2::TokenStream;
use quote::quote;

use super::Scope;
use crate::Error;

pub(super) fn tokens(scope: &Scope<'_>) -> Result<TokenStream, Error> {
    let mut tokens = TokenStream::new();
    for message in scope.compiled.contract.messages.values() {
        if scope.is_here(&message.source.location.file) {
            tokens.extend(payload(scope, message)?);
        }
    }
    Ok(tokens)
}

fn payload(scope: &Scope<'_>, message: &Message) -> Result<TokenStream, Error> {
    let rt = &scope.rt;
    let name = &message.name;
    let path = scope.path(name)?;
    let payload = quote! {
        impl #rt::messaging::Payload for #path {
            const KIND: &'static str = #name;
        }
    };
    let binding = match &message.binding {
        None => return Ok(payload),
        Some(MessageBinding::Event { topic, .. }) => {
            quote!(impl #rt::messaging::Event for #path { const TOPIC: &'static str = #topic; })
        }
        Some(MessageBinding::Command { destination, .. }) => quote! {
            impl #rt::messaging::Command for #path {
                const DESTINATION: &'static str = #destination;
            }
        },
    };
    let key = key(scope, message)?;
    let mut binding: syn::ItemImpl = parsed(binding)?;
    binding.items.push(parsed(quote! {
        fn key(&self) -> ::std::string::String { #key }
    })?);
    Ok(quote!(#payload #binding))
}

fn parsed<T: syn::parse::Parse>(tokens: TokenStream) -> Result<T, Error> {
    syn::parse2(tokens).map_err(|error| Error(format!("generated code does not parse: {error}")))
}

/// The expression for the text of the key field.
fn key(scope: &Scope<'_>, message: &Message) -> Result<TokenStream, Error> {
    let Some(path) = message.binding.as_ref().and_then(MessageBinding::key) else {
        return Ok(quote!(::std::string::String::new()));
    };
    let names = path.iter().map(|name| buffa_codegen::idents::make_field_ident(name));
    // Message fields are read through their default instance when they are not set.
    let value = quote!(self #(.#names)*);
    let field = scope.compiled.contract.field(message, path);
    let Some(field) = field else {
        return Err(Error(format!("the key of {} is not a field", message.name)));
    };
    Ok(text(scope, field, &value))
}

fn text(scope: &Scope<'_>, field: &Field, value: &TokenStream) -> TokenStream {
    let rt = &scope.rt;
    let optional = field.explicit_presence;
    match (&field.kind, optional) {
        (Kind::Scalar(Scalar::String), false) => quote!(#value.clone()),
        (Kind::Scalar(Scalar::String), true) => quote!(#value.clone().unwrap_or_default()),
        (Kind::Scalar(Scalar::Bytes), false) => quote!(#rt::hex(&#value)),
        (Kind::Scalar(Scalar::Bytes), true) => {
            quote!(#value.as_deref().map(#rt::hex).unwrap_or_default())
        }
        (Kind::Enum(_), false) => quote!(#value.to_i32().to_string()),
        (Kind::Enum(_), true) => {
            quote!(#value.map(|value| value.to_i32()).unwrap_or_default().to_string())
        }
        (_, false) => quote!(#value.to_string()),
        (_, true) => quote!(#value.unwrap_or_default().to_string()),
    }
}
