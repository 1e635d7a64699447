//! What is read, and which mistakes are told.

use std::time::Duration;

use antiphon_config::Sources;
use antiphon_rpc::{Idempotency, MethodInfo, MethodKind};

use super::*;

fn read(text: &str) -> Result<Clients, antiphon_config::Error> {
    let settings = Settings::load(&Sources::new().text("antiphon.toml", text)).unwrap();
    let clients = Clients::read(&settings)?;
    settings.finish()?;
    Ok(clients)
}

#[test]
fn nothing_said_is_the_default() {
    let clients = read("").unwrap();
    assert_eq!(clients.of("any").settings("any").unwrap(), ClientSettings::default());
}

#[test]
fn what_is_said_of_one_service_lies_over_what_is_said_of_all() {
    let clients = read(
        "[client]\ntimeout = \"3s\"\nretry.attempts_max = 2\n\
         [clients.\"shop.v1.Stock\"]\ntarget = \"static:a:1\"\nretry.delay_max = \"2s\"\n\
         methods.Get.hedge = true\n",
    )
    .unwrap();
    let stock = clients.of("shop.v1.Stock");
    assert_eq!(stock.target.as_deref(), Some("static:a:1"));
    let settings = stock.settings("shop.v1.Stock").unwrap();
    assert_eq!(settings.timeout, Duration::from_secs(3));
    assert_eq!(settings.retry.attempts_max, 2);
    assert_eq!(settings.retry.backoff.max, Duration::from_secs(2));
    assert_eq!(settings.methods["shop.v1.Stock/Get"].hedge, Some(true));
    assert!(clients.of("shop.v1.Other").target.is_none());
}

#[test]
fn methods_that_a_service_does_not_have_are_refused_where_they_are_its_own() {
    static GET: [MethodInfo; 1] = [MethodInfo {
        service: "s.S",
        name: "Get",
        path: "/s.S/Get",
        kind: MethodKind::Unary,
        idempotency: Idempotency::Unknown,
        timeout: None,
        retry: false,
        hedge: false,
    }];
    let service = ServiceInfo { name: "s.S", methods: &GET, descriptor_set: &[] };
    for (text, wrong) in [
        ("[clients.\"s.S\"]\nmethods.Get.hedge = true", None),
        ("[clients.\"s.S\"]\nmethods.\"s.S/Get\".hedge = true", None),
        ("[client]\nmethods.Set.hedge = true\n[clients.\"s.S\"]\ntimeout = \"1s\"", None),
        ("[clients.\"s.S\"]\nmethods.Gett.hedge = true", Some("Gett")),
        ("[clients.\"s.S\"]\nmethods.\"s.T/Get\".hedge = true", Some("s.T/Get")),
    ] {
        let mistake = read(text).unwrap().check_methods(&service).err();
        let said = wrong.map(|name| {
            format!("clients.\"s.S\".methods.{name}: s.S has no such method; it has Get")
        });
        assert_eq!(mistake, said, "{text}");
    }
}

#[test]
fn mistakes_are_named() {
    let words = |text: &str| match read(text) {
        Err(error) => error.to_string(),
        Ok(clients) => clients.of("s").settings("s").unwrap_err(),
    };
    for (text, word) in [
        ("[client]\ntimeot = \"1s\"", "timeout"),
        ("[clients.s]\ntimeot = \"1s\"", "timeout"),
        ("[client]\ntimeout = \"0s\"", "client.timeout"),
        ("[client]\nretry.attempts_max = 9", "1 to 5"),
        ("[client]\nretry.codes = [\"UNAVAILIBLE\"]", "is no code"),
        ("[client]\nhedge.delay = \"0ms\"", "hedge.delay"),
        ("[client]\nejection.part_max = 1.5", "between 0 and 1"),
        ("[client]\nthrottle.k = 0.5", "at least 1"),
        ("[client]\nbalance.policy = \"random\"", "round_robin"),
        ("[client]\nbalance.bound = 0.5", "balance.bound"),
        ("[client]\nbalance.choices = 0", "balance.choices"),
        ("[client]\nretry.budget_ratio = nan", "a number"),
        ("[client]\nretry.budget_per_second_min = inf", "a number"),
        ("[client]\nretry.delay_initial = \"2s\"", "more than delay_max"),
        ("[client]\nconnections_max = 0", "connections_max"),
        ("[client]\nmessage_max = 0", "message_max"),
        ("[client]\nsubset_size = 0", "subset_size"),
        ("[client]\ncalls_max = 0", "calls_max"),
        ("[clients.s]\nmethods.Get.attempts_max = 9", "1 to 5"),
        ("[clients.s]\nmethods.Get.timeout = \"0s\"", "methods"),
    ] {
        let words = words(text);
        assert!(words.contains(word), "{text}: {words}");
    }
}
