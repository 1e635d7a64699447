//! Who we are: credentials and certificates, as the client library takes them.

use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_nats::{Auth, AuthError, ConnectError, ConnectErrorKind, ConnectOptions, ServerAddr};
use percent_encoding::percent_decode_str;

use crate::error::{OpenError, setting};
use crate::settings::Settings;

/// How we say who we are.
#[derive(Clone)]
enum Identity {
    Nobody,
    User { name: String, password: String },
    Token(String),
    Signed { jwt: String, seed: String },
}

/// The options for a server. Once `connected` is set the library is told not to connect again: a new
/// connection is a new epoch, which is the supervisor's business.
pub(crate) fn options(
    settings: &Settings,
    url: &str,
    connected: Arc<AtomicBool>,
) -> Result<ConnectOptions, OpenError> {
    let address = ServerAddr::from_str(url).map_err(|error| setting("url", error.to_string()))?;
    let identity = identity(settings, &address)?;
    let mut options = ConnectOptions::with_auth_callback(move |nonce| {
        let auth = if connected.load(Ordering::SeqCst) {
            Err(AuthError::new("this connection is over"))
        } else {
            authenticate(&identity, &nonce)
        };
        std::future::ready(auth)
    });
    options = options.require_tls(address.tls_required());
    // The library reads the files by itself, and says little about those that it cannot.
    settings.tls().read().map_err(OpenError::Settings)?;
    if let Some(file) = &settings.ca_file {
        options = options.add_root_certificates(file.clone());
    }
    if let (Some(certificate), Some(key)) = (&settings.certificate_file, &settings.key_file) {
        options = options.add_client_certificate(certificate.clone(), key.clone());
    }
    Ok(options)
}

fn identity(settings: &Settings, address: &ServerAddr) -> Result<Identity, OpenError> {
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    if let Some(user) = address.username() {
        return Ok(match address.password() {
            Some(password) => Identity::User { name: decoded(user), password: decoded(password) },
            // As everywhere with NATS: a lone word before the `@` is a token.
            None => Identity::Token(decoded(user)),
        });
    }
    if let Some(name) = &settings.user {
        let password = settings.password.as_ref().map(|password| password.expose().clone());
        return Ok(Identity::User { name: name.clone(), password: password.unwrap_or_default() });
    }
    if let Some(token) = &settings.token {
        return Ok(Identity::Token(token.expose().clone()));
    }
    let Some(file) = &settings.credentials_file else { return Ok(Identity::Nobody) };
    let problem = |why: String| setting("credentials_file", format!("{}: {why}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|error| problem(error.to_string()))?;
    let (jwt, seed) = signed(&text).ok_or_else(|| problem("it holds no JWT and key".into()))?;
    nkeys::KeyPair::from_seed(&seed).map_err(|error| problem(error.to_string()))?;
    Ok(Identity::Signed { jwt, seed })
}

/// The JWT and the key of a `.creds` file: what stands between its dashed lines.
fn signed(text: &str) -> Option<(String, String)> {
    let mut blocks = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut after = |title: &str| {
        blocks.find(|line| line.starts_with("---") && line.contains(title))?;
        blocks.next().map(str::to_owned)
    };
    Some((after("BEGIN NATS USER JWT")?, after("BEGIN USER NKEY SEED")?))
}

fn authenticate(identity: &Identity, nonce: &[u8]) -> Result<Auth, AuthError> {
    let mut auth = Auth::new();
    match identity {
        Identity::Nobody => {}
        Identity::User { name, password } => {
            auth.username = Some(name.clone());
            auth.password = Some(password.clone());
        }
        Identity::Token(token) => auth.token = Some(token.clone()),
        Identity::Signed { jwt, seed } => {
            let pair = nkeys::KeyPair::from_seed(seed).map_err(AuthError::new)?;
            auth.signature = Some(pair.sign(nonce).map_err(AuthError::new)?);
            auth.jwt = Some(jwt.clone());
        }
    }
    Ok(auth)
}

/// What it means that connecting failed.
pub(crate) fn refusal(url: &str, error: ConnectError) -> OpenError {
    let url = url.to_owned();
    match error.kind() {
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
            OpenError::Credentials { url, source: error.into() }
        }
        ConnectErrorKind::Tls => OpenError::Tls { url, source: error.into() },
        ConnectErrorKind::ServerParse => setting("url", error.to_string()),
        _ => {
            // What rustls says arrives as an I/O error with its own text.
            let mut text = String::new();
            let mut cause: Option<&dyn std::error::Error> = Some(&error);
            while let Some(one) = cause {
                text.push_str(&one.to_string().to_lowercase());
                text.push(' ');
                cause = one.source();
            }
            if ["certificate", "tls", "handshake"].iter().any(|word| text.contains(word)) {
                OpenError::Tls { url, source: error.into() }
            } else if text.contains("authorization") || text.contains("authentication") {
                OpenError::Credentials { url, source: error.into() }
            } else {
                OpenError::Unreachable { url, source: error.into() }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use antiphon_config::Secret;

    use super::*;

    fn identify(settings: &Settings) -> Result<Identity, OpenError> {
        identity(settings, &ServerAddr::from_str(&settings.url).expect("a URL"))
    }

    #[test]
    fn credentials_come_from_the_url_or_the_settings() {
        let in_url = Settings {
            user: Some("other".into()),
            ..Settings::new("nats://us%40er:p%2Fw@localhost")
        };
        let found = identify(&in_url).expect("an identity");
        assert!(
            matches!(&found, Identity::User { name, password } if name == "us@er" && password == "p/w")
        );
        let token = Settings { token: Some(Secret::new("t".into())), ..Settings::default() };
        assert!(matches!(identify(&token), Ok(Identity::Token(token)) if token == "t"));
        assert!(matches!(identify(&Settings::default()), Ok(Identity::Nobody)));
    }

    #[test]
    fn a_credentials_file_signs() {
        let pair = nkeys::KeyPair::new_user();
        let seed = pair.seed().expect("a seed");
        let text = format!(
            "-----BEGIN NATS USER JWT-----\nabc.def\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        assert_eq!(signed(&text), Some(("abc.def".into(), seed.clone())));
        let auth = authenticate(&Identity::Signed { jwt: "abc.def".into(), seed }, b"nonce");
        let signature = auth.ok().and_then(|auth| auth.signature).expect("a signature");
        assert!(pair.verify(b"nonce", &signature).is_ok());
        assert_eq!(signed("nothing of the kind"), None);
    }
}
