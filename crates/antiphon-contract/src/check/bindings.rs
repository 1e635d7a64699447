//! Templates, bodies and streams of one method at a time.

use super::{Errors, find, no_text};
use crate::error::did_you_mean;
use crate::model::{Body, Contract, HttpBinding, Message, Method, MethodKind};
use crate::template::{Segment, Template};

pub(super) fn check(contract: &Contract, errors: &mut Errors) {
    for service in &contract.services {
        for method in &service.methods {
            let Some(input) = contract.message(&method.input) else {
                continue;
            };
            let Some(output) = contract.message(&method.output) else {
                continue;
            };
            let checked = Checked {
                contract,
                method,
                input,
                output,
                called: format!("{}.{}", service.name, method.name),
            };
            checked.location(errors);
            checked.policy(errors);
            for binding in &method.bindings {
                checked.binding(binding, errors);
            }
        }
    }
}

struct Checked<'a> {
    contract: &'a Contract,
    method: &'a Method,
    input: &'a Message,
    output: &'a Message,
    called: String,
}

impl Checked<'_> {
    fn location(&self, errors: &mut Errors) {
        let Some(location) = &self.method.location else {
            return;
        };
        let at = &self.method.policy_at;
        let called = &self.called;
        if matches!(self.method.kind, MethodKind::ServerStream | MethodKind::Bidi) {
            let message = format!("{called} streams its answers, so none of them is its location");
            errors.add(at, message);
        }
        for why in self.variables(location, self.output) {
            errors.add(at, format!("the location \"{location}\" of {called}: {why}"));
        }
        let captured = |index: usize| {
            location.variables().iter().any(|variable| variable.segments.contains(&index))
        };
        let open =
            location.segments().iter().enumerate().any(|(index, segment)| {
                !matches!(segment, Segment::Literal(_)) && !captured(index)
            });
        if open {
            let help = "put it into a variable";
            errors.add(
                at,
                format!("the location \"{location}\" of {called} has a bare \"*\"; {help}"),
            );
        }
    }

    fn policy(&self, errors: &mut Errors) {
        use crate::model::Idempotency::{ByKey, NoSideEffects};
        let (method, called) = (self.method, &self.called);
        if method.idempotency == ByKey && method.kind != MethodKind::Unary {
            let message = format!("{called} streams, so its answer cannot be kept under a key");
            errors.add(&method.policy_at, message);
        }
        if method.hedge && method.idempotency != NoSideEffects {
            let help = "set `idempotency_level = NO_SIDE_EFFECTS` if that is true";
            let message = format!("{called} may have effects, so it cannot be hedged; {help}");
            errors.add(&method.policy_at, message);
        }
    }

    fn binding(&self, binding: &HttpBinding, errors: &mut Errors) {
        let at = &self.method.http_at;
        let called = &self.called;
        let template = &binding.template;
        for why in self.variables(template, self.input) {
            errors.add(at, format!("the path \"{template}\" of {called}: {why}"));
        }
        match &binding.body {
            Body::None => {}
            _ if matches!(&*binding.method, "GET" | "HEAD") => {
                errors.add(at, format!("{called} has a body, but {} has none", binding.method));
            }
            Body::All => {}
            Body::Field(name) => self.body(binding, name, errors),
        }
        if let Some(name) = &binding.response_body
            && self.output.field(name).is_none()
        {
            let hint = did_you_mean(name, names(self.output));
            let output = &self.method.output;
            let message =
                format!("the response_body of {called}: {output} has no field \"{name}\"{hint}");
            errors.add(at, message);
        }
        self.stream(binding, errors);
    }

    fn body(&self, binding: &HttpBinding, name: &str, errors: &mut Errors) {
        let at = &self.method.http_at;
        let (called, input) = (&self.called, &self.method.input);
        let Some(field) = self.input.field(name) else {
            let hint = did_you_mean(name, names(self.input));
            errors.add(at, format!("the body of {called}: {input} has no field \"{name}\"{hint}"));
            return;
        };
        let taken = binding
            .template
            .variables()
            .iter()
            .any(|variable| variable.field.len() == 1 && variable.field[0] == field.name);
        if taken {
            let message = format!("the body of {called}: \"{name}\" is taken by the path already");
            errors.add(at, message);
        }
    }

    /// A stream of requests comes over a WebSocket, which begins with a GET or, for bindings that
    /// have a body, is announced by any method; what cannot be is a stream without any place for
    /// the messages' fields, or one whose messages are cut to one field of the answer.
    fn stream(&self, binding: &HttpBinding, errors: &mut Errors) {
        let (at, called) = (&self.method.http_at, &self.called);
        let streams_requests =
            matches!(self.method.kind, MethodKind::ClientStream | MethodKind::Bidi);
        if !streams_requests {
            return;
        }
        if let Body::Field(name) = &binding.body {
            let message = format!(
                "{called} streams its requests, so the body is the whole message; \
                 replace \"{name}\" by \"*\""
            );
            errors.add(at, message);
        }
        if !matches!(&*binding.method, "GET" | "POST") {
            let message = format!(
                "{called} streams its requests over a WebSocket; bind it to get or post, not {}",
                binding.method
            );
            errors.add(at, message);
        }
    }

    /// Why the variables of a template do not fit a message.
    fn variables(&self, template: &Template, message: &Message) -> Vec<String> {
        let fields = template.variables().iter().map(|variable| {
            let path = variable.field_path();
            match find(self.contract, message, &variable.field) {
                Err(why) => Some(why),
                Ok(field) => no_text(field).map(|what| {
                    format!("\"{path}\" of {} is {what}; a path holds single values", message.name)
                }),
            }
        });
        fields.flatten().collect()
    }
}

fn names(message: &Message) -> impl Iterator<Item = &str> {
    message.fields.iter().map(|field| field.name.as_str())
}
