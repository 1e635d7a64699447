//! The address of a cluster: `kafka://[user:password@]host:port[,host:port…]`.

/// Where the brokers are, and who we are to them.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) tls: bool,
    /// `host:port`, with commas between them.
    pub(crate) brokers: String,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<String>,
}

impl Address {
    /// Reads a URL. User and password are percent-decoded.
    pub(crate) fn parse(url: &str) -> Result<Self, String> {
        let usage =
            "expected kafka://[user:password@]host:port[,host:port…], or kafka+ssl:// for TLS";
        let (tls, rest) = if let Some(rest) = url.strip_prefix("kafka://") {
            (false, rest)
        } else if let Some(rest) = url.strip_prefix("kafka+ssl://") {
            (true, rest)
        } else {
            return Err(usage.to_owned());
        };
        let (who, brokers) = match rest.rsplit_once('@') {
            Some((who, brokers)) => (Some(who), brokers),
            None => (None, rest),
        };
        let brokers = brokers.trim_end_matches('/');
        for broker in brokers.split(',') {
            let port = broker.rsplit_once(':').filter(|(host, _)| !host.is_empty());
            if !port.is_some_and(|(_, port)| port.parse::<u16>().is_ok_and(|port| port > 0)) {
                return Err(format!("`{broker}` is not host:port; {usage}"));
            }
        }
        let (user, password) = match who.map(|who| who.split_once(':').unwrap_or((who, ""))) {
            Some((user, "")) => (Some(decoded(user)?), None),
            Some((user, password)) => (Some(decoded(user)?), Some(decoded(password)?)),
            None => (None, None),
        };
        Ok(Self { tls, brokers: brokers.to_owned(), user, password })
    }
}

/// Percent-decodes what may stand in a URL only so.
fn decoded(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        let value = digit().zip(digit()).map(|(high, low)| high * 16 + low);
        let byte = value.and_then(|value| u8::try_from(value).ok());
        bytes.push(byte.ok_or("a % in user or password must be followed by two hex digits")?);
    }
    String::from_utf8(bytes).map_err(|_| "user or password is not UTF-8".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_broker_or_several_with_or_without_a_user() {
        let plain = Address::parse("kafka://127.0.0.1:9092").expect("fine");
        assert_eq!((plain.tls, plain.brokers.as_str()), (false, "127.0.0.1:9092"));
        assert!(plain.user.is_none());
        let full = Address::parse("kafka+ssl://an%40na:p%3A%C3%A4@a:1,b:2/").expect("fine");
        assert_eq!((full.tls, full.brokers.as_str()), (true, "a:1,b:2"));
        assert_eq!(full.user.as_deref(), Some("an@na"));
        assert_eq!(full.password.as_deref(), Some("p:ä"));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for url in [
            "",
            "http://x:1",
            "kafka://",
            "kafka://x",
            "kafka://:1",
            "kafka://x:0",
            "kafka://a:1,,b:2",
        ] {
            assert!(Address::parse(url).is_err(), "{url}");
        }
        assert!(Address::parse("kafka://a%4:b@x:1").is_err());
    }
}
