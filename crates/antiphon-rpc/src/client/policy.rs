//! What holds for the calls of one method: its contract, and the settings over it.

use std::collections::BTreeMap;
use std::time::Duration;

use antiphon_resilience::{Hedge, Permission, RetryPolicy};
use serde::Serialize;
use tokio::time::Instant;

use super::ClientSettings;
use crate::service::{Idempotency, MethodInfo, MethodKind};

/// What settings say of one method or of all methods of a service, where it differs from the rest.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MethodSettings {
    /// The time a call may take, instead of what the contract and the target say.
    pub timeout: Option<Duration>,
    /// How many attempts in all, the first included.
    pub attempts_max: Option<u32>,
    /// Whether calls wait for an instance where none can be connected to.
    pub wait_for_ready: Option<bool>,
    /// Whether a second attempt may begin before the first has ended; only where the contract says
    /// that the method has no side effects.
    pub hedge: Option<bool>,
}

/// The settings of methods, by `package.Service/Method`.
pub type MethodTable = BTreeMap<String, MethodSettings>;

/// What holds for the calls of one method.
#[derive(Debug)]
pub(super) struct MethodPolicy {
    /// What may be tried again.
    pub(super) permission: Permission,
    /// The same for a call with an idempotency key.
    pub(super) permission_with_key: Permission,
    /// The time a call may take; streams may have none.
    pub(super) timeout: Option<Duration>,
    pub(super) retry: RetryPolicy,
    pub(super) wait_for_ready: bool,
    /// Where a second attempt may begin before the first has ended.
    pub(super) hedge: Option<Hedge>,
}

/// One value of a policy, and who said so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PolicyValue {
    /// What it is: `timeout`, `attempts_max`, …
    pub name: &'static str,
    /// For people.
    pub value: String,
    /// Who said so: `contract`, or the setting below those of the client: `methods.Get.timeout`.
    pub from: String,
}

/// A value, and who said so.
struct Said<T> {
    value: T,
    by: Voice,
}

/// Who can say what holds for a method, the nearest first.
#[derive(Clone, Copy)]
enum Voice {
    Method,
    Contract,
    Target,
}

/// The words on one method.
struct Words<'a> {
    method: &'a MethodInfo,
    own: MethodSettings,
    settings: &'a ClientSettings,
}

impl<'a> Words<'a> {
    fn new(method: &'a MethodInfo, settings: &'a ClientSettings) -> Self {
        let name = method.path.trim_start_matches('/');
        let own = settings.methods.get(name).cloned().unwrap_or_default();
        Self { method, own, settings }
    }

    fn timeout(&self) -> Said<Option<Duration>> {
        let is_unary = self.method.kind == MethodKind::Unary;
        match (self.own.timeout, self.method.timeout) {
            (Some(own), _) => Said { value: Some(own), by: Voice::Method },
            (None, Some(timeout)) => Said { value: Some(timeout), by: Voice::Contract },
            (None, None) => {
                Said { value: is_unary.then_some(self.settings.timeout), by: Voice::Target }
            }
        }
    }

    fn attempts_max(&self) -> Said<u32> {
        own_or(self.own.attempts_max, self.settings.retry.attempts_max)
    }

    fn wait_for_ready(&self) -> Said<bool> {
        own_or(self.own.wait_for_ready, self.settings.wait_for_ready)
    }

    /// Only without side effects, whatever the settings say.
    fn hedge(&self) -> Said<bool> {
        let allowed = self.method.idempotency == Idempotency::NoSideEffects;
        match self.own.hedge {
            Some(own) if allowed => Said { value: own, by: Voice::Method },
            _ => Said { value: allowed && self.method.hedge, by: Voice::Contract },
        }
    }
}

fn own_or<T>(own: Option<T>, other: T) -> Said<T> {
    match own {
        Some(value) => Said { value, by: Voice::Method },
        None => Said { value: other, by: Voice::Target },
    }
}

impl MethodPolicy {
    /// What the settings of the method say, else the contract, else the settings of the target.
    pub(super) fn new(method: &MethodInfo, settings: &ClientSettings, now: Instant) -> Self {
        let words = Words::new(method, settings);
        let allowed = permission(method);
        let hedge = words.hedge().value;
        Self {
            permission: allowed,
            permission_with_key: match method.idempotency {
                Idempotency::ByKey => allowed.max(Permission::Idempotent),
                _ => allowed,
            },
            timeout: words.timeout().value,
            retry: RetryPolicy { attempts_max: words.attempts_max().value, ..settings.retry },
            wait_for_ready: words.wait_for_ready().value,
            hedge: hedge.then(|| Hedge::new(settings.hedge, allowed, now).ok()).flatten(),
        }
    }
}

