//! Certificates for the servers, made once by `openssl`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Trouble;
use crate::place::{create, find, folder, remove};

/// The folder with `ca.pem` (the authority), `server.pem` and `server.key`, which are made when they
/// are not there.
///
/// # Errors
///
/// When `openssl` is missing, or files cannot be written.
pub fn certificates() -> Result<PathBuf, Trouble> {
    let place = folder().join("tls");
    make(&place)?;
    Ok(place)
}

/// Makes the certificates, unless they are there. Several processes may want them at once.
fn make(place: &Path) -> Result<(), Trouble> {
    let above = place.parent().unwrap_or(place);
    create(above)?;
    let lock = above.join("tls.lock");
    let file = File::create(&lock).map_err(|error| Trouble::file(&lock, &error))?;
    file.lock().map_err(|error| Trouble::file(&lock, &error))?;
    if place.join("server.pem").exists() {
        return Ok(());
    }
    if find("openssl", &[]).is_none() {
        return Err(Trouble::new(
            "openssl is not installed, and makes the servers' certificates; install it (Debian: \
             apt-get install openssl)",
        ));
    }
    let new = above.join("tls.new");
    remove(&new)?;
    create(&new)?;
    let subject = ["-subj", "/O=Antiphon tests/CN=Antiphon test authority"];
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc"];
    let authority = ["-addext", "basicConstraints=critical,CA:TRUE"];
    let usage = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"];
    openssl(
        &new,
        &[
            &["req", "-x509", "-days", "3650", "-keyout", "ca.key", "-out", "ca.pem"],
            &key,
            &subject,
            &authority,
            &usage,
        ],
    )?;
    let subject = ["-subj", "/O=Antiphon tests/CN=localhost"];
    openssl(&new, &[&["req", "-keyout", "server.key", "-out", "server.csr"], &key, &subject])?;
    let extensions = "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1\n\
                      basicConstraints=critical,CA:FALSE\n\
                      keyUsage=critical,digitalSignature\n\
                      extendedKeyUsage=serverAuth\n";
    let file = new.join("extensions");
    fs::write(&file, extensions).map_err(|error| Trouble::file(&file, &error))?;
    openssl(
        &new,
        &[
            &["x509", "-req", "-days", "3650", "-in", "server.csr", "-out", "server.pem"],
            &["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "extensions"],
        ],
    )?;
    // An authority that was made before may be in use somewhere: it is replaced as a whole or not.
    remove(place)?;
    fs::rename(&new, place).map_err(|error| Trouble::file(place, &error))
}

fn openssl(folder: &Path, arguments: &[&[&str]]) -> Result<(), Trouble> {
    let output = Command::new("openssl")
        .args(arguments.concat())
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Trouble::new(format!("openssl cannot be started: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(Trouble::new(format!("openssl could not make the servers' certificates: {words}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_made_once_and_are_signed_by_the_authority() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("tls");
        make(&place).unwrap();
        let made = fs::read(place.join("server.pem")).unwrap();
        make(&place).unwrap();
        assert_eq!(fs::read(place.join("server.pem")).unwrap(), made);
        openssl(&place, &[&["verify", "-x509_strict", "-CAfile", "ca.pem", "server.pem"]]).unwrap();
        openssl(
            &place,
            &[&["verify", "-CAfile", "ca.pem", "-verify_ip", "127.0.0.1", "server.pem"]],
        )
        .unwrap();
    }
}
