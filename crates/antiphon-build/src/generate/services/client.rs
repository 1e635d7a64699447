//! The client of a service: over a channel, or straight to the handler of the same process.

use antiphon_contract::MethodKind;
use proc_macro2::TokenStream;
use quote::quote;

use super::{Call, Names};
use crate::generate::{Scope, docs};

pub(super) fn tokens(scope: &Scope<'_>, names: &Names<'_>) -> TokenStream {
    let rt = &scope.rt;
    let Names { service, client, info, .. } = names;
    let methods = names.methods.iter().enumerate();
    let methods = methods.map(|(index, call)| function(scope, names, index, call));
    let name = &service.name;
    let docs = format!(" Calls `{name}`, wherever it runs.");
    quote! {
        #[doc = #docs]
        #[derive(::std::clone::Clone, ::std::fmt::Debug)]
        pub struct #client {
            channel: #rt::rpc::client::Channel,
        }

        impl #client {
            /// Calls through this channel.
            pub fn new(channel: #rt::rpc::client::Channel) -> Self {
                Self { channel }
            }

            /// The same client, whose calls carry this idempotency key: repeating one of them does
            /// not do it twice.
            pub fn keyed(&self, key: &str) -> Self {
                Self { channel: self.channel.keyed(key) }
            }

            /// The same client, whose calls go to one instance as long as it is there, where the
            /// settings balance by `consistent_hash`.
            pub fn placed(&self, key: &str) -> Self {
                Self { channel: self.channel.placed(key) }
            }

            #(#methods)*
        }

        impl #rt::rpc::client::Client for #client {
            const SERVICE: &'static str = #name;

            fn info() -> &'static #rt::rpc::ServiceInfo {
                &#info
            }

            fn over(channel: #rt::rpc::client::Channel) -> Self {
                Self::new(channel)
            }
        }
    }
}

fn function(scope: &Scope<'_>, names: &Names<'_>, index: usize, call: &Call<'_>) -> TokenStream {
    let rt = &scope.rt;
    let (info, object) = (&names.info, &names.object);
    let (function, boxed) = (&call.function, &call.boxed);
    let (request, answer) = (call.request(rt), call.answer(rt));
    let docs = docs(&call.method.source.docs);
    let validate = match (call.validated, call.method.kind) {
        (false, _) => quote!(),
        (true, MethodKind::Unary | MethodKind::ServerStream) => {
            quote!(#rt::rpc::message::validate(&request)?;)
        }
        (true, MethodKind::ClientStream | MethodKind::Bidi) => {
            quote!(let request = #rt::rpc::message::validate_all(request);)
        }
    };
    let remote = match call.method.kind {
        MethodKind::Unary => quote!(unary),
        MethodKind::ServerStream => quote!(server_stream),
        MethodKind::ClientStream => quote!(client_stream),
        MethodKind::Bidi => quote!(bidi),
    };
    quote! {
        #docs
        pub async fn #function(
            &self,
            request: #request,
        ) -> ::std::result::Result<#answer, #rt::Status> {
            let method = &#info.methods[#index];
            if let ::std::option::Option::Some(service) = self.channel.local::<dyn #object>() {
                #validate
                let key = self.channel.idempotency_key();
                let call = |request| service.#boxed(request);
                return #rt::rpc::client::local(method, key, request, call).await;
            }
            // Kept apart, so that calls inside the process do not carry its size.
            ::std::boxed::Box::pin(self.channel.#remote(method, request)).await
        }
    }
}
