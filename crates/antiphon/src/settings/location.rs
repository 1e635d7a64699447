//! Where something is, in settings: printed without the password.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A URL or path as it was set. What prints it shows no password.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Location(String);

impl Location {
    /// With `{service}` replaced by the name of a service.
    pub(crate) fn of(&self, service: &str) -> String {
        self.0.replace("{service}", service)
    }

    /// As it was set.
    pub(crate) fn text(&self) -> &str {
        &self.0
    }
}

/// Where a Redis server is. What prints it shows no password.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "Location", into = "Location")]
pub(crate) struct RedisUrl(Location);

impl RedisUrl {
    /// As it was set.
    pub(crate) fn text(&self) -> &str {
        self.0.text()
    }
}

impl TryFrom<Location> for RedisUrl {
    type Error = String;

    fn try_from(location: Location) -> Result<Self, Self::Error> {
        match scheme(location.text()) {
            Some("redis" | "rediss") => Ok(Self(location)),
            Some(other) => Err(format!("it begins with `{other}:`; known are redis and rediss")),
            None => Err("it is no URL such as redis://127.0.0.1:6379".to_owned()),
        }
    }
}

impl From<RedisUrl> for Location {
    fn from(url: RedisUrl) -> Self {
        url.0
    }
}

/// What stands before `:` in a URL; `None` for a path.
pub(crate) fn scheme(location: &str) -> Option<&str> {
    let (scheme, _) = location.split_once(':')?;
    let is_scheme = scheme.len() > 1
        && scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    is_scheme.then_some(scheme)
}

/// The text with `***` in place of a password.
fn redacted(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let end = rest.find('/').unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    match authority.rsplit_once('@') {
        None => text.to_owned(),
        Some((user, host)) => {
            let user = user.split_once(':').map_or(user, |(user, _)| user);
            format!("{scheme}://{user}:***@{host}{path}")
        }
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&redacted(&self.0))
    }
}

impl<'de> Deserialize<'de> for Location {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self)
    }
}

impl Serialize for Location {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&redacted(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_not_printed() {
        for (text, shown) in [
            ("postgres://shop:geheim@db/shop_{service}", "postgres://shop:***@db/shop_{service}"),
            ("nats://a:p@b@host:4222", "nats://a:***@host:4222"),
            ("amqp://host/vhost", "amqp://host/vhost"),
            ("data/orders.db", "data/orders.db"),
        ] {
            assert_eq!(format!("{:?}", Location(text.to_owned())), shown);
        }
    }

    #[test]
    fn a_path_has_no_scheme() {
        assert_eq!(scheme("memory:"), Some("memory"));
        assert_eq!(scheme("kafka+ssl://x"), Some("kafka+ssl"));
        assert_eq!(scheme("data/orders.db"), None);
        assert_eq!(scheme("./a:b"), None);
    }
}
