//! The socket device between a hostile guest and clients of the host that do as they like.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::connection::{BUFFER_BYTES, Connection, Phase};
use super::device::Vsock;
use super::muxer::{FIRST_HOST_PORT, Muxer};
use super::packet::{HEADER_BYTES, HOST_CID, Header, TYPE_STREAM, operation};
use super::queue::Queues;
use crate::devices::virtio::chain::Chain;
use crate::devices::virtio::ring::Ring;
use crate::fuzz::{BUFFERS, Input, Permit, memory, put, scene};
use crate::memory::{Bytes as _, GuestAddress, GuestMemory};

const GUEST_CID: u32 = 3;
const PORT: u32 = 1024;
/// What the guest says and what the host's clients do, before an input ends.
const MOST_STEPS: usize = 12;
/// What is written, sent or read at a time.
const MOST_BYTES: usize = 0x3000;

/// A listener that only this thread connects to.
fn listener() -> (UnixListener, SocketAddr) {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("rvm-fuzz-{}-{number}", std::process::id());
    let address = SocketAddr::from_abstract_name(name).unwrap();
    (UnixListener::bind_addr(&address).unwrap(), address)
}

/// A whole device, for the transport's harness, and where its clients connect.
pub(crate) fn device() -> (Vsock, SocketAddr) {
    let (listener, address) = listener();
    (Vsock::new(GUEST_CID, listener).unwrap(), address)
}

/// A client that has said what it wants, more or less.
pub(crate) fn client(input: &mut Input<'_>, address: &SocketAddr) -> UnixStream {
    let mut client = UnixStream::connect_addr(address).unwrap();
    client.set_nonblocking(true).unwrap();
    let greeting: &[u8] = match input.below(8) {
        0 => b"",
        1 => b"CONNECT 10",
        2 => b"CONNECT 1024\nand more",
        3 => {
            let length = input.byte();
            input.take(usize::from(length))
        }
        _ => b"CONNECT 1024\n",
    };
    // The socket is new: all of it fits.
    client.write_all(greeting).unwrap();
    client
}

/// A packet of the guest with some data.
pub(crate) fn packet(input: &mut Input<'_>) -> Vec<u8> {
    let any = input.byte();
    let header = Header {
        source_cid: if any < 0xf8 {
            u64::from(GUEST_CID)
        } else {
            input.long()
        },
        destination_cid: if any & 0xf8 != 0x80 {
            HOST_CID
        } else {
            input.long()
        },
        source_port: if any & 0xf8 != 0x88 { PORT } else { input.word() },
        destination_port: FIRST_HOST_PORT + u32::from(input.below(4)),
        length: u32::from(input.byte()),
        kind: if any & 0xf8 != 0x90 {
            TYPE_STREAM
        } else {
            input.half()
        },
        operation: u16::from(input.below(10)),
        flags: u32::from(input.below(8)),
        buffer_bytes: input.number(),
        forwarded: input.number(),
    };
    let mut bytes = header.to_bytes().to_vec();
    // One in a while has less data than it says, or says that it has very much.
    let length = if any & 0xf8 == 0x98 {
        0
    } else {
        usize::try_from(header.length).unwrap()
    };
    bytes.resize(HEADER_BYTES + length, b'x');
    if any & 0xf8 == 0xa0 {
        bytes[24..28].copy_from_slice(&input.word().to_le_bytes());
    }
    bytes
}

/// Queue number `index`, empty.
fn empty_ring(memory: &GuestMemory, index: u64) -> Ring {
    let state = crate::fuzz::queue(index, 16);
    put(memory, state.available, &[0; 4]);
    put(memory, state.used, &[0; 4]);
    Ring::new(state, 16, false, memory).unwrap()
}

/// Makes one more chain of a single buffer available; 16 are, at most, if the device takes them.
fn offer(memory: &GuestMemory, ring: &Ring, address: u64, length: u32, flags: u16) {
    let state = ring.state();
    let mut index: u16 = memory
        .read_obj(GuestAddress(state.available + 2))
        .unwrap_or_default();
    let slot = u64::from(index % state.size);
    let entry = [
        &address.to_le_bytes()[..],
        &length.to_le_bytes(),
        &flags.to_le_bytes(),
        &[0; 2],
    ];
    put(memory, state.descriptors + 16 * slot, &entry.concat());
    put(
        memory,
        state.available + 4 + 2 * slot,
        &(index % state.size).to_le_bytes(),
    );
    index = index.wrapping_add(1);
    put(memory, state.available + 2, &index.to_le_bytes());
}

struct Host {
    muxer: Muxer,
    address: SocketAddr,
}

pub(crate) fn queue(data: &[u8]) {
    thread_local! {
        static HOST: RefCell<Host> = RefCell::new({
            let (listener, address) = listener();
            let muxer = Muxer::new(GUEST_CID, listener).unwrap();
            Host { muxer, address }
        });
    }
    HOST.with_borrow_mut(|host| {
        host.muxer.set_next_port(FIRST_HOST_PORT);
        host.muxer.start().unwrap();
        let mut session = Session {
            memory: memory(),
            queues: None,
            clients: Vec::new(),
        };
        let mut input = Input::new(data);
        for _ in 0..MOST_STEPS {
            if input.is_empty() {
                break;
            }
            session.step(&mut input, host);
        }
        host.muxer.stop();
    });
}

