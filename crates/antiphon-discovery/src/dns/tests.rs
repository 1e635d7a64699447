//! Against a name server on loopback that says what it is told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hickory_resolver::proto::op::{Message, OpCode, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA, SRV};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use parking_lot::Mutex;
use tokio::net::UdpSocket;

use super::*;

/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a name server knows, and how it is.
#[derive(Default)]
struct Zone {
    records: BTreeMap<(String, RecordType), Vec<(u32, RData)>>,
    failing: bool,
    /// The names about which it fails, and about no other.
    untold: BTreeSet<String>,
    asked: usize,
}

struct NameServer {
    at: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl NameServer {
    async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let at = socket.local_addr().unwrap();
        let zone = Arc::new(Mutex::new(Zone::default()));
        let told = Arc::clone(&zone);
        let task = tokio::spawn(async move {
            let mut buffer = [0; 4_096];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let Ok(question) = Message::from_vec(&buffer[..length]) else { continue };
                let answer = told.lock().answer(&question).to_vec().unwrap();
                socket.send_to(&answer, from).await.unwrap();
            }
        });
        Self { at, zone, task }
    }

    fn set(&self, name: &str, kind: RecordType, records: Vec<(u32, RData)>) {
        self.zone.lock().records.insert((name.to_owned(), kind), records);
    }

    fn hosts(&self, name: &str, ttl: u32, addresses: &[&str]) {
        let read = |address: &&str| (ttl, RData::A(A(address.parse().unwrap())));
        self.set(name, RecordType::A, addresses.iter().map(read).collect());
    }

    fn asked(&self) -> usize {
        self.zone.lock().asked
    }

    fn fail(&self, failing: bool) {
        self.zone.lock().failing = failing;
    }

    /// Fails about these names from now on, and about no other.
    fn fail_about(&self, names: &[&str]) {
        self.zone.lock().untold = names.iter().map(|name| (*name).to_owned()).collect();
    }

    fn lookup(&self, question: Question) -> Lookup {
        Lookup::new(vec![self.at], question)
    }
}

impl Zone {
    fn answer(&mut self, question: &Message) -> Message {
        self.asked += 1;
        let id = question.metadata.id;
        let query = question.queries[0].clone();
        let mut answer = Message::response(id, OpCode::Query);
        answer.metadata.recursion_available = true;
        let key = (query.name().to_ascii().to_lowercase(), query.query_type());
        if self.failing || self.untold.contains(&key.0) {
            answer.metadata.response_code = ResponseCode::ServFail;
        } else if let Some(records) = self.records.get(&key) {
            for (ttl, data) in records {
                answer.add_answer(Record::from_rdata(query.name().clone(), *ttl, data.clone()));
            }
        } else if !self.records.keys().any(|(name, _)| *name == key.0) {
            answer.metadata.response_code = ResponseCode::NXDomain;
        }
        answer.add_query(query);
        answer
    }
}

async fn next(lookup: &mut Lookup) -> Result<Vec<Instance>, String> {
    let answer = timeout(PATIENCE, lookup.next()).await.expect("an answer in time");
    answer.map_err(|error| error.chain())
}

async fn addresses(lookup: &mut Lookup) -> Result<Vec<String>, String> {
    let mut addresses: Vec<String> =
        next(lookup).await?.iter().map(|instance| instance.address.to_string()).collect();
    addresses.sort();
    Ok(addresses)
}

fn host(name: &str) -> Question {
    Question::Addresses(Authority { host: name.to_owned(), port: 80 })
}

fn told(addresses: &[&str]) -> Result<Vec<String>, String> {
    Ok(addresses.iter().map(|address| (*address).to_owned()).collect())
}

#[tokio::test]
async fn a_name_has_all_its_addresses_in_both_families() {
    let server = NameServer::start().await;
    server.hosts("orders.test.", 60, &["10.0.0.1", "10.0.0.2"]);
    let six = RData::AAAA(AAAA("2001:db8::1".parse().unwrap()));
    server.set("orders.test.", RecordType::AAAA, vec![(60, six)]);
    let mut lookup = server.lookup(host("orders.test."));
    let all = ["10.0.0.1:80", "10.0.0.2:80", "[2001:db8::1]:80"];
    assert_eq!(addresses(&mut lookup).await, told(&all));
}

#[tokio::test]
async fn a_name_that_does_not_exist_has_nobody_and_a_failure_is_an_error() {
    let server = NameServer::start().await;
    let mut lookup = server.lookup(host("nobody.test."));
    assert_eq!(addresses(&mut lookup).await, told(&[]));
    server.fail(true);
    lookup.look_again();
    assert!(addresses(&mut lookup).await.unwrap_err().contains("nobody.test."));
    server.fail(false);
    server.hosts("nobody.test.", 60, &["10.0.0.9"]);
    assert_eq!(addresses(&mut lookup).await, told(&["10.0.0.9:80"]));
}

#[tokio::test]
async fn another_server_is_asked_when_one_fails_or_is_away() {
    let (failing, server) = (NameServer::start().await, NameServer::start().await);
    failing.fail(true);
    server.hosts("orders.test.", 60, &["10.0.0.1"]);
    // Nobody listens there: the port was free a moment ago.
    let away = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for others in [vec![failing.at], vec![away], vec![failing.at, away, failing.at]] {
        let mut lookup = Lookup::new([&others[..], &[server.at]].concat(), host("orders.test."));
        for time in ["first", "second"] {
            assert_eq!(addresses(&mut lookup).await, told(&["10.0.0.1:80"]), "{time}, {others:?}");
            lookup.look_again();
        }
    }
    assert!(failing.asked() >= 6, "for both families, once and then twice");
}

