//! The system calls of the guest's half that no safe wrapper offers.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd as _, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// The doorbell's I/O port.
pub(crate) const DOORBELL_PORT: u16 = 0x600;

/// Writes `value` to the doorbell.
pub(crate) fn ring(value: u8) -> io::Result<()> {
    // SAFETY: ioperm takes plain numbers and changes only this thread's right to use I/O ports.
    if unsafe { libc::ioperm(libc::c_ulong::from(DOORBELL_PORT), 1, 1) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the port was granted above, so the instruction does not fault; neither memory nor flags change.
    unsafe {
        std::arch::asm!(
            "out dx, al",
            in("dx") DOORBELL_PORT,
            in("al") value,
            options(nomem, nostack, preserves_flags)
        );
    }
    Ok(())
}

fn vsock() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    Ok(socket_with(
        AddressFamily::VSOCK,
        SocketType::STREAM,
        flags,
        None,
    )?)
}

fn address(cid: u32, port: u32) -> (libc::sockaddr_vm, libc::socklen_t) {
    let address = libc::sockaddr_vm {
        svm_family: libc::sa_family_t::try_from(libc::AF_VSOCK).unwrap(),
        svm_reserved1: 0,
        svm_port: port,
        svm_cid: cid,
        svm_zero: [0; 4],
    };
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_vm>()).unwrap();
    (address, length)
}

/// A listening socket on `port`.
pub(crate) fn listen_vsock(port: u32) -> io::Result<OwnedFd> {
    let (socket, (address, length)) = (vsock()?, address(libc::VMADDR_CID_ANY, port));
    // SAFETY: bind reads `length` bytes at the pointer, which is the size of the structure there.
    if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) } != 0 {
        return Err(io::Error::last_os_error());
    }
    rustix::net::listen(&socket, 1)?;
    Ok(socket)
}

/// A connection to `port` of the host.
pub(crate) fn connect_to_host(port: u32) -> io::Result<OwnedFd> {
    let (socket, (address, length)) = (vsock()?, address(libc::VMADDR_CID_HOST, port));
    // SAFETY: connect reads `length` bytes at the pointer, which is the size of the structure there.
    if unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}
