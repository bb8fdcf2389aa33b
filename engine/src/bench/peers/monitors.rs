//! Other virtual machine monitors: they boot no image by themselves, so they get the guest kernel of rvm, the container's files as
//! a disk of EROFS that is read only, and the probe as the first program. There is no agent, nothing that can be written to, no network
//! and no isolation inside: what they take is the least that they would take.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::Command;

use rvm_images::archive_layer;
use serde_json::json;

use super::{failed, program};
use crate::bench::plan::Subject;
use crate::bench::{Error, Plan, WORDS};
use crate::engine::Engine;
use crate::layout::Asset;
use crate::limits::{default_vcpus, machine_memory};
use crate::probe;

/// The disk, in the directory of what is made for others.
const DISK: &str = "root.erofs";

/// Firecracker's configuration, likewise.
const CONFIGURATION: &str = "firecracker.json";

/// Makes the disk of a container's files, and the configuration.
pub(super) fn prepare(engine: &Engine, container: &str, plan: &Plan, directory: &Path) -> Result<(), Error> {
    let path = directory.join(DISK);
    let disk = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .map_err(failed(&path))?;
    archive_layer(engine.export(container)?, disk).map_err(|error| failed(&path)(io::Error::other(error)))?;
    let path = directory.join(CONFIGURATION);
    let configuration = firecracker(&Size::of(plan)?, &kernel()?, directory);
    fs::write(&path, configuration.to_string()).map_err(failed(&path))
}

/// A command that boots it, and ends with it. The machine's serial port is its standard output.
pub(super) fn command(subject: Subject, plan: &Plan, directory: &Path) -> Result<Command, Error> {
    let mut command = Command::new(program(subject));
    if subject == Subject::Firecracker {
        command
            .args(["--no-api", "--level", "Off", "--config-file"])
            .arg(directory.join(CONFIGURATION));
    } else {
        command.args(qemu(&Size::of(plan)?, &kernel()?, directory));
    }
    Ok(command)
}

/// As large as a machine of rvm's for the same plan.
struct Size {
    vcpus: u8,
    memory_mib: u32,
}

impl Size {
    fn of(plan: &Plan) -> Result<Self, Error> {
        Ok(Self {
            vcpus: default_vcpus(),
            memory_mib: machine_memory(plan.memory_bytes)?,
        })
    }
}

fn kernel() -> Result<String, Error> {
    let path = Asset::Kernel.find().map_err(crate::engine::Error::from)?;
    Ok(path.display().to_string())
}

/// The kernel's command line. Words that it does not know are the first program's; no `--` is before them, as QEMU writes its devices
/// behind all that. `reset` is how the machine is reset, which ends it: "k" by the keyboard's controller, "t" by a triple
/// fault (Documentation/admin-guide/kernel-parameters.txt).
fn command_line(reset: char) -> String {
    format!(
        "console=ttyS0 quiet loglevel=0 panic=-1 reboot={reset} root=/dev/vda rootfstype=erofs ro init={} boot {}",
        probe::PATH,
        WORDS[1..].join(" ")
    )
}

/// The arguments for QEMU's smallest machine.
fn qemu(size: &Size, kernel: &str, directory: &Path) -> Vec<String> {
    // A comma in a value is written twice.
    let disk = directory.join(DISK).display().to_string().replace(',', ",,");
    let (vcpus, memory_mib) = (size.vcpus, size.memory_mib);
    let words = [
        "-machine",
        "microvm,acpi=off,x-option-roms=off",
        "-accel",
        "kvm",
        "-cpu",
        "host",
        "-smp",
        &vcpus.to_string(),
        "-m",
        &format!("{memory_mib}M"),
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
        "-serial",
        "stdio",
        "-drive",
        &format!("id=root,file={disk},format=raw,if=none,readonly=on"),
        "-device",
        "virtio-blk-device,drive=root",
        "-kernel",
        kernel,
        "-append",
        &command_line('t'),
    ];
    words.map(str::to_owned).to_vec()
}

/// Firecracker's configuration file.
fn firecracker(size: &Size, kernel: &str, directory: &Path) -> serde_json::Value {
    json!({
        "boot-source": {"kernel_image_path": kernel, "boot_args": command_line('k')},
        "drives": [{
            "drive_id": "root",
            "path_on_host": directory.join(DISK),
            "is_root_device": false,
            "is_read_only": true,
        }],
        "machine-config": {"vcpu_count": size.vcpus, "mem_size_mib": size.memory_mib},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size {
        vcpus: 2,
        memory_mib: 512,
    };

    #[test]
    fn machines_get_the_same_kernel_disk_and_size() {
        let arguments = qemu(&SIZE, "/k", Path::new("/a,b"));
        let after = |option: &str| {
            let at = arguments.iter().position(|word| word == option).unwrap();
            arguments[at + 1].as_str()
        };
        assert_eq!(
            (after("-smp"), after("-m"), after("-kernel")),
            ("2", "512M", "/k")
        );
        assert!(
            after("-drive").contains("file=/a,,b/root.erofs,"),
            "{arguments:?}"
        );
        let configuration = firecracker(&SIZE, "/k", Path::new("/a,b"));
        assert_eq!(
            configuration["machine-config"],
            json!({"vcpu_count": 2, "mem_size_mib": 512})
        );
        assert_eq!(configuration["drives"][0]["path_on_host"], "/a,b/root.erofs");
        assert_eq!(configuration["boot-source"]["kernel_image_path"], "/k");
        let [theirs, ours] = [
            after("-append"),
            configuration["boot-source"]["boot_args"].as_str().unwrap(),
        ];
        assert_eq!(theirs.replace("reboot=t", "reboot=k"), ours);
        assert!(ours.ends_with(" init=/.rvm-probe boot hello"), "{ours}");
    }
}
