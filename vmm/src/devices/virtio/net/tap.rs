//! Where a pair of queues gets its frames from and sends them to: a queue of a TAP interface.
//!
//! Somebody else has made the interface; all that happens here are the requests that need no privilege.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
};

use super::queue::HEADER_BYTES;
use crate::memory::VolatileSlice;
use crate::sys;

/// `TUN_F_` flags (include/uapi/linux/if_tun.h).
const CHECKSUM: u32 = 1;
const SEGMENTS_4: u32 = 2;
const SEGMENTS_6: u32 = 4;
const SEGMENTS_ECN: u32 = 8;

/// Sends and receives frames, each behind a `struct virtio_net_hdr_v1` (section 5.1.6). Neither waits.
pub trait Port: AsFd + fmt::Debug + Send + Sync {
    /// Puts one frame into `into` and says how long it is. What does not fit is lost.
    ///
    /// # Errors
    /// `WouldBlock` if there is none.
    fn receive(&self, into: &[VolatileSlice<'_>]) -> io::Result<usize> {
        sys::read_frame(self.as_fd(), into)
    }

    /// Sends one frame.
    ///
    /// # Errors
    /// `WouldBlock` if there is no room for it now; any other if the frame is lost.
    fn send(&self, from: &[VolatileSlice<'_>]) -> io::Result<usize> {
        sys::write_frame(self.as_fd(), from)
    }

    /// Makes sure that frames come in no form that the driver has not agreed to in `features`.
    ///
    /// # Errors
    /// Those of the port.
    fn set_features(&self, features: u64) -> io::Result<()>;

    /// Takes part in the traffic or not.
    ///
    /// # Errors
    /// Those of the port.
    fn set_attached(&self, attached: bool) -> io::Result<()>;
}

/// Why a descriptor is not taken for a queue of a TAP interface.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// It is something else, or belongs to no interface.
    #[error("its descriptor is no queue of a TAP interface")]
    NotTap(#[source] io::Error),
    /// Its frames look otherwise, or it is one of several queues of an interface that has only one.
    #[error("its TAP interface is not {0}")]
    Flags(&'static str),
    /// It cannot be set up.
    #[error("cannot set up its TAP interface")]
    SetUp(#[source] io::Error),
}

/// A queue of a TAP interface.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    attached: AtomicBool,
}

impl Tap {
    /// Takes over a queue. `several` says that the device has more than this one.
    ///
    /// # Errors
    /// [`TapError`].
    pub fn new(fd: OwnedFd, several: bool) -> Result<Self, TapError> {
        let flags = sys::tap_flags(fd.as_fd()).map_err(TapError::NotTap)?;
        let multi_queue = if several { libc::IFF_MULTI_QUEUE } else { 0 };
        for (flag, meaning) in [
            (libc::IFF_TAP, "one for Ethernet frames (IFF_TAP)"),
            (libc::IFF_NO_PI, "without packet information (IFF_NO_PI)"),
            (libc::IFF_VNET_HDR, "one with virtio headers (IFF_VNET_HDR)"),
            (multi_queue, "one with several queues (IFF_MULTI_QUEUE)"),
        ] {
            if flags & flag != flag {
                return Err(TapError::Flags(meaning));
            }
        }
        let header = libc::c_int::try_from(HEADER_BYTES).map_err(|_| TapError::Flags("possible"))?;
        sys::set_tap_header(fd.as_fd(), header).map_err(TapError::SetUp)?;
        fcntl_getfl(&fd)
            .and_then(|flags| fcntl_setfl(&fd, flags | OFlags::NONBLOCK))
            .map_err(|error| TapError::SetUp(error.into()))?;
        Ok(Self {
            fd,
            attached: AtomicBool::new(true),
        })
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Port for Tap {
    fn set_features(&self, features: u64) -> io::Result<()> {
        sys::set_tap_offload(self.as_fd(), offload(features))
    }

    fn set_attached(&self, attached: bool) -> io::Result<()> {
        // Only one thread at a time controls a device.
        if self.attached.load(Ordering::Relaxed) != attached {
            sys::attach_tap_queue(self.as_fd(), attached)?;
            self.attached.store(attached, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// What the interface may leave to a driver that has agreed on `features`. The kernel refuses segments without checksums
/// and congestion marks without segments, as the specification forbids them to drivers (section 5.1.3.1).
fn offload(features: u64) -> u32 {
    let has = |feature: u32| features & (1 << feature) != 0;
    if !has(VIRTIO_NET_F_GUEST_CSUM) {
        return 0;
    }
    let segments = [
        (VIRTIO_NET_F_GUEST_TSO4, SEGMENTS_4),
        (VIRTIO_NET_F_GUEST_TSO6, SEGMENTS_6),
    ]
    .into_iter()
    .filter(|(feature, _)| has(*feature))
    .fold(0, |flags, (_, flag)| flags | flag);
    if segments != 0 && has(VIRTIO_NET_F_GUEST_ECN) {
        return CHECKSUM | segments | SEGMENTS_ECN;
    }
    CHECKSUM | segments
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Mutex;

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;
    use crate::bus::lock;

    /// A port on a socket that keeps messages apart, as an interface does frames.
    #[derive(Debug)]
    pub(in super::super) struct SocketPort {
        socket: OwnedFd,
        /// What was asked of the port.
        pub(in super::super) requests: Mutex<Vec<Request>>,
        /// Refuse to be attached.
        pub(in super::super) refuses: bool,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(in super::super) enum Request {
        Features(u64),
        Attached(bool),
    }

    impl SocketPort {
        /// A port, and where its frames come from and go to.
        pub(in super::super) fn pair() -> (Self, OwnedFd) {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let (socket, other) =
                socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
            let port = Self {
                socket,
                requests: Mutex::default(),
                refuses: false,
            };
            (port, other)
        }
    }

    impl AsFd for SocketPort {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.socket.as_fd()
        }
    }

    impl Port for SocketPort {
        fn set_features(&self, features: u64) -> io::Result<()> {
            lock(&self.requests).push(Request::Features(features));
            Ok(())
        }

        fn set_attached(&self, attached: bool) -> io::Result<()> {
            lock(&self.requests).push(Request::Attached(attached));
            if self.refuses && attached {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            Ok(())
        }
    }

    #[test]
    fn the_interface_leaves_to_the_driver_what_it_agreed_to() {
        let check = |features: &[u32], expected| {
            let features = features.iter().fold(0, |all, feature| all | (1 << feature));
            assert_eq!(offload(features), expected, "{features:#x}");
        };
        let (checksum, four, six, ecn) = (
            VIRTIO_NET_F_GUEST_CSUM,
            VIRTIO_NET_F_GUEST_TSO4,
            VIRTIO_NET_F_GUEST_TSO6,
            VIRTIO_NET_F_GUEST_ECN,
        );
        check(&[], 0);
        check(&[four, six, ecn], 0);
        check(&[checksum], 1);
        check(&[checksum, ecn], 1);
        check(&[checksum, four], 3);
        check(&[checksum, six, ecn], 13);
        check(&[checksum, four, six, ecn], 15);
    }

    #[test]
    fn other_files_are_refused() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(Tap::new(file.into(), false), Err(TapError::NotTap(_))));
    }
}
