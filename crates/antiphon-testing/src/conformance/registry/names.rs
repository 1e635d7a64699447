//! Names of services.

use antiphon_discovery::Registration;

use super::{LEASE, RegistryHarness, Seen, instance, register, unique};

/// `Resolver` 3: also where one name begins with the other.
pub async fn services_are_kept_apart<H: RegistryHarness>() {
    let url = H::shared();
    let registry = H::open(&url, LEASE);
    let orders = unique("orders");
    let names = [orders.clone(), format!("{orders}2"), format!("{orders}/2"), unique("points")];
    let mut registrations: Vec<Registration> = Vec::new();
    for (name, port) in names.iter().zip(1_u16..) {
        let instance = instance(&format!("10.0.0.1:{port}"));
        registrations.push(register(&registry, name, instance).await);
    }
    for (name, port) in names.iter().zip(1_u16..) {
        let instances = Seen::new(&registry, name).next().await;
        assert_eq!(instances, [instance(&format!("10.0.0.1:{port}"))], "{name}");
    }
    registrations[0].deregister().await.expect("it is removed");
    assert!(Seen::new(&registry, &names[0]).next().await.is_empty());
    assert_eq!(Seen::new(&registry, &names[1]).next().await.len(), 1);
    for registration in &registrations {
        registration.deregister().await.expect("it is removed");
    }
}

/// `Resolver` 2 and 3: what is a name elsewhere is one here.
pub async fn odd_names_are_names<H: RegistryHarness>() {
    let url = H::shared();
    let registry = H::open(&url, LEASE);
    let base = unique("odd");
    let names = [
        "",
        ".v1.OrderService",
        ".V1.orderservice",
        "/a",
        "%2Fa",
        " a",
        "+a",
        "?a=b&c",
        "#a",
        "/..",
        "/.",
        "ü",
        "\u{1F980}",
        "\\",
        "\"",
        ":80",
    ];
    let names = names.map(|odd| format!("{base}{odd}"));
    let mut registrations = Vec::new();
    for (name, port) in names.iter().zip(1_u16..) {
        let instance = instance(&format!("10.0.0.1:{port}"));
        registrations.push(register(&registry, name, instance).await);
    }
    for (name, port) in names.iter().zip(1_u16..) {
        let instances = Seen::new(&registry, name).next().await;
        assert_eq!(instances, [instance(&format!("10.0.0.1:{port}"))], "{name}");
    }
    for (name, registration) in names.iter().zip(&registrations) {
        registration.deregister().await.expect("it is removed");
        assert!(Seen::new(&registry, name).next().await.is_empty(), "{name}");
    }
}

/// A name that was never heard of is an answer, and whoever comes later is seen.
pub async fn a_name_that_nobody_has_has_nobody<H: RegistryHarness>() {
    let url = H::shared();
    let registry = H::open(&url, LEASE);
    let service = unique("nobody");
    let mut seen = Seen::new(&registry, &service);
    assert!(seen.next().await.is_empty());
    let registration = register(&registry, &service, instance("10.0.0.1:80")).await;
    seen.until(&["10.0.0.1:80"]).await;
    registration.deregister().await.expect("it is removed");
}
