//! The resolver on this machine's loopback: the test is the member, and the server that knows the world.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use simple_dns::rdata::{A, CNAME, OPT, RData, TXT};
use simple_dns::{CLASS, Name, Packet, PacketFlag, QTYPE, Question, RCODE, ResourceRecord, TYPE};
use tempfile::TempDir;

use super::members::{Found, Members};
use super::message::{self, Query};
use super::policy::{self, Allow, Log};
use super::server::{Load, Server, Sockets};
use super::upstream::{self, HostServers};
use crate::definition::{self, Definition, Subnet};
use crate::endpoint::{self, Egress, Endpoint};

pub(super) fn network() -> Definition {
    Definition {
        version: definition::VERSION,
        id: "ab".repeat(32),
        name: "Front".into(),
        created_ms: 0,
        bridge: "rvm-ab".into(),
        ipv4: Subnet {
            address: Ipv4Addr::new(10, 9, 0, 0),
            prefix: 16,
            gateway: Ipv4Addr::new(10, 9, 0, 1),
            resolver: Ipv4Addr::new(10, 9, 255, 254),
            range: None,
        },
        ipv6: Some(Subnet {
            address: "fd00:9::".parse().unwrap(),
            prefix: 64,
            gateway: "fd00:9::1".parse().unwrap(),
            resolver: "fd00:9::53".parse().unwrap(),
            range: None,
        }),
        internal: false,
        mtu: None,
        labels: BTreeMap::new(),
    }
}

pub(super) fn endpoint(container: &str, names: &[&str], ipv4: &str, ipv6: Option<&str>) -> Endpoint {
    Endpoint {
        version: endpoint::VERSION,
        container: container.into(),
        names: names.iter().map(|name| (*name).into()).collect(),
        interface: format!("rvm{container}"),
        mac: [2, 0, 0, 0, 0, 1],
        ipv4: ipv4.parse().unwrap(),
        ipv6: ipv6.map(|address| address.parse().unwrap()),
        dns_servers: Vec::new(),
        published: Vec::new(),
        egress: None,
    }
}

pub(super) fn put(directory: &Path, endpoint: &Endpoint) {
    let path = directory.join(&endpoint.container);
    fs::write(&path, serde_json::to_vec(endpoint).unwrap()).unwrap();
    fs::rename(&path, path.with_extension("json")).unwrap();
}

fn question(name: &str, kind: TYPE) -> Question<'_> {
    Question::new(
        Name::new(name).unwrap(),
        QTYPE::TYPE(kind),
        CLASS::IN.into(),
        false,
    )
}

fn ask(name: &str, kind: TYPE, datagram: Option<u16>) -> Vec<u8> {
    let mut packet = Packet::new_query(77);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    packet.questions.push(question(name, kind));
    *packet.opt_mut() = datagram.map(|udp_packet_size| OPT {
        opt_codes: Vec::new(),
        udp_packet_size,
        version: 0,
    });
    packet.build_bytes_vec().unwrap()
}

/// Remembers what was allowed.
#[derive(Default, Clone)]
struct Allowed(Arc<Mutex<Vec<(String, IpAddr)>>>);

impl Allow for Allowed {
    fn allow(&self, interface: &str, addresses: &[(IpAddr, Duration)]) -> io::Result<()> {
        let mut allowed = self.0.lock().unwrap();
        allowed.extend(
            addresses
                .iter()
                .map(|(address, _)| (interface.to_owned(), *address)),
        );
        Ok(())
    }
}

/// A server of the world's: for `N.big` it has N records, other names are an alias of `real.test`, which has 192.0.2.9.
fn world() -> SocketAddr {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let udp = UdpSocket::bind(tcp.local_addr().unwrap()).unwrap();
    let address = udp.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok((length, from)) = udp.recv_from(&mut buffer) {
            let answer = world_answer(&buffer[..length], false);
            // Forged ones first: another ID, another question, no answer at all.
            let mut forged = answer.clone();
            forged[0] ^= 1;
            udp.send_to(&forged, from).unwrap();
            udp.send_to(&ask("other.test", TYPE::A, None), from).unwrap();
            udp.send_to(b"\xff", from).unwrap();
            udp.send_to(&answer, from).unwrap();
        }
    });
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = tcp.accept() {
            let end = Instant::now() + Duration::from_secs(5);
            while let Ok(message) = upstream::read_message(&mut stream, end) {
                upstream::write_message(&mut stream, &world_answer(&message, true)).unwrap();
            }
        }
    });
    address
}

