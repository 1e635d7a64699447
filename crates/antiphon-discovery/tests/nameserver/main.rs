//! The resolver suite for DNS, against a real name server.

use std::net::SocketAddr;

use antiphon_discovery::dns::{Lookup, Question};
use antiphon_discovery::{Answers, Authority, Resolver};
use antiphon_testing::conformance::resolver::ResolverHarness;
use antiphon_testing::services::{Private, Records, Service, Zone};

/// Where all instances of the suite listen.
const PORT: u16 = 8_080;

/// What asks one name server for addresses.
struct Names(SocketAddr);

impl Resolver for Names {
    fn watch(&self, name: &str) -> Box<dyn Answers> {
        let name = Authority { host: name.to_owned(), port: PORT };
        Box::new(Lookup::new(vec![self.0], Question::Addresses(name)))
    }
}

struct Knot {
    server: Private,
    zone: Zone,
}

impl ResolverHarness for Knot {
    type Resolver = Names;

    async fn start() -> Self {
        let server = Private::start(Service::Knot).await.expect("a server");
        let zone = Zone::at(&server.url()).expect("a server of this machine");
        Self { server, zone }
    }

    fn resolver(&self) -> Names {
        Names(([127, 0, 0, 1], self.server.port()).into())
    }

    fn name(&self) -> String {
        self.zone.name("orders")
    }

    fn hold(&self, addresses: &[&str]) {
        let addresses = addresses.iter().map(|address| {
            let address = address.strip_suffix(&format!(":{PORT}")).expect("the port of all");
            address.parse().expect("an address")
        });
        let records = Records::Addresses(addresses.collect());
        // Nobody takes changes while nobody answers.
        self.server.instance().resume();
        self.zone.set("orders", &records).expect("it is set");
    }

    fn fail(&self, failing: bool) {
        let server = self.server.instance();
        if failing { server.pause() } else { server.resume() }
    }
}

antiphon_testing::resolver_conformance!(Knot);