/// What holds for a method, value by value, and who said so.
pub(super) fn explain(method: &MethodInfo, settings: &ClientSettings) -> Vec<PolicyValue> {
    let words = Words::new(method, settings);
    let from = |by: Voice, name: &str, of_target: &str| match by {
        Voice::Method => format!("methods.{}.{name}", method.name),
        Voice::Contract => "contract".to_owned(),
        Voice::Target => of_target.to_owned(),
    };
    let yes = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let (timeout, attempts) = (words.timeout(), words.attempts_max());
    let (waits, hedge) = (words.wait_for_ready(), words.hedge());
    let mut values = vec![
        PolicyValue {
            name: "timeout",
            value: timeout.value.map_or_else(|| "none".into(), |time| format!("{time:?}")),
            from: from(timeout.by, "timeout", "timeout"),
        },
        PolicyValue {
            name: "tried again",
            value: allowed_in_words(method).into(),
            from: "contract".into(),
        },
        PolicyValue {
            name: "attempts_max",
            value: attempts.value.to_string(),
            from: from(attempts.by, "attempts_max", "retry.attempts_max"),
        },
        PolicyValue {
            name: "hedge",
            value: yes(hedge.value),
            from: from(hedge.by, "hedge", "contract"),
        },
        PolicyValue {
            name: "wait_for_ready",
            value: yes(waits.value),
            from: from(waits.by, "wait_for_ready", "wait_for_ready"),
        },
    ];
    let of_target = [
        ("balance", format!("{:?}", settings.balance.policy), "balance.policy"),
        (
            "budget",
            format!("{} extra attempts per call", settings.budget.ratio),
            "retry.budget_ratio",
        ),
        ("calls_max", settings.bulkhead.in_flight_max.to_string(), "calls_max"),
        (
            "set aside after",
            format!("{} failures in a row", settings.ejection.consecutive_failures),
            "ejection.consecutive_failures",
        ),
        ("held back from", format!("1 success in {}", settings.throttle.k), "throttle.k"),
    ];
    values.extend(of_target.map(|(name, value, from)| PolicyValue {
        name,
        value,
        from: from.to_owned(),
    }));
    values
}

/// What the contract allows.
fn permission(method: &MethodInfo) -> Permission {
    let least = if method.retry { Permission::Unavailable } else { Permission::NotExecuted };
    match method.idempotency {
        Idempotency::NoSideEffects => Permission::NoSideEffects,
        Idempotency::Idempotent => Permission::Idempotent,
        Idempotency::ByKey | Idempotency::Unknown => least,
    }
}

fn allowed_in_words(method: &MethodInfo) -> &'static str {
    match (permission(method), method.idempotency) {
        (_, Idempotency::ByKey) => "with an idempotency key; else what was not executed",
        (Permission::NotExecuted, _) => "what was not executed",
        (Permission::Unavailable, _) => "what was not executed, and UNAVAILABLE",
        (Permission::Idempotent, _) => "yes, it is idempotent",
        (Permission::NoSideEffects, _) => "yes, it has no side effects",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const METHOD: MethodInfo = MethodInfo {
        service: "shop.v1.Stock",
        name: "Get",
        path: "/shop.v1.Stock/Get",
        kind: MethodKind::Unary,
        idempotency: Idempotency::NoSideEffects,
        timeout: Some(Duration::from_secs(3)),
        retry: false,
        hedge: true,
    };

    #[test]
    fn the_nearest_word_holds() {
        let mut settings = ClientSettings::default();
        let policy =
            |settings: &ClientSettings| MethodPolicy::new(&METHOD, settings, Instant::now());
        assert_eq!(policy(&settings).timeout, METHOD.timeout);
        assert!(policy(&settings).hedge.is_some());
        let own = MethodSettings {
            timeout: Some(Duration::from_secs(1)),
            attempts_max: Some(5),
            hedge: Some(false),
            ..MethodSettings::default()
        };
        settings.methods.insert("shop.v1.Stock/Get".into(), own);
        assert_eq!(policy(&settings).timeout, Some(Duration::from_secs(1)));
        assert_eq!(policy(&settings).retry.attempts_max, 5);
        assert!(policy(&settings).hedge.is_none());
    }

    #[test]
    fn every_value_is_explained() {
        let mut settings = ClientSettings::default();
        let own = MethodSettings { attempts_max: Some(2), ..MethodSettings::default() };
        settings.methods.insert("shop.v1.Stock/Get".into(), own);
        let explained = explain(&METHOD, &settings);
        let of = |name: &str| {
            let value = explained.iter().find(|value| value.name == name).unwrap();
            (value.value.as_str(), value.from.as_str())
        };
        assert_eq!(of("timeout"), ("3s", "contract"));
        assert_eq!(of("attempts_max"), ("2", "methods.Get.attempts_max"));
        assert_eq!(of("wait_for_ready"), ("no", "wait_for_ready"));
        assert_eq!(of("hedge"), ("yes", "contract"));
        assert_eq!(of("balance"), ("PeakEwma", "balance.policy"));
    }

    #[test]
    fn the_contract_says_what_may_be_tried_again() {
        for (idempotency, retry, plain, keyed) in [
            (Idempotency::Unknown, false, Permission::NotExecuted, Permission::NotExecuted),
            (Idempotency::Unknown, true, Permission::Unavailable, Permission::Unavailable),
            (Idempotency::ByKey, false, Permission::NotExecuted, Permission::Idempotent),
            (Idempotency::Idempotent, false, Permission::Idempotent, Permission::Idempotent),
            (
                Idempotency::NoSideEffects,
                false,
                Permission::NoSideEffects,
                Permission::NoSideEffects,
            ),
        ] {
            let method = MethodInfo { idempotency, retry, ..METHOD };
            let policy = MethodPolicy::new(&method, &ClientSettings::default(), Instant::now());
            assert_eq!((policy.permission, policy.permission_with_key), (plain, keyed));
            assert_eq!(policy.hedge.is_some(), idempotency == Idempotency::NoSideEffects);
        }
    }

    #[test]
    fn streams_have_no_time_of_their_own() {
        let method = MethodInfo { kind: MethodKind::Bidi, timeout: None, ..METHOD };
        assert_eq!(
            MethodPolicy::new(&method, &ClientSettings::default(), Instant::now()).timeout,
            None
        );
    }
}
