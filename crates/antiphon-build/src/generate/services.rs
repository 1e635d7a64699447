//! What a service becomes: the trait that handlers implement, the server that answers with it, the
//! client that calls it, and its description.

mod client;
mod server;

use antiphon_contract::{Idempotency, Method, MethodKind, Service};
use proc_macro2::{Ident, TokenStream};
use quote::{format_ident, quote};

use super::{Scope, docs, shouty, snake};
use crate::Error;
use crate::messages::DESCRIPTOR_SET_FILE;

pub(super) fn tokens(scope: &Scope<'_>) -> Result<TokenStream, Error> {
    let mut tokens = TokenStream::new();
    for service in &scope.compiled.contract.services {
        if scope.is_here(&service.source.location.file) {
            let names = Names::new(scope, service)?;
            tokens.extend(info(scope, &names));
            tokens.extend(handler(scope, &names));
            tokens.extend(object(scope, &names));
            tokens.extend(server::tokens(scope, &names));
            tokens.extend(client::tokens(scope, &names));
        }
    }
    Ok(tokens)
}

/// A service with the Rust names of its parts.
struct Names<'a> {
    service: &'a Service,
    handler: Ident,
    object: Ident,
    server: Ident,
    client: Ident,
    info: Ident,
    methods: Vec<Call<'a>>,
}

/// A method with the Rust names of its parts.
struct Call<'a> {
    method: &'a Method,
    function: Ident,
    boxed: Ident,
    input: TokenStream,
    output: TokenStream,
    validated: bool,
}

impl<'a> Names<'a> {
    fn new(scope: &Scope<'_>, service: &'a Service) -> Result<Self, Error> {
        let short = service.short_name();
        let methods = service.methods.iter().map(|method| {
            let function = snake(&method.name);
            Ok(Call {
                method,
                boxed: format_ident!("{}_boxed", super::snake_text(&method.name)),
                function,
                input: scope.path(&method.input)?,
                output: scope.path(&method.output)?,
                validated: scope.is_ours(&method.input),
            })
        });
        Ok(Self {
            service,
            handler: format_ident!("{short}"),
            object: format_ident!("Dyn{short}"),
            server: format_ident!("{short}Server"),
            client: format_ident!("{short}Client"),
            info: shouty(short),
            methods: methods.collect::<Result<_, Error>>()?,
        })
    }
}

impl Call<'_> {
    /// The type of the request as handlers take it.
    fn request(&self, rt: &syn::Path) -> TokenStream {
        let input = &self.input;
        match self.method.kind {
            MethodKind::Unary | MethodKind::ServerStream => quote!(#input),
            MethodKind::ClientStream | MethodKind::Bidi => quote!(#rt::rpc::Streaming<#input>),
        }
    }

    /// The type of the answer as handlers give it.
    fn answer(&self, rt: &syn::Path) -> TokenStream {
        let output = &self.output;
        match self.method.kind {
            MethodKind::Unary | MethodKind::ClientStream => quote!(#output),
            MethodKind::ServerStream | MethodKind::Bidi => quote!(#rt::rpc::Streaming<#output>),
        }
    }
}

/// The description of the service.
fn info(scope: &Scope<'_>, names: &Names<'_>) -> TokenStream {
    let rt = &scope.rt;
    let Names { service, info, .. } = names;
    let name = &service.name;
    let methods = service.methods.iter().map(|method| {
        let (method_name, path) = (&method.name, format!("/{name}/{}", method.name));
        let kind = match method.kind {
            MethodKind::Unary => quote!(Unary),
            MethodKind::ServerStream => quote!(ServerStream),
            MethodKind::ClientStream => quote!(ClientStream),
            MethodKind::Bidi => quote!(Bidi),
        };
        let idempotency = match method.idempotency {
            Idempotency::Unknown => quote!(Unknown),
            Idempotency::NoSideEffects => quote!(NoSideEffects),
            Idempotency::Idempotent => quote!(Idempotent),
            Idempotency::ByKey => quote!(ByKey),
        };
        let timeout = match method.timeout {
            None => quote!(::std::option::Option::None),
            Some(timeout) => {
                let (seconds, nanos) = (timeout.as_secs(), timeout.subsec_nanos());
                quote!(::std::option::Option::Some(::std::time::Duration::new(#seconds, #nanos)))
            }
        };
        let (retry, hedge) = (method.retry, method.hedge);
        quote! {
            #rt::rpc::MethodInfo {
                service: #name,
                name: #method_name,
                path: #path,
                kind: #rt::rpc::MethodKind::#kind,
                idempotency: #rt::rpc::Idempotency::#idempotency,
                timeout: #timeout,
                retry: #retry,
                hedge: #hedge,
            }
        }
    });
    let docs = format!(" What the contract says of `{name}`.");
    quote! {
        #[doc = #docs]
        pub static #info: #rt::rpc::ServiceInfo = #rt::rpc::ServiceInfo {
            name: #name,
            methods: &[#(#methods),*],
            descriptor_set: include_bytes!(concat!(env!("OUT_DIR"), "/", #DESCRIPTOR_SET_FILE)),
        };
    }
}

/// The trait that handlers implement.
fn handler(scope: &Scope<'_>, names: &Names<'_>) -> TokenStream {
    let rt = &scope.rt;
    let Names { service, handler, methods, .. } = names;
    let functions = methods.iter().map(|call| {
        let (function, request, answer) = (&call.function, call.request(rt), call.answer(rt));
        let docs = docs(&call.method.source.docs);
        quote! {
            #docs
            fn #function(
                &self,
                request: #request,
            ) -> impl ::std::future::Future<
                Output = ::std::result::Result<#answer, #rt::Status>,
            > + ::std::marker::Send;
        }
    });
    let docs = docs(&service.source.docs);
    quote! {
        #docs
        pub trait #handler: ::std::marker::Send + ::std::marker::Sync + 'static {
            #(#functions)*
        }
    }
}

/// The same trait with boxed futures, for callers in the same process.
fn object(scope: &Scope<'_>, names: &Names<'_>) -> TokenStream {
    let rt = &scope.rt;
    let Names { handler, object, methods, .. } = names;
    let signatures: Vec<_> = methods
        .iter()
        .map(|call| {
            let (boxed, request, answer) = (&call.boxed, call.request(rt), call.answer(rt));
            quote! {
                fn #boxed(
                    self: ::std::sync::Arc<Self>,
                    request: #request,
                ) -> #rt::BoxFuture<'static, ::std::result::Result<#answer, #rt::Status>>
            }
        })
        .collect();
    let bodies = methods.iter().zip(&signatures).map(|(call, signature)| {
        let function = &call.function;
        quote! {
            #signature {
                ::std::boxed::Box::pin(async move { #handler::#function(&*self, request).await })
            }
        }
    });
    let docs = format!(" [`{handler}`] as an object: what clients in the same process call.");
    quote! {
        #[doc = #docs]
        #[doc(hidden)]
        pub trait #object: ::std::marker::Send + ::std::marker::Sync + 'static {
            #(#signatures;)*
        }

        impl<T: #handler> #object for T {
            #(#bodies)*
        }
    }
}
