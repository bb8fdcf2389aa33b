//! The tests, each with a machine of its own.

use std::net::{TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use rvm_vmm::config::{LimitsConfig, RateConfig};

use crate::guest::{COUNTED, DATAGRAM, HOST};
use crate::host::{Guest, PATIENCE, Shape, accept, run, statistic};
use crate::pattern;

pub(crate) const ALL: [(&str, fn()); 4] = [
    ("both_ways_at_full_length", both_ways_at_full_length),
    ("several_queues_at_once", several_queues_at_once),
    ("the_guest_is_told_the_mtu", the_guest_is_told_the_mtu),
    (
        "transmission_ends_with_its_tokens",
        transmission_ends_with_its_tokens,
    ),
];

/// Each transfer. In the lab a machine's exit takes a tenth of a millisecond, so this is a matter of seconds.
const BYTES: u64 = 8 << 20;
/// After this, nothing more comes.
const SILENCE: Duration = Duration::from_secs(1);
/// What a limit lets pass, at almost no rate.
const BURST: u64 = 1 << 20;
const ONCE: LimitsConfig = LimitsConfig {
    bytes: Some(RateConfig {
        per_second: 1,
        burst: BURST,
    }),
    packets: None,
};

fn one_queue() -> Shape {
    Shape {
        queues: 1,
        vcpus: 1,
        ..Shape::default()
    }
}

/// Sends to the guest and back, and checks each byte.
fn exchange(guest: &mut Guest) {
    let listener = TcpListener::bind((HOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    guest.ask(&format!("send {port} 1 {BYTES}"));
    assert_eq!(pattern::receive(accept(&listener), 1), BYTES);
    assert_eq!(guest.answer(), "sent");
    guest.ask(&format!("receive {port} 2"));
    pattern::send(accept(&listener), 2, BYTES);
    assert_eq!(guest.answer(), BYTES.to_string());
}

fn both_ways_at_full_length() {
    let mut guest = Guest::boot(&one_queue());
    assert!(run("busybox ping -c 3 -q 10.77.0.2"));
    guest.ask("ping");
    assert_eq!(guest.answer(), "true");
    guest.ask("address");
    assert_eq!(guest.answer(), "02:00:00:00:00:07 1500");
    let (received, transmitted) = (statistic("rx_packets"), statistic("tx_packets"));
    exchange(&mut guest);
    // Segments were left to the other side, in both directions: with a packet for each there would be four times as many.
    let most = BYTES / 1448 / 4;
    assert!(statistic("rx_packets") - received < most + acknowledgements());
    assert!(statistic("tx_packets") - transmitted < most + acknowledgements());
    guest.finish();
}

/// Most of them for what went the other way: one for two full packets as they are on the wire, as TCP has it at most.
fn acknowledgements() -> u64 {
    BYTES / 1448 / 2
}

fn several_queues_at_once() {
    let mut guest = Guest::boot(&Shape {
        queues: 2,
        vcpus: 2,
        ..Shape::default()
    });
    guest.ask("queues");
    assert_eq!(guest.answer(), "2");
    let before = guest.thread_times();
    let listener = TcpListener::bind((HOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    guest.ask(&format!("send_on {port} 2 3 {BYTES}"));
    let streams = [accept(&listener), accept(&listener)];
    std::thread::scope(|scope| {
        for stream in streams {
            scope.spawn(move || assert_eq!(pattern::receive(stream, 3), BYTES));
        }
    });
    assert_eq!(guest.answer(), "sent");
    // A thread that only waits does nothing at all.
    let after = guest.thread_times();
    assert_eq!((before.len(), after.len()), (2, 2));
    let most = after.iter().max().unwrap();
    for (before, after) in before.iter().zip(&after) {
        assert!(after - before > most / 100, "{before} {after}");
    }
    guest.finish();
}

fn the_guest_is_told_the_mtu() {
    let mut guest = Guest::boot(&Shape {
        mtu: Some(9000),
        ..one_queue()
    });
    guest.ask("address");
    assert_eq!(guest.answer(), "02:00:00:00:00:07 9000");
    assert!(run("busybox ping -c 3 -q -s 8000 10.77.0.2"));
    guest.finish();
}

fn transmission_ends_with_its_tokens() {
    let mut guest = Guest::boot(&Shape {
        transmit: ONCE,
        ..one_queue()
    });
    guest.ask(&format!("flood {}", 4 * BURST / DATAGRAM as u64));
    let deadline = Instant::now() + PATIENCE;
    while statistic("rx_bytes") < BURST {
        assert!(Instant::now() < deadline, "{}", statistic("rx_bytes"));
    }
    // Nothing more comes, and the last frame may have been larger than what was left.
    let socket = UdpSocket::bind((HOST, COUNTED)).unwrap();
    socket.set_read_timeout(Some(SILENCE)).unwrap();
    while socket.recv(&mut [0; DATAGRAM]).is_ok() {}
    let passed = statistic("rx_bytes");
    assert!((BURST..BURST + 2000).contains(&passed), "{passed}");
    guest.terminate();
}
