//! The part of the guest's initial root file system that differs from run to run.

use std::fs::File;
use std::io::{self, Write as _};

use rvm_protocol::{BOOT_CONFIG_PATH, BootConfig};

/// Packs `config` into a cpio archive (newc, initramfs buffer format in the kernel's documentation) in memory. The
/// kernel unpacks it over the agent's archive. It never touches a disk: it holds the token.
pub(super) fn boot_archive(config: &BootConfig) -> io::Result<File> {
    let json = serde_json::to_vec(config)?;
    let length = u32::try_from(json.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut file = File::from(rustix::fs::memfd_create(
        "rvm-boot",
        rustix::fs::MemfdFlags::CLOEXEC,
    )?);
    let name = BOOT_CONFIG_PATH.trim_start_matches('/');
    let mut entry = cpio::newc::Builder::new(name)
        .mode(0o100_400)
        .nlink(1)
        .write(&mut file, length);
    entry.write_all(&json)?;
    entry.finish()?;
    cpio::newc::trailer(&mut file)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _};

    use super::*;

    #[test]
    fn the_archive_holds_the_configuration() {
        let config = BootConfig {
            version: 1,
            token: "secret".into(),
            layers: Vec::new(),
            shares: Vec::new(),
            mounts: Vec::new(),
        };
        let mut file = boot_archive(&config).unwrap();
        file.rewind().unwrap();
        let mut reader = cpio::NewcReader::new(file).unwrap();
        assert_eq!(reader.entry().name(), "boot.json");
        let mut json = Vec::new();
        reader.read_to_end(&mut json).unwrap();
        assert_eq!(serde_json::from_slice::<BootConfig>(&json).unwrap(), config);
    }
}
