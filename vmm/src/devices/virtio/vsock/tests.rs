//! The device from both ends: clients of the host on a real Unix socket, and a guest that speaks packets.

use std::cell::Cell;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use super::connection::BUFFER_BYTES;
use super::muxer::{MAX_CONNECTIONS, Muxer};
use super::packet::operation::{CREDIT_REQUEST, CREDIT_UPDATE, DATA, REQUEST, RESET, RESPONSE, SHUTDOWN};
use super::packet::{HEADER_BYTES, HOST_CID, Header, NO_MORE_RECEIVING, NO_MORE_SENDING, TYPE_STREAM};
use super::queue::Queues;
use crate::devices::virtio::hostile::{Random, hostile_ring};
use crate::devices::virtio::ring::{Outcome, RingError};
use crate::devices::virtio::test_driver::Driver;
use crate::memory::GuestMemory;

const GUEST_CID: u32 = 3;
const PORT: u32 = 1024;
const RECEIVE_BYTES: u32 = 4096;
const CREDIT: u32 = 64 << 10;

/// A machine with a vsock device whose guest is this test.
struct Machine {
    directory: tempfile::TempDir,
    memory: GuestMemory,
    muxer: Muxer,
    queues: Queues,
    to_guest: Driver,
    from_guest: Driver,
    /// Addresses of the buffers given to the device, and how many of them came back.
    buffers: Vec<u64>,
    seen: usize,
    /// What the guest says that it has taken out of its buffer.
    taken: Cell<u32>,
}

impl Machine {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("socket")).unwrap();
        let memory = crate::memory::allocate(4).unwrap();
        let [to_guest, from_guest, events] =
            [0, 1, 2].map(|index| Driver::in_memory(memory.clone(), 128, index));
        let queues = Queues {
            to_guest: to_guest.ring(),
            from_guest: from_guest.ring(),
            events: events.ring(),
        };
        let mut muxer = Muxer::new(GUEST_CID, listener).unwrap();
        muxer.start().unwrap();
        let (buffers, taken) = (Vec::new(), Cell::new(0));
        let mut machine = Self {
            directory,
            memory,
            muxer,
            queues,
            to_guest,
            from_guest,
            buffers,
            seen: 0,
            taken,
        };
        machine.give_buffers(60);
        machine
    }

    fn give_buffers(&mut self, count: usize) {
        for _ in 0..count {
            self.buffers
                .push(self.to_guest.request(&[], &[44, RECEIVE_BYTES]));
        }
    }

    fn client(&self) -> UnixStream {
        let client = UnixStream::connect(self.directory.path().join("socket")).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        client
    }

    fn serve(&mut self) -> Result<(), RingError> {
        loop {
            let events = self.muxer.poll().unwrap();
            let Outcome { more, .. } = self.queues.serve(&self.memory, &mut self.muxer)?;
            if !more && events == 0 {
                return Ok(());
            }
        }
    }

    /// Lets the device work; returns the packets that the guest got.
    fn received(&mut self) -> Vec<(Header, Vec<u8>)> {
        self.serve().unwrap();
        let used = self.to_guest.used();
        let packets =
            used[self.seen..]
                .iter()
                .zip(&self.buffers[self.seen..])
                .map(|((_, written), address)| {
                    let header =
                        Header::parse(&self.to_guest.read(*address, HEADER_BYTES).try_into().unwrap());
                    assert_eq!(*written, 44 + header.length);
                    assert_eq!(
                        (header.source_cid, header.destination_cid),
                        (HOST_CID, u64::from(GUEST_CID))
                    );
                    // Buffers are laid out in steps of 16 bytes.
                    (header, self.to_guest.read(address + 48, header.length as usize))
                });
        let packets: Vec<_> = packets.collect();
        self.seen = used.len();
        packets
    }

    fn operations(&mut self) -> Vec<u16> {
        self.received()
            .iter()
            .map(|(header, _)| header.operation)
            .collect()
    }

    fn packet(&self, host_port: u32, operation: u16) -> Header {
        Header {
            source_cid: u64::from(GUEST_CID),
            destination_cid: HOST_CID,
            source_port: PORT,
            destination_port: host_port,
            kind: TYPE_STREAM,
            operation,
            buffer_bytes: CREDIT,
            forwarded: self.taken.get(),
            ..Default::default()
        }
    }

    fn send(&mut self, header: Header, data: &[u8]) {
        let header = Header {
            length: u32::try_from(data.len()).unwrap(),
            ..header
        };
        let parts: &[&[u8]] = if data.is_empty() {
            &[&header.to_bytes()]
        } else {
            &[&header.to_bytes(), data]
        };
        self.from_guest.request(parts, &[]);
        self.serve().unwrap();
    }

    fn send_control(&mut self, host_port: u32, operation: u16) {
        self.send(self.packet(host_port, operation), &[]);
    }

    fn send_shutdown(&mut self, host_port: u32, flags: u32) {
        self.send(
            Header {
                flags,
                ..self.packet(host_port, SHUTDOWN)
            },
            &[],
        );
    }

    /// An open connection: the client and its port on the host.
    fn open(&mut self) -> (UnixStream, u32) {
        let mut client = self.client();
        client.write_all(b"CONNECT 1024\n").unwrap();
        let packets = self.received();
        let [(header, _)] = packets.as_slice() else {
            panic!("{packets:?}")
        };
        assert_eq!((header.operation, header.destination_port), (REQUEST, PORT));
        let port = header.source_port;
        self.send_control(port, RESPONSE);
        let line = format!("OK {port}\n");
        assert_eq!(read(&mut client, line.len()), line.as_bytes());
        (client, port)
    }
}

