//! What the build of the adapters needs beside Rust: libraries and their headers.

use crate::process::works;
use crate::services::packages;

/// A tool or library, how to find out whether it is there, and the Debian package that has it.
type Need = (&'static str, &'static [&'static str], &'static str);

/// librdkafka is built from source and links OpenSSL and zlib; the TLS of the other adapters has parts
/// in C.
const NEEDS: [Need; 5] = [
    ("a C compiler", &["cc", "--version"], "gcc"),
    ("a C++ compiler", &["c++", "--version"], "g++"),
    ("make", &["make", "--version"], "make"),
    ("OpenSSL's headers", &["pkg-config", "--exists", "openssl"], "libssl-dev"),
    ("zlib's headers", &["pkg-config", "--exists", "zlib"], "zlib1g-dev"),
];

/// Makes sure that everything is there, from the distribution's packages if this user may install them.
pub(crate) fn ensure() -> Result<String, String> {
    let has = |command: &[&str]| works(command[0], &command[1..]);
    let mut absent = missing(&has);
    if !absent.is_empty() && packages::can_install() {
        packages::install(names(&absent).into_iter())?;
        absent = missing(&has);
    }
    if absent.is_empty() {
        return Ok(format!("{} things are there", NEEDS.len()));
    }
    Err(words(&absent))
}

fn missing(has: &dyn Fn(&[&str]) -> bool) -> Vec<&'static Need> {
    NEEDS.iter().filter(|(_, command, _)| !has(command)).collect()
}

fn names(absent: &[&Need]) -> Vec<&'static str> {
    absent.iter().map(|(.., package)| *package).chain(["pkg-config"]).collect()
}

fn words(absent: &[&Need]) -> String {
    let what: Vec<&str> = absent.iter().map(|(what, ..)| *what).collect();
    format!(
        "the adapters do not build without {}. Install them (Debian: apt-get install {}), or leave \
         the adapters of real engines out with --embedded",
        what.join(", "),
        names(absent).join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_with_its_package() {
        let absent = missing(&|command| command[0] != "pkg-config");
        let words = words(&absent);
        assert!(words.contains("without OpenSSL's headers, zlib's headers."), "{words}");
        assert!(words.contains("apt-get install libssl-dev zlib1g-dev pkg-config"), "{words}");
        assert!(missing(&|_| true).is_empty());
    }
}
