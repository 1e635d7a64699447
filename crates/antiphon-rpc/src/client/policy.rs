//! What holds for the calls of one method: its contract, and the settings over it.

use std::collections::BTreeMap;
use std::time::Duration;

use antiphon_resilience::{Hedge, Permission, RetryPolicy};
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

/// The settings of methods, by `package.Service/Method` or `package.Service`.
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

impl MethodPolicy {
    /// What the settings of the method say, else those of its service, else the contract, else the
    /// settings of the target.
    pub(super) fn new(method: &MethodInfo, settings: &ClientSettings, now: Instant) -> Self {
        let of = |name: &str| settings.methods.get(name).cloned().unwrap_or_default();
        let own = of(method.path.trim_start_matches('/'));
        let service = of(method.service);
        let by_default = (method.kind == MethodKind::Unary).then_some(settings.timeout);
        let timeout = own.timeout.or(service.timeout).or(method.timeout).or(by_default);
        let allowed = permission(method);
        let hedge = own.hedge.or(service.hedge).unwrap_or(method.hedge);
        let attempts_max = own.attempts_max.or(service.attempts_max);
        let waits = own.wait_for_ready.or(service.wait_for_ready);
        Self {
            permission: allowed,
            permission_with_key: match method.idempotency {
                Idempotency::ByKey => allowed.max(Permission::Idempotent),
                _ => allowed,
            },
            timeout,
            retry: RetryPolicy {
                attempts_max: attempts_max.unwrap_or(settings.retry.attempts_max),
                ..settings.retry
            },
            wait_for_ready: waits.unwrap_or(settings.wait_for_ready),
            hedge: hedge.then(|| Hedge::new(settings.hedge, allowed, now).ok()).flatten(),
        }
    }
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
        let policy = |settings: &ClientSettings| MethodPolicy::new(&METHOD, settings, Instant::now());
        assert_eq!(policy(&settings).timeout, METHOD.timeout);
        assert!(policy(&settings).hedge.is_some());
        let of = |timeout, attempts_max| MethodSettings {
            timeout: Some(Duration::from_secs(timeout)),
            attempts_max,
            ..MethodSettings::default()
        };
        settings.methods.insert("shop.v1.Stock".into(), of(2, Some(5)));
        assert_eq!(policy(&settings).timeout, Some(Duration::from_secs(2)));
        settings.methods.insert("shop.v1.Stock/Get".into(), of(1, None));
        assert_eq!(policy(&settings).timeout, Some(Duration::from_secs(1)));
        assert_eq!(policy(&settings).retry.attempts_max, 5);
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
        assert_eq!(MethodPolicy::new(&method, &ClientSettings::default(), Instant::now()).timeout, None);
    }
}
