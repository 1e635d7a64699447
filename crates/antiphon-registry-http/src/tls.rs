//! What TLS is set up with.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use antiphon_config::{Mistake, TlsFiles};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

/// Where the files are, for whoever reads them again.
#[derive(Clone, Debug)]
pub(super) struct Files {
    ca: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
}

impl From<&TlsFiles<'_>> for Files {
    fn from(files: &TlsFiles<'_>) -> Self {
        let [ca, certificate, key] =
            [files.ca, files.certificate, files.key].map(|file| file.map(Path::to_path_buf));
        Self { ca, certificate, key }
    }
}

impl Files {
    pub(super) fn borrowed(&self) -> TlsFiles<'_> {
        TlsFiles::new(self.ca.as_ref(), self.certificate.as_ref(), self.key.as_ref())
    }
}

/// Settings for connections; an error names the setting and the file.
pub(super) fn settings(files: &TlsFiles<'_>) -> Result<ClientConfig, Mistake> {
    let pems = files.read()?;
    let mut roots = RootCertStore::empty();
    match &pems.ca {
        Some(pem) => {
            let wrong = |problem: &dyn Display| mistake("ca_file", files.ca, problem);
            for certificate in certificates(pem).map_err(|error| wrong(&error))? {
                roots.add(certificate).map_err(|error| wrong(&error))?;
            }
        }
        None => {
            let native = rustls_native_certs::load_native_certs();
            let _ = roots.add_parsable_certificates(native.certs);
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| mistake("ca_file", files.ca, &error))?
        .with_root_certificates(roots);
    let Some((chain, key)) = &pems.identity else { return Ok(builder.with_no_client_auth()) };
    let wrong = |problem: &dyn Display| mistake("certificate_file", files.certificate, problem);
    let chain = certificates(chain).map_err(|error| wrong(&error))?;
    let key = PrivateKeyDer::from_pem_slice(key);
    let key = key.map_err(|error| mistake("key_file", files.key, &error))?;
    builder.with_client_auth_cert(chain, key).map_err(|error| wrong(&error))
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, rustls::pki_types::pem::Error> {
    CertificateDer::pem_slice_iter(pem).collect()
}

fn mistake(setting: &str, file: Option<&Path>, problem: &dyn Display) -> Mistake {
    let file = file.unwrap_or_else(|| Path::new("the system's certificates"));
    Mistake::new(setting, format!("{}: {problem}", file.display()))
}