fn world_answer(message: &[u8], by_tcp: bool) -> Vec<u8> {
    let asked = Packet::parse(message).unwrap();
    let mut reply = Packet::new_reply(asked.id());
    reply.questions.clone_from(&asked.questions);
    let name = asked.questions[0].qname.clone();
    let text = name.to_string();
    if let Some(count) = text.strip_suffix(".big") {
        for _ in 0..count.parse().unwrap() {
            let text = RData::TXT(TXT::new().with_string("twenty bytes of text").unwrap());
            reply
                .answers
                .push(ResourceRecord::new(name.clone(), CLASS::IN, 9, text));
        }
        let message = reply.build_bytes_vec_compressed().unwrap();
        if message.len() > 512 && !by_tcp {
            reply.answers.clear();
            reply.set_flags(PacketFlag::TRUNCATION);
        } else {
            return message;
        }
    } else {
        let real = Name::new("real.test").unwrap();
        let alias = RData::CNAME(CNAME(real.clone()));
        let record = |name, data| ResourceRecord::new(name, CLASS::IN, 30, data);
        reply.answers.push(record(name, alias));
        for (name, address) in [
            ("real.test", [192, 0, 2, 9]),
            ("real.test", [127, 0, 0, 1]),
            ("stray.test", [192, 0, 2, 8]),
        ] {
            let address = RData::A(A {
                address: u32::from_be_bytes(address),
            });
            reply.answers.push(record(Name::new(name).unwrap(), address));
        }
    }
    reply.build_bytes_vec_compressed().unwrap()
}

struct Fixture {
    directory: TempDir,
    address: SocketAddr,
    client: UdpSocket,
    allowed: Allowed,
}

impl Fixture {
    fn new(change: impl FnOnce(&mut Endpoint, &mut Definition)) -> Self {
        let directory = TempDir::new().unwrap();
        let endpoints = directory.path().join("endpoints");
        fs::create_dir(&endpoints).unwrap();
        let mut own = endpoint("c1", &["me", "aaaa"], "127.0.0.1", None);
        let mut network = network();
        change(&mut own, &mut network);
        put(&endpoints, &own);
        put(
            &endpoints,
            &endpoint("c2", &["web", "www"], "10.9.0.2", Some("fd00:9::2")),
        );
        put(&endpoints, &endpoint("c3", &["db", "www"], "10.9.0.3", None));
        let log = fs::File::create(directory.path().join("egress.log")).unwrap();
        let allowed = Allowed::default();
        let server = Arc::new(Server {
            members: Members::new(
                network,
                fs::File::open(&endpoints).unwrap().into(),
                Some(fs::File::open(directory.path()).unwrap().into()),
            ),
            host_servers: HostServers::of_test(vec![world()]),
            allow: Box::new(allowed.clone()),
            log: Log::new(log),
            load: Load::default(),
        });
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        let udp = UdpSocket::bind(address).unwrap();
        server
            .start(Sockets {
                udp: vec![udp],
                tcp: vec![tcp],
            })
            .unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect(address).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        Self {
            directory,
            address,
            client,
            allowed,
        }
    }

    fn send(&self, message: &[u8]) -> Vec<u8> {
        self.client.send(message).unwrap();
        let mut buffer = [0; 4096];
        let length = self.client.recv(&mut buffer).unwrap();
        buffer[..length].to_vec()
    }

    /// Code, and the data of the answers.
    fn ask(&self, name: &str, kind: TYPE) -> (RCODE, Vec<String>) {
        data(&self.send(&ask(name, kind, None)))
    }
}

fn data(message: &[u8]) -> (RCODE, Vec<String>) {
    let packet = Packet::parse(message).unwrap();
    assert_eq!(packet.id(), 77);
    let data = packet.answers.iter().map(|record| match &record.rdata {
        RData::A(a) => Ipv4Addr::from(a.address).to_string(),
        RData::AAAA(aaaa) => std::net::Ipv6Addr::from(aaaa.address).to_string(),
        RData::PTR(name) => name.0.to_string(),
        RData::CNAME(name) => name.0.to_string(),
        other => format!("{other:?}"),
    });
    (packet.rcode(), data.collect())
}

fn found(code: RCODE, data: &[&str]) -> (RCODE, Vec<String>) {
    (code, data.iter().map(|text| (*text).into()).collect())
}

