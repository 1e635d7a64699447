//! An etcd that asks for users.

use antiphon_config::{HumanDuration, Secret, TlsFiles};
use antiphon_discovery::{
    Registration, RegistrationSettings, RegistryError, Resolver, Standing, State,
};
use antiphon_registry_etcd::{EtcdRegistry, Settings};
use antiphon_registry_http::{HttpClient, Question};
use antiphon_testing::conformance::registry::{PATIENCE, Seen, instance, unique};
use antiphon_testing::services::{Private, Service};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::AUTHORIZATION;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::timeout;

/// A server with the users `root`, who may do everything, and `shop`, who may do what a registry does;
/// their passwords are their names backwards.
struct Guarded {
    server: Private,
    http: HttpClient,
}

impl Guarded {
    async fn start() -> Self {
        let server = Private::start(Service::Etcd).await.expect("a server");
        let http = HttpClient::new("url", &[server.url()], &TlsFiles::default(), PATIENCE)
            .expect("a client");
        let guarded = Self { server, http };
        for user in ["root", "shop"] {
            let password: String = user.chars().rev().collect();
            let said = json!({"name": user, "password": password});
            guarded.say("/v3/auth/user/add", &said, None).await;
            guarded.say("/v3/auth/role/add", &json!({"name": user}), None).await;
            let grant = json!({"user": user, "role": user});
            guarded.say("/v3/auth/user/grant", &grant, None).await;
        }
        let permission = json!({
            "permType": "READWRITE",
            "key": STANDARD.encode("/antiphon/services/"),
            "range_end": STANDARD.encode("/antiphon/services0"),
        });
        let grant = json!({"name": "shop", "perm": permission});
        guarded.say("/v3/auth/role/grant", &grant, None).await;
        guarded.say("/v3/auth/enable", &json!({}), None).await;
        guarded
    }

    async fn say(&self, path: &str, said: &Value, token: Option<&str>) -> Value {
        let mut question = Question::new(Method::POST, path).with_body(said.to_string());
        if let Some(token) = token {
            question.headers.insert(AUTHORIZATION, token.parse().expect("a token"));
        }
        let answer = self.http.ask(question, PATIENCE).await.expect("an answer");
        assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.words());
        serde_json::from_slice(&answer.body).expect("JSON")
    }

    /// Sets the password of `shop` to what it is, which ends all tokens of that user.
    async fn end_tokens(&self) {
        let login = json!({"name": "root", "password": "toor"});
        let told = self.say("/v3/auth/authenticate", &login, None).await;
        let same = json!({"name": "shop", "password": "pohs"});
        self.say("/v3/auth/user/changepw", &same, told["token"].as_str()).await;
    }

    fn registry(&self, login: Option<(&str, &str)>) -> EtcdRegistry {
        let (user, password) = login.unzip();
        let settings = Settings {
            user: user.map(str::to_owned),
            password: password.map(|password| Secret::new(password.to_owned())),
            // Passwords take long to be looked at, the more so on a busy machine.
            request_timeout: HumanDuration(PATIENCE),
            lease: HumanDuration(PATIENCE),
            ..Settings::new(self.server.url())
        };
        EtcdRegistry::new(settings).expect("the settings make sense")
    }
}

#[tokio::test]
async fn a_user_registers_and_watches_and_a_token_that_has_run_out_is_no_failure() {
    let etcd = Guarded::start().await;
    let registry = etcd.registry(Some(("shop", "pohs")));
    let service = unique("users");
    let settings =
        RegistrationSettings { deregister_timeout: PATIENCE, ..RegistrationSettings::default() };
    let registration = Registration::start(&registry, &service, instance("10.0.0.1:80"), settings);
    timeout(PATIENCE, registration.held()).await.expect("it is registered");
    Seen::new(&registry, &service).until(&["10.0.0.1:80"]).await;
    let mut answers = registry.watch(&service);
    answers.next().await.expect("an answer");
    etcd.end_tokens().await;
    answers.look_again();
    let again = answers.next().await.expect("another token is got at once");
    assert_eq!(again, [instance("10.0.0.1:80")]);
    // What is registered can be changed as well, and is never missing.
    let mut standing = registration.follow();
    standing.mark_unchanged();
    etcd.end_tokens().await;
    registration.drain();
    let mut seen = Seen::new(&registry, &service);
    while seen.next().await[0].state != State::Draining {}
    assert!(!standing.has_changed().expect("it is kept"), "{:?}", registration.standing());
    registration.deregister().await.expect("it is removed");
    seen.until(&[]).await;
}

#[tokio::test]
async fn who_may_not_is_told_what_to_correct() {
    let etcd = Guarded::start().await;
    let refused = async |registry: EtcdRegistry, service: &str| -> RegistryError {
        let mut answers = registry.watch(service);
        timeout(PATIENCE, answers.next()).await.expect("soon").expect_err("it is refused")
    };
    for login in [None, Some(("shop", "wrong")), Some(("nobody", "pohs"))] {
        let error = refused(etcd.registry(login), "orders").await;
        let words = error.chain();
        assert!(error.is_refused() && words.contains("correct user and password"), "{words}");
        assert!(!words.contains("wrong"), "{words}");
    }
    let elsewhere = Settings {
        user: Some("shop".to_owned()),
        password: Some(Secret::new("pohs".to_owned())),
        prefix: "/elsewhere".to_owned(),
        request_timeout: HumanDuration(PATIENCE),
        ..Settings::new(etcd.server.url())
    };
    let elsewhere = EtcdRegistry::new(elsewhere).expect("the settings make sense");
    let error = refused(elsewhere.clone(), "orders").await;
    assert!(error.is_refused() && error.to_string().contains("their rights"), "{error}");
    let settings = RegistrationSettings::default();
    let registration = Registration::start(&elsewhere, "orders", instance("10.0.0.1:80"), settings);
    let mut standing = registration.follow();
    let refused = standing.wait_for(|standing| {
        matches!(standing, Standing::Missing { trouble: Some(trouble) } if trouble.is_refused())
    });
    timeout(PATIENCE, refused).await.expect("soon").expect("it is kept");
}