#[tokio::test]
async fn looking_again_asks_again_before_the_time_is_up() {
    let server = NameServer::start().await;
    server.hosts("orders.test.", 3_600, &["10.0.0.1"]);
    let mut lookup = server.lookup(host("orders.test."));
    assert_eq!(addresses(&mut lookup).await, told(&["10.0.0.1:80"]));
    server.hosts("orders.test.", 3_600, &["10.0.0.2"]);
    lookup.look_again();
    assert_eq!(addresses(&mut lookup).await, told(&["10.0.0.2:80"]));
}

#[tokio::test]
async fn the_time_to_live_is_held_between_one_and_thirty_seconds() {
    let server = NameServer::start().await;
    for (ttl, least, most) in [(0, 0, 1), (10, 9, 10), (86_400, 29, 30)] {
        server.hosts("orders.test.", ttl, &["10.0.0.1"]);
        let mut lookup = server.lookup(host("orders.test."));
        next(&mut lookup).await.unwrap();
        let wait = lookup.due.unwrap().saturating_duration_since(Instant::now());
        let (least, most) = (Duration::from_secs(least), Duration::from_secs(most));
        assert!(wait >= least && wait <= most, "{ttl}: {wait:?}");
    }
}

#[tokio::test]
async fn a_host_of_srv_records_that_cannot_be_told_is_where_it_was() {
    let server = NameServer::start().await;
    let name = "_grpc._tcp.orders.test.";
    let srv = |port, target: &str| {
        (3_600, RData::SRV(SRV::new(0, 1, port, Name::from_ascii(target).unwrap())))
    };
    let records = vec![srv(1, "a.test."), srv(2, "b.test."), srv(3, "b.test.")];
    server.set(name, RecordType::SRV, records);
    server.hosts("a.test.", 3_600, &["10.0.0.1"]);
    server.hosts("b.test.", 3_600, &["10.0.0.2"]);
    let mut lookup = server.lookup(Question::Srv(name.to_owned()));
    let all = ["10.0.0.1:1", "10.0.0.2:2", "10.0.0.2:3"];
    assert_eq!(addresses(&mut lookup).await, told(&all));
    server.fail_about(&["b.test."]);
    server.hosts("a.test.", 3_600, &["10.0.0.9"]);
    lookup.look_again();
    let moved = ["10.0.0.2:2", "10.0.0.2:3", "10.0.0.9:1"];
    assert_eq!(addresses(&mut lookup).await, told(&moved));
    let wait = lookup.due.unwrap().saturating_duration_since(Instant::now());
    assert!(wait <= UNTOLD_TTL, "it is asked for again soon, not in {wait:?}");
    server.fail_about(&["a.test.", "b.test."]);
    lookup.look_again();
    addresses(&mut lookup).await.expect_err("no host was told");
    server.fail_about(&["b.test."]);
    server.hosts("a.test.", 3_600, &[]);
    lookup.look_again();
    assert_eq!(addresses(&mut lookup).await, told(&["10.0.0.2:2", "10.0.0.2:3"]));
    server.fail_about(&[]);
    server.hosts("b.test.", 3_600, &["10.0.0.3"]);
    lookup.look_again();
    assert_eq!(addresses(&mut lookup).await, told(&["10.0.0.3:2", "10.0.0.3:3"]));
}

#[tokio::test]
async fn srv_records_say_ports_weights_and_priorities() {
    let server = NameServer::start().await;
    let srv = |priority, weight, port, target: &str| {
        (60, RData::SRV(SRV::new(priority, weight, port, Name::from_ascii(target).unwrap())))
    };
    let name = "_grpc._tcp.orders.test.";
    let records = vec![
        srv(1, 5, 8_001, "a.test."),
        srv(1, 0, 8_002, "b.test."),
        srv(2, 9, 8_003, "b.test."),
        srv(0, 9, 8_004, "gone.test."),
    ];
    server.set(name, RecordType::SRV, records);
    server.hosts("a.test.", 60, &["10.0.0.1"]);
    server.hosts("b.test.", 60, &["10.0.0.2"]);
    let mut lookup = server.lookup(Question::Srv(name.to_owned()));
    let mut all: Vec<_> = next(&mut lookup)
        .await
        .unwrap()
        .into_iter()
        .map(|one| (one.address.to_string(), one.weight, one.priority))
        .collect();
    all.sort();
    let expected = [("10.0.0.1:8001", 5, 1), ("10.0.0.2:8002", 1, 1), ("10.0.0.2:8003", 9, 2)];
    let expected: Vec<_> = expected.iter().map(|(at, w, p)| ((*at).to_owned(), *w, *p)).collect();
    assert_eq!(all, expected);
    server.set(name, RecordType::SRV, vec![srv(0, 0, 0, ".")]);
    lookup.look_again();
    assert_eq!(addresses(&mut lookup).await, told(&[]), "decidedly no such service");
}

#[tokio::test]
async fn an_address_is_no_name_and_asks_nobody() {
    let server = NameServer::start().await;
    for (host, address) in [("10.0.0.7", "10.0.0.7:80"), ("[::1]", "[::1]:80")] {
        let mut lookup = server.lookup(self::host(host));
        assert_eq!(addresses(&mut lookup).await, told(&[address]));
    }
    assert_eq!(server.asked(), 0);
}