#[test]
fn members_are_found_by_every_name_in_any_case() {
    let fixture = Fixture::new(|_, _| {});
    for name in ["web", "WEB", "web.front"] {
        assert_eq!(
            fixture.ask(name, TYPE::A),
            found(RCODE::NoError, &["10.9.0.2"]),
            "{name}"
        );
    }
    assert_eq!(
        fixture.ask("web", TYPE::AAAA),
        found(RCODE::NoError, &["fd00:9::2"])
    );
    // There is such a name, but nothing of the kind.
    assert_eq!(fixture.ask("db", TYPE::AAAA), found(RCODE::NoError, &[]));
    assert_eq!(fixture.ask("web", TYPE::MX), found(RCODE::NoError, &[]));
}

#[test]
fn addresses_of_one_name_take_turns() {
    let fixture = Fixture::new(|_, _| {});
    let first = fixture.ask("www", TYPE::A).1;
    let second = fixture.ask("www", TYPE::A).1;
    assert_eq!(first.len(), 2);
    assert_eq!(first.iter().rev().cloned().collect::<Vec<_>>(), second);
}

#[test]
fn addresses_have_names() {
    let fixture = Fixture::new(|_, _| {});
    let ask = |name| fixture.ask(name, TYPE::PTR);
    assert_eq!(
        ask("2.0.9.10.in-addr.arpa"),
        found(RCODE::NoError, &["web.Front"])
    );
    let ipv6 = format!("2.{}9.0.0.0.0.0.d.f.ip6.arpa", "0.".repeat(23));
    assert_eq!(ask(&ipv6), found(RCODE::NoError, &["web.Front"]));
    assert_eq!(ask("9.0.9.10.in-addr.arpa"), found(RCODE::NameError, &[]));
    // That is the world's.
    assert_eq!(ask("9.2.0.192.in-addr.arpa").0, RCODE::NoError);
}

#[test]
fn members_that_come_and_go_are_noticed_at_once() {
    let fixture = Fixture::new(|_, _| {});
    let endpoints = fixture.directory.path().join("endpoints");
    for number in 10..40 {
        let address = format!("10.9.0.{number}");
        put(&endpoints, &endpoint("c9", &["new"], &address, None));
        assert_eq!(fixture.ask("new", TYPE::A), found(RCODE::NoError, &[&address]));
    }
    fs::remove_file(endpoints.join("c9.json")).unwrap();
    assert_eq!(fixture.ask("new", TYPE::A).1[0], "real.test");
    // What cannot be read hides nobody.
    fs::write(endpoints.join("c9.json"), "{").unwrap();
    assert_eq!(fixture.ask("web", TYPE::A), found(RCODE::NoError, &["10.9.0.2"]));
}

#[test]
fn a_member_is_told_the_names_of_its_other_networks() {
    let fixture = Fixture::new(|_, _| {});
    let [mine, foreign] = ["mine", "foreign"].map(|network| {
        let endpoints = fixture.directory.path().join(network).join("endpoints");
        fs::create_dir_all(&endpoints).unwrap();
        endpoints
    });
    put(&foreign, &endpoint("c8", &["stranger"], "10.8.0.8", None));
    put(&mine, &endpoint("c7", &["far"], "10.7.0.7", None));
    // It is on neither yet.
    assert_eq!(fixture.ask("far", TYPE::A).1[0], "real.test");
    put(&mine, &endpoint("c1", &["me"], "10.7.0.2", None));
    assert_eq!(fixture.ask("far", TYPE::A), found(RCODE::NoError, &["10.7.0.7"]));
    assert_eq!(
        fixture.ask("7.0.7.10.in-addr.arpa", TYPE::PTR),
        found(RCODE::NoError, &["far"])
    );
    assert_eq!(fixture.ask("stranger", TYPE::A).1[0], "real.test");
    fs::remove_dir_all(&mine).unwrap();
    assert_eq!(fixture.ask("far", TYPE::A).1[0], "real.test");
}

#[test]
fn nobody_but_members_is_answered() {
    let fixture = Fixture::new(|own, _| own.ipv4 = Ipv4Addr::new(10, 9, 0, 9));
    assert_eq!(fixture.ask("web", TYPE::A), found(RCODE::Refused, &[]));
}