fn read(client: &mut UnixStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    client.read_exact(&mut bytes).unwrap();
    bytes
}

fn is_closed(client: &mut UnixStream) -> bool {
    match client.read(&mut [0; 1]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

#[test]
fn data_flows_both_ways_and_nothing_behind_the_greeting_is_lost() {
    let mut machine = Machine::new();
    let mut client = machine.client();
    client.write_all(b"CONNECT 10").unwrap();
    assert!(machine.received().is_empty());
    client.write_all(b"24\nearly").unwrap();
    let port = machine.received()[0].0.source_port;
    machine.send_control(port, RESPONSE);
    let packets = machine.received();
    assert_eq!(
        (packets[0].0.operation, packets[0].1.as_slice()),
        (DATA, &b"early"[..])
    );
    machine.send(machine.packet(port, DATA), b"answer");
    assert_eq!(
        read(&mut client, 3 + 10 + 1 + 6),
        format!("OK {port}\nanswer").into_bytes()
    );
}

#[test]
fn bad_greetings_and_refusals_close_the_connection() {
    let mut machine = Machine::new();
    for greeting in [
        "HELLO\n",
        "CONNECT \n",
        "CONNECT 4294967296\n",
        "CONNECT +1\n",
        "\n",
        &"x".repeat(40),
    ] {
        let mut client = machine.client();
        client.write_all(greeting.as_bytes()).unwrap();
        assert!(machine.received().is_empty(), "{greeting:?}");
        assert!(is_closed(&mut client), "{greeting:?}");
    }
    let mut client = machine.client();
    client.write_all(b"CONNECT 7\n").unwrap();
    let header = machine.received()[0].0;
    assert_eq!(header.destination_port, 7);
    machine.send(
        Header {
            source_port: 7,
            ..machine.packet(header.source_port, RESET)
        },
        &[],
    );
    assert!(is_closed(&mut client));
    assert!(machine.received().is_empty());
}

#[test]
fn a_silent_client_and_a_silent_guest_are_given_up() {
    let mut machine = Machine::new();
    let mut silent = machine.client();
    let mut asking = machine.client();
    asking.write_all(b"CONNECT 1024\n").unwrap();
    assert_eq!(machine.operations(), [REQUEST]);
    machine
        .muxer
        .check_deadlines(Instant::now() + Duration::from_secs(5));
    assert!(machine.received().is_empty());
    machine
        .muxer
        .check_deadlines(Instant::now() + Duration::from_secs(60));
    assert!(is_closed(&mut silent) && is_closed(&mut asking));
    assert_eq!(machine.operations(), [RESET]);
}

#[test]
fn a_connection_that_was_given_up_does_not_keep_the_loop_busy() {
    let mut machine = Machine::new();
    let mut client = machine.client();
    client.write_all(b"CONNECT 1024\n").unwrap();
    assert_eq!(machine.operations(), [REQUEST]);
    // The guest takes nothing any more.
    machine.queues.to_guest = Driver::in_memory(machine.memory.clone(), 128, 3).ring();
    machine
        .muxer
        .check_deadlines(Instant::now() + Duration::from_secs(60));
    assert!(is_closed(&mut client));
    machine.serve().unwrap();
    drop(client);
    machine.serve().unwrap();
}

#[test]
fn the_guest_gets_no_more_than_its_credit() {
    let mut machine = Machine::new();
    let (mut client, port) = machine.open();
    client.write_all(&vec![7; 100_000]).unwrap();
    let packets = machine.received();
    let sent: u32 = packets.iter().map(|(header, _)| header.length).sum();
    assert_eq!(sent, CREDIT);
    assert_eq!(packets.last().unwrap().0.operation, CREDIT_REQUEST);
    assert!(machine.received().is_empty(), "the guest is asked once");
    machine.taken.set(10_000);
    machine.send_control(port, CREDIT_UPDATE);
    let packets = machine.received();
    assert_eq!(
        packets.iter().map(|(header, _)| header.length).sum::<u32>(),
        10_000
    );
    // A guest that has taken more than it got has no credit, and harms nobody.
    machine.taken.set(u32::MAX);
    machine.send_control(port, CREDIT_UPDATE);
    assert_eq!(
        machine
            .received()
            .iter()
            .map(|(header, _)| header.length)
            .sum::<u32>(),
        0
    );
}

#[test]
fn a_host_that_does_not_read_stalls_only_its_own_stream() {
    let mut machine = Machine::new();
    let (mut stalled, port) = machine.open();
    let (mut other, other_port) = machine.open();
    // The guest sends as long as it has credit.
    let (mut sent, mut forwarded) = (0_u32, 0_u32);
    let chunk = vec![5; 16 << 10];
    while sent - forwarded + (16 << 10) <= BUFFER_BYTES {
        machine.send(machine.packet(port, DATA), &chunk);
        sent += 16 << 10;
        for (header, _) in machine.received() {
            assert_eq!((header.operation, header.source_port), (CREDIT_UPDATE, port));
            forwarded = header.forwarded;
        }
        assert!(sent < 8 << 20, "the socket takes without end");
        machine.from_guest.rewind();
    }
    machine.send(machine.packet(other_port, DATA), b"ping");
    assert_eq!(read(&mut other, 4), b"ping");
    other.write_all(b"pong").unwrap();
    assert_eq!(machine.received()[0].1, b"pong");
    // When the host reads, the guest hears of it.
    let mut rest = usize::try_from(sent).unwrap();
    while rest > 0 {
        let mut bytes = [0; 64 << 10];
        let count = stalled.read(&mut bytes).unwrap();
        assert!(bytes[..count].iter().all(|byte| *byte == 5));
        rest -= count;
        machine.serve().unwrap();
    }
    assert!(
        machine
            .received()
            .iter()
            .any(|(header, _)| sent - header.forwarded < BUFFER_BYTES / 4)
    );
}

#[test]
fn a_guest_that_exceeds_its_credit_is_cut_off() {
    let mut machine = Machine::new();
    let (mut client, port) = machine.open();
    let mut operations = Vec::new();
    for _ in 0..64 {
        machine.send(machine.packet(port, DATA), &vec![1; 64 << 10]);
        operations.extend(machine.operations());
        machine.from_guest.rewind();
    }
    assert!(operations.contains(&RESET));
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).unwrap();
    assert!(rest.len() < 2 << 20);
}

#[test]
fn the_hosts_end_of_file_leaves_the_other_direction_open() {
    let mut machine = Machine::new();
    let (mut client, port) = machine.open();
    client.write_all(b"last words").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let packets = machine.received();
    assert_eq!(packets[0].1, b"last words");
    assert_eq!(
        (packets[1].0.operation, packets[1].0.flags),
        (SHUTDOWN, NO_MORE_SENDING)
    );
    assert_eq!(packets.len(), 2);
    machine.send(machine.packet(port, DATA), b"still here");
    assert_eq!(read(&mut client, 10), b"still here");
    machine.send_shutdown(port, NO_MORE_SENDING | NO_MORE_RECEIVING);
    assert!(is_closed(&mut client));
    assert_eq!(machine.operations(), [RESET]);
}

#[test]
fn the_guests_end_of_file_leaves_the_other_direction_open() {
    let mut machine = Machine::new();
    let (mut client, port) = machine.open();
    machine.send(machine.packet(port, DATA), b"bye");
    machine.send_shutdown(port, NO_MORE_SENDING);
    let mut words = Vec::new();
    client.read_to_end(&mut words).unwrap();
    assert_eq!(words, b"bye");
    client.write_all(b"wait").unwrap();
    assert_eq!(machine.received()[0].1, b"wait");
    // Data after the end is a broken guest.
    machine.send(machine.packet(port, DATA), b"?");
    assert_eq!(machine.operations(), [RESET]);
}

#[test]
fn a_guest_that_stops_receiving_makes_writes_fail() {
    let mut machine = Machine::new();
    let (mut client, port) = machine.open();
    machine.send_shutdown(port, NO_MORE_RECEIVING);
    assert_eq!(client.write_all(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    assert!(machine.received().is_empty());
    machine.send(machine.packet(port, DATA), b"fine");
    assert_eq!(read(&mut client, 4), b"fine");
}

#[test]
fn a_client_that_goes_away_is_reported_to_the_guest() {
    let mut machine = Machine::new();
    let (client, port) = machine.open();
    drop(client);
    let packets = machine.received();
    let flags = packets.iter().fold(0, |flags, (header, _)| flags | header.flags);
    assert_eq!(flags, NO_MORE_SENDING | NO_MORE_RECEIVING);
    // What was on its way is swallowed.
    machine.send(machine.packet(port, DATA), b"too late");
    assert!(machine.received().is_empty());
    machine.send_control(port, RESET);
    machine.send_control(port, CREDIT_UPDATE);
    assert_eq!(machine.operations(), [RESET], "the connection is forgotten");
}

#[test]
fn what_was_sent_before_a_reset_still_arrives() {
    let mut machine = Machine::new();
    let (mut client, port) = machine.open();
    let mut sent = 0;
    while sent < BUFFER_BYTES + (128 << 10) {
        machine.send(machine.packet(port, DATA), &[3; 32 << 10]);
        sent += 32 << 10;
        machine.from_guest.rewind();
    }
    assert!(!machine.operations().contains(&RESET));
    machine.send_control(port, RESET);
    let mut rest = usize::try_from(sent).unwrap();
    while rest > 0 {
        rest -= client.read(&mut [0; 32 << 10]).unwrap();
        machine.serve().unwrap();
    }
    assert!(is_closed(&mut client));
}

#[test]
fn a_connection_that_has_failed_is_not_opened() {
    let mut machine = Machine::new();
    let mut client = machine.client();
    client.write_all(b"CONNECT 1024\n").unwrap();
    let port = machine.received()[0].0.source_port;
    // Data before the answer is a fault; what follows while the reset is on its way does not mend it.
    machine.queues.to_guest = Driver::in_memory(machine.memory.clone(), 128, 3).ring();
    machine.send(machine.packet(port, DATA), b"lost");
    machine.send_control(port, RESPONSE);
    machine.send(machine.packet(port, DATA), b"behind a gap");
    machine.queues.to_guest = machine.to_guest.ring();
    machine.to_guest.forget();
    machine.serve().unwrap();
    drop(machine);
    let mut all = Vec::new();
    client.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"");
}

#[test]
fn packets_without_a_connection_are_answered_with_a_reset() {
    let mut machine = Machine::new();
    for operation in [REQUEST, RESPONSE, DATA, SHUTDOWN, CREDIT_UPDATE, 99] {
        machine.send_control(5, operation);
        let packets = machine.received();
        let [(header, _)] = packets.as_slice() else {
            panic!("{packets:?}")
        };
        assert_eq!(
            (header.operation, header.source_port, header.destination_port),
            (RESET, 5, PORT)
        );
    }
    machine.send_control(5, RESET);
    assert!(machine.received().is_empty());
    let (_client, port) = machine.open();
    machine.send(
        Header {
            source_port: PORT + 1,
            ..machine.packet(port, DATA)
        },
        b"not yours",
    );
    machine.send(
        Header {
            kind: 2,
            ..machine.packet(port, DATA)
        },
        b"not a stream",
    );
    assert_eq!(machine.operations(), [RESET, RESET]);
    machine.send(
        Header {
            source_cid: 9,
            ..machine.packet(port, DATA)
        },
        b"x",
    );
    machine.send(
        Header {
            destination_cid: 9,
            ..machine.packet(port, DATA)
        },
        b"x",
    );
    assert!(
        machine.received().is_empty(),
        "not this guest's, or not for this host"
    );
}

#[test]
fn answers_for_a_guest_that_takes_none_are_bounded() {
    let mut machine = Machine::new();
    for _ in 0..100 {
        machine.send_control(5, REQUEST);
    }
    let answered = machine.received().len();
    assert_eq!(answered, 60, "as many as there were buffers");
    machine.give_buffers(60);
    assert_eq!(machine.received().len(), 40);
    for _ in 0..120 {
        machine.send_control(5, REQUEST);
    }
    // 20 answered, 64 kept, and the others still lie in the queue.
    assert_eq!(machine.received().len(), 20);
    assert_eq!(machine.from_guest.used().len(), 100 + 20 + 64);
}

#[test]
fn malformed_packets_break_the_queue() {
    let check = |parts: &[&[u8]], writable: &[u32]| {
        let mut machine = Machine::new();
        machine.from_guest.request(parts, writable);
        assert!(matches!(machine.serve(), Err(RingError::Malformed)));
    };
    let machine = Machine::new();
    let header = Header {
        length: 10,
        ..machine.packet(5, DATA)
    }
    .to_bytes();
    check(&[&header[..43]], &[]);
    check(&[&header, b"only nine"], &[]);
    check(&[], &[64]);
    check(
        &[
            &Header {
                length: u32::MAX,
                ..machine.packet(5, DATA)
            }
            .to_bytes(),
            b"x",
        ],
        &[],
    );
    // A header may be cut anywhere, and padding may follow the data.
    let mut machine = Machine::new();
    let (mut client, port) = machine.open();
    let header = Header {
        length: 4,
        ..machine.packet(port, DATA)
    }
    .to_bytes();
    machine
        .from_guest
        .request(&[&header[..7], &header[7..], b"da", b"ta and more"], &[]);
    machine.serve().unwrap();
    assert_eq!(read(&mut client, 4), b"data");
}

#[test]
fn a_buffer_too_small_for_data_breaks_the_queue() {
    for bytes in [43, 44] {
        let mut machine = Machine::new();
        let driver = Driver::in_memory(machine.memory.clone(), 128, 3);
        machine.queues.to_guest = driver.ring();
        driver.request(&[], &[bytes]);
        machine.client().write_all(b"CONNECT 1\n").unwrap();
        assert!(matches!(machine.serve(), Err(RingError::Malformed)));
    }
}

#[test]
fn connections_are_limited_and_their_places_are_used_again() {
    let mut machine = Machine::new();
    let mut clients: Vec<_> = (0..MAX_CONNECTIONS)
        .map(|_| {
            let client = machine.client();
            machine.serve().unwrap();
            client
        })
        .collect();
    let mut refused = machine.client();
    machine.serve().unwrap();
    assert!(is_closed(&mut refused));
    clients.truncate(10);
    machine.serve().unwrap();
    let (_client, port) = machine.open();
    assert!(port > 1 << 30);
}

#[test]
fn a_reset_device_closes_everything_and_starts_anew() {
    let mut machine = Machine::new();
    let (mut client, _) = machine.open();
    machine.muxer.stop();
    assert!(is_closed(&mut client));
    // Who comes now waits until the device is started again.
    let mut waiting = machine.client();
    waiting.write_all(b"CONNECT 1024\n").unwrap();
    assert!(machine.received().is_empty());
    machine.muxer.start().unwrap();
    assert_eq!(machine.operations(), [REQUEST]);
}

/// Nonsense is an error, sense is answered, and clients of the host wait meanwhile.
#[test]
fn hostile_rings_and_packets_do_no_harm() {
    let mut machine = Machine::new();
    let packet = |random: &mut Random| {
        let any = random.next();
        let header = Header {
            source_cid: random.one_of(&[u64::from(GUEST_CID), HOST_CID, any]),
            destination_cid: random.one_of(&[HOST_CID, u64::from(GUEST_CID), any]),
            source_port: random.one_of(&[PORT, 0, u32::MAX]),
            destination_port: random.one_of(&[PORT, 1, 1 << 30, u32::MAX]),
            length: random.one_of(&[0, 1, 64, 4096, u32::MAX]),
            kind: random.one_of(&[TYPE_STREAM, 2, u16::MAX]),
            operation: random.one_of(&[
                REQUEST,
                RESPONSE,
                RESET,
                SHUTDOWN,
                DATA,
                CREDIT_UPDATE,
                CREDIT_REQUEST,
                99,
            ]),
            flags: random.one_of(&[0, 3, u32::MAX]),
            buffer_bytes: random.one_of(&[0, CREDIT, u32::MAX]),
            forwarded: random.one_of(&[0, 1, u32::MAX]),
        };
        header.to_bytes().to_vec()
    };
    let clients = [machine.client(), machine.client()];
    let mut random = Random::new(1);
    for round in 0..4000 {
        if round % 2 == 0 {
            machine.queues.from_guest = hostile_ring(&machine.from_guest, packet, &mut random);
        } else {
            machine.queues.to_guest = hostile_ring(&machine.to_guest, packet, &mut random);
        }
        for _ in 0..4 {
            machine.muxer.poll().unwrap();
            let _ = machine.queues.serve(&machine.memory, &mut machine.muxer);
        }
    }
    drop(clients);
}