struct Session {
    memory: GuestMemory,
    /// None after the device has failed.
    queues: Option<Queues>,
    clients: Vec<UnixStream>,
}

impl Session {
    fn step(&mut self, input: &mut Input<'_>, Host { muxer, address }: &mut Host) {
        let memory = &self.memory;
        let queues = self.queues.get_or_insert_with(|| Queues {
            to_guest: empty_ring(memory, 0),
            from_guest: empty_ring(memory, 1),
            events: empty_ring(memory, 2),
        });
        let mut is_hostile = false;
        match input.below(10) {
            0 | 1 if self.clients.len() < 4 => self.clients.push(client(input, address)),
            2 | 3 => {
                let bytes = packet(input);
                put(memory, BUFFERS, &bytes);
                let length = u32::try_from(bytes.len()).unwrap();
                offer(memory, &queues.from_guest, BUFFERS, length, 0);
            }
            4 | 5 => {
                for _ in 0..=input.below(4) {
                    let address = BUFFERS + 0x1000 + 0x100 * u64::from(input.below(16));
                    offer(memory, &queues.to_guest, address, 0x100, 2);
                }
            }
            6 => {
                is_hostile = true;
                if let Some(scene) = scene(input, memory, 1, packet) {
                    queues.from_guest = scene.ring;
                }
            }
            7 => {
                is_hostile = true;
                if let Some(scene) = scene(input, memory, 0, |_| Vec::new()) {
                    queues.to_guest = scene.ring;
                }
            }
            8 => {
                let later = Duration::from_secs(u64::from(input.below(32)));
                muxer.check_deadlines(Instant::now() + later);
            }
            _ => use_client(input, &mut self.clients),
        }
        muxer.poll().unwrap();
        let permit = is_hostile.then(|| {
            let states = queues.state();
            states.iter().fold(Permit::none(memory), Permit::and)
        });
        let failed = queues.serve(memory, muxer).is_err();
        if let Some(permit) = permit {
            permit.check(memory);
        }
        if failed {
            self.queues = None;
            muxer.stop();
            muxer.start().unwrap();
        }
    }
}

/// What a program does with its socket. That it fails when the guest has gone is no fault.
pub(crate) fn use_client(input: &mut Input<'_>, clients: &mut Vec<UnixStream>) {
    let index = usize::from(input.byte());
    let Some(index) = index.checked_rem(clients.len()) else {
        return;
    };
    let client = &mut clients[index];
    match input.below(6) {
        0 | 1 => {
            let _ = client.write(&[b'y'; 600][..usize::from(input.byte()) * 2]);
        }
        2 => {
            let _ = client.read(&mut [0; 512]);
        }
        3 => {
            let _ = client.shutdown(input.one_of(&[Shutdown::Write, Shutdown::Read, Shutdown::Both]));
        }
        4 => drop(clients.swap_remove(index)),
        _ => {}
    }
}

/// One connection; what is sent by one side reaches the other in order and within its credit, or not at all.
pub(crate) fn connection(data: &[u8]) {
    let mut input = Input::new(data);
    let (client, socket) = UnixStream::pair().unwrap();
    client.set_nonblocking(true).unwrap();
    // The least that there can be: what does not fit is kept here.
    rustix::net::sockopt::set_socket_send_buffer_size(&socket, 0).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut link = Link {
        memory: memory(),
        connection: Connection::new(socket, FIRST_HOST_PORT, deadline),
        client: Some(client),
        credit: (0, 0),
        from_client: Stream::default(),
        from_guest: Stream::default(),
        greeted: false,
    };
    link.greet(&mut input);
    for _ in 0..2 * MOST_STEPS {
        if input.is_empty() || link.connection.phase() == Phase::Closed {
            break;
        }
        link.step(&mut input);
    }
}

/// Bytes that tell where in the stream they belong.
#[derive(Default)]
struct Stream {
    sent: usize,
    received: usize,
}

impl Stream {
    fn next(&self, count: usize) -> &'static [u8] {
        Self::bytes(self.sent, count)
    }

    /// A cycle that no power of two is a multiple of.
    fn bytes(from: usize, count: usize) -> &'static [u8] {
        static CYCLES: LazyLock<Vec<u8>> =
            LazyLock::new(|| (0..=250).cycle().take(251 + MOST_BYTES).collect());
        &CYCLES[from % 251..][..count]
    }

    fn receive(&mut self, bytes: &[u8]) {
        assert_eq!(
            bytes,
            Self::bytes(self.received, bytes.len()),
            "at {}",
            self.received
        );
        self.received += bytes.len();
        assert!(self.received <= self.sent);
    }
}

