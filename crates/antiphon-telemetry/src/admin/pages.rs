//! The pages that every process has.

use antiphon_core::{Health, Status};
use http::StatusCode;
use serde::Serialize;

use super::{Admin, Page, PageRequest, Pages};
use crate::Telemetry;
use crate::metrics::Exposition;

pub(super) fn add(admin: &mut Admin, telemetry: Telemetry, health: Health) {
    admin.page("/livez", "Whether the process lives", |_| async { Ok(Page::text("ok\n")) });
    admin.page("/readyz", "Whether it should be sent work, and why not", move |_| {
        std::future::ready(ready(&health))
    });
    admin.page("/metrics", "Metrics, for Prometheus", move |request: PageRequest| {
        let exposition = Exposition::negotiate(&request.accept);
        let page = Page::new(exposition.content_type(), telemetry.metrics(exposition));
        std::future::ready(Ok(page))
    });
}

/// What `/readyz` answers.
#[derive(Serialize)]
struct Readiness {
    status: &'static str,
    parts: Vec<Part>,
}

#[derive(Serialize)]
struct Part {
    name: String,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

fn ready(health: &Health) -> Result<Page, Status> {
    let parts: Vec<Part> = health
        .parts()
        .into_iter()
        .map(|(name, reason)| {
            let status = if reason.is_none() { "ok" } else { "unwell" };
            Part { name, status, reason }
        })
        .collect();
    // Asked once, from the list that is shown: the answer must not contradict its own reasons.
    let ready = parts.iter().all(|part| part.reason.is_none());
    let (status, code) = match ready {
        true => ("ready", StatusCode::OK),
        false => ("unready", StatusCode::SERVICE_UNAVAILABLE),
    };
    Ok(Page::json(&Readiness { status, parts })?.with_status(code))
}

/// The list of all pages.
pub(super) fn index(pages: &Pages) -> Page {
    let mut html = String::from(
        "<!doctype html><meta charset=utf-8><title>admin</title>\
         <style>body{font:16px/1.5 system-ui;margin:3em auto;max-width:42em}dt{font-family:monospace}\
         dd{margin:0 0 1em}</style><h1>Admin</h1><dl>",
    );
    for (path, entry) in pages.0.iter() {
        let (path, about) = (escape(path), escape(&entry.about));
        html.push_str(&format!("<dt><a href=\"{path}\">{path}</a></dt><dd>{about}</dd>"));
    }
    html.push_str("</dl>\n");
    Page::html(html)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
