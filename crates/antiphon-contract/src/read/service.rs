//! Services, methods and their routes.

use std::sync::Arc;

use buffa_descriptor::generated::descriptor::method_options::IdempotencyLevel;
use buffa_descriptor::generated::descriptor::{MethodDescriptorProto, ServiceDescriptorProto};

use super::{Places, Reader, bare, full_name, join, number, tag};
use crate::model::{
    Body, HttpBinding, Idempotency, Location, Method, MethodKind, Objective, Service,
};
use crate::options::{self, Options, SignedDuration};
use crate::template::Template;

impl Reader {
    pub(super) fn service(
        &mut self,
        places: &Places<'_>,
        package: &str,
        descriptor: &ServiceDescriptorProto,
        path: &[i32],
    ) {
        let name = full_name(package, descriptor.name.as_deref());
        let methods = descriptor
            .method
            .iter()
            .enumerate()
            .map(|(index, method)| {
                let path = join(path, &[tag::SERVICE_METHOD, number(index)]);
                self.method(places, &name, method, &path)
            })
            .collect();
        self.contract.services.push(Service { name, source: places.source(path), methods });
    }

    fn method(
        &mut self,
        places: &Places<'_>,
        service: &str,
        descriptor: &MethodDescriptorProto,
        path: &[i32],
    ) -> Method {
        let name = descriptor.name.clone().unwrap_or_default();
        let called = format!("{service}.{name}");
        let source = places.source(path);
        let options = Options::read(&Arc::clone(&self.pool), descriptor.options.as_option());
        let options = self.noted(&source.location, options.map(Some));

        let http_at = places.option(path, &[tag::METHOD_OPTIONS, tag::OPTION_HTTP]);
        let rule = options
            .as_ref()
            .map_or(Ok(None), |options| options.get::<options::HttpRule>("google.api.http"));
        let rule = self.noted(&http_at, rule);
        let bindings = rule.map_or_else(Vec::new, |rule| self.bindings(&called, &http_at, &rule));

        let policy_at = places.option(path, &[tag::METHOD_OPTIONS, tag::OPTION_METHOD]);
        let policy = options
            .as_ref()
            .map_or(Ok(None), |options| options.get::<options::MethodPolicy>("antiphon.v1.method"));
        let policy = self.noted(&policy_at, policy).unwrap_or_default();
        let level = descriptor.options.as_option().and_then(|options| options.idempotency_level);
        let timeout = self.positive(&policy_at, &called, "timeout", policy.timeout);
        let success_status = self.success_status(&policy_at, &called, policy.success_status);
        let objective =
            policy.objective.map(|objective| self.objective(&policy_at, &called, &objective));
        let location = policy
            .location
            .as_deref()
            .and_then(|location| self.template(&policy_at, &called, "location", location));
        Method {
            kind: match (
                descriptor.client_streaming.unwrap_or(false),
                descriptor.server_streaming.unwrap_or(false),
            ) {
                (false, false) => MethodKind::Unary,
                (false, true) => MethodKind::ServerStream,
                (true, false) => MethodKind::ClientStream,
                (true, true) => MethodKind::Bidi,
            },
            input: bare(descriptor.input_type.as_deref()),
            output: bare(descriptor.output_type.as_deref()),
            idempotency: match level {
                _ if policy.idempotent_by_key => Idempotency::ByKey,
                Some(IdempotencyLevel::NO_SIDE_EFFECTS) => Idempotency::NoSideEffects,
                Some(IdempotencyLevel::IDEMPOTENT) => Idempotency::Idempotent,
                _ => Idempotency::Unknown,
            },
            timeout,
            success_status,
            location,
            retry: policy.retry,
            hedge: policy.hedge,
            objective,
            bindings,
            deprecated: options.is_some_and(|options| options.standard("deprecated").is_some()),
            name,
            source,
            http_at,
            policy_at,
        }
    }

    fn success_status(&mut self, at: &Location, called: &str, status: Option<u32>) -> u16 {
        match status.map(u16::try_from) {
            None | Some(Ok(0)) => 200,
            Some(Ok(status)) if (200..300).contains(&status) => status,
            Some(_) => {
                let message = format!("the success_status of {called} is not 200 to 299");
                self.error(at.clone(), message);
                200
            }
        }
    }

    fn objective(
        &mut self,
        at: &Location,
        called: &str,
        objective: &options::Objective,
    ) -> Objective {
        for (name, part) in
            [("availability", objective.availability), ("quantile", objective.quantile)]
        {
            if part.is_some_and(|part| !(part > 0.0 && part < 1.0)) {
                let message = format!("the objective's {name} of {called} is not between 0 and 1");
                self.error(at.clone(), message);
            }
        }
        Objective {
            availability: objective.availability,
            latency: self.positive(at, called, "objective's latency", objective.latency),
            quantile: objective.quantile.unwrap_or(0.99),
        }
    }

    fn positive(
        &mut self,
        at: &Location,
        called: &str,
        what: &str,
        duration: Option<SignedDuration>,
    ) -> Option<std::time::Duration> {
        let positive = duration?.positive();
        if positive.is_none() {
            self.error(at.clone(), format!("the {what} of {called} is not more than nothing"));
        }
        positive
    }

    fn template(
        &mut self,
        at: &Location,
        called: &str,
        what: &str,
        source: &str,
    ) -> Option<Template> {
        match Template::parse(source) {
            Ok(template) => Some(template),
            Err(error) => {
                self.error(at.clone(), format!("the {what} \"{source}\" of {called}: {error}"));
                None
            }
        }
    }

    fn bindings(
        &mut self,
        called: &str,
        at: &Location,
        rule: &options::HttpRule,
    ) -> Vec<HttpBinding> {
        let mut bindings: Vec<_> = self.http_binding(called, at, rule).into_iter().collect();
        for additional in &rule.additional_bindings {
            if !additional.additional_bindings.is_empty() {
                let message = format!("an additional binding of {called} has additional bindings");
                self.error(at.clone(), message);
            }
            bindings.extend(self.http_binding(called, at, additional));
        }
        bindings
    }

    fn http_binding(
        &mut self,
        called: &str,
        at: &Location,
        rule: &options::HttpRule,
    ) -> Option<HttpBinding> {
        let Some((method, path)) = rule.pattern() else {
            let help = "add one of get, put, post, delete, patch, custom";
            self.error(at.clone(), format!("a binding of {called} has no path; {help}"));
            return None;
        };
        // A token of RFC 9110, in capitals, or the star that stands for every method.
        let good_method = method == "*"
            || !method.is_empty()
                && method.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-');
        if !good_method {
            let message =
                format!("the HTTP method \"{method}\" of {called} is not a word in capitals");
            self.error(at.clone(), message);
        }
        let template = self.template(at, called, "path", path)?;
        Some(HttpBinding {
            method: method.to_owned(),
            template,
            body: match rule.body.as_str() {
                "" => Body::None,
                "*" => Body::All,
                field => Body::Field(field.to_owned()),
            },
            response_body: (!rule.response_body.is_empty()).then(|| rule.response_body.clone()),
        })
    }
}
