//! The system calls that no safe wrapper offers. The only module of the agent with unsafe code.

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::Pid;
use rvm_protocol::{DOORBELL_PORT, Doorbell};

/// Writes the doorbell's byte to its I/O port.
///
/// The right to do so is held only for that one instruction: it would survive `execve`, and the workload would have it.
///
/// # Errors
/// When the kernel does not grant access to the port.
pub(crate) fn ring(doorbell: Doorbell) -> io::Result<()> {
    let allow = |allowed: libc::c_int| {
        // SAFETY: ioperm takes plain numbers and changes only this thread's right to use I/O ports.
        match unsafe { libc::ioperm(libc::c_ulong::from(DOORBELL_PORT), 1, allowed) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    allow(1)?;
    // SAFETY: the port was granted above, so the instruction does not fault; the virtual machine monitor is all that
    // listens there, and neither memory nor flags change.
    unsafe {
        std::arch::asm!(
            "out dx, al",
            in("dx") DOORBELL_PORT,
            in("al") doorbell as u8,
            options(nomem, nostack, preserves_flags)
        );
    }
    allow(0)
}

/// `BLKPG` and `BLKPG_ADD_PARTITION` of `linux/blkpg.h`.
const BLKPG: libc::Ioctl = 0x1269;
const BLKPG_ADD_PARTITION: libc::c_int = 1;

/// `struct blkpg_ioctl_arg`.
#[repr(C)]
struct BlkpgArgument {
    operation: libc::c_int,
    flags: libc::c_int,
    data_length: libc::c_int,
    data: *mut BlkpgPartition,
}

/// `struct blkpg_partition`. The names are not used by the kernel.
#[repr(C)]
struct BlkpgPartition {
    start: libc::c_longlong,
    length: libc::c_longlong,
    number: libc::c_int,
    device_name: [libc::c_char; 64],
    volume_name: [libc::c_char; 64],
}

/// Makes `length` bytes from `start` of a disk its partition `number`. Its device node exists afterwards, because
/// devtmpfs makes nodes before the device is announced (`drivers/base/core.c`, `device_add`).
///
/// # Errors
/// `EINVAL` for a place that is not aligned to sectors, `ENOSPC`, `EBUSY` or others as the kernel says.
pub(crate) fn add_partition(disk: impl AsFd, number: i32, start: i64, length: i64) -> io::Result<()> {
    let mut partition = BlkpgPartition {
        start,
        length,
        number,
        device_name: [0; 64],
        volume_name: [0; 64],
    };
    let data_length = libc::c_int::try_from(mem::size_of::<BlkpgPartition>()).map_err(io::Error::other)?;
    let argument = BlkpgArgument {
        operation: BLKPG_ADD_PARTITION,
        flags: 0,
        data_length,
        data: &raw mut partition,
    };
    // SAFETY: BLKPG reads the argument and, through its pointer, the partition. Both have the layout of the kernel's
    // structures and outlive the call.
    match unsafe { libc::ioctl(disk.as_fd().as_raw_fd(), BLKPG, &raw const argument) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A listening vsock stream socket on `port` of every context ID.
///
/// # Errors
/// When the guest has no vsock device, or as `socket`, `bind` and `listen` say.
pub(crate) fn listen_vsock(port: u32) -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(
        AddressFamily::VSOCK,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let family = libc::sa_family_t::try_from(libc::AF_VSOCK).map_err(io::Error::other)?;
    let length = libc::socklen_t::try_from(mem::size_of::<libc::sockaddr_vm>()).map_err(io::Error::other)?;
    let address = libc::sockaddr_vm {
        svm_family: family,
        svm_reserved1: 0,
        svm_port: port,
        svm_cid: libc::VMADDR_CID_ANY,
        svm_zero: [0; 4],
    };
    // SAFETY: bind reads `length` bytes at the pointer, which is the size of the structure there.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if bound != 0 {
        return Err(io::Error::last_os_error());
    }
    rustix::net::listen(&socket, 16)?;
    Ok(socket)
}

/// Which children [`wait_for_exit`] looks at.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Children {
    /// All of this process.
    All,
    /// Those in one process group.
    #[cfg(test)]
    Group(Pid),
}

/// Blocks until a child has ended, and leaves it to be reaped.
///
/// # Errors
/// `ECHILD` when there is no child.
pub(crate) fn wait_for_exit(children: Children) -> io::Result<Pid> {
    let (kind, id) = match children {
        Children::All => (libc::P_ALL, 0),
        #[cfg(test)]
        Children::Group(group) => (libc::P_PGID, group.as_raw_nonzero().get().cast_unsigned()),
    };
    loop {
        // SAFETY: siginfo_t is plain data for which zero bytes are a value.
        let mut information: libc::siginfo_t = unsafe { mem::zeroed() };
        // SAFETY: waitid writes one siginfo_t to the pointer, which is one.
        if unsafe { libc::waitid(kind, id, &raw mut information, libc::WEXITED | libc::WNOWAIT) } != 0 {
            match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => continue,
                error => return Err(error),
            }
        }
        // SAFETY: waitid succeeded, so that si_pid is the valid member of the union.
        let pid = unsafe { information.si_pid() };
        return Pid::from_raw(pid).ok_or_else(|| io::ErrorKind::InvalidData.into());
    }
}
