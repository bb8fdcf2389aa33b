//! The root file system as seen from inside is, entry by entry, what umoci unpacks of the same image.

use std::fs;

use anyhow::{Context as _, Result};
use rvm_tests::command::{LIMIT, finish};
use rvm_tests::images::{self, BUSYBOX, DEBIAN, LAYERS};
use rvm_tests::rvm::{Isolation, Rvm, in_mode, scratch};
use rvm_tests::tree::{self, Entry};

/// Where the runtime mounts something of its own.
const MOUNTED: [&str; 3] = ["proc", "sys", "dev"];

fn equals_what_umoci_unpacks(rvm: &Rvm, image: &'static str) -> Result<()> {
    let bundle = scratch()?.join("rootfs");
    if bundle.exists() {
        fs::remove_dir_all(&bundle)?; // left by a test that failed
    }
    let unpacked = images::unpack(image, &bundle)?;
    if image == LAYERS {
        let mut command = rvm.command(["load", "-i"])?;
        command.arg(images::archive(image, "oci-archive")?);
        finish(command, LIMIT)?.ok();
    }
    let arguments = [&["--rm", image, "/probe", "tree", "/"], MOUNTED.as_slice()].concat();
    let output = finish(rvm.run_command(arguments)?, 5 * LIMIT)?.ok();
    let inside = output
        .text()
        .lines()
        .map(|line| serde_json::from_str::<Entry>(line).with_context(|| line.to_owned()))
        .collect::<Result<Vec<_>>>()?;
    let unpacked = tree::walk(&unpacked, &MOUNTED)?;
    assert!(
        unpacked.len() > 50,
        "only {} entries were unpacked",
        unpacked.len()
    );
    let differences = tree::differences(&unpacked, &inside);
    assert!(
        differences.is_empty(),
        "left: umoci's tree, right: as seen inside\n{differences}"
    );
    fs::remove_dir_all(bundle)?;
    if image == LAYERS {
        rvm.call(["rmi", image])?.ok();
    }
    Ok(())
}

macro_rules! compare {
    ($($name:ident: $image:expr;)*) => {$(
        mod $name {
            use super::*;

            #[test]
            fn vm() -> Result<()> {
                in_mode(Isolation::Vm, |rvm: &Rvm| equals_what_umoci_unpacks(rvm, $image))
            }

            #[test]
            fn container() -> Result<()> {
                in_mode(Isolation::Container, |rvm: &Rvm| equals_what_umoci_unpacks(rvm, $image))
            }
        }
    )*};
}

compare! {
    debian: DEBIAN;
    busybox: BUSYBOX;
    layers: LAYERS;
}
