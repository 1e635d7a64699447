//! What a name server last said of each host, for when it fails to say it again.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use super::ask::Asked;
use crate::RegistryError;

/// The last addresses of hosts, by family.
#[derive(Debug, Default)]
pub(super) struct Memory(BTreeMap<String, [Vec<IpAddr>; 2]>);

impl Memory {
    /// The addresses of a host from what was said about its families. A family that could not be told
    /// is as it was; where nothing at all is known because of that, the failure is the answer.
    pub(super) fn addresses(
        &mut self,
        host: &str,
        v4: Result<Asked<IpAddr>, RegistryError>,
        v6: Result<Asked<IpAddr>, RegistryError>,
    ) -> Result<(Vec<IpAddr>, Duration), RegistryError> {
        let known = self.0.entry(host.to_owned()).or_default();
        let mut ttl = Duration::MAX;
        let mut trouble = None;
        let mut answers = 0;
        for (known, said) in known.iter_mut().zip([v4, v6]) {
            match said {
                Ok(Asked { records, ttl: least }) => {
                    // A family that a host does not have at all says nothing about how long the
                    // other one is good for.
                    if !records.is_empty() {
                        ttl = ttl.min(least);
                    }
                    answers += 1;
                    *known = records;
                }
                Err(error) => trouble = Some(error),
            }
        }
        let addresses: Vec<IpAddr> = known.iter().flatten().copied().collect();
        match trouble {
            Some(error) if answers == 0 || addresses.is_empty() => Err(error),
            _ => Ok((addresses, if ttl == Duration::MAX { NOTHING_TTL } else { ttl })),
        }
    }

    /// The addresses of a host that were told last.
    pub(super) fn last(&self, host: &str) -> Vec<IpAddr> {
        self.0.get(host).into_iter().flatten().flatten().copied().collect()
    }

    /// Forgets all other hosts.
    pub(super) fn keep(&mut self, hosts: &[&str]) {
        self.0.retain(|host, _| hosts.contains(&host.as_str()));
    }
}

/// For how long it is believed that a host has no addresses.
const NOTHING_TTL: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn said(addresses: &[&str]) -> Result<Asked<IpAddr>, RegistryError> {
        let records = addresses.iter().map(|address| address.parse().unwrap()).collect();
        Ok(Asked { records, ttl: MINUTE })
    }

    fn failed() -> Result<Asked<IpAddr>, RegistryError> {
        Err(RegistryError::silent("SERVFAIL"))
    }

    fn told(
        memory: &mut Memory,
        v4: Result<Asked<IpAddr>, RegistryError>,
        v6: Result<Asked<IpAddr>, RegistryError>,
    ) -> Option<Vec<String>> {
        let addresses = memory.addresses("host", v4, v6).ok()?.0;
        Some(addresses.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_family_that_cannot_be_told_is_as_it_was() {
        let mut memory = Memory::default();
        let both = Some(vec!["10.0.0.1".to_owned(), "::1".to_owned()]);
        assert_eq!(told(&mut memory, failed(), failed()), None);
        assert_eq!(told(&mut memory, said(&["10.0.0.1"]), failed()).unwrap(), ["10.0.0.1"]);
        assert_eq!(told(&mut memory, said(&["10.0.0.1"]), said(&["::1"])), both);
        assert_eq!(told(&mut memory, said(&["10.0.0.1"]), failed()), both);
        assert_eq!(told(&mut memory, failed(), said(&["::1"])), both);
        // Both failed: that is a failure, and callers keep what they have.
        assert_eq!(told(&mut memory, failed(), failed()), None);
        assert_eq!(memory.last("host").len(), 2, "they are remembered all the same");
        assert!(memory.last("another").is_empty());
        assert_eq!(told(&mut memory, said(&[]), said(&["::1"])).unwrap(), ["::1"]);
    }

    #[test]
    fn nothing_is_an_answer_only_when_both_families_say_so() {
        let mut memory = Memory::default();
        assert_eq!(told(&mut memory, said(&[]), said(&[])), Some(Vec::new()));
        assert_eq!(told(&mut memory, said(&[]), failed()), None);
    }

    #[test]
    fn a_family_that_a_host_does_not_have_does_not_shorten_the_other() {
        let mut memory = Memory::default();
        let none = Ok(Asked { records: Vec::new(), ttl: Duration::from_secs(1) });
        assert_eq!(memory.addresses("host", said(&["10.0.0.1"]), none).unwrap().1, MINUTE);
        assert_eq!(memory.addresses("host", said(&[]), said(&[])).unwrap().1, NOTHING_TTL);
    }
}
