//! Questions to the API server.

use std::sync::Arc;
use std::time::Duration;

use antiphon_config::TlsFiles;
use antiphon_discovery::RegistryError;
use antiphon_registry_http::{HttpClient, Lines, Question};
use http::header::AUTHORIZATION;
use http::{HeaderValue, Method, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::Settings;
use crate::slices::List;

/// The label by which the slices of a Service are found.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// The API server, as seen by one watch.
#[derive(Debug)]
pub(crate) struct Api {
    settings: Arc<Settings>,
    /// Made with the first question, where the file of certificates can be read.
    http: Option<HttpClient>,
}

impl Api {
    pub(crate) fn new(settings: Arc<Settings>) -> Self {
        Self { settings, http: None }
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// All slices of a Service.
    pub(crate) async fn list(
        &mut self,
        namespace: &str,
        service: &str,
    ) -> Result<List, RegistryError> {
        let question = self.question(path(namespace, service)).await?;
        let limit = self.settings.request_timeout.0;
        let answer = self.client()?.ask(question, limit).await?;
        match answer.status {
            StatusCode::OK => serde_json::from_slice(&answer.body).map_err(|error| {
                RegistryError::refused("what Kubernetes answers is not understood", error)
            }),
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                Err(RegistryError::invalid(format!(
                    "Kubernetes refuses to list endpointslices in {namespace} ({status}): give the \
                     service account `get`, `list` and `watch` on endpointslices.discovery.k8s.io"
                )))
            }
            status => Err(RegistryError::silent(format!(
                "Kubernetes cannot list endpointslices now: {status} {}",
                answer.words()
            ))),
        }
    }

    /// What happens to the slices of a Service after a version.
    pub(crate) async fn watch(
        &mut self,
        namespace: &str,
        service: &str,
        version: &str,
    ) -> Result<Lines, RegistryError> {
        let path = format!(
            "{}&watch=true&allowWatchBookmarks=true&resourceVersion={}&timeoutSeconds={}",
            path(namespace, service),
            encoded(version),
            self.settings.watch_timeout.0.as_secs()
        );
        let question = self.question(path).await?;
        let limit: Duration = self.settings.request_timeout.0;
        self.client()?.follow(question, limit).await
    }

    fn client(&mut self) -> Result<&HttpClient, RegistryError> {
        if self.http.is_none() {
            let secure = self.settings.url.starts_with("https://");
            // By default it is set, also for what needs none.
            let tls = TlsFiles::new(self.settings.ca_file.as_ref().filter(|_| secure), None, None);
            let urls = [self.settings.url.clone()];
            let client = HttpClient::new("url", &urls, &tls, self.settings.connect_timeout.0);
            let client = client.map_err(|why| {
                RegistryError::invalid(format!("the API of Kubernetes cannot be used: {why}"))
            })?;
            self.http = Some(client);
        }
        self.http.as_ref().ok_or_else(|| RegistryError::silent("there is no client"))
    }

    async fn question(&self, path: String) -> Result<Question, RegistryError> {
        let mut question = Question::new(Method::GET, path);
        if let Some(file) = self.settings.token_file.clone() {
            let shown = file.display().to_string();
            let token = tokio::task::spawn_blocking(move || std::fs::read_to_string(file)).await;
            let token = token.unwrap_or_else(|error| Err(std::io::Error::other(error)));
            let token = token
                .map_err(|error| RegistryError::away(format!("{shown} cannot be read"), error))?;
            let mut value = HeaderValue::from_str(&format!("Bearer {}", token.trim()))
                .map_err(|error| RegistryError::refused(format!("{shown} is no token"), error))?;
            value.set_sensitive(true);
            question.headers.insert(AUTHORIZATION, value);
        }
        Ok(question)
    }
}

/// `%2F` and `%3D` in the selector, as the API wants them in a query.
fn path(namespace: &str, service: &str) -> String {
    let selector = encoded(&format!("{SERVICE_LABEL}={service}"));
    let namespace = encoded(namespace);
    format!(
        "/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices?labelSelector={selector}"
    )
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_asked_for_by_the_label_of_their_service() {
        assert_eq!(
            path("shop", "orders"),
            "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices\
             ?labelSelector=kubernetes%2Eio%2Fservice%2Dname%3Dorders"
        );
    }
}
