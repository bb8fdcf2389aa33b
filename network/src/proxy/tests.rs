//! Published ports on this machine's loopback; a thread of the test is the container.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use super::{Error, Proxy, Reservation, Target, Wish};
use crate::endpoint::Protocol;

const TARGET: Target = Target {
    ipv4: Ipv4Addr::LOCALHOST,
    ipv6: None,
};

fn wish(
    protocol: Protocol,
    host_address: Option<IpAddr>,
    ports: Option<(u16, u16)>,
    container_port: u16,
) -> Wish {
    Wish {
        protocol,
        host_address,
        host_ports: ports.map(|(first, last)| first..=last),
        container_port,
    }
}

fn local() -> Option<IpAddr> {
    Some(Ipv4Addr::LOCALHOST.into())
}

/// A reservation that is served, and where.
fn served(wishes: &[Wish]) -> (SocketAddr, Proxy) {
    let reservation = Reservation::bind(wishes).unwrap();
    let published = reservation.published()[0];
    let proxy = reservation.serve().unwrap();
    proxy.send_to(Some(TARGET));
    (
        SocketAddr::new(published.host_address, published.host_port),
        proxy,
    )
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

#[test]
fn both_kinds_of_address_have_the_same_port() {
    let reservation = Reservation::bind(&[wish(Protocol::Tcp, None, None, 80)]).unwrap();
    let published = reservation.published();
    let addresses: Vec<_> = published.iter().map(|published| published.host_address).collect();
    assert_eq!(
        addresses,
        [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()]
    );
    assert_eq!(published[0].host_port, published[1].host_port);
    assert_ne!(published[0].host_port, 0);
}

#[test]
fn a_port_is_one_containers() {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let first = Reservation::bind(&[wish(protocol, None, None, 80)]).unwrap();
        let port = first.published()[0].host_port;
        let error = Reservation::bind(&[wish(protocol, None, Some((port, port)), 81)]).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("Bind for 0.0.0.0:{port} failed: port is already allocated")
        );
        // A range goes on to the next one.
        let next =
            Reservation::bind(&[wish(protocol, None, Some((port, port.saturating_add(9))), 81)]).unwrap();
        assert_ne!(next.published()[0].host_port, port);
        drop(first);
        Reservation::bind(&[wish(protocol, None, Some((port, port)), 81)]).unwrap();
    }
}

#[test]
fn a_range_can_be_used_up() {
    let held = Reservation::bind(&[wish(Protocol::Udp, local(), None, 80)]).unwrap();
    let port = held.published()[0].host_port;
    let neighbour = Reservation::bind(&[wish(Protocol::Udp, local(), Some((port + 1, port + 1)), 80)]);
    let range = wish(Protocol::Udp, local(), Some((port, port + 1)), 80);
    let error = Reservation::bind(&[range]).unwrap_err();
    assert!(matches!(error, Error::AllAllocated { .. }), "{error}");
    drop(neighbour);
}

#[test]
fn the_same_wish_twice_is_one() {
    let port = Reservation::bind(&[wish(Protocol::Tcp, local(), None, 80)])
        .unwrap()
        .published()[0]
        .host_port;
    let same = wish(Protocol::Tcp, local(), Some((port, port)), 80);
    let reservation = Reservation::bind(&[same.clone(), same]).unwrap();
    assert_eq!(reservation.published().len(), 1);
}

#[test]
fn an_address_that_is_not_here_is_refused() {
    let address = Some(IpAddr::from([192, 0, 2, 1]));
    let error = Reservation::bind(&[wish(Protocol::Tcp, address, Some((8080, 8080)), 80)]).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("192.0.2.1:8080: cannot assign requested address"),
        "{error}"
    );
}

#[test]
fn connections_are_passed_on_whole_and_closed_by_halves() {
    let container = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = container.local_addr().unwrap().port();
    // It answers only when it has heard all, with twice as much.
    let body = move || {
        for stream in container.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut heard = Vec::new();
                stream.read_to_end(&mut heard).unwrap();
                stream.write_all(&heard).unwrap();
                stream.write_all(&heard).unwrap();
            });
        }
    };
    thread::spawn(body);
    for host in [local(), Some(Ipv6Addr::LOCALHOST.into())] {
        let (address, _proxy) = served(&[wish(Protocol::Tcp, host, None, port)]);
        let clients: Vec<_> = [0, 1, 100, 3 << 20]
            .map(|length| {
                thread::spawn(move || {
                    let said: Vec<u8> = (0..length)
                        .map(|index: usize| index.to_le_bytes()[0] ^ index.to_le_bytes()[1])
                        .collect();
                    let mut stream = connect(address);
                    stream.write_all(&said).unwrap();
                    stream.shutdown(Shutdown::Write).unwrap();
                    let mut heard = Vec::new();
                    stream.read_to_end(&mut heard).unwrap();
                    assert!(heard == said.repeat(2), "{length} bytes");
                })
            })
            .into();
        clients.into_iter().for_each(|client| client.join().unwrap());
    }
}

