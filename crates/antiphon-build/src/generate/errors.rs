//! Constructors and tests for error reasons.

use antiphon_contract::{Enum, Reason};
use proc_macro2::TokenStream;
use quote::{format_ident, quote};

use super::{Scope, docs};
use crate::Error;

pub(super) fn tokens(scope: &Scope<'_>) -> Result<TokenStream, Error> {
    let mut tokens = TokenStream::new();
    for enumeration in scope.compiled.contract.enums.values() {
        if let Some(domain) = &enumeration.errors
            && scope.is_here(&enumeration.source.location.file)
        {
            tokens.extend(reasons(scope, enumeration, domain)?);
        }
    }
    Ok(tokens)
}

fn reasons(scope: &Scope<'_>, enumeration: &Enum, domain: &str) -> Result<TokenStream, Error> {
    let path = scope.path(&enumeration.name)?;
    let rt = &scope.rt;
    let functions = enumeration.values.iter().filter_map(|value| {
        let reason = value.reason.as_ref()?;
        Some(functions(rt, domain, &value.source.docs, reason))
    });
    Ok(quote!(impl #path { #(#functions)* }))
}

fn functions(rt: &syn::Path, domain: &str, text: &str, reason: &Reason) -> TokenStream {
    let name = &reason.name;
    let lower = name.to_lowercase();
    let new = buffa_codegen::idents::make_field_ident(&lower);
    let is = format_ident!("is_{lower}");
    let code = format_ident!("{}", buffa_codegen::idents::to_upper_camel_case(&reason.code_name));
    let code_name = &reason.code_name;
    let docs = docs(text);
    let space = if text.is_empty() { quote!() } else { quote!(#[doc = ""]) };
    let new_docs = format!(" `{code_name}` with the reason `{name}`.");
    let is_docs = format!(" Whether a call failed with the reason `{name}`.");
    let http_status = reason.http_status.map(|status| quote!(.with_http_status(#status)));
    quote! {
        #docs
        #space
        #[doc = #new_docs]
        pub fn #new(
            message: impl ::std::convert::Into<::std::borrow::Cow<'static, str>>,
        ) -> #rt::Status {
            #rt::Status::new(#rt::Code::#code, message).with_reason(#name, #domain) #http_status
        }

        #[doc = #is_docs]
        pub fn #is(status: &#rt::Status) -> bool {
            status.reason() == #name && status.domain() == #domain
        }
    }
}
