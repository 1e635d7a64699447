//! The files of TLS: which belong together, and reading them.

use std::path::{Path, PathBuf};

use crate::Mistake;

/// The files of a section with the settings `ca_file`, `certificate_file` and `key_file`.
///
/// The settings themselves are fields of each section: read as a part of it (`#[serde(flatten)]`), all
/// others would lose their places in errors. What holds for the three is here.
#[derive(Clone, Copy, Debug, Default)]
pub struct TlsFiles<'a> {
    /// The certificates that those of the other side must be signed with, as a PEM file; those of the
    /// system without it.
    pub ca: Option<&'a Path>,
    /// The certificate of this side, as a PEM file. Goes with `key`.
    pub certificate: Option<&'a Path>,
    /// The key of that certificate, as a PEM file.
    pub key: Option<&'a Path>,
}

/// What is in the files.
#[derive(Clone, Default)]
pub struct TlsPems {
    /// Of `ca_file`.
    pub ca: Option<Vec<u8>>,
    /// Of `certificate_file` and `key_file`.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

/// The names of the settings.
const CA: &str = "ca_file";
const CERTIFICATE: &str = "certificate_file";
const KEY: &str = "key_file";

impl<'a> TlsFiles<'a> {
    /// The files that a section names.
    #[must_use]
    pub fn new(
        ca: Option<&'a PathBuf>,
        certificate: Option<&'a PathBuf>,
        key: Option<&'a PathBuf>,
    ) -> Self {
        let path = |file: Option<&'a PathBuf>| file.map(PathBuf::as_path);
        Self { ca: path(ca), certificate: path(certificate), key: path(key) }
    }

    /// Refuses half a pair, and files without a use. `plain` is the address that is not for TLS, where
    /// there is one: without a password, and with what it would have to begin with.
    ///
    /// # Errors
    /// The first setting that makes no sense.
    pub fn check(&self, plain: Option<(&str, &str)>) -> Result<(), Mistake> {
        let given = [(CA, self.ca), (CERTIFICATE, self.certificate), (KEY, self.key)];
        if self.certificate.is_some() != self.key.is_some() {
            let given = if self.key.is_some() { KEY } else { CERTIFICATE };
            let both = format!("{CERTIFICATE} and {KEY} go together; set both or none");
            return Err(Mistake::new(given, both));
        }
        match (plain, given.into_iter().find(|(_, file)| file.is_some())) {
            (Some((address, scheme)), Some((setting, _))) => {
                let problem = format!("certificates need TLS, and `{address}` is not {scheme}");
                Err(Mistake::new(setting, problem))
            }
            _ => Ok(()),
        }
    }

    /// Reads them.
    ///
    /// # Errors
    /// One cannot be read, or is no PEM file; the setting and the file are named.
    pub fn read(&self) -> Result<TlsPems, Mistake> {
        let ca = self.ca.map(|file| read(CA, file, "CERTIFICATE")).transpose()?;
        let identity = match (self.certificate, self.key) {
            (Some(certificate), Some(key)) => {
                let certificate = read(CERTIFICATE, certificate, "CERTIFICATE")?;
                Some((certificate, read(KEY, key, "PRIVATE KEY")?))
            }
            _ => None,
        };
        Ok(TlsPems { ca, identity })
    }
}

/// Reads a file that must have a section of this kind.
fn read(setting: &str, file: &Path, kind: &str) -> Result<Vec<u8>, Mistake> {
    let wrong = |problem: String| Mistake::new(setting, format!("{}: {problem}", file.display()));
    let content = std::fs::read(file).map_err(|error| wrong(error.to_string()))?;
    let text = String::from_utf8_lossy(&content);
    let has = |line: &str| line.trim().starts_with("-----BEGIN ") && line.contains(kind);
    if !text.lines().any(has) {
        return Err(wrong(format!("it has no {} in PEM", kind.to_lowercase())));
    }
    Ok(content)
}

impl std::fmt::Debug for TlsPems {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsPems")
            .field("ca", &self.ca.as_ref().map(Vec::len))
            .field("identity", &self.identity.is_some())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CERTIFICATE_TEXT: &str = "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n";
    const KEY_TEXT: &str = "-----BEGIN EC PRIVATE KEY-----\nMA==\n-----END EC PRIVATE KEY-----\n";

    #[test]
    fn files_go_together_and_need_tls() {
        let (file, plain) = (Some(Path::new("f.pem")), Some(("redis://here", "rediss://")));
        let none = TlsFiles::default();
        let all = TlsFiles { ca: file, certificate: file, key: file };
        assert_eq!(none.check(plain), Ok(()));
        assert_eq!(all.check(None), Ok(()));
        for (files, plain, setting, word) in [
            (TlsFiles { key: file, ..none }, None, KEY, "go together"),
            (TlsFiles { certificate: file, ..none }, plain, CERTIFICATE, "go together"),
            (TlsFiles { ca: file, ..none }, plain, CA, "`redis://here` is not rediss://"),
            (TlsFiles { ca: None, ..all }, plain, CERTIFICATE, "need TLS"),
        ] {
            let mistake = files.check(plain).unwrap_err();
            assert_eq!(mistake.setting(), setting);
            assert!(mistake.problem().contains(word), "{mistake}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_told_with_setting_and_file() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let file = folder.path().join(name);
            std::fs::write(&file, text).unwrap();
            file
        };
        let certificate = write("certificate.pem", CERTIFICATE_TEXT);
        let (key, letter) = (write("key.pem", KEY_TEXT), write("letter.pem", "Dear reader,\n"));
        let missing = folder.path().join("missing.pem");
        let read = |ca: &Path, certificate: &Path, key: &Path| {
            TlsFiles { ca: Some(ca), certificate: Some(certificate), key: Some(key) }.read()
        };
        let pems = read(&certificate, &certificate, &key).unwrap();
        assert_eq!(pems.ca.as_deref(), Some(CERTIFICATE_TEXT.as_bytes()));
        assert_eq!(pems.identity.unwrap().1, KEY_TEXT.as_bytes());
        for (told, said) in [
            (read(&missing, &certificate, &key), format!("{CA}: {}: No such", missing.display())),
            (read(&letter, &certificate, &key), format!("{CA}: {}: it has no", letter.display())),
            (read(&certificate, &key, &key), format!("{CERTIFICATE}: {}: it", key.display())),
            (read(&certificate, &certificate, &letter), format!("{KEY}: {}: it", letter.display())),
        ] {
            let mistake = told.unwrap_err().to_string();
            assert!(mistake.starts_with(&said), "{mistake}, not {said}");
        }
    }
}
