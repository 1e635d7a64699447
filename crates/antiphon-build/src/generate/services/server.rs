//! The server of a service: bytes in, handler called, bytes out.

use antiphon_contract::MethodKind;
use proc_macro2::TokenStream;
use quote::quote;

use super::{Call, Names};
use crate::generate::Scope;

pub(super) fn tokens(scope: &Scope<'_>, names: &Names<'_>) -> TokenStream {
    let rt = &scope.rt;
    let Names { handler, object, server, info, .. } = names;
    let (unary, streams): (Vec<_>, Vec<_>) = names
        .methods
        .iter()
        .enumerate()
        .partition(|(_, call)| call.method.kind == MethodKind::Unary);
    let unary = unary.into_iter().map(|(index, call)| unary_arm(scope, names, index, call));
    let streams = streams.into_iter().map(|(index, call)| stream_arm(scope, names, index, call));
    let docs = format!(" Answers calls with a [`{handler}`].");
    quote! {
        #[doc = #docs]
        pub struct #server<T> {
            handler: ::std::sync::Arc<T>,
        }

        impl<T: #handler> #server<T> {
            /// Answers with this handler.
            pub fn new(handler: T) -> Self {
                Self::from_arc(::std::sync::Arc::new(handler))
            }

            /// Answers with a handler that others use as well.
            pub fn from_arc(handler: ::std::sync::Arc<T>) -> Self {
                Self { handler }
            }

            /// The handler for callers in the same process.
            pub fn local(&self) -> ::std::sync::Arc<dyn #object> {
                ::std::sync::Arc::clone(&self.handler) as _
            }
        }

        impl<T> ::std::clone::Clone for #server<T> {
            fn clone(&self) -> Self {
                Self { handler: ::std::sync::Arc::clone(&self.handler) }
            }
        }

        impl<T> ::std::fmt::Debug for #server<T> {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.write_str(#info.name)
            }
        }

        impl<T: #handler> #rt::rpc::client::Hosted for #server<T> {
            fn channel(&self) -> #rt::rpc::client::Channel {
                #rt::rpc::client::Channel::inproc(self.local())
            }
        }

        impl<T: #handler> #rt::rpc::Service for #server<T> {
            fn info(&self) -> &'static #rt::rpc::ServiceInfo {
                &#info
            }

            fn unary(
                &self,
                method: usize,
                request: #rt::Bytes,
                codec: #rt::rpc::Codec,
            ) -> #rt::BoxFuture<'static, ::std::result::Result<#rt::rpc::Encoded, #rt::Status>> {
                let handler = ::std::sync::Arc::clone(&self.handler);
                match method {
                    #(#unary)*
                    _ => ::std::boxed::Box::pin(::std::future::ready(::std::result::Result::Err(
                        #rt::rpc::message::no_method(&#info, method),
                    ))),
                }
            }

            fn stream(
                &self,
                method: usize,
                requests: #rt::rpc::Streaming<#rt::Bytes>,
                codec: #rt::rpc::Codec,
            ) -> #rt::BoxFuture<
                'static,
                ::std::result::Result<#rt::rpc::Streaming<#rt::rpc::Encoded>, #rt::Status>,
            > {
                let handler = ::std::sync::Arc::clone(&self.handler);
                match method {
                    #(#streams)*
                    _ => ::std::boxed::Box::pin(::std::future::ready(::std::result::Result::Err(
                        #rt::rpc::message::no_method(&#info, method),
                    ))),
                }
            }
        }
    }
}

/// How a request is read: decoded, and validated where there are rules.
fn reader(scope: &Scope<'_>, names: &Names<'_>, call: &Call<'_>) -> TokenStream {
    let rt = &scope.rt;
    let (input, info) = (&call.input, &names.info);
    if call.validated {
        quote!(#rt::rpc::message::Reader::<#input>::validated(&#info, codec))
    } else {
        quote!(#rt::rpc::message::Reader::<#input>::new(&#info, codec))
    }
}

fn unary_arm(scope: &Scope<'_>, names: &Names<'_>, index: usize, call: &Call<'_>) -> TokenStream {
    let rt = &scope.rt;
    let (handler, function) = (&names.handler, &call.function);
    let reader = reader(scope, names, call);
    quote! {
        #index => ::std::boxed::Box::pin(async move {
            let request = #reader.read(&request)?;
            let answer = #handler::#function(&*handler, request).await?;
            #rt::rpc::message::write(&answer, codec)
        }),
    }
}

fn stream_arm(scope: &Scope<'_>, names: &Names<'_>, index: usize, call: &Call<'_>) -> TokenStream {
    let rt = &scope.rt;
    let (handler, function) = (&names.handler, &call.function);
    let reader = reader(scope, names, call);
    let request = match call.method.kind {
        MethodKind::Unary | MethodKind::ServerStream => quote!(#reader.read_one(requests).await?),
        MethodKind::ClientStream | MethodKind::Bidi => quote!(#reader.read_all(requests)),
    };
    let answers = match call.method.kind {
        MethodKind::Unary | MethodKind::ClientStream => quote!(write_one(&answer, codec)),
        MethodKind::ServerStream | MethodKind::Bidi => {
            quote!(write_all(answer, codec))
        }
    };
    quote! {
        #index => ::std::boxed::Box::pin(async move {
            let request = #request;
            let answer = #handler::#function(&*handler, request).await?;
            #rt::rpc::message::#answers
        }),
    }
}
