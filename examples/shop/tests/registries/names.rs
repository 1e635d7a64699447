//! Instances that a name server knows: its records change while the processes run.

use std::net::{Ipv4Addr, SocketAddr};

use antiphon_testing::services::{Records, Service, Zone};

use crate::fleet::{Directory, SERVICE, instances_come_and_go};
use crate::harness::free_port;

/// The records of a name of this test alone.
struct Named {
    zone: Zone,
    name: String,
    records: fn(&[SocketAddr]) -> Records,
    /// The port of all instances, where the records say none, and how many there are.
    shared: Option<(u16, u8)>,
}

impl Named {
    fn new(name: &str, records: fn(&[SocketAddr]) -> Records) -> Self {
        let zone = Zone::at(&Service::Knot.url()).unwrap();
        let name = format!("{name}.shop-{}-{:x}", std::process::id(), fastrand::u32(..));
        Self { zone, name, records, shared: None }
    }

    /// The settings of a process that asks the server of the tests for this name.
    fn settings(&self, scheme: &str, port: &str) -> String {
        let server = Service::Knot.url().replace("dns://", "");
        let target = format!("{scheme}:///{}{port}", self.zone.name(&self.name));
        format!(
            "[discovery.dns]\nservers = [{server:?}]\n\
             [clients.\"{SERVICE}\"]\ntarget = {target:?}\n"
        )
    }
}

impl Directory for Named {
    fn place(&mut self) -> String {
        match &mut self.shared {
            Some((port, count)) => {
                *count += 1;
                format!("{}:{port}", Ipv4Addr::new(127, 0, 1, *count))
            }
            None => format!("127.0.0.1:{}", free_port()),
        }
    }

    async fn list(&self, instances: &[String]) {
        let instances: Vec<SocketAddr> =
            instances.iter().map(|address| address.parse().unwrap()).collect();
        let (zone, name, records) = (self.zone, self.name.clone(), (self.records)(&instances));
        tokio::task::spawn_blocking(move || zone.set(&name, &records)).await.unwrap().unwrap();
    }
}

/// Several instances on one machine: the records say the ports.
#[tokio::test]
async fn instances_named_by_srv_records_of_dns_come_and_go() {
    let named = Named::new("_grpc._tcp.inventory", |instances| {
        Records::Services(instances.iter().map(SocketAddr::port).collect())
    });
    instances_come_and_go(&named.settings("dns+srv", ""), named).await;
}

/// Each instance has an address of its own, and all have the same port.
#[tokio::test]
async fn instances_at_the_addresses_of_a_name_of_dns_come_and_go() {
    let mut named = Named::new("inventory", |instances| {
        let address = |instance: &SocketAddr| match instance {
            SocketAddr::V4(address) => *address.ip(),
            SocketAddr::V6(address) => panic!("{address} is no address of this test"),
        };
        Records::Addresses(instances.iter().map(address).collect())
    });
    let port = free_port();
    named.shared = Some((port, 0));
    instances_come_and_go(&named.settings("dns", &format!(":{port}")), named).await;
}