struct Link {
    memory: GuestMemory,
    connection: Connection,
    client: Option<UnixStream>,
    /// What the guest has said last: the size of its buffer and what it has taken.
    credit: (u32, u32),
    from_client: Stream,
    from_guest: Stream,
    /// The client has read the line that says that it is connected.
    greeted: bool,
}

impl Link {
    fn greet(&mut self, input: &mut Input<'_>) {
        let odd = input.byte();
        let greeting = if odd < 0xf0 {
            b"CONNECT 1024\n".as_slice()
        } else {
            input.take(16)
        };
        // What follows the line is part of the stream, and this is no part of it.
        let greeting = greeting
            .split_inclusive(|byte| *byte == b'\n')
            .next()
            .unwrap_or_default();
        if let Some(client) = &mut self.client {
            client.write_all(greeting).unwrap();
        }
        self.connection.socket_ready(true, true, false);
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.below(12) {
            0 | 1 => self.client_writes(usize::from(input.half()) % MOST_BYTES),
            2 | 3 => self.client_reads(),
            4 => {
                let how = input.byte();
                match &self.client {
                    _ if how & 7 == 7 => self.client = None,
                    // It fails if the guest has ended the stream.
                    Some(client) if how & 7 == 1 => drop(client.shutdown(Shutdown::Write)),
                    Some(client) if how & 7 == 2 => drop(client.shutdown(Shutdown::Read)),
                    _ => {}
                }
            }
            5..=7 => self.guest_sends(input),
            8..=10 => self.guest_takes(input),
            _ => {
                let later = Duration::from_secs(u64::from(input.below(20)));
                self.connection.check_deadline(Instant::now() + later);
            }
        }
        // To look at a socket that is not ready does no harm; what is said of a hang-up is true.
        let hung_up = self.client.is_none();
        self.connection.socket_ready(true, true, hung_up);
        assert!(self.connection.backlog_bytes() <= BUFFER_BYTES);
    }

    fn client_writes(&mut self, count: usize) {
        let bytes = self.from_client.next(count);
        // Less than all of it if the socket is full, nothing if it is shut down.
        if let Some(client) = &mut self.client
            && let Ok(count) = client.write(bytes)
        {
            self.from_client.sent += count;
        }
    }

    fn client_reads(&mut self) {
        let Some(client) = &mut self.client else { return };
        let mut bytes = [0; MOST_BYTES];
        let Ok(count) = client.read(&mut bytes) else {
            return;
        };
        let mut bytes = &bytes[..count];
        if !self.greeted && count > 0 {
            let line = format!("OK {FIRST_HOST_PORT}\n");
            bytes = bytes.strip_prefix(line.as_bytes()).unwrap();
            self.greeted = true;
        }
        self.from_guest.receive(bytes);
    }

    /// A buffer of guest memory as the device finds it in a queue.
    fn buffer(&self, ring: &mut Ring, length: usize, flags: u16) {
        offer(&self.memory, ring, BUFFERS, u32::try_from(length).unwrap(), flags);
    }

    fn guest_sends(&mut self, input: &mut Input<'_>) {
        let operation = u16::from(input.below(9));
        let length = match operation {
            operation::DATA => usize::from(input.half()) % MOST_BYTES,
            _ => 0,
        };
        self.credit = match input.below(8) {
            0 => (input.number(), input.number()),
            1 => (0, 0),
            _ => (1 << 16, u32::try_from(self.from_client.received).unwrap()),
        };
        let header = Header {
            length: u32::try_from(length).unwrap(),
            kind: TYPE_STREAM,
            operation,
            flags: u32::from(input.below(4)),
            buffer_bytes: self.credit.0,
            forwarded: self.credit.1,
            ..Default::default()
        };
        if !self.connection.talks_to(PORT) {
            return;
        }
        put(&self.memory, BUFFERS, self.from_guest.next(length));
        self.from_guest.sent += length;
        let mut ring = empty_ring(&self.memory, 3);
        self.buffer(&mut ring, length, 0);
        let chain: Chain<'_> = ring.pop(&self.memory).unwrap().unwrap();
        self.connection.receive(&header, &chain.readable);
    }

    fn guest_takes(&mut self, input: &mut Input<'_>) {
        let length = usize::from(input.half()) % MOST_BYTES + 1;
        let mut ring = empty_ring(&self.memory, 3);
        self.buffer(&mut ring, length, 2);
        let chain: Chain<'_> = ring.pop(&self.memory).unwrap().unwrap();
        let wanted = self.connection.wants_guest();
        let Some(header) = self.connection.next_packet(&chain.writable) else {
            return;
        };
        assert!(wanted, "{header:?} was not announced");
        let count = usize::try_from(header.length).unwrap();
        assert!(count <= length && (header.operation == operation::DATA) == (count > 0));
        let sent = u32::try_from(self.from_client.received).unwrap();
        let credit = self.credit.0.saturating_sub(sent.wrapping_sub(self.credit.1));
        assert!(header.length <= credit, "{header:?} with a credit of {credit}");
        let mut bytes = vec![0; count];
        self.memory.read_slice(&mut bytes, GuestAddress(BUFFERS)).unwrap();
        self.from_client.receive(&bytes);
    }
}