#[test]
fn a_port_nobody_listens_on_is_closed_at_once() {
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let (address, _proxy) = served(&[wish(Protocol::Tcp, local(), None, port)]);
    let mut stream = connect(address);
    let heard = stream.read(&mut [0; 1]);
    assert!(
        matches!(heard, Ok(0))
            || heard.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
    );
}

#[test]
fn a_port_is_free_again_when_it_is_not_served_any_more() {
    let (address, proxy) = served(&[wish(Protocol::Tcp, local(), None, 80)]);
    let _client = connect(address);
    drop(proxy);
    Reservation::bind(&[wish(
        Protocol::Tcp,
        local(),
        Some((address.port(), address.port())),
        80,
    )])
    .unwrap();
}

#[test]
fn without_a_container_connections_are_closed() {
    let reservation = Reservation::bind(&[wish(Protocol::Tcp, local(), None, 80)]).unwrap();
    let port = reservation.published()[0].host_port;
    let _proxy = reservation.serve().unwrap();
    assert!(!matches!(
        connect(([127, 0, 0, 1], port).into()).read(&mut [0; 1]),
        Ok(1..)
    ));
}

/// A container that answers each datagram with that and the port it came from.
fn echoing() -> u16 {
    let container = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = container.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut buffer = [0; 2000];
        while let Ok((length, from)) = container.recv_from(&mut buffer) {
            let answer = [&buffer[..length], from.port().to_string().as_bytes()].concat();
            container.send_to(&answer, from).unwrap();
        }
    });
    port
}

/// The next datagram for a socket: what is in it, and where it is from.
fn heard(socket: &UdpSocket) -> (String, SocketAddr) {
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut buffer = [0; 2000];
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    (String::from_utf8(buffer[..length].to_vec()).unwrap(), from)
}

#[test]
fn datagrams_come_back_to_whom_they_are_for() {
    let (address, _proxy) = served(&[wish(Protocol::Udp, local(), None, echoing())]);
    let client = || {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(address).unwrap();
        socket
    };
    let ask = |socket: &UdpSocket, text: &str| {
        socket.send(text.as_bytes()).unwrap();
        heard(socket).0
    };
    let (one, other) = (client(), client());
    let (first, second) = (ask(&one, "one:"), ask(&other, "other:"));
    assert!(
        first.starts_with("one:") && second.starts_with("other:"),
        "{first} {second}"
    );
    // A session has one socket as long as it lasts, and another's is another.
    assert_eq!(ask(&one, "one:"), first);
    assert_ne!(
        first.trim_start_matches("one:"),
        second.trim_start_matches("other:")
    );
    // More than there are sessions: the oldest ends, everybody is answered.
    for _ in 0..600 {
        assert!(ask(&client(), "x").starts_with('x'));
    }
    assert!(ask(&one, "one:").starts_with("one:"));
}

#[test]
fn datagrams_are_answered_from_the_address_they_were_sent_to() {
    let reservation = Reservation::bind(&[wish(Protocol::Udp, None, None, echoing())]).unwrap();
    let port = reservation.published()[0].host_port;
    let proxy = reservation.serve().unwrap();
    proxy.send_to(Some(TARGET));
    // One client that asks several: an answer is of the one that was asked.
    for (own, addresses) in [
        ("0.0.0.0:0", &["127.0.0.2", "127.0.0.1", "127.9.9.9"][..]),
        ("[::]:0", &["::1"]),
    ] {
        let client = UdpSocket::bind(own).unwrap();
        let asked: Vec<SocketAddr> = addresses
            .iter()
            .map(|address| SocketAddr::new(address.parse().unwrap(), port))
            .collect();
        for address in &asked {
            client.send_to(b"x", address).unwrap();
        }
        let mut answers: Vec<SocketAddr> = asked.iter().map(|_| heard(&client).1).collect();
        answers.sort();
        let mut asked = asked;
        asked.sort();
        assert_eq!(answers, asked);
    }
    // One that hears no other.
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.connect(("127.0.0.2", port)).unwrap();
    client.send(b"one:").unwrap();
    assert!(heard(&client).0.starts_with("one:"));
}

#[test]
fn more_connections_than_may_be_at_once_wait() {
    let container = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = container.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut held = Vec::new();
        for stream in container.incoming() {
            let mut stream = stream.unwrap();
            // The client may have gone.
            let _ = stream.write_all(b"x");
            held.push(stream);
        }
    });
    let (address, _proxy) = served(&[wish(Protocol::Tcp, local(), None, port)]);
    for _ in 0..20 {
        let mut clients: Vec<_> = (0..50).map(|_| connect(address)).collect();
        for client in &mut clients {
            client.read_exact(&mut [0; 1]).unwrap();
        }
    }
}