#[test]
fn the_rest_is_asked_elsewhere() {
    let fixture = Fixture::new(|_, _| {});
    let all = ["real.test", "192.0.2.9", "127.0.0.1", "192.0.2.8"];
    assert_eq!(fixture.ask("example.org", TYPE::A), found(RCODE::NoError, &all));
    assert!(fixture.allowed.0.lock().unwrap().is_empty());
    let fixture = Fixture::new(|_, network| network.internal = true);
    assert_eq!(fixture.ask("example.org", TYPE::A), found(RCODE::NameError, &[]));
    assert_eq!(fixture.ask("web", TYPE::A), found(RCODE::NoError, &["10.9.0.2"]));
}

#[test]
fn long_answers_are_told_by_tcp() {
    let fixture = Fixture::new(|_, _| {});
    let short = fixture.send(&ask("100.big", TYPE::TXT, None));
    assert!(message::is_truncated(&short) && short.len() <= 512);
    let mut stream = TcpStream::connect(fixture.address).unwrap();
    // Two questions in one connection.
    for count in [100, 3] {
        upstream::write_message(&mut stream, &ask(&format!("{count}.big"), TYPE::TXT, None)).unwrap();
        let long = upstream::read_message(&mut stream, Instant::now() + Duration::from_secs(10)).unwrap();
        assert_eq!(data(&long).1.len(), count);
    }
}

#[test]
fn a_server_that_is_gone_is_followed_by_the_next() {
    // Nobody listens there: the kernel says so at once.
    let gone = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let message = ask("example.org", TYPE::A, None);
    let query = Query::parse(&message).unwrap();
    let answer = upstream::ask(&message, &query, &[gone, world()], false).unwrap();
    assert_eq!(data(&answer).1[1], "192.0.2.9");
    let error = upstream::ask(&message, &query, &[gone], false).unwrap_err();
    assert!(error.to_string().contains(&gone.to_string()), "{error}");
    assert!(upstream::ask(&message, &query, &[], false).is_err());
}

#[test]
fn a_policy_says_what_may_be_asked_and_opens_what_was_told() {
    let fixture = Fixture::new(|own, _| {
        own.egress = Some(Egress {
            networks: Vec::new(),
            names: vec!["example.org".into(), "*.example.net".into()],
        });
    });
    assert_eq!(fixture.ask("web", TYPE::A), found(RCODE::NoError, &["10.9.0.2"]));
    for name in [
        "example.com",
        "example.net",
        "aexample.org",
        "a.example.org",
        "9.2.0.192.in-addr.arpa",
    ] {
        assert_eq!(fixture.ask(name, TYPE::A), found(RCODE::NameError, &[]), "{name}");
    }
    assert!(fixture.allowed.0.lock().unwrap().is_empty());
    for name in ["EXAMPLE.org", "a.b.example.net"] {
        assert_eq!(fixture.ask(name, TYPE::A).0, RCODE::NoError, "{name}");
        // Not the loopback's address, and not that of a name that nobody asked about.
        let allowed = std::mem::take(&mut *fixture.allowed.0.lock().unwrap());
        assert_eq!(allowed, [("rvmc1".into(), IpAddr::from([192, 0, 2, 9]))]);
    }
    let log = fs::read_to_string(fixture.directory.path().join("egress.log")).unwrap();
    assert_eq!(log.lines().count(), 5);
    let line: serde_json::Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    assert_eq!(
        (
            line["container"].as_str(),
            line["name"].as_str(),
            line["type"].as_u64()
        ),
        (Some("c1"), Some("example.com"), Some(1))
    );
}

#[test]
fn a_label_with_a_dot_is_no_two_labels() {
    let fixture = Fixture::new(|own, _| {
        own.egress = Some(Egress {
            networks: Vec::new(),
            names: vec!["*.example.org".into()],
        });
    });
    let mut message = ask("aXexample.org", TYPE::A, None);
    let place = message.iter().position(|byte| *byte == b'X').unwrap();
    message[place] = b'.';
    assert_eq!(data(&fixture.send(&message)), found(RCODE::NameError, &[]));
}

