//! The guest's disks: `/dev/vda`, read-only, holds the image's layers one after the other; `/dev/vdb`, an ext4 file
//! system, holds what the workload writes.

use std::fs::File;

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use rvm_isolation::{Layer, Rootfs};
use rvm_protocol::LayerExtent;

use crate::boot::make_directory;
use crate::sys;

const LAYER_DISK: &str = "/dev/vda";
const WRITABLE_DISK: &str = "/dev/vdb";
const WRITABLE: &str = "/run/rvm/disk";
const UPPER: &str = "/run/rvm/disk/upper";
const WORK: &str = "/run/rvm/disk/work";
const STAGING: &str = "/run/rvm/rootfs";

/// Makes every layer a block device, mounts the writable disk, and says where all the parts of a root file system are.
pub(crate) fn prepare(extents: &[LayerExtent]) -> Result<Rootfs> {
    let layers = partition(extents)?;
    make_directory(WRITABLE)?;
    // noinit_itable: no kernel thread that fills the inode tables of a sparse disk with zeros.
    mount(
        WRITABLE_DISK,
        WRITABLE,
        "ext4",
        MountFlags::NODEV,
        c"noinit_itable",
    )
    .with_context(|| format!("mount {WRITABLE_DISK}"))?;
    for directory in [UPPER, WORK, STAGING] {
        make_directory(directory)?;
    }
    Ok(Rootfs {
        layers,
        upper: UPPER.into(),
        work: WORK.into(),
        staging: STAGING.into(),
    })
}

/// The disk has no partition table: a parser of them would be one more thing in the kernel to go wrong.
fn partition(extents: &[LayerExtent]) -> Result<Vec<Layer>> {
    if extents.is_empty() {
        return Ok(Vec::new());
    }
    let disk = File::open(LAYER_DISK).with_context(|| format!("open {LAYER_DISK}"))?;
    (1..)
        .zip(extents)
        .map(|(number, extent)| {
            let device = format!("{LAYER_DISK}{number}");
            add_partition(&disk, number, extent).with_context(|| format!("make {device} of {extent:?}"))?;
            Ok(Layer::Device(device.into()))
        })
        .collect()
}

fn add_partition(disk: &File, number: i32, extent: &LayerExtent) -> Result<()> {
    let start = i64::try_from(extent.offset)?;
    let length = i64::try_from(extent.length)?;
    Ok(sys::add_partition(disk, number, start, length)?)
}

/// Writes everything back and leaves the writable disk's file system clean.
pub(crate) fn release() -> Result<()> {
    rustix::fs::sync();
    if unmount(WRITABLE, UnmountFlags::empty()).is_ok() {
        return Ok(());
    }
    // Something still holds it; read-only it is clean all the same.
    mount_remount(WRITABLE, MountFlags::RDONLY, "").with_context(|| format!("make {WRITABLE} read-only"))
}