#[test]
fn what_is_no_question_gets_a_code_or_silence() {
    for (length, expected) in [(0, false), (1, false), (11, false), (12, true)] {
        let mut message = ask("web", TYPE::A, None);
        message.truncate(length);
        let parsed = Query::parse(&message);
        assert_eq!(
            matches!(parsed, Err(message::Error::Refused(RCODE::FormatError))),
            expected,
            "{length}"
        );
    }
    let mut answer = ask("web", TYPE::A, None);
    answer[2] |= 0x80;
    assert!(matches!(Query::parse(&answer), Err(message::Error::NoQuestion)));
    let mut many = ask("web", TYPE::A, None);
    many[6..12].fill(0xff);
    assert!(matches!(
        Query::parse(&many),
        Err(message::Error::Refused(RCODE::FormatError))
    ));
}

/// Whatever comes: a question, an answer, a name that points at itself.
#[test]
fn garbage_is_survived() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let whole = Query::parse(&ask("www.example.org", TYPE::A, Some(1400))).unwrap();
    let question = ask("www.example.org", TYPE::A, Some(1400));
    let answer = world_answer(&question, false);
    for _ in 0..200_000 {
        for original in [&question, &answer] {
            let mut message = original.clone();
            for _ in 0..=random() % 4 {
                let place = usize::try_from(random()).unwrap() % message.len();
                message[place] = random().to_le_bytes()[0];
            }
            message.truncate(usize::try_from(random()).unwrap() % (message.len() + 20));
            if let Ok(query) = Query::parse(&message) {
                query.answer(RCODE::NoError).unwrap();
                query.truncated().unwrap();
                query.addresses(&[IpAddr::from([10, 9, 0, 1])], 512).unwrap();
                let _ = query.reverse();
            }
            let _ = message::refusal(&message, RCODE::FormatError);
            let _ = (whole.is_answered_by(&message, 77), whole.told(&message));
        }
    }
}

#[test]
fn addresses_of_the_world_are_allowed_for_longer_than_they_are_told() {
    let told = |address: &str, ttl| (address.parse().unwrap(), ttl);
    let allowed = policy::allowed(vec![
        told("192.0.2.1", 0),
        told("10.0.0.1", u32::MAX),
        told("169.254.169.254", 60),
        told("0.0.0.0", 60),
        told("224.0.0.1", 60),
        told("::ffff:127.0.0.1", 60),
        told("fe80::1", 60),
        told("::1", 60),
        told("fd00:ec2::254", 60),
        told("2001:db8::1", 60),
        told("2001:db8::1", 90),
        told("2001:db8::1", 30),
    ]);
    let seconds = |address: &str, seconds| (address.parse::<IpAddr>().unwrap(), Duration::from_secs(seconds));
    let expected = [
        seconds("10.0.0.1", 604_860),
        seconds("192.0.2.1", 60),
        seconds("2001:db8::1", 150),
    ];
    assert_eq!(allowed, expected);
}

#[test]
fn host_servers_are_read_again() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("resolv.conf");
    let servers = HostServers::new(&path);
    assert!(servers.now().is_empty());
    let check = |text: &str, age, expected: &[&str]| {
        fs::write(&path, text).unwrap();
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(std::time::SystemTime::now() - Duration::from_secs(age))
            .unwrap();
        let expected: Vec<SocketAddr> = expected.iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(servers.now(), expected, "{text}");
    };
    check("nameserver 127.0.0.53\noptions edns0\n", 3, &["127.0.0.53:53"]);
    check(
        "# nameserver 192.0.2.1\n nameserver\t192.0.2.2\nnameserver ::1\nnameserver fe80::1%eth0\n",
        2,
        &["192.0.2.2:53", "[::1]:53"],
    );
    check("search example.org\n", 1, &["127.0.0.1:53"]);
    fs::remove_file(&path).unwrap();
    assert_eq!(servers.now(), ["127.0.0.1:53".parse().unwrap()]);
}

#[test]
fn members_and_their_network_are_told_from_the_rest() {
    let directory = TempDir::new().unwrap();
    let members = Members::new(network(), fs::File::open(directory.path()).unwrap().into(), None);
    put(directory.path(), &endpoint("c1", &["web"], "10.9.0.2", None));
    let table = members.now().unwrap();
    assert!(matches!(members.addresses(&table, "front"), Found::Elsewhere));
    assert!(matches!(members.addresses(&table, ".front"), Found::Elsewhere));
    assert_eq!(members.name(&table, "fd00:9::7".parse().unwrap()), Found::Nobody);
    assert_eq!(
        members.name(&table, "fd00:8::7".parse().unwrap()),
        Found::Elsewhere
    );
    fs::remove_dir_all(directory.path()).unwrap();
    assert!(members.now().is_err());
}
